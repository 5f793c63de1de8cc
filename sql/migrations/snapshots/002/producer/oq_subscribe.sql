-- From now on a topic makes a job in the queue. The subscriber is stored: it needs the right to produce
-- now, and again whenever somebody publishes.
-- Calls: check_words, open_queue, role_may, demand. Index: subscription_key.
create or replace function {{.api_schema}}.oq_subscribe(topic_pattern text, queue_name text)
returns void
language plpgsql
{{template "internal/pinned.sql" .}}
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    v_caller   name := coalesce(nullif(current_setting('role'), 'none'), session_user);
    v_owner    oid := (select r.oid from pg_roles r where r.rolname = v_caller collate "C");
    v_words    text[];
    v_queue_id bigint;
begin
    v_words := check_words('topic_pattern', topic_pattern, true);
    v_queue_id := open_queue(oq_subscribe.queue_name, true);
    if not role_may(v_owner, v_queue_id, 'produce') then
        perform demand(v_queue_id, oq_subscribe.queue_name, 'produce');
        raise exception 'role % is not a member of oq_producer', quote_ident(v_caller)
            using errcode = '42501', hint = 'What it subscribed would not be delivered.';
    end if;
    -- Where there is a wildcard, the words before the first and after the last are what an index finds.
    insert into subscription (queue_id, owner, pattern, head, tail, regex)
    select v_queue_id, v_owner, oq_subscribe.topic_pattern,
        coalesce(string_agg(w.word, '.' order by w.place) filter (where w.place < w.first), ''),
        coalesce(string_agg(w.word, '.' order by w.place) filter (where w.place > w.last), ''),
        case when bool_or(w.word in ('*', '#')) then
            '^' || string_agg(case w.word when '*' then '[^.]+[.]' when '#' then '([^.]+[.])*'
                else w.word || '[.]' end, '' order by w.place) || '$' end
      from (
        select u.word, u.place,
            coalesce(min(u.place) filter (where u.word in ('*', '#')) over (), 1000) as first,
            coalesce(max(u.place) filter (where u.word in ('*', '#')) over (), 1000) as last
          from unnest(v_words) with ordinality u(word, place)) w
    on conflict (pattern, queue_id, owner) do nothing;
end
$$;
comment on function {{.api_schema}}.oq_subscribe(text, text) is
'What is published on matching topics makes jobs in the queue.
topic_pattern: words with dots between them; * stands for one word, # for any number of words, none
included: order.* matches order.paid, order.# also order and order.paid.late. The queue is created
where it is missing. The subscriber needs the right to produce in the queue, and what is published later
is delivered only while it still has it. To subscribe twice changes nothing. Errors: OQ001, 42501.';
