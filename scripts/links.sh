#!/bin/sh
# Whether the relative links in Markdown pages lead to a file, and to a heading in it.
set -eu

cd "$(dirname "$0")/.."

# The headings of a page as GitHub names them in links.
anchors() {
    awk '/^```/ { code = !code } !code && /^#+ /' "$1" |
        sed -E 's/^#+ //; s/[^A-Za-z0-9 _-]//g; s/ /-/g' | tr '[:upper:]' '[:lower:]'
}

broken=$(
    git ls-files --cached --others --exclude-standard '*.md' | while read -r page; do
        [ -e "$page" ] || continue
        grep -oE '\]\([^)]+\)' "$page" | sed -E 's/^\]\(//; s/\)$//' | while read -r link; do
            case $link in *://* | mailto:*) continue ;; esac
            file=${link%%#*}
            if [ -n "$file" ]; then target=$(dirname "$page")/$file; else target=$page; fi
            if [ ! -e "$target" ]; then
                echo "$page: $link: no such file"
            elif [ "$link" != "$file" ] && ! anchors "$target" | grep -qxF -e "${link#*#}"; then
                echo "$page: $link: no such heading"
            fi
        done
    done
)
[ -z "$broken" ] || { echo "$broken" >&2; exit 1; }
