-- What a lease that finds too little does for itself: true where there may be more to lease now.
-- While the daemon ticks, it is done for this queue only, so that a worker's long transaction hides
-- nothing of another's; without the daemon, for all, so that nobody's due jobs bar the way.
-- Calls: promote_due, reap_expired, expire_due, oq_advance. Index: scheduled_due_idx, leased_expires_idx.
create or replace function {{.schema}}.tend(queue_id bigint, wanted int)
returns boolean
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now   timestamptz := clock_timestamp();
    v_alone boolean;
    v_only  bigint;
    v_low   timestamptz;
    v_count bigint := 0;
begin
    v_alone := pg_sequence_last_value('{{.schema}}.beat'::regclass)
        < (date_part('epoch', v_now) * 1000)::bigint - 2000;
    if not v_alone then
        v_only := tend.queue_id;
    end if;
    v_low := {{.schema}}.time_low(-1);
    if exists (select from {{.schema}}.scheduled s where s.due_at >= v_low and s.due_at <= v_now) then
        v_count := v_count + {{.schema}}.promote_due(v_low, null, greatest(wanted, 1000), v_only);
    end if;
    v_low := {{.schema}}.time_low(-2);
    if exists (select from {{.schema}}.leased l where l.expires_at >= v_low and l.expires_at <= v_now) then
        v_count := v_count + {{.schema}}.reap_expired(v_low, null, greatest(wanted, 1000), v_only);
    end if;
    if v_alone then
        v_low := {{.schema}}.time_low(-3);
        if exists (select from {{.schema}}.ttl t where t.expires_at >= v_low and t.expires_at <= v_now) then
            perform {{.schema}}.expire_due(v_low, null, 1000);
        end if;
        -- Late commits below the marks: looked for once a second, by whoever comes first.
        if not exists (
            select from {{.schema}}.epoch_open e
             where e.epoch = pg_sequence_last_value('{{.schema}}.epoch'::regclass)
               and e.opened_at > v_now - interval '1 second')
        then
            v_count := v_count + {{.api_schema}}.oq_advance();
        end if;
    end if;
    return v_count > 0;
end
$$;
comment on function {{.schema}}.tend(bigint, int) is 'The duties that a lease does for itself.';
