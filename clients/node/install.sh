#!/bin/sh
# What the tests need of npm, by the lock file, where it is not there yet.
set -eu
cd "$(dirname "$0")"
[ -e node_modules/pg/package.json ] || npm ci --no-audit --no-fund --silent
