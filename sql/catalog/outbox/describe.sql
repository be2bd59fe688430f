-- An outbox as statements about it have to be written; no row if it is none (any more).
--   $1 oid of the table, $2 the mark of rows that are put in line
select pg_catalog.json_build_object(
           'owner', c.relowner::pg_catalog.int8,
           'name', pg_catalog.format('%I.%I', n.nspname, c.relname),
           'generation', o.generation,
           'is_whole', columns.is_whole,
           'has_processed', columns.has_processed,
           'has_time_zone', columns.has_time_zone,
           'columns', columns.names,
           'values', columns.values
       )::pg_catalog.text
from tide.outboxes as o
join pg_catalog.pg_class as c on c.oid = o.relation
join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
cross join lateral (
    select pg_catalog.count(*) filter (
               where a.attname in ('sequence_id', 'mutation_id', 'channel', 'name', 'locked_by', 'lock_expiry')
           ) = 6 as is_whole,
           pg_catalog.bool_or(a.attname = 'processed') as has_processed,
           coalesce(pg_catalog.bool_or(a.attname = 'lock_expiry'
                                       and a.atttypid = 'timestamptz'::pg_catalog.regtype), false)
               as has_time_zone,
           pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' order by a.attnum)
               filter (where a.attgenerated = '') as names,
           pg_catalog.string_agg(case when a.attname = 'locked_by' then pg_catalog.quote_literal($2)
                                      else pg_catalog.quote_ident(a.attname) end,
                                 ', ' order by a.attnum)
               filter (where a.attgenerated = '') as values
    from pg_catalog.pg_attribute as a
    where a.attrelid = c.oid
      and a.attnum > 0
      and not a.attisdropped
) as columns
where o.relation = $1
