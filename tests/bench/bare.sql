-- The floor for an enqueue: one INSERT into a table with a primary key and the index that a lease
-- would need. Nothing can take a job and be found again for less.
create schema bare;

create table bare.job (
    id bigint generated always as identity,
    queue text not null,
    priority smallint not null default 0,
    state smallint not null default 0,
    payload jsonb not null,
    created_at timestamptz not null default now(),
    constraint job_pkey primary key (id)
);

create index job_pending on bare.job (queue, priority desc, id) where state = 0;
