-- Published rows that stay are told from those that wait.
--   $1 their sequence_ids
with flagged as (
    update only {outbox} as o
    set locked_by = 'published', lock_expiry = {now}{processed}
    where o.sequence_id = any ($1)
      and o.locked_by is distinct from 'published'
    returning o.sequence_id
)
select pg_catalog.count(*) from flagged
