-- The order in which functions and views are made; each can be made again at any time.

{{template "internal/fail.sql" .}}
{{template "internal/check_queue_name.sql" .}}
{{template "internal/open_lane.sql" .}}
{{template "internal/open_queue.sql" .}}
{{template "internal/enter.sql" .}}
{{template "internal/verify_instance.sql" .}}
{{template "internal/check_payload.sql" .}}
{{template "internal/check_result.sql" .}}
{{template "internal/check_leases.sql" .}}
{{template "internal/check_depth.sql" .}}
{{template "internal/job_options.sql" .}}
{{template "internal/wake.sql" .}}
{{template "internal/demand_lease.sql" .}}
{{template "internal/lost_lease.sql" .}}
{{template "internal/backoff.sql" .}}
{{template "internal/put_back.sql" .}}
{{template "internal/raise_lane.sql" .}}
{{template "internal/time_low.sql" .}}
{{template "internal/lanes.sql" .}}
{{template "internal/promote_due.sql" .}}
{{template "internal/reap_expired.sql" .}}
{{template "internal/expire_due.sql" .}}
{{template "internal/raise_time.sql" .}}
{{template "internal/rewrite.sql" .}}
{{template "internal/tend.sql" .}}
{{template "internal/may_lease.sql" .}}
{{template "internal/enqueue_checked.sql" .}}

{{template "producer/oq_enqueue.sql" .}}
{{template "producer/oq_enqueue_bulk.sql" .}}
{{template "producer/oq_enqueue_many.sql" .}}

{{template "worker/oq_lease.sql" .}}
{{template "worker/oq_ack.sql" .}}
{{template "worker/oq_ack_many.sql" .}}
{{template "worker/oq_next.sql" .}}
{{template "worker/oq_nack.sql" .}}
{{template "worker/oq_release.sql" .}}
{{template "worker/oq_heartbeat.sql" .}}
{{template "worker/oq_heartbeat_many.sql" .}}
{{template "worker/oq_listen.sql" .}}
{{template "worker/oq_unlisten.sql" .}}

{{template "daemon/oq_lead.sql" .}}
{{template "daemon/oq_promote.sql" .}}
{{template "daemon/oq_reap.sql" .}}
{{template "daemon/oq_expire.sql" .}}
{{template "daemon/oq_advance.sql" .}}
{{template "daemon/oq_rotate.sql" .}}
{{template "daemon/oq_compact.sql" .}}
{{template "daemon/oq_wake.sql" .}}
{{template "daemon/oq_tick.sql" .}}
