#!/bin/sh
# Copies the built extension into the Postgres that PG_CONFIG names; with DESTDIR below that folder,
# as it is to be in a package.
set -eu

cd "$(dirname "$0")/.."
built=${CARGO_TARGET_DIR:-target}/release
DESTDIR=${DESTDIR:-}
pkglibdir=$DESTDIR$("$PG_CONFIG" --pkglibdir)
extensions=$DESTDIR$("$PG_CONFIG" --sharedir)/extension

as_root() {
    if [ -n "$DESTDIR" ] || [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

[ -z "$DESTDIR" ] || mkdir -p "$pkglibdir" "$extensions"

version=$(sed -n "s/^default_version = '\(.*\)'/\1/p" pg_tide.control)

# A new file, never new bytes in the old one: a running server has that mapped.
replace() {
    cmp -s "$1" "$2" && return
    as_root rm -f "$2"
    as_root install -m 755 "$1" "$2"
}

replace "$built/libpg_tide.so" "$pkglibdir/pg_tide.so"
# The version is in its name, so that an upgrade leaves a running worker its own.
replace "$built/tide-server" "$pkglibdir/tide-server-$version"
# The script of CREATE EXTENSION is kept in one file per subject, which run in the order of their names.
script=$(mktemp)
trap 'rm -f "$script"' EXIT
cat sql/extension/*.sql > "$script"
as_root install -m 644 "$script" "$extensions/pg_tide--$version.sql"
# Those of former versions, and the way from them.
as_root install -m 644 sql/upgrade/*.sql "$extensions/"
as_root install -m 644 pg_tide.control "$extensions/"
echo "Installed pg_tide for $("$PG_CONFIG" --version) in $pkglibdir"
