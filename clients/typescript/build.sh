#!/bin/sh
# Builds an ES module and a CommonJS one into a folder, or into dist: sh build.sh [FOLDER]
set -eu
cd "$(dirname "$0")"
out=${1:-dist}
tsc -p . --outDir "$out/esm"
tsc -p . --module CommonJS --outDir "$out/cjs"
echo '{"type": "module"}' >"$out/esm/package.json"
echo '{"type": "commonjs"}' >"$out/cjs/package.json"
