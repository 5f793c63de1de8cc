#!/usr/bin/env bash
# DATABASE_URL=… twelve.sh QUEUE COMMAND…: the payload on its standard input; if it fails, what it printed is the error.
queue=$1; shift
sql() { psql "$DATABASE_URL" -XqAt -v queue="$queue" -v job="$job" -v token="$token" -v error="${error:0:9999}"; }
while true; do
    job='' token='' error=''
    IFS='|' read -r job token payload < <(sql <<<"select job_id, lease_token, payload from oq_lease(:'queue', 'bash-$$')")
    if [ -z "$job" ]; then sleep 1; continue; fi
    if error=$("$@" <<<"$payload" 2>&1); then end="oq_ack(:job, :token)"; else end="oq_nack(:job, :token, :'error')"; fi
    sql <<<"select $end" >&2
done
