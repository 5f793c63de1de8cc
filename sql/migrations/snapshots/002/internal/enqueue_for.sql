-- Enqueues a job, given as an element of oq_enqueue_many, by the right of a stored role, whoever calls: see deputy.
-- Calls: open_queue, role_may, may, enqueue_jobs. Index: deputy_xid_idx.
create or replace function {{.schema}}.enqueue_for(job jsonb, owner oid)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_queue_id bigint := {{.schema}}.open_queue(job ->> 'queue_name');
    v_job_id   bigint;
    v_deputy   bigint;
begin
    if not {{.schema}}.role_may(owner, v_queue_id, 'produce') then
        raise exception 'role % may not produce in queue %',
                coalesce((select quote_ident(r.rolname) from pg_roles r where r.oid = owner), owner::text),
                quote_literal(job ->> 'queue_name')
            using errcode = '42501', hint = 'A batch makes its jobs with the rights of its owner.';
    end if;
    if not {{.schema}}.may(v_queue_id, 'produce') then
        insert into {{.schema}}.deputy (xid, queue_id) values (pg_current_xact_id(), v_queue_id)
        returning deputy_id into v_deputy;
    end if;
    select e.job_id into v_job_id from {{.schema}}.enqueue_jobs(jsonb_build_array(job), false) e;
    if v_deputy is not null then
        delete from {{.schema}}.deputy d where d.deputy_id = v_deputy;
    end if;
    return v_job_id;
end
$$;
comment on function {{.schema}}.enqueue_for(jsonb, oid) is 'Enqueues a job by the right of a stored role.';
