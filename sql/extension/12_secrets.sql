-- Secrets, and the tokens signed with them.

create function tide_internal.random_secret() returns text
language c volatile strict parallel safe
as 'MODULE_PATHNAME', 'tide_random_secret_wrapper';
comment on function tide_internal.random_secret() is 'Internal. 256 random bits in hexadecimal';
revoke execute on function tide_internal.random_secret() from public;

create function tide_internal.insert_row("table" regclass, "row" anyelement) returns void
language c volatile strict parallel unsafe
set search_path = pg_catalog, pg_temp
as 'MODULE_PATHNAME', 'tide_insert_row_wrapper';
comment on function tide_internal.insert_row(regclass, anyelement) is
'Internal. Adds a row to one of pg_tide''s own tables, past logical decoding: publications for all tables do not have it';
revoke execute on function tide_internal.insert_row(regclass, anyelement) from public;

create function tide_internal.delete_row("table" regclass, place tid) returns void
language c volatile strict parallel unsafe
set search_path = pg_catalog, pg_temp
as 'MODULE_PATHNAME', 'tide_delete_row_wrapper';
comment on function tide_internal.delete_row(regclass, tid) is
'Internal. Deletes a row of one of pg_tide''s own tables, past logical decoding';
revoke execute on function tide_internal.delete_row(regclass, tid) from public;

create table tide.secret (
    -- Without an index: see tide_internal.insert_row().
    id bigint generated always as identity,
    secret text not null default tide_internal.random_secret(),
    created_at timestamptz not null default pg_catalog.clock_timestamp(),
    constraint secret_is_long_enough check (pg_catalog.octet_length(secret) >= 32)
);
comment on table tide.secret is
'Secrets that clients'' tokens may be signed with (HS256), unless tide.jwt_secret is set. For superusers only. Deliberately not part of pg_dump''s output, so that a copy of the database does not accept the original''s tokens: a restored database has a new secret. pg_upgrade and physical backups keep it';
comment on column tide.secret.id is 'Order of creation';
comment on column tide.secret.secret is 'The secret; tide.token() signs with the newest';
comment on column tide.secret.created_at is 'When it was made';
revoke all on table tide.secret from public;
-- Nor for pg_read_all_data, which reads pg_statistic, too.
alter table tide.secret enable row level security;
alter table tide.secret alter column secret set statistics 0;

create function tide_internal.skip_row() returns trigger
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
begin
    return null;
end
$$;
comment on function tide_internal.skip_row() is
'Internal. Leaves a row out: what a publication for all tables has another database copy when it subscribes';
revoke execute on function tide_internal.skip_row() from public;

-- Of subscriptions only.
create trigger skip_row before insert on tide.secret for each row execute function tide_internal.skip_row();
alter table tide.secret enable replica trigger skip_row;

create function tide_internal.add_secret() returns void
language sql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
    select tide_internal.insert_row(
               'tide.secret',
               row(nextval('tide.secret_id_seq'), tide_internal.random_secret(), clock_timestamp())::tide.secret
           )
$$;
comment on function tide_internal.add_secret() is 'Internal. Makes a new secret';
revoke execute on function tide_internal.add_secret() from public;

select tide_internal.add_secret();

create function tide_internal.reload_at_commit() returns void
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_reload_at_commit_wrapper';
comment on function tide_internal.reload_at_commit() is
'Internal. Has the worker read the secrets again when this transaction commits';
revoke execute on function tide_internal.reload_at_commit() from public;

create function tide.rotate_jwt_secret() returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
begin
    lock table tide.secret in share row exclusive mode;
    perform tide_internal.add_secret();
    perform tide_internal.delete_row('tide.secret', s.ctid)
    from (select ctid from tide.secret order by created_at desc, id desc offset 2) as s;
    perform tide_internal.reload_at_commit();
end
$$;
comment on function tide.rotate_jwt_secret() is
'Makes a new secret for tokens. Those signed with the one before stay valid until the next rotation; older ones end. Superuser only';
revoke execute on function tide.rotate_jwt_secret() from public;

create function tide_internal.sign(role text, claims jsonb, seconds bigint) returns text
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_sign_wrapper';
comment on function tide_internal.sign(text, jsonb, bigint) is 'Internal. A token, whoever it is for';
revoke execute on function tide_internal.sign(text, jsonb, bigint) from public;

create function tide.token(
    role text,
    claims jsonb default '{}',
    lifetime interval default '1 hour'
) returns text
language plpgsql volatile parallel unsafe
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    found_role pg_roles;
    audience text := current_setting('tide.jwt_audience', true);
    seconds numeric := extract(epoch from lifetime);
begin
    if token.role is null then
        raise exception using
            errcode = 'null_value_not_allowed',
            message = 'no role given',
            hint = 'For example: select tide.token(''authenticated'', ''{"sub": "42"}'');';
    end if;
    select r.* into found_role from pg_roles as r where r.rolname = token.role;
    if not found then
        raise exception using
            errcode = 'undefined_object',
            message = format('role "%s" does not exist', token.role),
            hint = format('create role %1$I nologin; grant %1$I to tide_authenticator;', token.role);
    end if;
    if found_role.rolname = 'tide_authenticator' then
        raise exception using
            errcode = 'insufficient_privilege',
            message = 'role "tide_authenticator" may not be used by clients',
            hint = 'Use a role that is granted to it.';
    end if;
    if not exists (select from pg_roles as a
                   where a.rolname = 'tide_authenticator'
                     and pg_has_role(a.oid, found_role.oid, 'MEMBER')) then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('role "%s" may not be used by clients', token.role),
            detail = 'Only roles that are granted to tide_authenticator may.',
            hint = format('grant %I to tide_authenticator;', token.role);
    end if;
    if (found_role.rolsuper or found_role.rolbypassrls or found_role.rolreplication)
       and not current_setting('tide.allow_privileged_roles')::boolean then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('the role "%s" has too many privileges to be used by clients', token.role),
            detail = 'It has SUPERUSER, BYPASSRLS or REPLICATION.',
            hint = 'Use another role, or set tide.allow_privileged_roles.';
    end if;
    if jsonb_typeof(claims) is distinct from 'object' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'claims must be a JSON object';
    end if;
    if seconds is null or seconds < 1 then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'the lifetime must be at least a second';
    end if;

    if audience <> '' and not claims ? 'aud' then
        claims := claims || jsonb_build_object('aud', audience);
    end if;
    return tide_internal.sign(token.role, claims, ceil(seconds)::bigint);
end
$$;
comment on function tide.token(text, jsonb, interval) is
'A signed token with which a client acts as the role, such as tide.token(''authenticated'', ''{"sub": "42"}''). The claims role, iat and exp are set here; aud follows tide.jwt_audience. Whoever may execute this can act as any role granted to tide_authenticator: superusers, and those you grant it to';
revoke execute on function tide.token(text, jsonb, interval) from public;
