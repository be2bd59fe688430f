#!/bin/sh
# Copies the built extension into the Postgres that PG_CONFIG names.
set -eu

cd "$(dirname "$0")/.."
library=${CARGO_TARGET_DIR:-target}/release/libpg_tide.so
pkglibdir=$("$PG_CONFIG" --pkglibdir)
extensions=$("$PG_CONFIG" --sharedir)/extension

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

if ! cmp -s "$library" "$pkglibdir/pg_tide.so"; then
    # A new file, never new bytes in the old one: a running server has that mapped.
    as_root rm -f "$pkglibdir/pg_tide.so"
    as_root install -m 755 "$library" "$pkglibdir/pg_tide.so"
fi
# The script of CREATE EXTENSION is kept in one file per subject, which run in the order of their names.
version=$(sed -n "s/^default_version = '\(.*\)'/\1/p" pg_tide.control)
script=$(mktemp)
trap 'rm -f "$script"' EXIT
cat sql/extension/*.sql > "$script"
as_root install -m 644 "$script" "$extensions/pg_tide--$version.sql"
as_root install -m 644 pg_tide.control "$extensions/"
echo "Installed pg_tide for $("$PG_CONFIG" --version) in $pkglibdir"
