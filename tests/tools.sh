#!/usr/bin/env bash
# Debian packages for the tests, as root: a server where there is none, psql, a C compiler for the
# race detector, plpgsql_check, PgBouncer for the clients' contract, psycopg, mypy and pip for the Python
# library, Node for its own (whose packages clients/node/install.sh gets), and what the examples in other
# languages need.
set -euo pipefail

need=()
command -v psql >/dev/null || need+=(postgresql-client)
command -v "$(go env CC)" >/dev/null || need+=(gcc libc6-dev)
if ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && ! command -v initdb >/dev/null; then
    mkdir -p /etc/postgresql-common/createcluster.d
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/openqueue.conf
    need+=(postgresql)
fi
[ -x /usr/sbin/pgbouncer ] || command -v pgbouncer >/dev/null || need+=(pgbouncer)
ruby -rpg -e 0 2>/dev/null || need+=(ruby-pg)
php -r 'exit(extension_loaded("pgsql") ? 0 : 1);' 2>/dev/null || need+=(php-cli php-pgsql)
[ -e /usr/share/java/postgresql.jar ] || need+=(libpostgresql-jdbc-java)
command -v javac >/dev/null || need+=(default-jdk-headless)
command -v node >/dev/null || need+=(nodejs)
command -v npm >/dev/null || need+=(npm)
/usr/bin/python3 -c 'import psycopg, psycopg_pool' 2>/dev/null || need+=(python3-psycopg python3-psycopg-pool)
/usr/bin/python3 -c 'import pip, setuptools, wheel' 2>/dev/null || need+=(python3-pip python3-setuptools python3-wheel)
[ -x /usr/bin/mypy ] || need+=(mypy)
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
