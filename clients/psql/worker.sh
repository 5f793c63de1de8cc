#!/usr/bin/env bash
# A worker in bash: one psql session, one job at a time. The job's payload names a file; its result is
# the file's SHA-256 and its number of lines.
#
#   DATABASE_URL=postgres://… clients/psql/worker.sh QUEUE [WORKER_ID]
#
# Values go to psql as variables and are quoted by it (:'name'): no text of a job becomes SQL or shell.
# It ends when a lease finds nothing for IDLE_SECONDS (default 5), or on SIGTERM after its current job.
set -euo pipefail

queue=${1:?usage: worker.sh QUEUE [WORKER_ID]}
worker=${2:-bash-$$}
idle_limit=${IDLE_SECONDS:-5}
stopping=
trap 'stopping=1' TERM INT

coproc DB { exec psql "${DATABASE_URL:-}" --no-psqlrc --quiet --no-align --tuples-only \
    --set ON_ERROR_STOP=1 --field-separator=$'\x1f' 2>&1; }

# ask SQL…: runs it and leaves the lines it printed in $answer.
ask() {
    local line
    answer=
    printf '%s\n' "$@" '\echo -- end' >&"${DB[1]}"
    while IFS= read -r line <&"${DB[0]}"; do
        [ "$line" = '-- end' ] && return 0
        answer+=${answer:+$'\n'}$line
    done
    echo "psql ended: $answer" >&2
    exit 1
}

# quote TEXT: a value for \set, as psql reads it between single quotes.
quote() {
    local s=${1//\\/\\\\}
    s=${s//\'/\\\'}
    printf "'%s'" "${s//$'\n'/\\n}"
}

ask "\\set queue $(quote "$queue")" "\\set worker $(quote "$worker")"
done_jobs=0
idle_since=$SECONDS
while [ -z "$stopping" ]; do
    ask "select job_id, lease_token, attempt, payload->>'fail', payload->>'path' from oq_lease(:'queue', :'worker');"
    if [ -z "$answer" ]; then
        [ $((SECONDS - idle_since)) -lt "$idle_limit" ] || break
        sleep 0.1
        continue
    fi
    idle_since=$SECONDS
    IFS=$'\x1f' read -r job token attempt fail path <<<"$answer"
    error=
    if [ "$fail" = always ] || { [ "$fail" = once ] && [ "$attempt" = 1 ]; }; then
        error='failed on purpose'
    elif sum=$(sha256sum -- "$path" 2>&1); then
        result=$(printf '{"sha256": "%s", "lines": %d}' "${sum%% *}" "$(wc -l <"$path")")
    else
        error=$sum
    fi
    if [ -n "$error" ]; then
        ask "\\set error $(quote "$error")" "select oq_nack($job, $token, :'error');"
    else
        ask "\\set result $(quote "$result")" "select oq_ack($job, $token, :'result'::jsonb);"
        done_jobs=$((done_jobs + 1))
    fi
done
echo "$worker: $done_jobs jobs done" >&2
