-- What oq_limit and oq_throttle say of a queue (group 0) or a group. A group without a rule of its own has
-- that of key '*', and runs one at a time where nothing is said. A rate is so many slots, each good for
-- one job in any time_window. Whole slots, a thousand at most, and never more than the rate in any per: one below
-- 1 is stretched, at most to 95 years, a huge one is so many parts of per, and what is left of a fraction is cut off.
-- Index: limit_rule_idx, throttled_idx.
create or replace function {{.schema}}.limit_of(
    queue_id bigint,
    group_id bigint,
    out max_running int,
    out slots       int,
    out time_window interval,
    out until       timestamptz
)
language plpgsql
as $$
#variable_conflict use_column
begin
    select coalesce(r.max_running, case when limit_of.group_id <> 0 then 1 end), r.slots,
        case when r.rate is not null then
            ceil(least(extract(epoch from r.per) * 1000000 / r.parts / least(r.rate, 1), 3e15)) * interval '1 microsecond'
            end, (
        select t.until from {{.schema}}.throttled t
         where t.queue_id = limit_of.queue_id and t.group_id = limit_of.group_id
         order by t.throttle_id desc
         limit 1)
      into max_running, slots, time_window, until
      from (select 1) one
      left join lateral (
        select r.max_running, r.rate, r.per, ceil(r.rate / 1000) as parts,
            greatest(floor(r.rate / ceil(r.rate / 1000)), 1)::int as slots
          from {{.schema}}.limit_rule r
         where r.queue_id = limit_of.queue_id
           and r.group_id in (limit_of.group_id, case when limit_of.group_id = 0 then 0
                else hashtextextended('*', limit_of.queue_id) & 9223372036854775807 end)
         order by r.group_id = limit_of.group_id desc
         limit 1) r on true;
    if slots is not null and time_window is null then
        slots := null;
    end if;
    if until <= clock_timestamp() then
        until := null;
    end if;
end
$$;
comment on function {{.schema}}.limit_of(bigint, bigint) is 'The limits of a queue (group 0) or of a group.';
