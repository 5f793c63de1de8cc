-- The places in which a job can stand, and the registers that keep leases away from dead rows.
-- Nothing here is created at run time. sql/DESIGN.md says why each table is as it is.

-- Names are compared as texts: settings of the database must not change those.
set local quote_all_identifiers = off;
set local standard_conforming_strings = on;

do $$
declare
    v_public_creates boolean;
    v_role           text;
begin
    if '{{.schema}}' !~ '^[a-z_][a-z0-9_]{0,40}$' or '{{.api_schema}}' !~ '^[a-z_][a-z0-9_]{0,62}$' then
        raise exception 'schema and api_schema must be plain lower-case names, not "%" and "%"',
            '{{.schema}}', '{{.api_schema}}';
    end if;
    if current_setting('server_version_num')::int < 140000 then
        raise exception 'OpenQueue needs PostgreSQL 14 or newer, this is %',
            current_setting('server_version');
    end if;
    if to_regnamespace('{{.api_schema}}') is null then
        create schema {{.api_schema}};
        -- Not what ALTER DEFAULT PRIVILEGES gives others: grants.sql says who may use it.
        for v_role in
            select distinct r.rolname
              from pg_namespace n
             cross join lateral aclexplode(n.nspacl) a
              join pg_roles r on r.oid = a.grantee
             where n.nspname = '{{.api_schema}}' and a.grantee <> n.nspowner
        loop
            execute format('revoke all on schema {{.api_schema}} from %I cascade', v_role);
        end loop;
    end if;
    if exists (
        select from pg_proc p
         where p.pronamespace = to_regnamespace('{{.api_schema}}') and p.proname = 'oq_version'
           and not 'search_path=pg_catalog, {{.schema}}, pg_temp' = any (p.proconfig))
    then
        raise exception 'schema {{.api_schema}} has the functions of another installation of OpenQueue'
            using hint = 'Each needs an api_schema of its own.';
    end if;

    -- Whoever may create functions beside ours can shadow them for every caller (CVE-2018-1058).
    select exists (
        select from pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
         where n.nspname = '{{.api_schema}}' and a.grantee = 0 and a.privilege_type = 'CREATE')
      into v_public_creates;
    if v_public_creates then
        begin
            revoke create on schema {{.api_schema}} from public;
        exception when insufficient_privilege then null;
        end;
        if exists (
            select from pg_namespace n, aclexplode(n.nspacl) a
             where n.nspname = '{{.api_schema}}' and a.grantee = 0 and a.privilege_type = 'CREATE')
        then
            raise exception 'everybody may create functions in schema {{.api_schema}}'
                using hint = 'Let its owner run: revoke create on schema {{.api_schema}} from public; '
                    'or choose another api_schema.';
        end if;
    end if;
end
$$;

create schema {{.schema}};
comment on schema {{.schema}} is 'OpenQueue: tables and private functions. Use the oq_ functions.';

-- Registers outside MVCC: read at once by everyone, in any isolation level.

create sequence {{.schema}}.position as bigint cache 1;
comment on sequence {{.schema}}.position is
    'Job ids and places in a lane. Cache 1: a cached value would be drawn before its epoch.';

create sequence {{.schema}}.epoch as bigint cache 1;
comment on sequence {{.schema}}.epoch is 'The current epoch. Writers lock it shared, oq_advance opens the next.';

create sequence {{.schema}}.token as bigint minvalue 0 cycle cache 1;
comment on sequence {{.schema}}.token is 'Tells apart lease calls of the same instant.';

create sequence {{.schema}}.generation as bigint minvalue 0 maxvalue 2 cycle cache 1;
comment on sequence {{.schema}}.generation is 'The generation into which rows go now.';

create sequence {{.schema}}.beat as bigint minvalue 0 cache 1;
comment on sequence {{.schema}}.beat is 'When oq_tick last ran, in milliseconds since 1970.';

create sequence {{.schema}}.led as bigint minvalue 0 cache 1;
comment on sequence {{.schema}}.led is
    'When the leader last ticked, in milliseconds since 1970, to the second. Odd: nothing has moved for long, leave it no wake-up.';

create sequence {{.schema}}.unsaid as bigint minvalue 0 cache 1;
comment on sequence {{.schema}}.unsaid is
    'When a wake-up was last left to a tick, in milliseconds since 1970.';

create sequence {{.schema}}.epoch_low as bigint minvalue 0 cache 1;
comment on sequence {{.schema}}.epoch_low is 'No unresolved epoch is below it: oq_advance starts there.';

create sequence {{.schema}}.reap_after as bigint minvalue 0 cache 1;
comment on sequence {{.schema}}.reap_after is
    'Nobody looks for expired leases before, in milliseconds since 1970. Far off means nothing: a clock was ahead.';

create sequence {{.schema}}.compact_after as bigint minvalue 0 cache 1;
comment on sequence {{.schema}}.compact_after is 'No compaction before, in milliseconds since 1970.';

do $$
begin
    perform setval('{{.schema}}.compact_after', 0);
    perform setval('{{.schema}}.reap_after', 0);
    perform setval('{{.schema}}.epoch', 1);
    perform setval('{{.schema}}.epoch_low', 1);
    perform setval('{{.schema}}.token', 0);
    perform setval('{{.schema}}.generation', 0);
    perform setval('{{.schema}}.beat', 0);
    perform setval('{{.schema}}.led', 0);
    perform setval('{{.schema}}.unsaid', 0);
end
$$;

-- Queues. Rows are only added by a first use, so that two producers that create the same queues in
-- opposite order never wait for each other; the newest version, then the oldest row, counts.
-- Texts in indexes are compared by their bytes: a new version of the C library or of ICU leaves those indexes valid.

create table {{.schema}}.queue (
    row_id              bigint generated always as identity constraint queue_pk primary key,
    version             int         not null default 0,
    queue_id            bigint      not null,
    queue_name          text collate "C" not null,
    paused              boolean     not null default false,
    restricted          boolean     not null default false,
    lease_seconds       int         not null default 30,
    max_retries         int         not null default 3,
    max_lost_leases     int         not null default 3,
    max_payload_bytes   int         not null default 1048576,
    max_depth           int,
    linked              boolean     not null default false,
    limited             boolean     not null default false,
    keep                text        not null default 'outcome',
    notify              text        not null default 'wake',
    retention           interval    not null default '1 day',
    retry               jsonb       not null
        default '{"kind": "exponential", "base": "1 s", "factor": 2, "max": "1 h", "jitter": 0.1}',
    created_at          timestamptz not null default now(),
    dropped_at          timestamptz,
    constraint queue_keep_check check (keep in ('outcome', 'full', 'none')),
    constraint queue_notify_check check (notify in ('wake', 'daemon'))
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
create index queue_name_idx on {{.schema}}.queue (queue_name, version desc, row_id);
create index queue_id_idx on {{.schema}}.queue (queue_id, version desc, row_id);
create index queue_linked_idx on {{.schema}}.queue (queue_id) where linked;
create unique index queue_changed_idx on {{.schema}}.queue (queue_id) where version > 0 and version & 15 = 0;

comment on table {{.schema}}.queue is 'Queues and their options; of several rows the newest version counts.';
comment on column {{.schema}}.queue.version is 'Rises with every change of options.';
comment on column {{.schema}}.queue.queue_id is '47 bits of a hash of the name, so nobody waits to learn it.';
comment on column {{.schema}}.queue.max_depth is 'Most ready, waiting and scheduled jobs; null: no limit.';
comment on column {{.schema}}.queue.linked is
    'Some job of it was in a group or a batch, or others depend on it: its end is looked at by settle.';
comment on column {{.schema}}.queue.limited is 'A lease looks at limit_rule and throttled first.';
comment on column {{.schema}}.queue.notify is 'wake: the enqueue notifies sleepers; daemon: only oq_wake does.';
comment on column {{.schema}}.queue.dropped_at is 'Hidden since then, until a job commits in it.';

create table {{.schema}}.queue_grant (
    queue_id    bigint  not null,
    role_id     regrole not null,
    privilege   text collate "C" not null,
    constraint queue_grant_pk primary key (queue_id, role_id, privilege),
    constraint queue_grant_privilege_check check (privilege in ('produce', 'consume', 'observe'))
);
comment on table {{.schema}}.queue_grant is 'Who may do what in a restricted queue.';
comment on column {{.schema}}.queue_grant.role_id is 'A dump writes the name: ids differ in another cluster.';

-- What never changes of a job. Generations are cleared by TRUNCATE, never row by row.

create table {{.schema}}.job (
    job_id      bigint      not null,
    queue_id    bigint      not null,
    created_at  timestamptz not null,
    run_at      timestamptz,
    expires_at  timestamptz,
    max_retries int,
    gen         smallint    not null,
    priority    smallint    not null,
    payload     jsonb       not null,
    headers     jsonb,
    retry       jsonb,
    tags        text[],
    group_key   text,
    unique_key  text,
    batch_id    bigint,
    depends_on  bigint[],
    on_parent_failure text
) partition by list (gen);
comment on table {{.schema}}.job is 'One row a job: what its producer said. Written once.';
comment on column {{.schema}}.job.max_retries is 'Null: as the queue says.';
comment on column {{.schema}}.job.expires_at is 'Not leased after this time.';
comment on column {{.schema}}.job.retry is 'Null: as the queue says.';
comment on column {{.schema}}.job.group_key is 'Jobs of one key in a queue run in order, one at a time.';
comment on column {{.schema}}.job.unique_key is
    'The key that this job took; null again where a newer job took it over from a job that was not over.';
comment on column {{.schema}}.job.batch_id is 'The batch of which it is a member.';
comment on column {{.schema}}.job.depends_on is 'The jobs that must end first.';
comment on column {{.schema}}.job.on_parent_failure is 'cancel or run; null where it depends on none.';

create type {{.schema}}.outcome as enum ('completed', 'cancelled', 'expired');
comment on type {{.schema}}.outcome is 'How a job ended for good.';

create table {{.schema}}.finished (
    gen         smallint    not null,
    lost        smallint    not null,
    attempt     int         not null,
    job_id      bigint      not null,
    queue_id    bigint      not null,
    finished_at timestamptz not null,
    leased_at   timestamptz,
    token       bigint,
    outcome     {{.schema}}.outcome not null,
    kept        boolean     not null default true,
    linked      boolean     not null default false,
    worker_id   text,
    error       text,
    result      jsonb
) partition by list (gen);
comment on table {{.schema}}.finished is 'Completed, cancelled and expired jobs.';
comment on column {{.schema}}.finished.token is 'The last lease where the job was cancelled while leased; negative: an earlier one.';
comment on column {{.schema}}.finished.kept is 'False where the queue keeps nothing: no view shows the job.';
comment on column {{.schema}}.finished.linked is 'As the queue was at the lease: the ack hands the job to settle.';

create table {{.schema}}.attempt (
    gen         smallint    not null,
    attempt     int         not null,
    job_id      bigint      not null,
    token       bigint      not null,
    leased_at   timestamptz not null,
    ended_at    timestamptz not null,
    outcome     text        not null,
    worker_id   text,
    error       text
) partition by list (gen);
comment on table {{.schema}}.attempt is 'Attempts that failed or lost their lease.';

{{range $table := list "job" "finished" "attempt"}}{{range $gen := list 0 1 2}}
create table {{$.schema}}.{{$table}}_{{$gen}} partition of {{$.schema}}.{{$table}} (
    constraint {{$table}}_{{$gen}}_pk primary key
        ({{if eq $table "attempt"}}job_id, attempt{{else}}job_id{{end}})
) for values in ({{$gen}})
with (autovacuum_vacuum_insert_threshold = 1000000, autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 100000, autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 100000, vacuum_truncate = off);
comment on table {{$.schema}}.{{$table}}_{{$gen}} is 'Generation {{$gen}} of {{$table}}.';
{{end}}{{end}}

create table {{.schema}}.generation_state (
    gen             smallint    not null constraint generation_state_pk primary key,
    opened_at       timestamptz,
    closed_at       timestamptz,
    stage           text        not null,
    cursor_id       bigint      not null default 0,
    try_after       timestamptz,
    tries           int         not null default 0,
    constraint generation_state_stage_check check (stage in
        ('empty', 'current', 'closed', 'job', 'finished', 'attempt', 'evacuated'))
);
comment on table {{.schema}}.generation_state is 'How far each generation is on its way to TRUNCATE.';
comment on column {{.schema}}.generation_state.stage is
    'empty, current, closed, then the table being evacuated, then evacuated.';
comment on column {{.schema}}.generation_state.cursor_id is 'The last job looked at in this stage.';
comment on column {{.schema}}.generation_state.try_after is 'No attempt to lock before this time.';
insert into {{.schema}}.generation_state (gen, opened_at, stage)
values (0, clock_timestamp(), 'current'), (1, null, 'empty'), (2, null, 'empty');

-- Where a job stands. One narrow row, deleted here and inserted there at each step.

create table {{.schema}}.ready (
    lane        bigint   not null,
    position    bigint   not null,
    job_id      bigint   not null,
    token       bigint,
    attempt     int,
    failed      smallint,
    lost        smallint,
    expires_at  timestamptz,
    constraint ready_pk primary key (lane, position)
);
create index ready_returned_idx on {{.schema}}.ready (job_id) where position <> job_id;
comment on table {{.schema}}.ready is 'May run now. Leased from the front of each lane.';
comment on column {{.schema}}.ready.lane is
    'queue_id * 65536 + 32767 - priority: a queue''s lanes lie together, highest priority first.';
comment on column {{.schema}}.ready.position is 'The job id at first, a new number of the same sequence later.';
comment on column {{.schema}}.ready.token is
    'The last lease token, so that the next is larger. As the next three null, for 0, where the job stands where it was enqueued.';
comment on column {{.schema}}.ready.attempt is 'Leases so far.';
comment on column {{.schema}}.ready.failed is 'Failures since the last redrive.';
comment on column {{.schema}}.ready.lost is 'Lost leases since the last redrive.';

create table {{.schema}}.scheduled (
    due_at      timestamptz not null,
    job_id      bigint      not null,
    lane        bigint      not null,
    token       bigint      not null default 0,
    attempt     int         not null default 0,
    failed      smallint    not null default 0,
    lost        smallint    not null default 0,
    expires_at  timestamptz,
    constraint scheduled_pk primary key (job_id)
);
create index scheduled_due_idx on {{.schema}}.scheduled (due_at);
comment on table {{.schema}}.scheduled is 'Runs at a later time, retries with backoff included.';

create table {{.schema}}.waiting (
    job_id      bigint      not null,
    lane        bigint      not null,
    holder      text        not null,
    group_id    bigint,
    position    bigint      not null,
    token       bigint      not null default 0,
    attempt     int         not null default 0,
    failed      smallint    not null default 0,
    lost        smallint    not null default 0,
    first       boolean     not null default false,
    xact        bigint,
    expires_at  timestamptz,
    constraint waiting_pk primary key (job_id),
    constraint waiting_holder_check check (holder in ('group', 'parent')),
    constraint waiting_group_check check ((holder = 'group') = (group_id is not null))
);
create index waiting_group_idx on {{.schema}}.waiting (group_id, position) where group_id is not null;
comment on table {{.schema}}.waiting is 'May not run yet: held by its group or by a parent.';
comment on column {{.schema}}.waiting.holder is 'group: its turn has not come; parent: a job it depends on is open.';
comment on column {{.schema}}.waiting.group_id is 'Of the line in which it stands; null where a parent holds it.';
comment on column {{.schema}}.waiting.position is 'Its place in the line of its group.';
comment on column {{.schema}}.waiting.first is
    'Of its group the first that a statement put in line: line_up looks at the group before the commit.';
comment on column {{.schema}}.waiting.xact is
    'The transaction that put it in line. Means nothing after its commit: positions tell old rows apart.';

create table {{.schema}}.leased (
    job_id      bigint      not null,
    token       bigint      not null,
    lane        bigint      not null,
    expires_at  timestamptz not null,
    leased_at   timestamptz not null,
    attempt     int         not null,
    failed      smallint    not null,
    lost        smallint    not null,
    kept        boolean     not null default true,
    restricted  boolean     not null default false,
    linked      boolean     not null default false,
    worker_id   text,
    job_expires_at timestamptz,
    progress    jsonb,
    constraint leased_pk primary key (job_id)
);
comment on table {{.schema}}.leased is 'Held by a worker until expires_at. Few rows: who looks for what has expired reads them all (reap_expired).';
comment on column {{.schema}}.leased.kept is 'As the queue''s option keep is: spares the ack a look at it. oq_create_queue changes both.';
comment on column {{.schema}}.leased.restricted is 'As the queue is: its ack checks the caller''s rights. oq_create_queue changes both.';
comment on column {{.schema}}.leased.linked is 'As the queue was at the lease: its end is looked at by settle.';
comment on column {{.schema}}.leased.job_expires_at is 'The job''s time to live, for when it comes back.';
comment on column {{.schema}}.leased.progress is 'What the worker said at its last heartbeat.';

create table {{.schema}}.dead (
    job_id      bigint      not null,
    queue_id    bigint      not null,
    died_at     timestamptz not null,
    token       bigint      not null,
    attempt     int         not null,
    failed      smallint    not null,
    lost        smallint    not null,
    reason      text        not null,
    worker_id   text,
    error       text,
    constraint dead_pk primary key (job_id)
);
create index dead_queue_idx on {{.schema}}.dead (queue_id, job_id);
comment on table {{.schema}}.dead is 'Retries used up or poisoned; kept until someone acts.';
comment on column {{.schema}}.dead.reason is 'retries_exhausted, no_retry or lost_lease.';

create table {{.schema}}.ttl (
    expires_at  timestamptz not null,
    job_id      bigint      not null,
    ttl_id      bigint      generated always as identity constraint ttl_pk primary key
);
create index ttl_job_idx on {{.schema}}.ttl (job_id);
create index ttl_expires_idx on {{.schema}}.ttl (expires_at);
comment on table {{.schema}}.ttl is 'When jobs with a time to live expire. A timer, not a place.';
comment on column {{.schema}}.ttl.ttl_id is 'A job that comes back gets a new timer: the old one may just be going.';

-- Low marks and epochs: no visible row of a lane stands below its highest mark, but those that
-- members of an unresolved epoch have still to commit, and those noted in passed.

create table {{.schema}}.mark (
    lane        bigint      not null,
    low         bigint      not null,
    mark_id     bigint      generated always as identity,
    raised_at   timestamptz not null default clock_timestamp(),
    seen_at     timestamptz not null default clock_timestamp(),
    constraint mark_pk primary key (mark_id)
);
create index mark_lane_idx on {{.schema}}.mark (lane, low desc);
comment on table {{.schema}}.mark is 'Low marks, insert-only: the highest of a lane counts.';
comment on column {{.schema}}.mark.lane is
    'As in ready; -1 scheduled.due_at, -2 ttl.expires_at, -10 schedule.due_at (microseconds).';
comment on column {{.schema}}.mark.seen_at is 'When a job of the lane was last seen: a lane that has none for long is left alone.';
insert into {{.schema}}.mark (lane, low) values (-1, 0), (-2, 0), (-10, 0);

create table {{.schema}}.epoch_open (
    row_id      bigint      generated always as identity constraint epoch_open_pk primary key,
    epoch       bigint      not null,
    lo          bigint      not null,
    lo_scheduled bigint     not null,
    lo_ttl      bigint      not null,
    opened_at   timestamptz not null default clock_timestamp(),
    departed    boolean     not null default false,
    holders     text[]
);
create index epoch_open_epoch_idx on {{.schema}}.epoch_open (epoch);
comment on table {{.schema}}.epoch_open is 'Epochs whose members may still commit rows below a mark.';
comment on column {{.schema}}.epoch_open.lo is 'Every position of a member is above it.';
comment on column {{.schema}}.epoch_open.departed is 'A further row, for members that have left while others hold the epoch.';
comment on column {{.schema}}.epoch_open.holders is
    'The transactions that held the epoch, closed, when it was last looked for what others have committed.';
insert into {{.schema}}.epoch_open (epoch, lo, lo_scheduled, lo_ttl) values (1, 0, 0, 0);

create table {{.schema}}.passed (
    lane        bigint not null,
    position    bigint not null,
    passed_id   bigint generated always as identity constraint passed_pk primary key
);
create index passed_position_idx on {{.schema}}.passed (lane, position);
comment on table {{.schema}}.passed is 'Rows that an open lease held while the mark went by.';
comment on column {{.schema}}.passed.position is 'As in ready; in lane -1 the job.';

create table {{.schema}}.instance (
    one                 boolean not null default true constraint instance_pk primary key,
    system_identifier   bigint  not null,
    constraint instance_one_check check (one)
);
comment on table {{.schema}}.instance is 'The cluster that this installation works in.';
insert into {{.schema}}.instance (system_identifier)
select system_identifier from pg_control_system();

{{range $table := list "ready" "scheduled" "waiting" "leased" "dead" "ttl" "mark" "epoch_open" "passed"}}
alter table {{$.schema}}.{{$table}} set (autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = {{if has $table (list "mark" "epoch_open" "passed")}}500{{else}}10000{{end}}, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000,
    vacuum_truncate = off);
{{end}}

-- Result rows whose columns share a name with an argument, which RETURNS TABLE can't express.

create type {{.schema}}.leased_job as (
    job_id           bigint,
    lease_token      bigint,
    queue_name       text,
    payload          jsonb,
    headers          jsonb,
    priority         int,
    attempt          int,
    max_retries      int,
    group_key        text,
    created_at       timestamptz,
    lease_expires_at timestamptz
);
comment on type {{.schema}}.leased_job is 'A row of oq_lease and oq_next.';

create type {{.schema}}.queue_stats as (
    queue_name           text,
    paused               boolean,
    ready                bigint,
    scheduled            bigint,
    waiting              bigint,
    leased               bigint,
    dead                 bigint,
    completed            bigint,
    oldest_ready_seconds numeric,
    enqueued_per_second  numeric,
    completed_per_second numeric
);
comment on type {{.schema}}.queue_stats is 'A row of oq_stats.';

-- Schedules: what is enqueued by the clock. One row each, changed at every run; what is wide in it stands
-- aside (toast), so that a run copies little.

create table {{.schema}}.schedule (
    schedule_id   bigint      generated always as identity constraint schedule_pk primary key,
    due_at        timestamptz,
    last_run_at   timestamptz,
    last_job_id   bigint,
    last_error_at timestamptz,
    created_at    timestamptz not null default clock_timestamp(),
    updated_at    timestamptz not null default clock_timestamp(),
    start_at      timestamptz,
    end_at        timestamptz,
    runs          bigint      not null default 0,
    skipped       bigint      not null default 0,
    owner_id      oid         not null,
    behind        int         not null default 0,
    paused        boolean     not null default false,
    schedule_name text collate "C" not null,
    owner_name    name        not null,
    queue_name    text        not null,
    timezone      text        not null,
    missed        text        not null default 'one',
    overlap       text        not null default 'allow',
    last_error    text,
    cron          text        not null,
    fields        text[]      not null,
    job           jsonb       not null default '{}',
    payload       jsonb       not null,
    constraint schedule_name_key unique (schedule_name),
    constraint schedule_missed_check check (missed in ('skip', 'one', 'all')),
    constraint schedule_overlap_check check (overlap in ('allow', 'skip'))
) with (toast_tuple_target = 128, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000, vacuum_truncate = off);
create index schedule_due_idx on {{.schema}}.schedule (due_at) where due_at is not null;
comment on table {{.schema}}.schedule is 'What oq_run_schedules enqueues, and when.';
comment on column {{.schema}}.schedule.due_at is 'The next instant; null: paused or over. It only rises.';
comment on column {{.schema}}.schedule.last_run_at is 'The instant of the last run, not when it was enqueued.';
comment on column {{.schema}}.schedule.start_at is 'No run before it; null: from now.';
comment on column {{.schema}}.schedule.end_at is 'No run after it; null: for ever.';
comment on column {{.schema}}.schedule.runs is 'Jobs made so far.';
comment on column {{.schema}}.schedule.skipped is 'Runs left out because the one before was not done.';
comment on column {{.schema}}.schedule.owner_id is 'Whose rights a run has. Made from owner_name by oq_adopt.';
comment on column {{.schema}}.schedule.owner_name is 'The owner''s name at the last run: ids differ in a restored copy.';
comment on column {{.schema}}.schedule.behind is 'Missed runs made since it last kept up.';
comment on column {{.schema}}.schedule.fields is 'The expression as cron_parse gives it.';
comment on column {{.schema}}.schedule.job is 'priority, max_retries, unique_key, group_key, headers, options.';

create table {{.schema}}.deputy (
    deputy_id   bigint generated always as identity constraint deputy_pk primary key,
    xid         xid8   not null,
    queue_id    bigint not null
);
create index deputy_xid_idx on {{.schema}}.deputy (xid);
comment on table {{.schema}}.deputy is 'Queues in which the running call produces by a stored role''s right.';
comment on column {{.schema}}.deputy.xid is 'The transaction that wrote the row and deletes it: no other ever sees it.';

-- A job that is being enqueued, as far as it is worked out: enqueue_jobs fills it in step by step.

create type {{.schema}}.new_job as (
    ord          int,
    job_id       bigint,
    queue_id     bigint,
    lane         bigint,
    run_at       timestamptz,
    max_retries  int,
    expires_at   timestamptz,
    retry        jsonb,
    tags         text[],
    group_key    text,
    unique_key   text,
    unique_mode  text,
    unique_for   interval,
    debounce_max interval,
    depends_on   bigint[],
    on_parent_failure text,
    batch_id     bigint
);
comment on type {{.schema}}.new_job is 'A job that is being enqueued.';

-- Topics and table watches: what makes jobs by itself. Roles and tables are kept as regrole and
-- regclass, which a dump writes by name, so that a restored copy knows them again.

create table {{.schema}}.subscription (
    subscription_id bigint      generated always as identity constraint subscription_pk primary key,
    queue_id        bigint      not null,
    owner           regrole     not null,
    created_at      timestamptz not null default clock_timestamp(),
    pattern         text collate "C" not null,
    head            text collate "C" not null,
    tail            text collate "C" not null,
    regex           text,
    constraint subscription_key unique (pattern, queue_id, owner)
);
create index subscription_match_idx on {{.schema}}.subscription (head, tail);
comment on table {{.schema}}.subscription is 'Which topics make jobs in which queue.';
comment on column {{.schema}}.subscription.owner is 'Who subscribed: must be able to produce when it fires, too.';
comment on column {{.schema}}.subscription.head is 'The words before the first wildcard; all of them where there is none.';
comment on column {{.schema}}.subscription.tail is 'The words after the last wildcard; empty where there is none.';
comment on column {{.schema}}.subscription.regex is
    'Matches the topic with a dot after each word; null where there is no wildcard.';

create table {{.schema}}.watch (
    watch_id        bigint      generated always as identity constraint watch_pk primary key,
    queue_id        bigint      not null,
    table_id        regclass    not null,
    owner           regrole     not null,
    created_at      timestamptz not null default clock_timestamp(),
    run_at          timestamptz,
    priority        smallint    not null default 0,
    max_retries     int,
    keyed           boolean     not null default false,
    headers         jsonb,
    job_options     jsonb,
    events          text[]      not null,
    columns         text[],
    condition       text,
    options         jsonb,
    constraint watch_key unique (table_id, queue_id)
);
comment on table {{.schema}}.watch is 'Tables whose changes become jobs, by triggers that oq_watch made.';
comment on column {{.schema}}.watch.owner is
    'The table''s owner when the watch was made: its function runs as this role, which must be able to produce.';
comment on column {{.schema}}.watch.keyed is 'Its jobs have a unique or group key: they go the long way in.';
comment on column {{.schema}}.watch.job_options is 'The part of options that is options of each job.';

create table {{.schema}}.watch_failure (
    failure_id      bigint      generated always as identity constraint watch_failure_pk primary key,
    queue_id        bigint      not null,
    failed          bigint      not null,
    table_id        regclass    not null,
    failed_at       timestamptz not null,
    code            text        not null,
    error           text        not null
);
create index watch_failure_idx on {{.schema}}.watch_failure (table_id, queue_id, failed_at desc);
comment on table {{.schema}}.watch_failure is
    'Changes that made no job. Added to, never updated: writers do not wait for each other.';
comment on column {{.schema}}.watch_failure.failed is 'Jobs not made, with those of the rows that it replaced.';
-- Unique keys. A row a key, found and taken by one upsert; it is stale when its job is over and until has
-- passed, and swept away some time after.

create table {{.schema}}.unique_key (
    queue_id    bigint      not null,
    job_id      bigint      not null,
    version     bigint      not null,
    seen        bigint,
    taken_at    timestamptz not null,
    until       timestamptz,
    key_hash    bytea       not null,
    constraint unique_key_pk primary key (queue_id, key_hash)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 1000000, vacuum_truncate = off);
comment on table {{.schema}}.unique_key is 'Which job has a unique key.';
comment on column {{.schema}}.unique_key.version is 'Another one each time it is taken.';
comment on column {{.schema}}.unique_key.seen is 'The version that the taker had found free: the upsert changes no other.';
comment on column {{.schema}}.unique_key.until is 'Taken until then, even if the job is over (unique_for).';
comment on column {{.schema}}.unique_key.key_hash is 'SHA-256 of the key: keys are longer than an index likes.';

create sequence {{.schema}}.key_sweep as bigint minvalue 0 cache 1;
comment on sequence {{.schema}}.key_sweep is 'The block of unique_key where the sweep goes on.';
select setval('{{.schema}}.key_sweep', 0);
-- Groups and limits. Registers are insert-only, the newest row of a slot counts, and a slot is free when
-- its job is over, which is read from where the job stands: nothing can leak.

create table {{.schema}}.group_slot (
    group_id    bigint      not null,
    job_id      bigint      not null,
    low         bigint      not null,
    admitted_at timestamptz not null,
    slot        int         not null,
    version     bigint      generated always as identity
);
-- The only index of the table that each turn of a group writes. A primary key can't be descending.
create unique index group_slot_idx on {{.schema}}.group_slot (group_id, slot, version desc);
alter table {{.schema}}.group_slot replica identity using index group_slot_idx;
comment on table {{.schema}}.group_slot is 'Which job of a group was let into ready last, slot by slot.';
comment on column {{.schema}}.group_slot.low is 'All that stands in line below it has been let in; the highest of the group counts.';

create table {{.schema}}.limit_rule (
    rule_id     bigint      generated always as identity constraint limit_rule_pk primary key,
    queue_id    bigint      not null,
    group_id    bigint      not null default 0,
    group_key   text,
    max_running int,
    rate        numeric,
    per         interval    not null
);
create unique index limit_rule_idx on {{.schema}}.limit_rule (queue_id, group_id);
comment on table {{.schema}}.limit_rule is 'What oq_limit set for a queue, a group, or every group (key *).';
comment on column {{.schema}}.limit_rule.group_id is '0: the queue itself.';

create table {{.schema}}.limit_slot (
    holder      bigint      not null,
    job_id      bigint      not null,
    token       bigint      not null,
    taken_at    timestamptz not null,
    slot        int         not null,
    version     bigint      generated always as identity constraint limit_slot_pk primary key
);
create index limit_slot_idx on {{.schema}}.limit_slot (holder, slot, version desc);
comment on table {{.schema}}.limit_slot is 'Who took each slot of a limit last.';
comment on column {{.schema}}.limit_slot.token is
    'Of the lease; below 0: the job of a group that was let in and has yet to begin, as far as is written.';
comment on column {{.schema}}.limit_slot.holder is
    'queue_id * 4: max_running of a queue; + 1: its rate; -1 - group_id: the rate of a group.';

create table {{.schema}}.throttled (
    queue_id    bigint      not null,
    group_id    bigint      not null default 0,
    until       timestamptz not null,
    throttle_id bigint      generated always as identity constraint throttled_pk primary key
);
create index throttled_idx on {{.schema}}.throttled (queue_id, group_id, throttle_id desc);
comment on table {{.schema}}.throttled is 'Until when nobody gets jobs of a queue or group; the newest row counts.';
comment on column {{.schema}}.throttled.group_id is '0: the queue itself.';

create table {{.schema}}.todo (
    due_at      timestamptz not null,
    id          bigint      not null,
    queue_id    bigint      not null,
    position    bigint,
    todo_id     bigint      generated always as identity constraint todo_pk primary key,
    kind        text        not null,
    constraint todo_kind_check check (kind in ('group', 'parent', 'child'))
);
create index todo_group_idx on {{.schema}}.todo (due_at) where kind = 'group';
create index todo_group_queue_idx on {{.schema}}.todo (queue_id, due_at) where kind = 'group';
create index todo_link_idx on {{.schema}}.todo (due_at) where kind <> 'group';
create index todo_link_queue_idx on {{.schema}}.todo (queue_id, due_at) where kind <> 'group';
create index todo_id_idx on {{.schema}}.todo (id);
comment on table {{.schema}}.todo is
    'What could not be looked at in time: the tick, or a lease, does it.';
comment on column {{.schema}}.todo.id is
    'kind group: the group; parent: a job that may have ended; child: a job, or minus a batch, that may be free.';
comment on column {{.schema}}.todo.position is 'Rows from here on may have been committed below the group''s low.';

create sequence {{.schema}}.todo_low as bigint minvalue 0 cache 1;
comment on sequence {{.schema}}.todo_low is
    'Before when no todo was due a second ago, in milliseconds since 1970.';
create sequence {{.schema}}.sweep as bigint minvalue 0 cache 1;
comment on sequence {{.schema}}.sweep is 'The block of waiting where the sweep of groups goes on.';
create sequence {{.schema}}.trim as bigint minvalue 0 cache 1;
comment on sequence {{.schema}}.trim is 'Counts the sweeps: which blocks of the registers they look at.';
do $$
begin
    perform setval('{{.schema}}.todo_low', 0);
    perform setval('{{.schema}}.sweep', 0);
    perform setval('{{.schema}}.trim', 0);
end
$$;

{{range $table := list "group_slot" "limit_slot" "throttled" "todo"}}
alter table {{$.schema}}.{{$table}} set (autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000,
    vacuum_truncate = off);
{{end}}

-- Dependencies and batches. Edges are added and deleted, never updated, so nobody waits for anybody. A batch is
-- a child like any other, with its id below 0; the edge from 0 goes when it is sealed.

create table {{.schema}}.dependency (
    parent_id   bigint      not null,
    child_id    bigint      not null,
    constraint dependency_pk primary key (parent_id, child_id)
);
create index dependency_child_idx on {{.schema}}.dependency (child_id, parent_id);
comment on table {{.schema}}.dependency is 'Who waits for whose end: one row for each that is still to come.';
comment on column {{.schema}}.dependency.parent_id is 'A job; 0: that the batch is sealed.';
comment on column {{.schema}}.dependency.child_id is 'A job; below 0: minus the id of a batch.';

create table {{.schema}}.batch (
    batch_id    bigint      generated always as identity constraint batch_pk primary key,
    owner       regrole     not null,
    created_at  timestamptz not null default clock_timestamp(),
    on_success  jsonb,
    on_failure  jsonb,
    on_complete jsonb
);
comment on table {{.schema}}.batch is 'Batches until their jobs are made: the row goes in that transaction.';
comment on column {{.schema}}.batch.owner is 'Who made it: must be able to produce when it fires, too.';

create table {{.schema}}.batch_failure (
    batch_id    bigint      not null,
    failure_id  bigint      generated always as identity constraint batch_failure_pk primary key
);
create index batch_failure_idx on {{.schema}}.batch_failure (batch_id);
comment on table {{.schema}}.batch_failure is 'Batches of which a job has failed. Any row of a batch says it.';

create sequence {{.schema}}.edge_sweep as bigint minvalue 0 cache 1;
comment on sequence {{.schema}}.edge_sweep is 'The block of dependency where the sweep goes on.';
create sequence {{.schema}}.child_sweep as bigint minvalue 0 cache 1;
comment on sequence {{.schema}}.child_sweep is 'The block of waiting where the sweep of children goes on.';
do $$
begin
    perform setval('{{.schema}}.edge_sweep', 0);
    perform setval('{{.schema}}.child_sweep', 0);
end
$$;
create index waiting_parent_idx on {{.schema}}.waiting (job_id) where holder = 'parent';

{{range $table := list "dependency" "batch" "batch_failure"}}
alter table {{$.schema}}.{{$table}} set (autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000,
    vacuum_truncate = off);
{{end}}

-- Wake-ups that are to be made before the commit. Nobody reads the rows: oq_compact truncates them.
create unlogged table {{.schema}}.wakeup (
    queue_id    bigint  not null,
    queue_name  text collate "C" not null,
    bound       boolean not null
);
comment on table {{.schema}}.wakeup is 'Queues whose sleepers are notified before the commit.';

-- Group roles belong to the cluster: made only where missing.
do $$
declare
    v_role text;
begin
    foreach v_role in array array['oq_producer', 'oq_worker', 'oq_observer', 'oq_operator', 'oq_daemon']
    loop
        if not exists (select from pg_roles where rolname = v_role) then
            begin
                execute format('create role %I nologin', v_role);
            exception when duplicate_object or unique_violation then null;
            end;
        end if;
    end loop;
end
$$;

---- create above / drop below ----

set local quote_all_identifiers = off;
set local standard_conforming_strings = on;

-- Watches go with what they call. What belongs to somebody else stays, and does nothing any more.
do $$
declare
    v_drop text;
begin
    for v_drop in
        select unnest(array[
            format('drop trigger %I on %s', t.tgname, t.tgrelid::regclass),
            format('drop function if exists %s', t.tgfoid::regprocedure)])
          from {{.schema}}.watch w
          join pg_trigger t on t.tgrelid = w.table_id and t.tgparentid = 0
           and t.tgname ~ ('^{{.schema}}_watch_' || w.watch_id || '_(insert|update|delete)$')
    loop
        begin
            execute v_drop;
        exception when insufficient_privilege or dependent_objects_still_exist then null;
        end;
    end loop;
end
$$;

drop schema {{.schema}} cascade;

-- A role goes with the last installation that uses it, unless somebody was made its member.
do $$
declare
    v_role record;
begin
    for v_role in
        select r.rolname
          from pg_roles r
         where r.rolname in ('oq_producer', 'oq_worker', 'oq_observer', 'oq_operator', 'oq_daemon')
           and to_regnamespace('{{.api_schema}}') is not null
           -- Where another installation is by now, its roles stay in.
           and not exists (
            select from pg_proc p where p.pronamespace = to_regnamespace('{{.api_schema}}') and p.proname = 'oq_version')
    loop
        execute format('revoke all on schema {{.api_schema}} from %I', v_role.rolname);
    end loop;
    for v_role in
        select r.rolname
          from pg_roles r
         where r.rolname in ('oq_producer', 'oq_worker', 'oq_observer', 'oq_operator', 'oq_daemon')
           and not exists (
            select from pg_auth_members m
              join pg_roles p on p.oid = m.member
             where m.roleid = r.oid and p.rolname <> current_user
               and p.rolname not in ('oq_producer', 'oq_worker', 'oq_observer', 'oq_operator', 'oq_daemon'))
    loop
        begin
            execute format('drop role %I', v_role.rolname);
        -- An internal error where a database that depends on the role is being dropped at this moment.
        exception when dependent_objects_still_exist or insufficient_privilege or internal_error then null;
        end;
    end loop;
end
$$;
