-- pg_dump leaves out the policies of an extension's tables. Those of tide.channel are dumped as rows of a
-- table that never has any, and made anew where these are inserted.

create table tide.channel_policy (
    name name not null,
    permissive boolean not null,
    command text not null,
    roles name[] not null,
    using_condition text,
    check_condition text,
    constraint channel_policy_is_always_empty check (false)
);
comment on table tide.channel_policy is
'Has pg_dump take along the policies of tide.channel; it never holds a row. What is inserted becomes a policy, which is how a dump brings them back';
comment on column tide.channel_policy.name is 'The policy''s name';
comment on column tide.channel_policy.permissive is 'Whether it is permissive, not restrictive';
comment on column tide.channel_policy.command is 'ALL, SELECT, INSERT, UPDATE or DELETE';
comment on column tide.channel_policy.roles is 'Whom it is for; public is everybody';
comment on column tide.channel_policy.using_condition is 'The condition after USING';
comment on column tide.channel_policy.check_condition is 'The condition after WITH CHECK';
revoke all on table tide.channel_policy from public;
grant select on table tide.channel_policy to public;

-- Postgres appends the condition to SELECT ... FROM: the rows come from its catalogue.
select pg_catalog.pg_extension_config_dump(
    'tide.channel_policy',
    $$where false
      union all
      select p.policyname, p.permissive operator(pg_catalog.=) 'PERMISSIVE', p.cmd, p.roles, p.qual, p.with_check
      from pg_catalog.pg_policies as p
      where p.schemaname operator(pg_catalog.=) 'tide' and p.tablename operator(pg_catalog.=) 'channel'$$
);

create function tide_internal.restore_policy() returns trigger
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    statement text := format(
        'create policy %I on tide.channel as %s for %s to %s%s%s',
        new.name,
        case when new.permissive then 'permissive' else 'restrictive' end,
        lower(new.command),
        (select string_agg(case when role.name = 'public' then 'public' else quote_ident(role.name) end, ', ')
         from unnest(new.roles) as role (name)),
        coalesce(' using (' || new.using_condition || ')', ''),
        coalesce(' with check (' || new.check_condition || ')', '')
    );
begin
    if new.command not in ('ALL', 'SELECT', 'INSERT', 'UPDATE', 'DELETE') then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('"%s" is no command that a policy can be for', new.command);
    end if;
    execute statement;
    return null;
exception
    when duplicate_object then
        return null;
    when others then
        -- The other policies come back all the same.
        raise warning using
            errcode = sqlstate,
            message = format('policy %I of tide.channel is not restored: %s', new.name, sqlerrm),
            hint = statement;
        return null;
end
$$;
comment on function tide_internal.restore_policy() is 'Internal. Makes a policy of what is inserted into tide.channel_policy';
revoke execute on function tide_internal.restore_policy() from public;

create trigger restore_policy before insert on tide.channel_policy
    for each row execute function tide_internal.restore_policy();
alter table tide.channel_policy enable always trigger restore_policy;
