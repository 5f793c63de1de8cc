{{- /* The variables of lease_body.sql. */ -}}
    v_queue_id    bigint;
    v_restricted  boolean;
    v_paused      boolean;
    v_max_retries int;
    v_seconds     int;
    v_plain       boolean;
    v_lane        bigint;
    v_last        bigint;
    v_low         bigint;
    v_fresh       boolean;
    v_epoch       bigint;
    v_now         timestamptz;
    v_token       bigint;
    v_gen         int;
    v_count       int;
    v_tended      boolean;
    v_left        int := $4;
