-- The findings of tide.check(), in its order.
select coalesce(
           pg_catalog.json_agg(f order by f.ordinality),
           '[]'
       )::pg_catalog.text
from (select c.item, c.ok, c.problem, c.fix, c.ordinality
      from tide.check() with ordinality as c) as f;
