#!/bin/sh
# What the tests need of npm, by the lock file, where that is not there yet. Two at once wait for each other.
set -eu
cd "$(dirname "$0")"
exec 9>.install.lock
flock 9
[ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --no-audit --no-fund --silent
