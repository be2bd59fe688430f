-- How many rows could not be published.
select pg_catalog.count(*)
from only {outbox} as o
where pg_catalog.starts_with(o.locked_by, 'failed: ')
