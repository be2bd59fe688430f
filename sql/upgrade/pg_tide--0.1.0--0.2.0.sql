-- From 0.1.0 to 0.2.0. What it makes is compared with what CREATE EXTENSION makes (pgrx-tests/upgrade.rs).


create or replace function tide.token(
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
    return tide._sign(token.role, claims, ceil(seconds)::bigint);
end
$$;

create or replace function tide._make_publication() returns pg_publication
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    publication pg_publication;
begin
    perform tide._lock_publications();
    select p.* into publication from pg_publication as p where p.pubname = tide._publication();
    if not found then
        if not has_database_privilege(current_database(), 'CREATE') then
            raise exception using
                errcode = 'insufficient_privilege',
                message = format('permission denied to make publication "%s"', tide._publication()),
                hint = format('As a superuser: grant create on database %I to %I;', current_database(), current_user);
        end if;
        begin
            execute format('create publication %I with (publish_via_partition_root = true)',
                           tide._publication());
        exception
            -- Made by another session at this very moment.
            when duplicate_object or unique_violation then
                null;
        end;
        select p.* into publication from pg_publication as p where p.pubname = tide._publication();
    end if;
    return publication;
end
$$;

create or replace function tide.publish(variadic tables regclass[]) returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    publication pg_publication;
    relation regclass;
    bare regclass;
begin
    perform tide._assert_given(tables);
    foreach relation in array tables loop
        perform tide._assert_publishable(relation);
    end loop;

    publication := tide._make_publication();
    if publication.puballtables then
        raise notice 'publication "%" has all tables already', publication.pubname;
    end if;

    foreach relation in array tables loop
        if not publication.puballtables
           and not exists (select from pg_publication_rel as r
                           where r.prpubid = publication.oid and r.prrelid = relation) then
            if not pg_has_role(publication.pubowner, 'USAGE') then
                raise exception using
                    errcode = 'insufficient_privilege',
                    message = format('must be owner of publication "%s"', publication.pubname),
                    hint = format('As a superuser: select tide.publish(%L); or, for it to do so by itself from now on: grant create on database %I to %I; alter publication %I owner to %I;',
                                  relation, current_database(), current_user, publication.pubname, current_user);
            end if;
            execute format('alter publication %I add table %s', publication.pubname, relation);
        end if;
        if publication.pubupdate or publication.pubdelete then
            for bare in select tide._without_replica_identity(relation) loop
                raise warning using
                    message = format('%s has no replica identity: UPDATE and DELETE on it fail from now on',
                                     bare),
                    hint = format('Give it a primary key, or: alter table %s replica identity full;', bare);
            end loop;
        end if;
    end loop;
end
$$;

-- pg_dump takes the adopted ones along.
select pg_catalog.pg_extension_config_dump(
    'tide.outboxes',
    $$where relation operator(pg_catalog.<>) 'tide.outbox'::pg_catalog.regclass
        and exists (select from pg_catalog.pg_class as c where c.oid operator(pg_catalog.=) relation)$$
);

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

create function tide._restore_policy() returns trigger
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

comment on function tide._restore_policy() is 'Internal. Makes a policy of what is inserted into tide.channel_policy';

revoke execute on function tide._restore_policy() from public;

create trigger restore_policy before insert on tide.channel_policy
    for each row execute function tide._restore_policy();

alter table tide.channel_policy enable always trigger restore_policy;

drop function tide.status();
create function tide.status(
    out pid integer,
    out state text,
    out reason text,
    out started_at timestamptz,
    out restarts integer,
    out server_pid integer,
    out last_server_failure text,
    out server_confined_by text[],
    out slot name,
    out epoch text,
    out decoded_lsn pg_lsn,
    out confirmed_lsn pg_lsn,
    out retained_wal bigint,
    out behind bigint,
    out history_events bigint,
    out history_bytes bigint,
    out connections bigint,
    out channels bigint,
    out forged_messages bigint,
    out failed_messages bigint,
    out url text,
    out listener_error text,
    out connection_limit bigint,
    out catalog_worker boolean,
    out executors integer
)
language sql volatile parallel unsafe
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select w.pid, w.state, w.reason, to_timestamp(w.started_at / 1e6), w.restarts,
           w.server_pid, w.server_failure, w.confined_by, s.slot_name, w.epoch,
           case when w.decoded_lsn > 0 then '0/0'::pg_lsn + w.decoded_lsn end,
           s.confirmed_flush_lsn,
           case when not pg_is_in_recovery()
                then pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::bigint
           end,
           case when not pg_is_in_recovery() and w.decoded_lsn > 0
                then greatest(pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0'::pg_lsn + w.decoded_lsn), 0)::bigint
           end,
           w.history_events, w.history_bytes,
           coalesce(w.connections, 0), coalesce(w.channels, 0), coalesce(w.forged_messages, 0),
           coalesce((select sum((f.value ->> 'count')::bigint)::bigint
                     from jsonb_array_elements(w.failed_messages) as f), 0),
           w.url, w.listener_error, nullif(w.connection_limit, 0),
           coalesce(w.catalog_worker, false), coalesce(w.executors, 0)
    from jsonb_to_record(tide._worker_status()) as w (
        pid integer, state text, reason text, started_at bigint, restarts integer,
        server_pid integer, server_failure text, confined_by text[],
        epoch text, decoded_lsn numeric,
        history_events bigint, history_bytes bigint, connections bigint, channels bigint,
        forged_messages bigint, failed_messages jsonb, url text, listener_error text,
        connection_limit bigint, catalog_worker boolean, executors integer
    )
    left join lateral (
        select r.slot_name, r.confirmed_flush_lsn, r.restart_lsn
        from pg_replication_slots as r
        where r.database = current_database() and r.plugin = 'pg_tide'
        order by r.active_pid = w.pid desc nulls last
        limit 1
    ) as s on true;
end;

comment on function tide.status() is
'How the worker of this database is: its process, that of its server, how the last one ended and by what this one is confined (landlock: no files; seccomp: no system calls but those that serving clients takes), whether it is live and if not, why, how far it has decoded and how many bytes of WAL it is behind, what it keeps, who is connected, where it listens. One row, also when it is stopped. For members of pg_monitor';

revoke execute on function tide.status() from public;

grant execute on function tide.status() to pg_monitor;

create or replace function tide._announce_drops() returns event_trigger
language plpgsql volatile parallel unsafe
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    gone record;
begin
    for gone in
        select d.classid, d.objid, d.objsubid, d.object_type, d.schema_name, d.object_name
        from pg_event_trigger_dropped_objects() as d
        where not d.is_temporary
          and d.object_type in ('table', 'schema', 'table column')
        order by d.object_type = 'schema'
    loop
        if gone.object_type = 'table column' then
            -- With a type, for example. ALTER TABLE tells of it at its end.
            if tg_tag <> 'ALTER TABLE' then
                perform tide._announce_table('ALTER_TABLE', gone.objid);
            end if;
        elsif coalesce(gone.schema_name, gone.object_name) <> 'tide'
              and not starts_with(coalesce(gone.schema_name, gone.object_name), 'pg_') then
            begin
                -- Another table may have its oid some day.
                perform tide._delete_row('tide.outboxes', o.ctid)
                from tide.outboxes as o
                where gone.object_type = 'table' and o.relation = gone.objid;
            exception
                when others then
                    -- A take-over is under way, for example, which sees to it.
                    null;
            end;
            perform tide._write_schema_change(json_build_object(
                        'operation', case gone.object_type
                                         when 'table' then 'DROP_TABLE'
                                         else 'DROP_SCHEMA'
                                     end,
                        'schema', coalesce(gone.schema_name, gone.object_name),
                        'table', case when gone.object_type = 'table' then gone.object_name end,
                        'oid', gone.objid::bigint,
                        'readers', tide._readers_before(gone.classid, gone.objid)));
        end if;
    end loop;
exception
    when others then
        raise warning using
            errcode = sqlstate,
            message = format('pg_tide could not tell clients of this change of the schema: %s', sqlerrm);
end
$$;

create or replace function tide._check_server()
returns table (item text, ok boolean, problem text, fix text)
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    status record;
    libraries text[] := tide._names(current_setting('shared_preload_libraries'));
    plugins text := current_setting('output_plugin_libraries', true);
    processes integer;
    missing integer;
    held_back bigint;
    history bigint := pg_size_bytes(current_setting('tide.history_size', true));
    -- Settings exist where the library was loaded in time.
    preloaded boolean := current_setting('tide.history_size', true) is not null;
begin
    return query select
        'shared_preload_libraries', preloaded,
        'the server does not load pg_tide at its start',
        format('In postgresql.conf, then restart: shared_preload_libraries = ''%s''',
               array_to_string(array_remove(libraries, 'pg_tide') || 'pg_tide'::text, ', '));
    if not preloaded then
        return;
    end if;
    select * into status from tide.status();

    return query select
        'wal_level', current_setting('wal_level') = 'logical',
        format('it is %s: the WAL does not have what changed', current_setting('wal_level')),
        'alter system set wal_level = logical; -- then restart';
    return query select
        'max_replication_slots',
        status.slot is not null
        or (select count(*) from pg_replication_slots) < current_setting('max_replication_slots')::integer,
        'no replication slot is free',
        format('alter system set max_replication_slots = %s; -- then restart',
               (select count(*) from pg_replication_slots) + 2);

    -- Background workers that run, and those of this database that do not.
    select count(*) into processes
    from pg_stat_activity as a
    where a.backend_type not in ('client backend', 'autovacuum launcher', 'autovacuum worker',
                                 'background writer', 'checkpointer', 'walwriter', 'walsender',
                                 'walreceiver', 'startup', 'archiver', 'logger', 'io worker',
                                 'slotsync worker', 'walsummarizer', 'standalone backend');
    missing := (status.pid is null)::integer
               + (not status.catalog_worker)::integer
               + greatest(current_setting('tide.executors')::integer - status.executors, 0);
    return query select
        'max_worker_processes',
        missing = 0 or processes + missing <= current_setting('max_worker_processes')::integer,
        format('%s of %s are in use, and %s more are needed', processes,
               current_setting('max_worker_processes'), missing),
        format('alter system set max_worker_processes = %s; -- then restart', processes + missing + 4);

    -- Of 15.19 and the other versions' minor releases of that time; before, there is no such list.
    return query select
        'output_plugin_libraries', plugins is null or 'pg_tide' = any (tide._names(plugins)),
        'the server does not allow pg_tide to decode the WAL',
        format('alter system set output_plugin_libraries = %s; select pg_reload_conf();',
               array_to_string(array(select quote_ident(name)
                                     from unnest(tide._names(plugins) || 'pg_tide'::text) as name), ', '));

    held_back := pg_size_bytes(nullif(current_setting('max_slot_wal_keep_size'), '-1'));
    return query select
        'max_slot_wal_keep_size', held_back is null or held_back > 2 * history,
        format('the server keeps %s of WAL, not more than twice tide.history_size (%s)',
               current_setting('max_slot_wal_keep_size'), current_setting('tide.history_size')),
        format('alter system set max_slot_wal_keep_size = %L; select pg_reload_conf();',
               pg_size_pretty(greatest(4 * history, 1 << 30)));
    held_back := pg_size_bytes(nullif(current_setting('tide.max_slot_wal_keep_size'), '-1'));
    return query select
        'tide.max_slot_wal_keep_size', held_back is null or held_back > 2 * history,
        format('it is %s, not more than twice tide.history_size (%s)',
               current_setting('tide.max_slot_wal_keep_size'), current_setting('tide.history_size')),
        format('alter database %I set tide.max_slot_wal_keep_size = %L; select tide.restart_worker();',
               current_database(), pg_size_pretty(greatest(4 * history, 1 << 30)));

    return query select
        'worker', status.state <> 'stopped',
        coalesce(status.reason, 'it is not running'),
        case when pg_is_in_recovery() then 'Nothing: it starts when this standby is promoted.'
             else 'select tide.restart_worker(); -- the server log says why it stopped'
        end;
    if status.state = 'stopped' then
        return;
    end if;
    return query select
        'stream', status.state = 'live',
        coalesce(status.reason, 'it is being opened'),
        'It goes on by itself once the cause has gone; the other rows, or the server log, say more.';
    return query select
        'listener', status.url is not null and status.listener_error is null,
        coalesce(status.listener_error, 'tide.port is 0, or tide.listen_addresses is empty'),
        case
            when status.listener_error like 'could not resolve %'
                 or status.listener_error is null and current_setting('tide.port')::integer <> 0 then
                format('alter database %I set tide.listen_addresses = ''localhost''; select tide.restart_worker();',
                       current_database())
            when coalesce(status.listener_error, 'could not bind ') like 'could not bind %' then
                -- Those below are the operating system's own.
                format('alter database %I set tide.port = %s; select tide.restart_worker();', current_database(),
                       greatest(current_setting('tide.port')::integer % 65535 + 1, 4000))
            else 'Mend what it names, or have the setting name another; then: select pg_reload_conf();'
        end;
    return query select
        'tide.max_connections',
        status.connection_limit >= current_setting('tide.max_connections')::integer,
        format('it is %s, but the operating system''s limit of open files leaves room for %s clients',
               current_setting('tide.max_connections'), status.connection_limit),
        'Raise the hard limit of open files of the server (LimitNOFILE of its systemd unit, ulimit -Hn), then restart; or lower tide.max_connections.';
    return query select
        'catalog_worker', status.catalog_worker,
        'the process that asks the catalogue is not there: joins wait for it',
        'It is started by itself; the server log says what keeps it.';
    return query select
        'executors', status.executors >= current_setting('tide.executors')::integer,
        format('%s of %s are there', status.executors, current_setting('tide.executors')),
        'They are started by themselves; the server log says what keeps them.';
end
$$;

create or replace function tide._check_roles()
returns table (item text, ok boolean, problem text, fix text)
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    authenticator pg_roles;
    anon pg_roles;
    anon_name text := current_setting('tide.anon_role', true);
    privileged boolean := coalesce(current_setting('tide.allow_privileged_roles', true), 'off');
begin
    select r.* into authenticator from pg_roles as r where r.rolname = 'tide_authenticator';
    return query select
        'tide_authenticator', authenticator.oid is not null,
        'the role is missing',
        'create role tide_authenticator login noinherit; select tide.restart_worker();';
    if authenticator.oid is null then
        return;
    end if;
    return query select
        'tide_authenticator powers',
        authenticator.rolcanlogin and not (authenticator.rolsuper or authenticator.rolbypassrls
            or authenticator.rolreplication or authenticator.rolcreaterole
            or authenticator.rolcreatedb or authenticator.rolinherit),
        'the role must be able to log in and have no powers of its own',
        'alter role tide_authenticator login noinherit nosuperuser nobypassrls noreplication nocreaterole nocreatedb;';
    return query select
        'CONNECT for tide_authenticator',
        has_database_privilege(authenticator.oid, current_database(), 'CONNECT'),
        'the role may not connect to this database',
        format('grant connect on database %I to tide_authenticator;', current_database());
    return query select
        'roles for clients',
        exists (select from tide._client_roles()),
        'no role is granted to tide_authenticator, so clients can use none',
        'create role authenticated nologin; grant authenticated to tide_authenticator;';

    if anon_name <> '' then
        select r.* into anon from pg_roles as r where r.rolname = anon_name;
        return query select
            'tide.anon_role',
            anon.oid is not null and anon.oid <> authenticator.oid
            and pg_has_role(authenticator.oid, anon.oid, 'MEMBER')
            and (privileged or not (anon.rolsuper or anon.rolbypassrls or anon.rolreplication)),
            case
                when anon.oid is null then format('role "%s" does not exist', anon_name)
                when anon.rolsuper or anon.rolbypassrls or anon.rolreplication
                    then format('the role "%s" has too many privileges to be used by clients', anon_name)
                else format('role "%s" is not granted to tide_authenticator', anon_name)
            end,
            case
                when anon.oid is null
                    then format('create role %1$I nologin; grant %1$I to tide_authenticator;', anon_name)
                when anon.rolsuper or anon.rolbypassrls or anon.rolreplication
                    then format('alter role %I nosuperuser nobypassrls noreplication;', anon_name)
                else format('grant %I to tide_authenticator;', anon_name)
            end;
    end if;
    return query select
        'tide.jwt_secret',
        not exists (select from pg_db_role_setting as s, unnest(s.setconfig) as c
                    where c like 'tide.jwt\_secret=_%'
                      and s.setdatabase in (0, (select d.oid from pg_database as d
                                                where d.datname = current_database()))),
        'it is set by ALTER DATABASE or ALTER ROLE, where everyone can read it',
        'Reset it there, and set it in postgresql.conf, or use tide.jwt_secret_file.';
end
$$;

-- Of tables that were dropped under 0.1.0.
select tide._delete_row('tide.outboxes', o.ctid)
from tide.outboxes as o
where not exists (select from pg_class as c where c.oid = o.relation);
