-- What in pg_tide's schemas does not say what it is, or could be led astray by its caller's search_path.
select format('%s has no comment', p.oid::regprocedure)
from pg_proc as p
where p.pronamespace::regnamespace::text in ('tide', 'tide_internal')
  and coalesce(obj_description(p.oid, 'pg_proc'), '') = ''
union all
select format('the comment of %s reads like a draft: %s', p.oid::regprocedure, obj_description(p.oid, 'pg_proc'))
from pg_proc as p
where p.pronamespace::regnamespace::text in ('tide', 'tide_internal')
  and (obj_description(p.oid, 'pg_proc') !~ '^[A-Z0-9]' or obj_description(p.oid, 'pg_proc') ~ '\.$'
       or (p.pronamespace = 'tide_internal'::regnamespace) <> (obj_description(p.oid, 'pg_proc') like 'Internal. %'))
union all
select format('argument %s of %s has no name', a.place, p.oid::regprocedure)
from pg_proc as p
cross join generate_series(1, p.pronargs) as a (place)
where p.pronamespace::regnamespace::text in ('tide', 'tide_internal')
  and coalesce(p.proargnames[a.place], '') = ''
union all
select format('%s has no comment', c.oid::regclass)
from pg_class as c
where c.relnamespace = 'tide'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
  and coalesce(obj_description(c.oid, 'pg_class'), '') = ''
union all
select format('%s.%s has no comment', c.oid::regclass, a.attname)
from pg_class as c
join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relnamespace = 'tide'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
  and coalesce(col_description(c.oid, a.attnum), '') = ''
union all
select format('schema %s has no comment', n.oid::regnamespace)
from pg_namespace as n
where n.nspname in ('tide', 'tide_internal') and coalesce(obj_description(n.oid, 'pg_namespace'), '') = ''
union all
-- The names in a standard SQL body were looked up when the function was made; the two functions
-- that are called most qualify theirs.
select format('%s does not pin its search_path', p.oid::regprocedure)
from pg_proc as p
join pg_language as l on l.oid = p.prolang
where p.pronamespace::regnamespace::text in ('tide', 'tide_internal') and l.lanname <> 'c'
  and (p.prosecdef or p.prosqlbody is null and p.proname not in ('record_get', 'record_set'))
  and not exists (select from unnest(p.proconfig) as s where s like 'search_path=%')
