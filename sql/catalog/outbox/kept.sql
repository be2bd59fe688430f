-- Which of them are still there.
--   $1 sequence_ids
select coalesce(pg_catalog.json_agg(o.sequence_id), '[]')::pg_catalog.text
from only {outbox} as o
where o.sequence_id = any ($1)
