-- What a schedule would do; reads no table.
-- Calls: cron_parse, check_timezone, next_run.
create or replace function {{.api_schema}}.oq_next_runs(
    cron     text,
    timezone text        default 'UTC',
    count    int         default 5,
    after    timestamptz default now()
)
returns setof timestamptz
language plpgsql
stable
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
as $$
declare
    v_fields text[];
    v_next   timestamptz := oq_next_runs.after;
begin
    v_fields := cron_parse(oq_next_runs.cron);
    perform check_timezone(oq_next_runs.timezone);
    if oq_next_runs.count is null or oq_next_runs.count not between 1 and 1000 then
        perform fail('count', oq_next_runs.count::text, 'between 1 and 1000');
    end if;
    if v_next is null or v_next not between '0001-01-01 00:00 UTC' and '9990-01-01 00:00 UTC' then
        perform fail('after', v_next::text, 'a time between the years 1 and 9989');
    end if;
    for i in 1..oq_next_runs.count loop
        v_next := next_run(v_fields, oq_next_runs.timezone, v_next, date_trunc('second', oq_next_runs.after));
        exit when v_next is null;
        return next v_next;
    end loop;
end
$$;
comment on function {{.api_schema}}.oq_next_runs(text, text, int, timestamptz) is
'The next instants of a cron expression, after a time, rising.
count: 1 to 1000. As oq_schedule would run it; an interval counts from after, to the second. Errors: OQ001
for an expression that is wrong or never comes, and for an unknown time zone.';
