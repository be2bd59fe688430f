-- Of the oldest rows, those that were published long enough ago go, but for the newest of the table.
--   $1 for how many milliseconds they are kept, $2 how many rows to look at
with newest as (
    select pg_catalog.max(o.sequence_id) as id from only {outbox} as o
),
oldest as (
    select o.sequence_id, o.locked_by, o.lock_expiry
    from only {outbox} as o
    order by o.sequence_id
    limit $2
),
gone as (
    delete from only {outbox} as o
    using oldest, newest
    where o.sequence_id = oldest.sequence_id
      and o.sequence_id < newest.id
      and oldest.locked_by = 'published'
      and oldest.lock_expiry <= {now} - $1 * interval '1 millisecond'
    returning o.sequence_id
)
select pg_catalog.count(*) from gone
