#!/bin/bash
# Runs `make test` on a Postgres that this machine's Debian does not have: in a folder with the
# Debian that has it, made by debootstrap under target/. The sources are copied in, the Rust
# toolchain is mounted; mounts and processes are the folder's own and end with it.
#
# usage: chroot-test.sh 16|17|18 [command...]      (the command: make test)
set -euo pipefail

cd "$(dirname "$0")/.."
export PG=$1
shift
case $PG in
15) suite=bookworm ;;
17) suite=trixie ;;
18) suite=forky ;;
*)
    echo "no Debian has Postgres $PG: 15, 17 and 18 can be tested like this" >&2
    exit 2
    ;;
esac
if [ "$(id -u)" != 0 ]; then
    exec sudo --preserve-env=CARGO_HOME,RUSTUP_HOME,HOME,PATH "$0" "$PG" "$@"
fi
[ $# -gt 0 ] || set -- make test

root=$PWD/target/chroot-$PG
cargo=${CARGO_HOME:-$HOME/.cargo}
rustup=${RUSTUP_HOME:-$HOME/.rustup}
bundle=/etc/ssl/certs/ca-certificates.crt

# Where this machine gets its own packages from.
mirror() {
    grep -rhoE '(http|https)://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d \
        2>/dev/null | head -n 1 | tr -d ' '
}

make_root() {
    if ! command -v debootstrap >/dev/null; then
        apt-get update -q
        apt-get install -y --no-install-recommends debootstrap
    fi
    local script=/usr/share/debootstrap/scripts/$suite
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
    rm -rf --one-file-system "$root"
    mkdir -p "$root"
    debootstrap --variant=minbase --include=ca-certificates,make,util-linux "$suite" "$root" \
        "$(mirror)" "$script"
    mkdir -p "$root"/{work,build,cargo,rustup}
    # Lists of a release in the making expire within days, and a mirror may be behind. They are
    # signed all the same.
    echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/90mirror"
    touch "$root/made"
}

# Replaces the sources by those of this folder, but for what was built from them.
copy_sources() {
    find "$root/work" -mindepth 1 -maxdepth 1 -not -name pgrx-tests -exec rm -rf {} +
    git ls-files -z --cached --others --exclude-standard |
        tar --null --ignore-failed-read -T - -cf - | tar -xf - -C "$root/work"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    # A machine behind a gateway with certificates of its own needs them in there too.
    if [ -e "$bundle" ]; then cp -L "$bundle" "$root$bundle"; fi
}

if [ "${TIDE_CHROOT_INSIDE:-}" != 1 ]; then
    [ -e "$root/made" ] || make_root
    copy_sources
    TIDE_CHROOT_INSIDE=1 exec unshare --mount --pid --fork --kill-child --propagation private \
        "$0" "$PG" "$@"
fi

mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind "$cargo" "$root/cargo"
mount --bind "$rustup" "$root/rustup"
for variable in $(compgen -e); do
    case $variable in
    *CERT* | *_CA_* | PIP_DEFAULT_TIMEOUT | *_proxy | *_PROXY | TIDE_KILL_ROUNDS | TIDE_POSITION_ROUNDS | TIDE_MEMORY_ROWS | TIDE_CHROOT_INSIDE | T | PG) ;;
    *) unset "$variable" ;;
    esac
done
export HOME=/root LANG=C.UTF-8 CARGO_HOME=/cargo RUSTUP_HOME=/rustup CARGO_TARGET_DIR=/build
export PATH=/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec chroot "$root" /bin/sh -c 'cd /work && exec "$@"' sh "$@"
