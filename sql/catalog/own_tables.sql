-- Tables whose events tide.recent() may show to the current user: those it owns, unless row-level
-- security binds their owner, too. For sessions of anybody's, whatever their search_path.
select pg_catalog.array_agg(c.oid)
from pg_catalog.pg_class as c
where c.relkind operator(pg_catalog.=) any ('{r,p}'::pg_catalog."char"[])
  and pg_catalog.pg_has_role(c.relowner, 'USAGE')
  and not (c.relrowsecurity and c.relforcerowsecurity)
