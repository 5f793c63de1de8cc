#!/usr/bin/env bash
# A worker in bash (4 or newer): one psql session, one job at a time. The job's payload names a file;
# its result is the file's SHA-256 and its number of lines.
#
#   DATABASE_URL=postgres://… clients/psql/worker.sh QUEUE [WORKER_ID]
#
# No text of a job becomes SQL, shell or protocol: COPY escapes what comes out, one job a line, and
# what goes in are psql variables, which psql quotes (:'name').
# It ends when leases find nothing for IDLE_SECONDS (default 5), or on SIGTERM after its current job.
set -euo pipefail

queue=${1:?usage: worker.sh QUEUE [WORKER_ID]}
worker=${2:-bash-$$}
idle_limit=${IDLE_SECONDS:-5}
stopping=
trap 'stopping=1' TERM INT
trap '' PIPE # A psql that has gone is an error of printf, not the end without a word.

coproc DB { exec psql "${DATABASE_URL:-}" --no-psqlrc --quiet --no-align --tuples-only \
    --set ON_ERROR_STOP=1; }
# Bash forgets the coprocess when it ends; its pipes are wanted for longer.
exec {from_db}<&"${DB[0]}" {to_db}>&"${DB[1]}"

# ask SQL…: runs it and leaves the lines it printed in $answer.
ask() {
    local line
    answer=
    if printf '%s\n' "$@" '\echo -- end' >&"$to_db"; then
        while IFS= read -r line <&"$from_db"; do
            [ "$line" != '-- end' ] || return 0
            answer+=${answer:+$'\n'}$line
        done
    fi 2>/dev/null
    echo "$worker: psql has ended" >&2
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
    # The path stands last: nothing of it can move another column.
    ask "copy (select job_id, lease_token,
            payload->>'fail' is not distinct from 'always'
                or payload->>'fail' is not distinct from 'once' and attempt = 1,
            payload->>'path'
        from oq_lease(:'queue', :'worker')) to stdout;"
    if [ -z "$answer" ]; then
        [ $((SECONDS - idle_since)) -lt "$idle_limit" ] || break
        sleep 0.1
        continue
    fi
    IFS=$'\t' read -r job token fail path <<<"$answer"
    printf -v path '%b' "$path" # COPY's escapes are a part of printf's.
    error=
    if [ "$fail" = t ]; then
        error='failed on purpose'
    elif said=$({ sha256sum <"$path" && wc -l <"$path"; } 2>&1); then
        result=$(printf '{"sha256": "%s", "lines": %d}' "${said%% *}" "${said##*$'\n'}")
    else
        error=${said:-failed without a word, status $?}
    fi
    if [ -n "$error" ]; then
        ask "\\set error $(quote "$error")" "select oq_nack($job, $token, :'error');"
    else
        ask "\\set result $(quote "$result")" "select oq_ack($job, $token, :'result');"
        [ "$answer" != t ] || done_jobs=$((done_jobs + 1))
    fi
    idle_since=$SECONDS
done
echo "$worker: $done_jobs jobs done" >&2
