-- Ends a subscription, whoever made it; of who may not produce any more only its own, as with a schedule.
-- Calls: check_words, check_queue_name, may, demand. Index: queue_name_idx, subscription_key.
create or replace function {{.api_schema}}.oq_unsubscribe(topic_pattern text, queue_name text)
returns boolean
language plpgsql
{{template "internal/pinned.sql" .}}
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    v_caller   name := coalesce(nullif(current_setting('role'), 'none'), session_user);
    v_queue_id bigint;
    v_all      boolean;
begin
    perform check_words('topic_pattern', topic_pattern, true);
    perform check_queue_name(oq_unsubscribe.queue_name);
    select q.queue_id into v_queue_id
      from queue q
     where q.queue_name = oq_unsubscribe.queue_name collate "C"
     limit 1;
    if v_queue_id is null then
        return false;
    end if;
    v_all := may(v_queue_id, 'produce');
    delete from subscription s
     where s.pattern = oq_unsubscribe.topic_pattern collate "C" and s.queue_id = v_queue_id
       and (v_all or exists (
            select from pg_roles r where r.oid = s.owner::oid and pg_has_role(v_caller, r.oid, 'usage')));
    if found then
        return true;
    end if;
    perform demand(v_queue_id, oq_unsubscribe.queue_name, 'produce');
    return false;
end
$$;
comment on function {{.api_schema}}.oq_unsubscribe(text, text) is
'Ends a subscription; false where there is none.
topic_pattern as it was given to oq_subscribe. Whoever may produce in the queue may end it, the
subscriptions of others with it; who may not any more, those of its own role. Errors: OQ001, 42501.';
