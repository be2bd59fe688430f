-- Published tables as a role may see them.
--   $1 role, $2 publication, $3 and $4 schemas and names of tables, $5 oids of tables,
--   $6 whether another extension has policies of its own, of which the catalogue says nothing,
--   $7 whether clients may use roles with too many privileges
--
-- What is missing, not published, or closed to the role is left out: the three look the same.
-- Takes no locks on the tables (pg_publication_tables would), so no one's DDL can hold up a join.
with role as (
    -- What may not be used by clients (any more) sees nothing.
    select r.oid, r.rolsuper or r.rolbypassrls as bypasses_row_security
    from pg_catalog.pg_roles as r
    join pg_catalog.pg_roles as client on client.rolname = 'tide_authenticator'
    where r.rolname = $1
      and pg_catalog.pg_has_role(client.oid, r.oid, 'MEMBER')
      and ($7 or not (r.rolsuper or r.rolbypassrls or r.rolreplication))
),
publication as (
    select oid, puballtables, pubviaroot
    from pg_catalog.pg_publication
    where pubname = $2
),
asked as (
    select c.oid
    from rows from (pg_catalog.unnest($3::pg_catalog.text[]), pg_catalog.unnest($4::pg_catalog.text[]))
             as name (schema_name, table_name)
    join pg_catalog.pg_namespace as n on n.nspname = name.schema_name
    join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = name.table_name
    union
    select pg_catalog.unnest($5::pg_catalog.oid[])
),
-- Each table together with itself and those it is a partition of, and whether the publication
-- names them.
lineage as (
    select asked.oid as relid,
           line.ancestor = asked.oid as is_self,
           p.puballtables
           or exists (select from pg_catalog.pg_publication_rel as r
                      where r.prpubid = p.oid and r.prrelid = line.ancestor)
           or exists (select from pg_catalog.pg_publication_namespace as s
                      where s.pnpubid = p.oid and s.pnnspid = a.relnamespace) as is_named
    from publication as p
    cross join asked
    cross join lateral (
        select asked.oid as ancestor
        union
        select relid::pg_catalog.oid from pg_catalog.pg_partition_ancestors(asked.oid)
    ) as line
    join pg_catalog.pg_class as a on a.oid = line.ancestor
),
published as (
    select c.oid, c.relname, c.relkind, c.relowner, c.relnamespace,
           c.relrowsecurity, c.relforcerowsecurity, n.nspname, r.prattrs
    from publication as p
    cross join (
        select relid,
               pg_catalog.bool_or(is_named and is_self) as named,
               pg_catalog.bool_or(is_named and not is_self) as named_above
        from lineage
        group by relid
    ) as l
    join pg_catalog.pg_class as c on c.oid = l.relid
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    left join pg_catalog.pg_publication_rel as r on r.prpubid = p.oid and r.prrelid = c.oid
    where c.relpersistence = 'p'
      and c.oid >= 16384 -- no system tables
      and n.nspname <> 'tide'
      and not exists (select from tide.outboxes as o where o.relation = c.oid)
      and case when p.pubviaroot
               -- As the topmost table that is published.
               then c.relkind in ('r', 'p') and l.named and not coalesce(l.named_above, false)
               -- As the partition that holds the row.
               else c.relkind = 'r' and (l.named or coalesce(l.named_above, false))
          end
),
allowed as (
    select t.*,
           role.oid as role_oid,
           t.relrowsecurity
           and not role.bypasses_row_security
           and (t.relforcerowsecurity
                or not pg_catalog.pg_has_role(role.oid, t.relowner, 'USAGE')) as row_security
    from published as t
    cross join role
    where pg_catalog.has_schema_privilege(role.oid, t.relnamespace, 'USAGE')
      and pg_catalog.has_any_column_privilege(role.oid, t.oid, 'SELECT')
)
select coalesce(
           pg_catalog.json_agg(
               pg_catalog.json_build_object(
                   'oid', t.oid::pg_catalog.int8,
                   'schema', t.nspname,
                   'table', t.relname,
                   'row_security', case when t.row_security then security.description end,
                   'columns', columns.list
               )
           ),
           '[]'
       )::pg_catalog.text
from allowed as t
cross join lateral (
    with attribute as materialized (
        select a.attnum, a.attname, a.atttypid, a.atttypmod, own.typname,
               base.oid as base_type, base.typtype = 'e' as is_enum
        from pg_catalog.pg_attribute as a
        join pg_catalog.pg_type as own on own.oid = a.atttypid
        cross join lateral (
            -- A domain's base type, however many domains deep.
            with recursive steps as (
                select own.oid, own.typtype, own.typbasetype
                union all
                select b.oid, b.typtype, b.typbasetype
                from steps
                join pg_catalog.pg_type as b on b.oid = steps.typbasetype
                where steps.typtype = 'd'
            )
            select oid, typtype from steps where typtype <> 'd'
        ) as base
        where a.attrelid = t.oid
          and a.attnum > 0
          and not a.attisdropped
          and a.attgenerated <> 'v' -- Not stored: no row in the WAL has it.
    ),
    -- With more than that, no labels are given: those of no enum are known.
    labels as materialized (
        select pg_catalog.count(*) <= 10000 as are_known
        from (select
              from attribute
              cross join lateral (
                  select
                  from pg_catalog.pg_enum as e
                  where e.enumtypid = attribute.base_type
                  order by e.enumsortorder -- By the index, however many labels others have.
                  limit 10001
              ) as e
              where attribute.is_enum
              limit 10001) as a_label
    )
    select coalesce(
               pg_catalog.json_agg(
                   pg_catalog.json_build_object(
                       'attnum', a.attnum,
                       'name', a.attname,
                       'type_name', a.typname,
                       'type_sql', pg_catalog.format_type(a.atttypid, a.atttypmod),
                       'base_type', a.base_type::pg_catalog.int8,
                       'is_enum', a.is_enum,
                       'labels', array(select pg_catalog.json_build_array(e.oid::pg_catalog.int8, e.enumlabel)
                                       from pg_catalog.pg_enum as e
                                       where labels.are_known
                                         and e.enumtypid = a.base_type
                                       order by e.enumsortorder),
                       'readable', (t.prattrs is null or a.attnum = any (t.prattrs))
                                   and pg_catalog.has_column_privilege(t.role_oid, t.oid, a.attnum, 'SELECT'),
                       'primary_key', coalesce(a.attnum = any (key.indkey), false)
                   )
                   order by a.attnum
               ),
               '[]'
           ) as list
    from attribute as a
    cross join labels
    left join pg_catalog.pg_index as key on key.indrelid = t.oid and key.indisprimary
) as columns
left join lateral (
    -- What decides about rows, where it does. Whoever owns the table may have made it as large as they
    -- like: this much of it is looked at.
    with recursive stored_policy as materialized (
        select p.oid, p.polname, p.polpermissive, p.polqual, p.polrelid,
               pg_catalog.sum(pg_catalog.octet_length(p.polqual::pg_catalog.text)) over () as bytes
        from (select p.*
              from pg_catalog.pg_policy as p
              where p.polrelid = t.oid
                and p.polcmd in ('r', '*')
                and p.polqual is not null
                and exists (select from pg_catalog.unnest(p.polroles) as member
                            where member = 0 or pg_catalog.pg_has_role(t.role_oid, member, 'USAGE'))
              limit 1001) as p
    ),
    printed_policy as materialized (
        select s.oid, s.polname, s.polpermissive,
               case when s.bytes <= 8000000 then pg_catalog.pg_get_expr(s.polqual, s.polrelid) end as condition
        from stored_policy as s
    ),
    extent as materialized (
        select not $6
               and pg_catalog.count(*) <= 1000
               and coalesce(pg_catalog.bool_and(condition is not null), true)
               and coalesce(pg_catalog.sum(pg_catalog.octet_length(condition)), 0) <= 100000 as is_bearable
        from printed_policy
    ),
    policy as (
        select p.oid, p.polname, p.polpermissive, p.condition
        from printed_policy as p
        cross join extent
        where extent.is_bearable
        union all
        -- In the place of what cannot be looked into stands what fails for every row: nothing is
        -- visible, and clients are told that the policy fails.
        select 0::pg_catalog.oid, 'not to be looked into'::pg_catalog.name, true,
               '(''the policies cannot be looked into''::text)::boolean'
        from extent
        where not extent.is_bearable
    ),
    -- The functions that the policies name, and those whose names stand before a bracket in the
    -- bodies of these, as far as they are not too long to be looked into.
    found as (
        select d.refobjid as oid
        from policy
        join pg_catalog.pg_depend as d
          on d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass and d.objid = policy.oid
         and d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass
        where d.refobjid >= 16384
        union
        select callee.oid
        from found
        cross join lateral (
            select distinct called.word[1]::pg_catalog.name as name
            from pg_catalog.pg_proc as p
            join pg_catalog.pg_language as l on l.oid = p.prolang and l.lanname in ('sql', 'plpgsql')
            cross join lateral pg_catalog.regexp_matches(
                case when pg_catalog.octet_length(p.prosrc)
                          + coalesce(pg_catalog.octet_length(p.prosqlbody::pg_catalog.text), 0) / 30 <= 16000
                     then coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), p.prosrc)
                end,
                '([[:alnum:]_$]+)\(',
                'g'
            ) as called (word)
            where p.oid = found.oid
        ) as called
        join pg_catalog.pg_proc as callee on callee.proname = called.name and callee.oid >= 16384
    ),
    some_function as materialized (
        select found.oid from found limit 51
    ),
    -- All of them or none: which of two that have the same name is called is not known here.
    used as (
        select some_function.oid
        from some_function
        where (select pg_catalog.count(*) from some_function) <= 50
    )
    select pg_catalog.json_build_object(
               'policies',
               (select coalesce(
                           pg_catalog.json_agg(
                               pg_catalog.json_build_object(
                                   'name', policy.polname,
                                   'permissive', policy.polpermissive,
                                   'condition', policy.condition,
                                   'columns', seen.columns
                               )
                               order by policy.polname
                           ),
                           '[]'
                       )
                from policy
                cross join lateral (
                    -- The table once more, or a whole row, of which no dependency tells but which is
                    -- always printed with its name: then it may be any column.
                    select case when pg_catalog.bool_or(d.refobjsubid = 0 and d.deptype = 'n')
                                     or pg_catalog.strpos(
                                            policy.condition,
                                            pg_catalog.quote_ident(t.relname) || '.*'
                                        ) > 0 then null
                                else coalesce(
                                         pg_catalog.array_agg(distinct d.refobjsubid)
                                             filter (where d.refobjsubid > 0),
                                         '{}'
                                     )
                           end as columns
                    from (
                        select d.refobjsubid, d.deptype
                        from pg_catalog.pg_depend as d
                        where d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass
                          and d.objid = policy.oid
                          and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                          and d.refobjid = t.oid
                        union all
                        -- What a column that is not stored is generated from.
                        select source.refobjsubid, 'a'
                        from pg_catalog.pg_depend as d
                        join pg_catalog.pg_attribute as a
                          on a.attrelid = t.oid and a.attnum = d.refobjsubid and a.attgenerated = 'v'
                        join pg_catalog.pg_attrdef as expression
                          on expression.adrelid = t.oid and expression.adnum = a.attnum
                        join pg_catalog.pg_depend as source
                          on source.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
                         and source.objid = expression.oid
                         and source.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                         and source.refobjid = t.oid
                         and source.refobjsubid <> a.attnum
                        where d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass
                          and d.objid = policy.oid
                          and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                          and d.refobjid = t.oid
                    ) as d
                    where not exists (select from pg_catalog.pg_attribute as a
                                      where a.attrelid = t.oid
                                        and a.attnum = d.refobjsubid
                                        and a.attgenerated = 'v')
                ) as seen),
               'functions',
               (select coalesce(
                           pg_catalog.json_agg(
                               pg_catalog.json_build_object(
                                   'schema', n.nspname,
                                   'name', p.proname,
                                   'returns', pg_catalog.format_type(p.prorettype, null),
                                   'arguments', array(select pg_catalog.format_type(argument, null)
                                                      from pg_catalog.unnest(p.proargtypes) as argument),
                                   'has_defaults', p.pronargdefaults > 0,
                                   'volatility', p.provolatile,
                                   'language', l.lanname,
                                   -- Analysed, it is some thirty times as long as it is printed.
                                   'body', case when l.lanname in ('sql', 'plpgsql')
                                                     and pg_catalog.octet_length(p.prosrc)
                                                         + coalesce(pg_catalog.octet_length(p.prosqlbody::pg_catalog.text), 0) / 30
                                                         <= 16000
                                                     -- Claims are looked up by names.
                                                     and pg_catalog.has_schema_privilege(
                                                             t.role_oid, p.pronamespace, 'USAGE')
                                                then coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), p.prosrc)
                                           end
                               )
                           ),
                           '[]'
                       )
                from used
                join pg_catalog.pg_proc as p on p.oid = used.oid
                join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
                join pg_catalog.pg_language as l on l.oid = p.prolang),
               'identity',
               array(select a.attnum
                     from pg_catalog.pg_class as c
                     join pg_catalog.pg_attribute as a on a.attrelid = c.oid and a.attnum > 0
                     where c.oid = t.oid
                       and not a.attisdropped
                       and case c.relreplident
                           when 'f' then true
                           when 'n' then false
                           else exists (select from pg_catalog.pg_index as i
                                        where i.indrelid = c.oid
                                          and case c.relreplident when 'i' then i.indisreplident
                                                                  else i.indisprimary end
                                          and a.attnum = any (i.indkey))
                           end),
               'nondeterministic',
               array(select a.attnum
                     from pg_catalog.pg_attribute as a
                     join pg_catalog.pg_collation as c on c.oid = a.attcollation
                     where a.attrelid = t.oid and a.attnum > 0 and not c.collisdeterministic)
           ) as description
) as security on t.row_security;
