-- The functions of a name that clients may call, as JSON.
--   $1 schema, $2 name
select coalesce((
    select json_agg(json_build_object(
        'is_set', p.proretset,
        'defaults', p.pronargdefaults,
        'arguments', (
            select coalesce(json_agg(json_build_object('name', a.name, 'type', format_type(a.type, null)) order by a.place), '[]')
            from (
                select p.proargnames[i.place] as name,
                       p.proargtypes[row_number() over (order by i.place) - 1] as type,
                       i.place
                from generate_series(1, coalesce(cardinality(p.proargmodes), p.pronargs)) as i (place)
                where coalesce(p.proargmodes[i.place] in ('i', 'b'), true)
            ) as a
        )
    ))
    from pg_namespace as n
    join pg_proc as p on p.pronamespace = n.oid
    where n.nspname = $1::name and p.proname = $2::name and p.prokind = 'f'
      and p.oid in (select to_regprocedure(c.function) from tide.callables as c)
)::text, '[]')
