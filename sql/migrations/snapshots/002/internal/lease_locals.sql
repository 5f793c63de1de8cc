{{- /* The variables of lease_body.sql. */ -}}
    v_queue_id    bigint;
    v_seconds     int;
    v_max_retries int;
    v_paused      boolean;
    v_restricted  boolean;
    v_lane        bigint;
    v_last        bigint;
    v_low         bigint;
    v_raised_at   timestamptz;
    v_now         timestamptz;
    v_expires_at  timestamptz;
    v_token       bigint;
    v_gen         smallint;
    v_left        int := $4;
    v_count       int;
