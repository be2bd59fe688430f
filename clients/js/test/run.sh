#!/bin/bash
# Packs the package, installs the tarball as an application would, and runs the tests on that. Needs what
# `make install` has installed, Node 20 or newer and Chromium. `test/run.sh offline` runs one file.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -d node_modules ] || npm ci
rm -rf build
mkdir -p build
npm pack --silent --pack-destination build >/dev/null
cp test/*.ts test/tsconfig.json build/
cat >build/package.json <<'JSON'
{ "name": "pg-tide-client-tests", "private": true, "type": "module" }
JSON
(cd build && npm install --silent --no-fund --no-audit ./*.tgz)
node_modules/.bin/tsc -p build/tsconfig.json
exec node --test --test-force-exit --test-concurrency=1 build/js/${1:-*}.test.js
