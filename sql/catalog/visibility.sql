-- What a role may know of a table or schema, published or not.
--   $1 role, $2 oid of a table, $3 oid of a schema; one of the two is null
with role as (
    select oid
    from pg_catalog.pg_roles
    where rolname = $1
)
select pg_catalog.json_build_object('visible', true, 'columns', visibility.columns)::pg_catalog.text
from role
cross join lateral (
    select array(select a.attnum
                 from pg_catalog.pg_attribute as a
                 where a.attrelid = c.oid
                   and a.attnum > 0
                   and not a.attisdropped
                   and pg_catalog.has_column_privilege(role.oid, c.oid, a.attnum, 'SELECT')) as columns
    from pg_catalog.pg_class as c
    where c.oid = $2
      and pg_catalog.has_schema_privilege(role.oid, c.relnamespace, 'USAGE')
      and pg_catalog.has_any_column_privilege(role.oid, c.oid, 'SELECT')
    union all
    select '{}'
    from pg_catalog.pg_namespace as n
    where n.oid = $3
      and pg_catalog.has_schema_privilege(role.oid, n.oid, 'USAGE')
) as visibility;
