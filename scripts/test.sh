#!/bin/sh
# Every test: those that need no Postgres, then those against real servers and real clients.
set -eu

cd "$(dirname "$0")/.."
if [ -z "${TIDE_CHROOT_INSIDE:-}" ] && [ ! -x "$PG_CONFIG" ] && [ "$PG" != "$(scripts/pg-version.sh)" ]; then
    exec scripts/chroot-test.sh "$PG"
fi
scripts/setup.sh build
cargo test -p tide-feed -p tide-server
make --no-print-directory test-e2e
