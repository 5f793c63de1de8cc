-- What ack, nack, release and heartbeat do when they find no lease with that token. A transaction whose
-- snapshot is older than a compaction sees an empty table: it can't tell, and must try again.
create or replace function {{.schema}}.lost_lease(job_id bigint, strict boolean)
returns void
language plpgsql
as $$
begin
    if {{template "internal/one_snapshot.sql"}} then
        raise exception 'could not tell in this snapshot whether %', coalesce('job ' || job_id || ' is leased',
                'all of the jobs are leased')
            using errcode = '40001', hint = 'Try the transaction again.';
    end if;
    if strict then
        raise exception 'the lease of job % is lost', coalesce(job_id::text, 'null')
            using errcode = 'OQ002', hint = 'Somebody else may have the job: roll back and go on.';
    end if;
end
$$;
comment on function {{.schema}}.lost_lease(bigint, boolean) is 'Answers for a token that is not the current lease.';
