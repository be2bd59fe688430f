#!/bin/bash
# Makes a Debian package for one Postgres, of the extension, tide-server and the SQL, and has lintian
# look at it: target/deb/postgresql-15-pg-tide_0.2.0-1_amd64.deb. DEBFULLNAME and DEBEMAIL name who
# makes it, as for Debian's own tools; DEB_REVISION counts packages of the same version.
set -euo pipefail
umask 022

cd "$(dirname "$0")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
package=postgresql-$PG-pg-tide
release=$(sed -n "s/^default_version = '\(.*\)'/\1/p" pg_tide.control)
version=$release-${DEB_REVISION:-1}
made=${package}_${version}_$(dpkg --print-architecture).deb
# The same sources make the same package.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

# A Postgres that this machine's Debian does not have: made in a folder with the Debian that has it.
if [ -z "${TIDE_CHROOT_INSIDE:-}" ] && [ ! -x "$PG_CONFIG" ] && [ "$PG" != "$(scripts/pg-version.sh)" ]; then
    scripts/chroot-test.sh "$PG" make deb
    mkdir -p "$target/deb"
    cp "target/chroot-$PG/build/deb/$made" "$target/deb/"
    echo "It is in $target/deb"
    exit
fi
# Crates would be compiled anew whenever it changes.
env -u SOURCE_DATE_EPOCH make --no-print-directory build
scripts/setup.sh deb

# There is no address that all makers of packages share.
maintainer="${DEBFULLNAME:-pg_tide contributors} <${DEBEMAIL:-pg-tide@noreply.invalid}>"
libdir=$("$PG_CONFIG" --pkglibdir)
stage=$target/deb/$package

# fill <template> <NAME=value>...: the template with each @NAME@ replaced.
fill() {
    local text pair
    text=$(cat "scripts/deb/$1.in")
    shift
    for pair in "PACKAGE=$package" "PG=$PG" "RELEASE=$release" "VERSION=$version" \
        "MAINTAINER=$maintainer" "LIBDIR=$libdir" "$@"; do
        text=${text//@${pair%%=*}@/"${pair#*=}"}
    done
    printf '%s\n' "$text"
}

# The crates in the binaries: name, version and licence, a line each.
crates() {
    cargo tree --locked -p pg_tide -p tide-server --features "pg_tide/pg$PG" -e normal,no-proc-macro \
        --prefix none --format '{p} {l}' |
        sed -n 's/ (\*)$//; / (\//!s/^\([^ ]*\) v\([^ ]*\) /\1 \2 /p' | sort -u
}

# Their licences, each text once, with the crates that have it.
licences() {
    local name version folder file sum list
    declare -A users texts
    while read -r name version _; do
        for folder in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$name-$version"; do
            while IFS= read -r file; do
                sum=$(md5sum <"$file" | cut -d' ' -f1)
                texts[$sum]=$file
                users[$sum]="${users[$sum]:-} $name-$version"
            done < <(find "$folder" -maxdepth 1 -type f | grep -iE '/(un)?(licen[sc]e|copying|copyright|notice)[^/]*$' | sort)
        done
    done
    for sum in "${!users[@]}"; do echo "$sum${users[$sum]}"; done | sort -k 2 |
        while read -r sum list; do
            printf '==== %s\n\n' "$list"
            cat "${texts[$sum]}"
            echo
        done
}

rm -rf "$stage"
mkdir -p "$stage/DEBIAN" "$stage/usr/share/doc/$package"
DESTDIR=$stage scripts/install.sh
chmod 644 "$stage$libdir/pg_tide.so"
strip --strip-unneeded --remove-section=.comment --remove-section=.note "$stage$libdir/pg_tide.so"
strip --remove-section=.comment --remove-section=.note "$stage$libdir/tide-server-$release"

doc=$stage/usr/share/doc/$package
fill changelog "DATE=$(date -uR -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$doc/changelog.Debian.gz"
gzip -9n <CHANGELOG.md >"$doc/changelog.gz"
list=$(crates)
licences <<<"$list" | gzip -9n >"$doc/crates.gz"
# Not every installation of Rust has it.
notices=$(rustc --print sysroot)/share/doc/rust/COPYRIGHT-library.html
if [ -e "$notices" ]; then gzip -9n <"$notices" >"$doc/rust-library.html.gz"; fi
fill copyright "CRATES=  ${list//$'\n'/$'\n'  }" \
    "LICENSE=$(sed '1,/^Copyright/d; s/^$/./; s/^/ /' LICENSE | sed 1d)" >"$doc/copyright"
overrides=$stage/usr/share/lintian/overrides
mkdir -p "$overrides"
fill lintian-overrides >"$overrides/$package"

# dpkg-shlibdeps wants a folder of sources.
sources=$stage.sources
mkdir -p "$sources/debian"
printf 'Source: pg-tide\n\nPackage: %s\nArchitecture: any\n' "$package" >"$sources/debian/control"
depends=$(cd "$sources" && dpkg-shlibdeps -O "$stage$libdir/pg_tide.so" "$stage$libdir/tide-server-$release")
rm -r "$sources"

for script in preinst postinst postrm; do
    fill "$script" >"$stage/DEBIAN/$script"
    chmod 755 "$stage/DEBIAN/$script"
done
(cd "$stage" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$stage/DEBIAN/md5sums"
fill control "ARCHITECTURE=$(dpkg --print-architecture)" "DEPENDS=${depends#shlibs:Depends=}" \
    "SIZE=$(du -sk --exclude=DEBIAN "$stage" | cut -f1)" >"$stage/DEBIAN/control"

dpkg-deb --build --root-owner-group "$stage" "$target/deb/$made"
rm -r "$stage"
lintian --fail-on error,warning "$target/deb/$made"
echo "Made $target/deb/$made"
