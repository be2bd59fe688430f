#!/bin/sh
# Fuzzes each target for some seconds. Without a nightly compiler: without the sanitizers.
set -eu

cd "$(dirname "$0")/.."
seconds=${1:-60}
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "cargo-fuzz is missing: cargo install cargo-fuzz --locked" >&2
    exit 1
fi
if [ ! -d fuzz ]; then
    echo "there is nothing to fuzz yet" >&2
    exit 1
fi
# libFuzzer's instrumentation is an unstable flag of the compiler; no nightly is required for it.
export RUSTC_BOOTSTRAP=1
for target in $(cargo fuzz list); do
    cargo fuzz run --sanitizer none "$target" -- -max_total_time="$seconds"
done
