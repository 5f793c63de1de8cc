-- The first jobs of the queue's highest lanes, each moved from ready to leased. Starts at the lane's
-- low mark, so it never walks over rows that are gone; skips what another worker is leasing.
-- Calls: may_lease, lease_limited, raise_lane, tend, advance_alone.
-- Locks: ready rows (skip locked). Index: queue_name_idx, mark_lane_idx, ready_pk, job_N_pk.
create or replace function {{.api_schema}}.oq_lease(
    queue_name    text,
    worker_id     text default null,
    lease_seconds int  default null,
    max_jobs      int  default 1
)
returns setof {{.schema}}.leased_job
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
{{template "internal/lease_locals.sql" .}}
begin
{{template "internal/lease_body.sql" .}}
end
$$;
comment on function {{.api_schema}}.oq_lease(text, text, int, int) is
'Leases up to max_jobs jobs.
Highest priority first, then first in, first out.
lease_seconds: 1 to 604800, null takes the queue''s. max_jobs: 1 to 10000. worker_id: any text of at
most 200 characters, shown to people. Never waits for another worker. An unknown, empty or paused
queue gives no rows. Ack, nack, release or extend each job with its lease_token before
lease_expires_at, or another worker may get it. Errors: OQ001, 42501; 55000 in a restored copy.';
