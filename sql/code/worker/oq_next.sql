-- Acks the last jobs and leases the next: one round trip and one commit for a worker's whole turn.
-- Calls: check_leases, demand, lost_lease, settle, may_lease, lease_limited, raise_lane, tend,
-- advance_alone. Locks, Index: as oq_ack_many, then as oq_lease.
create or replace function {{.api_schema}}.oq_next(
    queue_name    text,
    worker_id     text default null,
    lease_seconds int  default null,
    max_jobs      int  default 1,
    acked_job_ids bigint[] default null,
    acked_tokens  bigint[] default null
)
returns setof {{.schema}}.leased_job
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
{{template "internal/lease_locals.sql" .}}    v_acked       bigint[];
    v_lease       bigint;

begin
    if array_dims(acked_job_ids) = '[1:1]' and array_dims(acked_tokens) = '[1:1]' then
        -- The turn of a worker that takes one job at a time.
{{template "internal/finish_one.sql" dict "id" "oq_next.acked_job_ids[1]" "token" "oq_next.acked_tokens[1]"
    "result" "null"}}        if v_linked is not false then
            if v_linked is null then
                perform lost_lease(null, false);
            else
                v_linked := settle(acked_job_ids, true, queue_name);
            end if;
        end if;
    elsif acked_job_ids is not null or acked_tokens is not null then
        v_lease := case
        {{template "internal/one_token.sql" dict "ids" "acked_job_ids" "tokens" "acked_tokens" "results" "null"}}
        else check_leases(acked_job_ids, acked_tokens, null, 'acked_job_ids', 'acked_tokens') end;
        v_now := clock_timestamp();
        -- The generation is read when the first is ended: a lease may have been waited for.
        with ended as (
{{template "internal/ack_claim.sql" dict "ids" "oq_next.acked_job_ids" "tokens" "oq_next.acked_tokens"}}        ), done as (
            insert into finished (gen, job_id, queue_id, attempt, lost, finished_at, leased_at, outcome, kept,
                linked, worker_id)
            select (select pg_sequence_last_value('generation'::regclass))::smallint, e.job_id, e.lane >> 16, e.attempt,
                e.lost, v_now, e.leased_at, 'completed', e.kept, e.linked, e.worker_id
              from ended e
             where case when e.restricted then demand(e.lane >> 16, null, 'consume') else true end
            returning finished.job_id, finished.linked
        )
        select count(*), array_agg(d.job_id) filter (where d.linked) into v_count, v_acked from done d;
        if v_acked is not null then
            perform settle(v_acked, true, case when $4 >= cardinality(v_acked) then queue_name end);
        end if;
        if v_count < cardinality(acked_job_ids)
            and v_count < (select count(distinct u) from unnest(oq_next.acked_job_ids) u)
        then
            perform lost_lease(null, false);
        end if;
    end if;
{{template "internal/lease_body.sql" .}}
end
$$;
comment on function {{.api_schema}}.oq_next(text, text, int, int, bigint[], bigint[]) is
'Acks the last jobs and leases the next, in one call.
acked_job_ids and acked_tokens as in oq_ack_many: leases that are lost are left out. The rest as in
oq_lease. Results need oq_ack or oq_ack_many. Errors: OQ001, 42501; 55000 in a restored copy.';
