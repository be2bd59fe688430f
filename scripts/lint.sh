#!/bin/sh
# Formats, lints and documentation of both halves.
set -eu

cd "$(dirname "$0")/.."
step() {
    echo "== $*"
    "$@"
}

step scripts/links.sh
step scripts/errors.pl
# Cargo.toml, the control file and PGXN's have a version each.
version=$(sed -n "s/^default_version = '\(.*\)'/\1/p" pg_tide.control)
if ! grep -qxF "version = \"$version\"" Cargo.toml || [ "$(grep -cF "\"version\": \"$version\"" META.json)" -lt 2 ]; then
    echo "pg_tide.control, Cargo.toml and META.json are not of the same version" >&2
    exit 1
fi
step cargo fmt --check
step cargo clippy -p tide-feed -p tide-server -p tide-tests --features tide-tests/e2e --all-targets -- -D warnings
# In release, as `make build` does, so that Postgres's bindings are made once only.
step cargo clippy --release -p pg_tide --features "pg$PG" -- -D warnings
RUSTDOCFLAGS="-D warnings" step cargo doc -p tide-feed -p tide-server --no-deps --document-private-items
if command -v cargo-deny >/dev/null 2>&1; then
    step cargo deny check
fi
if command -v node >/dev/null 2>&1; then
    for file in $(git ls-files '*.js' '*.mjs'); do
        node --check "$file"
    done
fi
python=${CARGO_TARGET_DIR:-target}/python/bin/python
if [ -x "$python" ] && "$python" -c 'import mypy' 2>/dev/null; then
    step "$python" -m mypy --config-file clients/python/pyproject.toml clients/python/src clients/python/tests
fi
if command -v shellcheck >/dev/null 2>&1; then
    step shellcheck scripts/*.sh scripts/deb/p*.in .ci/run
fi
