#!/bin/sh
# Installs what is missing: `setup.sh build` for building and running the extension, `setup.sh
# test` for the clients that the end-to-end tests use as well, `setup.sh bench` for the peers that
# benchmarks compare with, `setup.sh deb` for making a package, `setup.sh test-deb` for the client that
# tries it. Does nothing, quickly, when all is there.
set -eu

cd "$(dirname "$0")/.."
PG=${PG:-$(scripts/pg-version.sh)}
tests=pgrx-tests

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Adds a package to the list if its proof, a file, is not there.
missing=
need() {
    [ -e "$2" ] || missing="$missing $1"
}

# Adds a package to the list if its command is not there.
need_command() {
    command -v "$2" >/dev/null 2>&1 || missing="$missing $1"
}

install_missing() {
    [ -n "$missing" ] || return 0
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "This machine has no apt-get. Please install what these Debian packages hold:$missing" >&2
        exit 1
    fi
    echo "Installing:$missing"
    as_root apt-get update -q
    # The server's package would make and start a cluster of its own, which nothing here uses. Another
    # package that is installed later may.
    no_cluster=/etc/postgresql-common/createcluster.d/pg_tide.conf
    if [ ! -e /etc/postgresql-common ]; then
        as_root mkdir -p "${no_cluster%/*}"
        echo 'create_main_cluster = false' | as_root tee "$no_cluster" >/dev/null
    fi
    status=0
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing ||
        status=$?
    [ ! -e "$no_cluster" ] || as_root rm -f "$no_cluster"
    [ "$status" = 0 ] || exit "$status"
    missing=
}

require_rust() {
    command -v cargo >/dev/null 2>&1 && return
    echo "Rust is missing. Install it as https://rustup.rs says, then try again." >&2
    exit 1
}

build_tools() {
    require_rust
    need "postgresql-$PG" "/usr/lib/postgresql/$PG/bin/postgres"
    need "postgresql-server-dev-$PG" "/usr/include/postgresql/$PG/server/postgres.h"
    need_command build-essential cc
    need_command clang clang
    need_command pkg-config pkg-config
    ls /usr/lib/llvm-*/lib/libclang.so* >/dev/null 2>&1 || missing="$missing libclang-dev"
    install_missing
}

need_node() {
    need_command nodejs node
    # Debian has npm as a package of its own, other builds of nodejs bring it along.
    if ! command -v npm >/dev/null 2>&1 && ! command -v node >/dev/null 2>&1; then
        missing="$missing npm"
    fi
}

# npm 9, which Debian 13 has, cannot read an override that is not a version number.
npm_ci() {
    case $(npm --version) in
    [1-9].*) npx --yes npm@10 ci "$@" ;;
    *) npm ci "$@" ;;
    esac
}

# What the package-lock.json of each folder names.
install_modules() {
    command -v npm >/dev/null 2>&1 || { missing=npm; install_missing; }
    for folder in "$@"; do
        installed=$folder/node_modules/.package-lock.json
        if [ ! -e "$installed" ] || [ "$folder/package-lock.json" -nt "$installed" ]; then
            npm_ci --prefix "$folder" --no-audit --no-fund --loglevel=error
        fi
    done
}

test_clients() {
    need_node
    need_command chromium chromium
    need_command python3 python3
    python3 -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"
    install_missing
    install_modules "$tests/node" "$tests/browser" clients/deepstream-storage
    venv=${CARGO_TARGET_DIR:-target}/python
    if [ ! -e "$venv/installed" ] || [ "$tests/python/requirements.txt" -nt "$venv/installed" ]; then
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$tests/python/requirements.txt"
        touch "$venv/installed"
    fi
}

bench_peers() {
    need "postgresql-$PG-wal2json" "/usr/lib/postgresql/$PG/lib/wal2json.so"
    need nats-server /usr/sbin/nats-server
    need_node
    install_missing
    install_modules clients/deepstream-storage
}

package_tools() {
    need_command dpkg-dev dpkg-shlibdeps
    need_command lintian lintian
    need debootstrap /usr/sbin/debootstrap
    install_missing
}

package_client() {
    need_node
    install_missing
    install_modules "$tests/node"
}

case ${1:-build} in
build) build_tools ;;
test) test_clients ;;
bench) bench_peers ;;
deb) package_tools ;;
test-deb) package_client ;;
*)
    echo "usage: $0 build|test|bench|deb|test-deb" >&2
    exit 2
    ;;
esac
