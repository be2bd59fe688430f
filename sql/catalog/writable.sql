-- A published table as a role may write it, as JSON.
--   $1 schema, $2 table, $3 role, $4 publication
--
-- null: there is none, it is not published, or the role may do nothing with it; the three look the same.
select coalesce((
    select json_build_object(
        'oid', c.oid::int8,
        'version', r.version_column,
        'on_mutate', r.on_mutate,
        'columns', (
            select json_agg(json_build_object(
                'name', a.attname,
                'attnum', a.attnum,
                'readable', has_column_privilege($3::name, c.oid, a.attnum, 'SELECT'),
                'updatable', has_column_privilege($3::name, c.oid, a.attnum, 'UPDATE')
            ) order by a.attnum)
            from pg_attribute as a
            where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        )
    )
    from pg_namespace as n
    join pg_class as c on c.relnamespace = n.oid
    left join tide.write_rules as r on r.relation = c.oid
    where n.nspname = $1::name
      and c.relname = $2::name
      and c.relkind in ('r', 'p')
      and has_schema_privilege($3::name, n.oid, 'USAGE')
      and (has_table_privilege($3::name, c.oid, 'SELECT, INSERT, UPDATE, DELETE')
           or has_any_column_privilege($3::name, c.oid, 'SELECT, INSERT, UPDATE'))
      and exists (
          select from pg_publication as p
          where p.pubname = $4::name
            and (p.puballtables
                 or exists (select from pg_publication_namespace as s
                            where s.pnpubid = p.oid and s.pnnspid = n.oid)
                 or exists (select from pg_publication_rel as l
                            where l.prpubid = p.oid
                              and (l.prrelid = c.oid
                                   or l.prrelid in (select relid::oid from pg_partition_ancestors(c.oid)))))
      )
    limit 1
)::text, 'null')
