-- The refs of one oq_enqueue_many: strings, each given once, each known, no circle. Elements that only refer to
-- earlier ones can't be in a circle; else those without an open parent are taken away until none is left.
create or replace function {{.schema}}.check_refs(jobs jsonb)
returns void
language plpgsql
set jit = off
as $$
#variable_conflict use_column
declare
    v_ord     int;
    v_ref     text;
    v_from    int[];
    v_to      int[];
    v_open    int[];
    v_first   int[];
    v_line    int[];
    v_head    int := 1;
    v_node    int;
    v_edge    int;
begin
    select e.ord - 1, left(e.job ->> 'depends_on_refs', 100) into v_ord, v_ref
      from jsonb_array_elements(check_refs.jobs) with ordinality e(job, ord)
     where e.job ->> 'depends_on_refs' is not null
       and case when jsonb_typeof(e.job -> 'depends_on_refs') <> 'array' then true
            else jsonb_array_length(e.job -> 'depends_on_refs') > 10000 or exists (
                select from jsonb_array_elements(e.job -> 'depends_on_refs') r(ref)
                 where jsonb_typeof(r.ref) <> 'string') end
     order by e.ord
     limit 1;
    if v_ord is not null then
        perform {{.schema}}.fail('jobs[' || v_ord || '].depends_on_refs', v_ref,
            'an array of at most 10000 refs of other elements');
    end if;
    select e.ord - 1, e.ref into v_ord, v_ref
      from (
        select x.ord, x.job ->> 'ref' as ref, row_number() over (partition by x.job ->> 'ref' order by x.ord) as nth
          from jsonb_array_elements(check_refs.jobs) with ordinality x(job, ord)
         where x.job ->> 'ref' is not null) e
     where e.nth > 1
     order by e.ord
     limit 1;
    if v_ord is not null then
        perform {{.schema}}.fail('jobs[' || v_ord || '].ref', quote_literal(left(v_ref, 100)),
            'a ref that no other element has');
    end if;
    with refs as materialized (
        -- Of several with one unique key the first is the job that all of them mean.
        select e.ref, e.ord
          from (
            select x.job ->> 'ref' as ref, min(x.ord::int) over (
                partition by x.job ->> 'queue_name', x.job ->> 'unique_key',
                    case when x.job ->> 'unique_key' is null then x.ord end) as ord
              from jsonb_array_elements(check_refs.jobs) with ordinality x(job, ord)) e
         where e.ref is not null
    ), wanted as materialized (
        select distinct e.ord::int as ord, r.ref
          from jsonb_array_elements(check_refs.jobs) with ordinality e(job, ord)
         cross join lateral jsonb_array_elements_text(
            case when jsonb_typeof(e.job -> 'depends_on_refs') = 'array' then e.job -> 'depends_on_refs'
                else '[]' end) r(ref)
    ), edges as (
        select w.ord, w.ref, r.ord as parent
          from wanted w
          left join refs r on r.ref = w.ref
    )
    select min(e.ord) filter (where e.parent is null) - 1,
        (array_agg(e.ref order by e.ord) filter (where e.parent is null))[1],
        array_agg(e.parent order by e.parent, e.ord), array_agg(e.ord order by e.parent, e.ord)
      into v_ord, v_ref, v_from, v_to
      from edges e;
    if v_ord is not null then
        perform {{.schema}}.fail('jobs[' || v_ord || '].depends_on_refs', quote_literal(left(v_ref, 100)),
            'the ref of another element');
    end if;
    if v_from is null or not exists (select from unnest(v_from, v_to) u(a, b) where u.a >= u.b) then
        return;
    end if;

    -- v_open: parents still to be taken away; v_first: where a node's edges begin; v_line: nodes taken away.
    v_open := array_fill(0, array[jsonb_array_length(check_refs.jobs)]);
    v_first := v_open;
    for v_edge in reverse cardinality(v_from)..1 loop
        v_open[v_to[v_edge]] := v_open[v_to[v_edge]] + 1;
        v_first[v_from[v_edge]] := v_edge;
    end loop;
    v_line := array(select u.ord::int from unnest(v_open) with ordinality u(n, ord) where u.n = 0 order by u.ord);
    while v_head <= cardinality(v_line) loop
        v_node := v_line[v_head];
        v_head := v_head + 1;
        v_edge := v_first[v_node];
        while v_edge > 0 and v_from[v_edge] = v_node loop
            v_open[v_to[v_edge]] := v_open[v_to[v_edge]] - 1;
            if v_open[v_to[v_edge]] = 0 then
                v_line := v_line || v_to[v_edge];
            end if;
            v_edge := v_edge + 1;
        end loop;
    end loop;
    if cardinality(v_line) < cardinality(v_open) then
        -- Named: one of the circle, not one that only waits for it: as many steps up as there are elements.
        for v_edge in 1..cardinality(v_from) loop
            if v_open[v_from[v_edge]] > 0 then
                v_first[v_to[v_edge]] := v_from[v_edge];
            end if;
        end loop;
        v_node := (
            select u.ord::int from unnest(v_open) with ordinality u(n, ord) where u.n > 0 order by u.ord limit 1);
        for v_step in 1..cardinality(v_open) loop
            v_node := v_first[v_node];
        end loop;
        perform {{.schema}}.fail('jobs[' || v_node - 1 || '].depends_on_refs',
            left(check_refs.jobs -> v_node - 1 ->> 'depends_on_refs', 100) || ', a circle', 'refs without a circle');
    end if;
end
$$;
comment on function {{.schema}}.check_refs(jsonb) is 'Checks the refs of one oq_enqueue_many.';
