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
as_root install -m 644 pg_tide.control sql/pg_tide--*.sql "$extensions/"
echo "Installed pg_tide for $("$PG_CONFIG" --version) in $pkglibdir"
