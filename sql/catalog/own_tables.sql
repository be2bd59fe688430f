-- Tables whose events tide.recent() may show to the current user: those it owns, unless row-level
-- security binds their owner, too.
select pg_catalog.array_agg(c.oid)
from pg_catalog.pg_class as c
where c.relkind in ('r', 'p')
  and pg_catalog.pg_has_role(c.relowner, 'USAGE')
  and not (c.relrowsecurity and c.relforcerowsecurity)
