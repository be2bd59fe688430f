-- Published rows go, but for the newest of the table.
--   $1 their sequence_ids
with newest as (
    select pg_catalog.max(o.sequence_id) as id from only {outbox} as o
),
gone as (
    delete from only {outbox} as o
    using newest
    where o.sequence_id = any ($1)
      and o.sequence_id < newest.id
    returning o.sequence_id
)
select pg_catalog.count(*) from gone
