-- The outboxes there are, as the worker has to know them.
select coalesce(
           pg_catalog.json_agg(
               pg_catalog.json_build_object(
                   'table', o.relation::pg_catalog.oid::pg_catalog.int8,
                   'generation', o.generation
               )
               order by o.added_at, o.relation
           ),
           '[]'
       )::pg_catalog.text
from tide.outboxes as o
join pg_catalog.pg_class as c on c.oid = o.relation
