-- Rows that wait are inserted anew, in the order of their sequence, so that the WAL has them in it.
--   $1 the sequence_id to go on after, $2 how many at the most, $3 the mark of those in line
with waiting as (
    select o.sequence_id
    from only {outbox} as o
    where o.sequence_id > $1
      and o.locked_by is distinct from 'published'
      and o.locked_by is distinct from $3
      and not pg_catalog.starts_with(coalesce(o.locked_by, ''), 'failed: ')
      and {unprocessed}
    order by o.sequence_id
    limit $2
),
gone as (
    delete from only {outbox} as o
    using waiting as w
    where o.sequence_id = w.sequence_id
    returning o.*
),
back as (
    insert into {outbox} ({columns}) overriding system value
    select {values} from gone order by sequence_id
    returning sequence_id
)
select pg_catalog.json_build_object(
           'moved', pg_catalog.count(*),
           'last', pg_catalog.max(b.sequence_id)
       )::pg_catalog.text
from back as b
