-- The role whose session the executors have.

do $$
declare
    powers text;
    members text;
    has_password boolean;
begin
    begin
        create role tide_authenticator login noinherit;
        comment on role tide_authenticator is
        'The powerless role as which pg_tide answers for its clients, in every database of this cluster. Granting a role to it lets clients use that role';
    exception
        -- There already; or made in another database at this very moment.
        when duplicate_object or unique_violation then
            null;
    end;
    select pg_catalog.concat_ws(' ',
               case when rolsuper then 'nosuperuser' end,
               case when rolbypassrls then 'nobypassrls' end,
               case when rolreplication then 'noreplication' end,
               case when rolcreaterole then 'nocreaterole' end,
               case when rolcreatedb then 'nocreatedb' end,
               case when rolinherit then 'noinherit' end,
               case when not rolcanlogin then 'login' end)
    into powers
    from pg_catalog.pg_roles
    where rolname = 'tide_authenticator';
    if powers <> '' then
        raise exception using
            errcode = 'invalid_role_specification',
            message = 'role "tide_authenticator" is there already, but is not what it must be',
            detail = 'Clients'' questions are answered in sessions of this role, which must have no powers of its own.',
            hint = pg_catalog.format('alter role tide_authenticator %s;', powers);
    end if;
    -- Somebody else may have made it.
    select a.rolpassword is not null,
           (select pg_catalog.string_agg(pg_catalog.quote_ident(r.rolname), ', ' order by r.rolname)
            from pg_catalog.pg_auth_members as m
            join pg_catalog.pg_roles as r on r.oid = m.member
            where m.roleid = a.oid and not r.rolsuper)
    into has_password, members
    from pg_catalog.pg_authid as a
    where a.rolname = 'tide_authenticator';
    if has_password or members <> '' then
        raise exception using
            errcode = 'invalid_role_specification',
            message = 'role "tide_authenticator" is there already, and others can become it',
            detail = pg_catalog.concat_ws(' ', case when has_password then 'It has a password.' end,
                                          'Members: ' || members || '.'),
            hint = pg_catalog.concat_ws(' ', case when has_password then 'alter role tide_authenticator password null;' end,
                                        'revoke tide_authenticator from ' || members || ';');
    end if;
end
$$;
