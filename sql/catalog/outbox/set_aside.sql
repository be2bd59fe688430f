-- Rows that could not be published say so, and stay.
--   $1 their sequence_ids, $2 an SQLSTATE for each
with failed as (
    update only {outbox} as o
    set locked_by = 'failed: ' || f.sqlstate, lock_expiry = {now}
    from rows from (pg_catalog.unnest($1), pg_catalog.unnest($2)) as f (sequence_id, sqlstate)
    where o.sequence_id = f.sequence_id
      and o.locked_by is distinct from 'published'
    returning o.sequence_id
)
select pg_catalog.count(*) from failed
