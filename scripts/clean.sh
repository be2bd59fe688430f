#!/bin/sh
# Removes what was built or run here.
set -eu

cd "$(dirname "$0")/.."
for root in target/chroot-*; do
    [ -d "$root" ] || continue
    # Made by root; its mounts were its own and are gone.
    if [ "$(id -u)" = 0 ]; then rm -rf --one-file-system "$root"; else sudo rm -rf --one-file-system "$root"; fi
done
if [ -L target/run ]; then rm -rf "$(readlink target/run)"; fi
cargo clean
rm -rf pgrx-tests/node/node_modules pgrx-tests/browser/node_modules
