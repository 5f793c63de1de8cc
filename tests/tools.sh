#!/usr/bin/env bash
# Debian packages for the tests, as root: a server where there is none, psql, a C compiler for the
# race detector, and plpgsql_check.
set -euo pipefail

need=()
command -v psql >/dev/null || need+=(postgresql-client)
command -v "$(go env CC)" >/dev/null || need+=(gcc libc6-dev)
if ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && ! command -v initdb >/dev/null; then
    mkdir -p /etc/postgresql-common/createcluster.d
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/openqueue.conf
    need+=(postgresql)
fi
if [ ${#need[@]} -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
fi
for lib in /usr/lib/postgresql/*/lib; do
    major=${lib#/usr/lib/postgresql/}
    major=${major%/lib}
    if [ -x "/usr/lib/postgresql/$major/bin/initdb" ] && [ ! -e "$lib/plpgsql_check.so" ]; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "postgresql-$major-plpgsql-check" >/dev/null
    fi
done
