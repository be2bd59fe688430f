-- The questions that tide.channel's policies are to the current role, as SQL expressions over its columns:
-- what must be true to receive, and to publish. Restrictive policies narrow what permissive ones
-- admit, as in Postgres; without a permissive one the answer is no.
with policy as (
    select p.polpermissive as is_permissive,
           p.polcmd in ('r', '*') as is_for_select,
           p.polcmd in ('a', '*') as is_for_insert,
           '(' || pg_catalog.pg_get_expr(p.polqual, p.polrelid) || ')' as seen,
           '(' || pg_catalog.pg_get_expr(coalesce(p.polwithcheck, p.polqual), p.polrelid) || ')' as inserted
    from pg_catalog.pg_policy as p
    where p.polrelid = 'tide.channel'::pg_catalog.regclass
      and exists (select from pg_catalog.unnest(p.polroles) as granted (role)
                  where granted.role = 0
                     or pg_catalog.pg_has_role(granted.role, 'USAGE'))
),
expression as (
    select coalesce(pg_catalog.string_agg(seen, ' or ')
                    filter (where is_for_select and is_permissive), 'false') as may_see,
           pg_catalog.string_agg(seen, ' and ')
               filter (where is_for_select and not is_permissive) as must_see,
           coalesce(pg_catalog.string_agg(inserted, ' or ')
                    filter (where is_for_insert and is_permissive), 'false') as may_insert,
           pg_catalog.string_agg(inserted, ' and ')
               filter (where is_for_insert and not is_permissive) as must_insert
    from policy
)
select case when not pg_catalog.has_table_privilege(c.oid, 'SELECT') then 'false'
            when not bound.by_policies then 'true'
            else pg_catalog.concat_ws(' and ', '(' || e.may_see || ')', e.must_see) end,
       case when not pg_catalog.has_table_privilege(c.oid, 'INSERT') then 'false'
            when not bound.by_policies then 'true'
            else pg_catalog.concat_ws(' and ', '(' || e.may_insert || ')', e.must_insert) end
from expression as e,
     pg_catalog.pg_class as c
     cross join lateral (
         select not (r.rolsuper or r.rolbypassrls)
                and (c.relforcerowsecurity or not pg_catalog.pg_has_role(c.relowner, 'USAGE'))
         from pg_catalog.pg_roles as r
         where r.rolname = current_user
     ) as bound (by_policies)
where c.oid = 'tide.channel'::pg_catalog.regclass;
