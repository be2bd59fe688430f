-- Every object of pg_tide's schemas, and who besides superusers may use it.
with objects as (
    select 'schema ' || n.nspname as name, n.oid, 'schema' as kind
    from pg_namespace as n
    where n.nspname in ('tide', 'tide_internal')
    union all
    select case p.pronamespace::regnamespace::text when 'tide' then 'function ' else 'internal function ' end
               || format('%s(%s)', p.proname,
                         array_to_string(array(select t::regtype from unnest(p.proargtypes) as t), ',')),
           p.oid, 'function'
    from pg_proc as p
    where p.pronamespace::regnamespace::text in ('tide', 'tide_internal')
    union all
    select case c.relkind when 'S' then 'sequence ' when 'v' then 'view ' else 'table ' end || c.relname,
           c.oid, case c.relkind when 'S' then 'sequence' else 'table' end
    from pg_class as c
    where c.relnamespace::regnamespace::text in ('tide', 'tide_internal') and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
    union all
    select 'type ' || t.typname, t.oid, 'type'
    from pg_type as t
    left join pg_class as c on c.oid = t.typrelid
    where t.typnamespace::regnamespace::text in ('tide', 'tide_internal') and t.typcategory <> 'A' and coalesce(c.relkind, 'c') = 'c'
),
allowed as (
    select o.name, who.name as who, who.place,
           case o.kind
               when 'function' then case when has_function_privilege(who.role, o.oid, 'EXECUTE') then '' end
               else (
                   select nullif(string_agg(p.name, ' ' order by p.place), '')
                   from unnest(case o.kind
                                   when 'schema' then array['USAGE', 'CREATE']
                                   when 'sequence' then array['USAGE', 'SELECT', 'UPDATE']
                                   when 'type' then array['USAGE']
                                   else array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE',
                                              'REFERENCES', 'TRIGGER']
                               end) with ordinality as p (name, place)
                   where case o.kind
                             when 'schema' then has_schema_privilege(who.role, o.oid, p.name)
                             when 'sequence' then has_sequence_privilege(who.role, o.oid, p.name)
                             when 'type' then has_type_privilege(who.role, o.oid, p.name)
                             else has_table_privilege(who.role, o.oid, p.name)
                                  or p.name in ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')
                                     and has_any_column_privilege(who.role, o.oid, p.name)
                         end
               )
           end as privileges
    from objects as o
    cross join (values (1, 'public', 'p_nobody'), (2, 'backend', 'p_backend'), (3, 'monitor', 'p_monitor'))
         as who (place, name, role)
)
select a.name,
       coalesce(string_agg(concat_ws(': ', a.who, nullif(a.privileges, '')), ', ' order by a.place)
                filter (where a.privileges is not null
                          and (a.who = 'public' or a.privileges is distinct from public.privileges)), '')
from allowed as a
join allowed as public on public.name = a.name and public.who = 'public'
group by a.name
order by a.name
