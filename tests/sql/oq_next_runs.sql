-- oq_next_runs: cron expressions, intervals, time zones, and the nights when clocks change.

create function runs(cron text, timezone text, after text, count int default 3) returns text language sql
    as $$ select string_agg(to_char(r at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS'), ', ' order by n)
            from oq_next_runs(runs.cron, runs.timezone, runs.count, runs.after::timestamptz)
            with ordinality x(r, n) $$;
set timezone = 'UTC';

-- What the fields mean. 2026-01-01 is a Thursday.
select is(runs(c, 'UTC', '2026-01-01 00:00:00+00', 2), want, c)
  from (values
    ('* * * * *', '2026-01-01 00:01:00, 2026-01-01 00:02:00'),
    ('* * * * * *', '2026-01-01 00:00:01, 2026-01-01 00:00:02'),
    ('*/20 * * * * *', '2026-01-01 00:00:20, 2026-01-01 00:00:40'),
    ('30 5 0 * * *', '2026-01-01 00:05:30, 2026-01-02 00:05:30'),
    ('0 3 * * *', '2026-01-01 03:00:00, 2026-01-02 03:00:00'),
    ('0 0 * * *', '2026-01-02 00:00:00, 2026-01-03 00:00:00'),
    ('5,35 8-9 * * *', '2026-01-01 08:05:00, 2026-01-01 08:35:00'),
    ('10-50/20 12 * * *', '2026-01-01 12:10:00, 2026-01-01 12:30:00'),
    ('50/5 12 * * *', '2026-01-01 12:50:00, 2026-01-01 12:55:00'),
    ('0 0 1 jan,JUL *', '2026-07-01 00:00:00, 2027-01-01 00:00:00'),
    ('0 9 * * mon-fri', '2026-01-01 09:00:00, 2026-01-02 09:00:00'),
    ('0 9 * * 7', '2026-01-04 09:00:00, 2026-01-11 09:00:00'),
    ('0 9 * * 0', '2026-01-04 09:00:00, 2026-01-11 09:00:00'),
    ('0 9 * * 6-7', '2026-01-03 09:00:00, 2026-01-04 09:00:00'),
    ('0 9 * * sat-sun', '2026-01-03 09:00:00, 2026-01-04 09:00:00'),
    ('0 9 ? * fri', '2026-01-02 09:00:00, 2026-01-09 09:00:00'),
    -- Either day where both are given; only the one that is, where the other is *.
    ('0 0 13 * fri', '2026-01-02 00:00:00, 2026-01-09 00:00:00'),
    ('0 0 13 * *', '2026-01-13 00:00:00, 2026-02-13 00:00:00'),
    ('0 0 30 2 mon', '2026-02-02 00:00:00, 2026-02-09 00:00:00'),
    ('0 0 31 * *', '2026-01-31 00:00:00, 2026-03-31 00:00:00'),
    ('0 0 29 2 *', '2028-02-29 00:00:00, 2032-02-29 00:00:00'),
    ('@yearly', '2027-01-01 00:00:00, 2028-01-01 00:00:00'),
    ('@annually', '2027-01-01 00:00:00, 2028-01-01 00:00:00'),
    ('@monthly', '2026-02-01 00:00:00, 2026-03-01 00:00:00'),
    ('@Weekly', '2026-01-04 00:00:00, 2026-01-11 00:00:00'),
    ('@daily', '2026-01-02 00:00:00, 2026-01-03 00:00:00'),
    ('@midnight', '2026-01-02 00:00:00, 2026-01-03 00:00:00'),
    ('@hourly', '2026-01-01 01:00:00, 2026-01-01 02:00:00'),
    (E'  0\t3  * * * ', '2026-01-01 03:00:00, 2026-01-02 03:00:00'),
    ('every 90 seconds', '2026-01-01 00:01:30, 2026-01-01 00:03:00'),
    ('every 5 minutes', '2026-01-01 00:05:00, 2026-01-01 00:10:00'),
    ('every minute', '2026-01-01 00:01:00, 2026-01-01 00:02:00'),
    ('Every 1 hour 30 minutes', '2026-01-01 01:30:00, 2026-01-01 03:00:00'),
    ('@every 1h30m', '2026-01-01 01:30:00, 2026-01-01 03:00:00'),
    ('@every 1.5h', '2026-01-01 01:30:00, 2026-01-01 03:00:00'),
    ('every 2 weeks', '2026-01-15 00:00:00, 2026-01-29 00:00:00'),
    ('every 1d1s', '2026-01-02 00:00:01, 2026-01-03 00:00:02')) v(c, want);

-- Strictly after, to the microsecond; an interval counts from there, in whole seconds.
select is(runs('0 3 * * *', 'UTC', '2026-01-01 03:00:00+00', 1), '2026-01-02 03:00:00', 'not the same instant');
select is(runs('0 3 * * *', 'UTC', '2026-01-01 02:59:59.999999+00', 1), '2026-01-01 03:00:00', 'a microsecond before');
select is(runs('every 10 s', 'UTC', '2026-01-01 00:00:03.7+00', 2), '2026-01-01 00:00:13, 2026-01-01 00:00:23',
    'an interval');
select is(runs('0 0 29 2 *', 'UTC', '2096-02-29 00:00:00+00', 2), '2104-02-29 00:00:00, 2108-02-29 00:00:00',
    'eight years without a leap year');
select is((select count(*) from oq_next_runs('* * * * *')), 5::bigint, 'five, from now');
select ok(bool_and(r > now()) and min(r) <= now() + interval '1 minute', 'after now') from oq_next_runs('* * * * *') r;
select is((select count(*) from oq_next_runs('* * * * * *', count => 1000)), 1000::bigint, 'a thousand');

-- Spring. Fixed hours that the clock leaves out run once, when it goes on; repeating ones do not run.
select is(runs(c, z, a, n), want, format('%s %s %s', c, z, a))
  from (values
    ('30 2 * * *', 'America/New_York', '2026-03-07 12:00+00', 2, '2026-03-08 07:00:00, 2026-03-09 06:30:00'),
    ('0,20,40 2 * * *', 'America/New_York', '2026-03-08 00:00+00', 2, '2026-03-08 07:00:00, 2026-03-09 06:00:00'),
    ('0 2,3 * * *', 'America/New_York', '2026-03-08 00:00+00', 2, '2026-03-08 07:00:00, 2026-03-09 06:00:00'),
    ('30 2 * * *', 'Europe/Berlin', '2026-03-28 12:00+00', 2, '2026-03-29 01:00:00, 2026-03-30 00:30:00'),
    ('30 * * * *', 'Europe/Berlin', '2026-03-29 00:00+00', 3,
        '2026-03-29 00:30:00, 2026-03-29 01:30:00, 2026-03-29 02:30:00'),
    ('0 */2 * * *', 'Europe/Berlin', '2026-03-28 23:30+00', 2, '2026-03-29 02:00:00, 2026-03-29 04:00:00'),
    ('15 2 * * *', 'Australia/Lord_Howe', '2026-10-03 12:00+00', 2, '2026-10-03 15:30:00, 2026-10-04 15:15:00'),
    ('30 0 * * *', 'America/Sao_Paulo', '2018-11-03 12:00+00', 2, '2018-11-04 03:00:00, 2018-11-05 02:30:00'),
    ('0 9 * * *', 'Pacific/Apia', '2011-12-29 12:00+00', 3,
        '2011-12-29 19:00:00, 2011-12-30 10:00:00, 2011-12-30 19:00:00'),
    -- Autumn. Fixed hours that the clock shows twice run the first time; repeating ones both times.
    ('30 1 * * *', 'America/New_York', '2026-10-31 12:00+00', 2, '2026-11-01 05:30:00, 2026-11-02 06:30:00'),
    ('30 1 * * *', 'America/New_York', '2026-11-01 05:30+00', 1, '2026-11-02 06:30:00'),
    ('30 1 * * *', 'America/New_York', '2026-11-01 06:10+00', 1, '2026-11-02 06:30:00'),
    ('* 1 * * *', 'America/New_York', '2026-11-01 05:58+00', 2, '2026-11-01 05:59:00, 2026-11-02 06:00:00'),
    ('30 * * * *', 'America/New_York', '2026-11-01 05:00+00', 3,
        '2026-11-01 05:30:00, 2026-11-01 06:30:00, 2026-11-01 07:30:00'),
    ('0 1-23/2 * * *', 'America/New_York', '2026-11-01 04:30+00', 3,
        '2026-11-01 05:00:00, 2026-11-01 06:00:00, 2026-11-01 08:00:00'),
    ('45 1 * * *', 'Australia/Lord_Howe', '2026-04-04 12:00+00', 2, '2026-04-04 14:45:00, 2026-04-05 15:15:00'),
    ('45 * * * *', 'Australia/Lord_Howe', '2026-04-04 14:00+00', 3,
        '2026-04-04 14:45:00, 2026-04-04 15:15:00, 2026-04-04 16:15:00'),
    -- An interval knows no clock.
    ('every 1 day', 'America/New_York', '2026-03-07 12:00+00', 2, '2026-03-08 12:00:00, 2026-03-09 12:00:00'))
    v(c, z, a, n, want);

-- What is wrong is named: the expression, the field, its value.
select throws_ok(format('select oq_next_runs(%L)', c), 'OQ001', format('%%cron%%%s%%', what), coalesce(left(c, 60), 'null'))
  from (values (null, 'null'), ('', ''), (' ', ''), ('* * * *', '* * * *'), ('* * * * * * *', '* * * * * * *'),
    ('60 * * * *', 'minute: 60'), ('-1 * * * *', 'minute: -1'), ('* 24 * * *', 'hour: 24'),
    ('* * 0 * *', 'day of month: 0'), ('* * 32 * *', 'day of month: 32'), ('* * * 13 *', 'month: 13'),
    ('* * * 0 *', 'month: 0'), ('* * * * 8', 'day of week: 8'), ('60 * * * * *', 'second: 60'),
    ('*/0 * * * *', 'minute: */0'), ('*/61 * * * *', 'minute: */61'), ('5-1 * * * *', 'minute: 5-1'),
    ('1- * * * *', 'minute: 1-'), ('1,,2 * * * *', 'minute: 1,,2'), (', * * * *', 'minute: ,'),
    ('1.5 * * * *', 'minute: 1.5'), ('a * * * *', 'minute: a'), ('? * * * *', 'minute: ?'),
    ('*-5 * * * *', 'minute: *-5'), ('1-2-3 * * * *', 'minute: 1-2-3'), ('jan * * * *', 'minute: jan'),
    ('* * * mon *', 'month: mon'), ('* * * january *', 'month: january'), ('* * * * feb', 'day of week: feb'),
    ('* * * * fri-mon', 'day of week: fri-mon'), ('* * L * *', 'day of month: l'), ('* * * * 5#2', 'day of week: 5#2'),
    ('99999999999 * * * *', 'minute: 99999999999'), ('0 0 30 2 *', 'day of month: 30%2'),
    ('0 0 30,31 feb ?', 'day of month: 30,31%feb'), ('0 0 31 4,6,9,11 *', 'day of month: 31%'),
    ('@reboot', '@reboot'), ('@every', '@every'), ('every', 'every'), ('every 0 seconds', 'every 0 seconds'),
    ('every 500 ms', 'every 500 ms'), ('every 0.5 s', 'every 0.5 s'), ('every -1 s', 'every -1 s'),
    ('every 5', 'every 5'), ('every 1 month', 'every 1 month'), ('every 99999999 weeks', '99999999 weeks'),
    ('every 5 minutes ago', 'ago'), ('@daily 5', '@daily 5'), ('CRON_TZ=UTC 0 0 * * *', 'second: cron_tz'),
    (repeat('1,', 600) || '1 * * * *', 'characters'), ('0 3 * * *; select 1', 'select 1')) v(c, what);
select throws_ok(format('select oq_next_runs(''@daily'', %L)', z), 'OQ001', '%timezone%' || coalesce(left(z, 20), 'null') || '%',
    'timezone ' || coalesce(left(z, 20), 'null'))
  from unnest(array[null, '', ' ', 'Mars/Olympus', 'Europe/Berlin2', 'PST', 'UTC+1', '+01', '2', 'local', 'default',
    repeat('x', 1000), 'Europe', '../../etc/passwd']) z;
select is(runs('0 0 * * *', z, '2026-01-01 00:00+00', 1), want, z)
  from (values ('UTC', '2026-01-02 00:00:00'), ('europe/berlin', '2026-01-01 23:00:00'), ('Etc/GMT+5', '2026-01-01 05:00:00'),
    ('America/Port-au-Prince', '2026-01-01 05:00:00'), ('America/Argentina/Buenos_Aires', '2026-01-01 03:00:00'),
    ('EST5EDT', '2026-01-01 05:00:00'), ('Asia/Kathmandu', '2026-01-01 18:15:00')) v(z, want);
select throws_ok('select oq_next_runs(''@daily'', count => ' || n || ')', 'OQ001', '%count%' || n || '%', 'count ' || n)
  from unnest('{"null",0,-1,1001}'::text[]) n;
select throws_ok('select oq_next_runs(''@daily'', after => ' || a || ')', 'OQ001', '%after%', 'after ' || a)
  from unnest(array['null', '''infinity''', '''-infinity''', '''4713-01-01 BC''', '''20000-01-01''']) a;
select unchanged('select count(*) from oq_next_runs(''0 0 1 1 *'', ''Asia/Tokyo'', 3)', '{(3)}', 'it writes nothing');

select finish();
