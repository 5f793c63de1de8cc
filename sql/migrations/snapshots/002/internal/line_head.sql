-- Puts jobs that had been let in back at the head of their group's line, in the order of their ids. Nobody may be letting
-- in meanwhile: where the group's lock is not had, or this snapshot may be too old to know how far the group has
-- been let in, they go to the end, where line_up looks at them. The caller took them out of where they stood.
-- Locks: groups (try). Index: group_slot_idx, waiting_group_idx.
create or replace function {{.schema}}.line_head(group_id bigint, jobs {{.schema}}.ready[])
returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    v_group bigint := line_head.group_id;
    v_known text := coalesce(nullif(current_setting('{{.schema}}.groups', true), ''), '{}');
    v_xact  bigint := pg_current_xact_id()::text::bigint;
    v_head  boolean := false;
    v_low   bigint;
    v_first bigint;
begin
    if not {{template "internal/one_snapshot.sql"}} and (v_group = any (v_known::bigint[]) or cardinality(v_known::bigint[]) < 100) then
        v_head := pg_try_advisory_xact_lock(hashtext('{{.schema}}:group'), (v_group & 2147483647)::int);
    end if;
    if v_head then
        v_known := set_config('{{.schema}}.groups', array(
            select g from unnest(v_known::bigint[] || v_group) g group by g)::text, true);
        v_low := {{template "internal/group_low.sql" dict "schema" .schema "group" "v_group"}};
        -- Who stands in line behind them has a higher position than they had, which was their id or higher.
        v_first := (select min(u.job_id) from unnest(jobs) u);
        -- Below the low nobody would find them.
        if v_first < v_low then
            with recursive s as (
                (select x.ctid as slot_row, x.slot, x.low from {{.schema}}.group_slot x
                  where x.group_id = v_group
                  order by x.slot, x.version desc
                  limit 1)
                union all
                select n.slot_row, n.slot, n.low
                  from s
                 cross join lateral (
                    select x.ctid as slot_row, x.slot, x.low from {{.schema}}.group_slot x
                     where x.group_id = v_group and x.slot > s.slot
                     order by x.slot, x.version desc
                     limit 1) n
            ), gone as (
                delete from {{.schema}}.group_slot d
                 where d.ctid = any (array(select s.slot_row from s where s.low > v_first))
                returning d.slot, d.job_id, d.admitted_at, d.version
            )
            insert into {{.schema}}.group_slot (group_id, slot, job_id, low, admitted_at)
            select v_group, g.slot, g.job_id, v_first, g.admitted_at from (select * from gone order by version) g;
        end if;
    end if;
    insert into {{.schema}}.waiting (job_id, lane, holder, group_id, position, token, attempt, failed, lost, expires_at,
        xact, first)
    select j.job_id, j.lane, 'group', v_group,
        case when v_head then j.job_id else nextval('{{.schema}}.position') end,
        j.token, j.attempt, j.failed, j.lost, j.expires_at, v_xact, j.ord = 1 and not v_head
      from (
        select * from unnest(line_head.jobs) with ordinality
            u(lane, position, job_id, token, attempt, failed, lost, expires_at, ord)
         order by u.ord) j;
end
$$;
comment on function {{.schema}}.line_head(bigint, {{.schema}}.ready[]) is
    'Puts jobs that had been let in back at the head of the line.';
