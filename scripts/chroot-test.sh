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
. scripts/debian.sh
suite=$(suite_of "$PG")
if [ "$(id -u)" != 0 ]; then
    exec sudo --preserve-env=CARGO_HOME,RUSTUP_HOME,HOME,PATH,DEBFULLNAME,DEBEMAIL,DEB_REVISION,SOURCE_DATE_EPOCH \
        "$0" "$PG" "$@"
fi
[ $# -gt 0 ] || set -- make test

root=$PWD/target/chroot-$PG
cargo=${CARGO_HOME:-$HOME/.cargo}
rustup=${RUSTUP_HOME:-$HOME/.rustup}

make_root() {
    make_debian "$suite" "$root" ca-certificates,make,util-linux
    mkdir -p "$root"/{work,build,cargo,rustup}
    touch "$root/made"
}

# Replaces the sources by those of this folder, but for what was built from them.
copy_sources() {
    find "$root/work" -mindepth 1 -maxdepth 1 -not -name pgrx-tests -exec rm -rf {} +
    git ls-files -z --cached --others --exclude-standard |
        tar --null --ignore-failed-read -T - -cf - | tar -xf - -C "$root/work"
    lend_network "$root"
}

if [ "${TIDE_CHROOT_INSIDE:-}" != 1 ]; then
    [ -e "$root/made" ] || make_root
    copy_sources
    TIDE_CHROOT_INSIDE=1 exec unshare --mount --pid --fork --kill-child --propagation private \
        "$0" "$PG" "$@"
fi

mount_system "$root"
mount --bind "$cargo" "$root/cargo"
mount --bind "$rustup" "$root/rustup"
for variable in $(compgen -e); do
    case $variable in
    *CERT* | *_CA_* | PIP_DEFAULT_TIMEOUT | *_proxy | *_PROXY | TIDE_KILL_ROUNDS | TIDE_POSITION_ROUNDS | TIDE_MEMORY_ROWS | TIDE_SEED | TIDE_SEEDS | TIDE_CHROOT_INSIDE | DEBFULLNAME | DEBEMAIL | DEB_REVISION | SOURCE_DATE_EPOCH | T | PG) ;;
    *) unset "$variable" ;;
    esac
done
export HOME=/root LANG=C.UTF-8 CARGO_HOME=/cargo RUSTUP_HOME=/rustup CARGO_TARGET_DIR=/build
export PATH=/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec chroot "$root" /bin/sh -c 'cd /work && exec "$@"' sh "$@"
