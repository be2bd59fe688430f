-- How row-level security is evaluated.

create function tide.explain_policy(
    "table" regclass,
    role name,
    out way text,
    out reason text,
    out condition text,
    out claims text[],
    out old_rows boolean
)
language sql volatile strict parallel unsafe
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select w.way, w.reason, w.condition, w.claims, w.sees_old_rows
    from jsonb_to_record(
             -- Null where the catalog worker cannot be asked.
             nullif(
                 tide_internal.control(jsonb_build_object(
                     'op', 'explain', 'role', explain_policy.role,
                     'table', explain_policy."table"::oid::bigint
                 )),
                 'null'
             )
         ) as w (way text, reason text, condition text, claims text[], sees_old_rows boolean);
end;
comment on function tide.explain_policy(regclass, name) is
'How it is found out which rows of a table a role''s clients may see, and why so. "way": constant (all rows, or none), worker (pg_tide evaluates the policies itself, with what the expressions in "claims" are worth to each client), postgres (Postgres is asked about each row). "condition": all policies in one. "old_rows": whether rows that leave a client''s sight are always told to it; if not, ALTER TABLE ... REPLICA IDENTITY FULL. For members of pg_monitor';
revoke execute on function tide.explain_policy(regclass, name) from public;
grant execute on function tide.explain_policy(regclass, name) to pg_monitor;
