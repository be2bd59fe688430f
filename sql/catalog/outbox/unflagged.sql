-- Rows that are not known to have been published.
--   $1 the sequence_id to go on after, $2 how many at the most
select coalesce(pg_catalog.json_agg(w.sequence_id), '[]')::pg_catalog.text
from (
    select o.sequence_id
    from only {outbox} as o
    where o.sequence_id > $1
      and o.locked_by is distinct from 'published'
      and not pg_catalog.starts_with(coalesce(o.locked_by, ''), 'failed: ')
      and {unprocessed}
    order by o.sequence_id
    limit $2
) as w
