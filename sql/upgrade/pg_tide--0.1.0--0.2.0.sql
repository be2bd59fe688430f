-- From 0.1.0 to 0.2.0. What it makes is compared with what CREATE EXTENSION makes (pgrx-tests/upgrade.rs).

-- Their functions are called otherwise in a moment.
alter event trigger tide_ddl_command_end disable;
alter event trigger tide_sql_drop disable;

create schema tide_internal;
comment on schema tide_internal is 'pg_tide: what the functions of schema tide are made of. Nothing here is meant to be called by others';
grant usage on schema tide_internal to public;

-- A function whose body names its own schema cannot be moved to another from 18 on: it is made anew below.
create or replace function tide._outbox_problems(outbox regclass) returns setof text
language sql stable strict parallel safe
set search_path = pg_catalog, pg_temp
as 'select null::text where false';

-- What was called tide._name is tide_internal.name now.
do $$
declare
    internal record;
begin
    for internal in
        select p.oid::pg_catalog.regprocedure as name, p.proname,
               pg_catalog.pg_get_function_identity_arguments(p.oid) as arguments
        from pg_catalog.pg_proc as p
        where p.pronamespace operator(pg_catalog.=) 'tide'::pg_catalog.regnamespace
          and pg_catalog.starts_with(p.proname::pg_catalog.text, '_')
    loop
        execute pg_catalog.format('alter function %s set schema tide_internal', internal.name);
        execute pg_catalog.format('alter function tide_internal.%I(%s) rename to %I', internal.proname,
                                  internal.arguments, pg_catalog.ltrim(internal.proname::pg_catalog.text, '_'));
    end loop;
end
$$;

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
    return tide_internal.sign(token.role, claims, ceil(seconds)::bigint);
end
$$;

create or replace function tide_internal.make_publication() returns pg_publication
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    publication pg_publication;
begin
    perform tide_internal.lock_publications();
    select p.* into publication from pg_publication as p where p.pubname = tide_internal.publication();
    if not found then
        if not has_database_privilege(current_database(), 'CREATE') then
            raise exception using
                errcode = 'insufficient_privilege',
                message = format('permission denied to make publication "%s"', tide_internal.publication()),
                hint = format('As a superuser: grant create on database %I to %I;', current_database(), current_user);
        end if;
        begin
            execute format('create publication %I with (publish_via_partition_root = true)',
                           tide_internal.publication());
        exception
            -- Made by another session at this very moment.
            when duplicate_object or unique_violation then
                null;
        end;
        select p.* into publication from pg_publication as p where p.pubname = tide_internal.publication();
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
    perform tide_internal.assert_given(tables);
    foreach relation in array tables loop
        perform tide_internal.assert_publishable(relation);
    end loop;

    publication := tide_internal.make_publication();
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
            for bare in select tide_internal.without_replica_identity(relation) loop
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
    from jsonb_to_record(tide_internal.worker_status()) as w (
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

create function tide.snapshot_token() returns text
language c stable parallel unsafe
as 'MODULE_PATHNAME', 'tide_snapshot_token_wrapper';
comment on function tide.snapshot_token() is
'What the query that calls this can see, as a "since": a client that resumes from it gets everything that the query could not see, and nothing else. In a REPEATABLE READ transaction it stands for all of its queries. What the transaction itself has written comes, too. NULL if the worker is not live';

create or replace view tide.stat_channels as
select c.id as connection,
       h.topic,
       h.role,
       h.subject,
       h.private,
       pg_catalog.to_timestamp(h.joined_at / 1e6) as joined_at,
       h.bindings,
       h.lag,
       h.snapshot_rows
from tide_internal.connections() as l
cross join lateral pg_catalog.jsonb_to_record(l.connection) as c (id bigint, channels jsonb)
cross join lateral pg_catalog.jsonb_to_recordset(c.channels) as h (
    topic text, role text, subject text, private boolean, joined_at bigint, bindings integer, lag bigint,
    snapshot_rows bigint
);
comment on column tide.stat_channels.snapshot_rows is 'How many rows it has been told of so far, of those that it begins with; NULL: of all, or it does not begin with rows';

create or replace function tide_internal.announce_drops() returns event_trigger
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
                perform tide_internal.announce_table('ALTER_TABLE', gone.objid);
            end if;
        elsif coalesce(gone.schema_name, gone.object_name) not in ('tide', 'tide_internal')
              and not starts_with(coalesce(gone.schema_name, gone.object_name), 'pg_') then
            begin
                -- Another table may have its oid some day.
                perform tide_internal.delete_row('tide.outboxes', o.ctid)
                from tide.outboxes as o
                where gone.object_type = 'table' and o.relation = gone.objid;
                perform tide_internal.delete_row('tide.write_rules', r.ctid)
                from tide.write_rules as r
                where gone.object_type = 'table' and r.relation = gone.objid;
            exception
                when others then
                    -- A take-over is under way, for example, which sees to it.
                    null;
            end;
            perform tide_internal.write_schema_change(json_build_object(
                        'operation', case gone.object_type
                                         when 'table' then 'DROP_TABLE'
                                         else 'DROP_SCHEMA'
                                     end,
                        'schema', coalesce(gone.schema_name, gone.object_name),
                        'table', case when gone.object_type = 'table' then gone.object_name end,
                        'oid', gone.objid::bigint,
                        'readers', tide_internal.readers_before(gone.classid, gone.objid)));
        end if;
    end loop;
exception
    when others then
        raise warning using
            errcode = sqlstate,
            message = format('pg_tide could not tell clients of this change of the schema: %s', sqlerrm);
end
$$;

create or replace function tide_internal.check_server()
returns table (item text, ok boolean, problem text, fix text)
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    status record;
    oldest record;
    libraries text[] := tide_internal.names(current_setting('shared_preload_libraries'));
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
        'output_plugin_libraries', plugins is null or 'pg_tide' = any (tide_internal.names(plugins)),
        'the server does not allow pg_tide to decode the WAL',
        format('alter system set output_plugin_libraries = %s; select pg_reload_conf();',
               array_to_string(array(select quote_ident(name)
                                     from unnest(tide_internal.names(plugins) || 'pg_tide'::text) as name), ', '));

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
    -- Decoding goes back to the beginning of the oldest transaction, whoever's it is.
    select t.* into oldest
    from (
        select a.backend_xid, a.xact_start, format('of pid %s', a.pid), format('select pg_terminate_backend(%s);', a.pid)
        from pg_stat_activity as a
        where a.backend_xid is not null
        union all
        select p.transaction, p.prepared, format('%L', p.gid), format('rollback prepared %L;', p.gid)
        from pg_prepared_xacts as p
    ) as t (xid, began, name, fix)
    order by age(t.xid) desc
    limit 1;
    return query select
        'open transactions',
        oldest.xid is null or held_back is null or coalesce(status.retained_wal, 0) <= held_back + (64 << 20)
        -- Not it, but the worker, or one that has ended meanwhile.
        or coalesce(age(oldest.xid) < (select age(s.catalog_xmin) from pg_replication_slots as s
                                       where s.slot_name = status.slot), true),
        format('the slot holds %s of WAL back, for the transaction %s, which began at %s',
               pg_size_pretty(status.retained_wal), oldest.name, oldest.began),
        format('End it, or: %s', oldest.fix);

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

create or replace function tide_internal.check_roles()
returns table (item text, ok boolean, problem text, fix text)
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    authenticator pg_roles;
    anon pg_roles;
    -- Superusers have no need to be.
    members text := (select coalesce(string_agg(quote_ident(r.rolname), ', ' order by r.rolname), '')
                     from pg_auth_members as m
                     join pg_roles as r on r.oid = m.member
                     join pg_roles as a on a.oid = m.roleid
                     where a.rolname = 'tide_authenticator' and not r.rolsuper);
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
        'members of tide_authenticator', members = '',
        format('who is a member of it may act as any client: %s', members),
        format('revoke tide_authenticator from %s;', members);
    return query select
        'CONNECT for tide_authenticator',
        has_database_privilege(authenticator.oid, current_database(), 'CONNECT'),
        'the role may not connect to this database',
        format('grant connect on database %I to tide_authenticator;', current_database());
    return query select
        'roles for clients',
        exists (select from tide_internal.client_roles()),
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
select tide_internal.delete_row('tide.outboxes', o.ctid)
from tide.outboxes as o
where not exists (select from pg_class as c where c.oid = o.relation);

create or replace function tide_internal.add_secret() returns void
language sql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
    select tide_internal.insert_row(
               'tide.secret',
               row(nextval('tide.secret_id_seq'), tide_internal.random_secret(), clock_timestamp())::tide.secret
           )
$$;

create or replace function tide.rotate_jwt_secret() returns void
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

create or replace function tide.unpublish(variadic tables regclass[]) returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    publication pg_publication;
    relation regclass;
begin
    perform tide_internal.assert_given(tables);
    select p.* into publication from pg_publication as p where p.pubname = tide_internal.publication();
    if publication.puballtables then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = format('publication "%s" is for all tables', publication.pubname),
            hint = format('drop publication %I; then publish the tables you want.', publication.pubname);
    end if;
    foreach relation in array tables loop
        if exists (select from pg_publication_rel as r
                   where r.prpubid = publication.oid and r.prrelid = relation) then
            execute format('alter publication %I drop table %s', publication.pubname, relation);
        elsif exists (select from pg_publication_namespace as s
                      join pg_class as c on c.relnamespace = s.pnnspid
                      where s.pnpubid = publication.oid and c.oid = relation) then
            raise exception using
                errcode = 'object_not_in_prerequisite_state',
                message = format('%s is published with all of its schema', relation),
                hint = format('alter publication %I drop tables in schema %s;', publication.pubname,
                              (select c.relnamespace::regnamespace from pg_class as c where c.oid = relation));
        else
            raise notice '% is not published', relation;
        end if;
    end loop;
end
$$;

create or replace function tide_internal.add_message_key() returns void
language sql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
    select tide_internal.insert_row(
               'tide.message_key',
               row(nextval('tide.message_key_id_seq'), convert_to(tide_internal.random_secret(), 'UTF8'),
                   clock_timestamp())::tide.message_key
           )
$$;

create or replace function tide.rotate_message_key() returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
begin
    lock table tide.message_key in share row exclusive mode;
    perform tide_internal.add_message_key();
    -- The one before stays, for those who are sending at this moment.
    perform tide_internal.delete_row('tide.message_key', k.ctid)
    from (select ctid from tide.message_key order by id desc offset 2) as k;
    -- Has every session, and the worker at this point of the WAL, read the keys again.
    perform tide_internal.invalidate('tide.message_key');
end
$$;

create or replace function tide_internal.outboxes_changed() returns trigger
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op <> 'INSERT' then
        perform tide_internal.invalidate(old.relation);
    end if;
    if tg_op <> 'DELETE' then
        perform tide_internal.invalidate(new.relation);
    end if;
    return null;
end
$$;

create or replace function tide_internal.set_outbox(outbox regclass, private boolean, generation bigint) returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    former tide.outboxes;
    place tid;
begin
    lock table tide.outboxes in share row exclusive mode;
    select o.ctid, o.* into place, former.relation, former.private, former.generation, former.added_at
    from tide.outboxes as o
    where o.relation = outbox;
    if found then
        perform tide_internal.delete_row('tide.outboxes', place);
    end if;
    perform tide_internal.insert_row(
        'tide.outboxes',
        row(outbox, private, generation, coalesce(former.added_at, now()))::tide.outboxes
    );
    perform tide_internal.invalidate(outbox);
end
$$;

create or replace function tide_internal.adopt_outbox(outbox regclass, is_private boolean) returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    problems text := (select string_agg(p, '; ' order by p) from tide_internal.outbox_problems(outbox) as p);
begin
    if problems <> '' then
        raise exception using
            errcode = 'wrong_object_type',
            message = format('%s cannot be an outbox', outbox),
            detail = problems,
            hint = 'It has to have the columns of tide.outbox, of which rejected, data, headers and private may be missing, in an ordinary table with a primary key on sequence_id.';
    end if;
    if exists (select from pg_publication_rel as r
               join pg_publication as p on p.oid = r.prpubid
               where r.prrelid = outbox and p.pubname = tide_internal.publication()) then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = format('%s is published as a table', outbox),
            hint = format('select tide.unpublish(%L);', outbox);
    end if;
    lock table tide.outboxes in share row exclusive mode;
    -- Tables that were dropped leave their oids here.
    perform tide_internal.delete_row('tide.outboxes', o.ctid)
    from tide.outboxes as o
    where not exists (select from pg_class as c where c.oid = o.relation);
    perform from tide.outboxes as o where o.relation = outbox and o.private = is_private;
    if not found then
        perform tide_internal.set_outbox(
            outbox,
            is_private,
            (select o.generation from tide.outboxes as o where o.relation = outbox)
        );
    end if;
end
$$;

create or replace function tide_internal.release_outbox(outbox regclass) returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
begin
    if outbox = 'tide.outbox'::regclass then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = 'tide.outbox is always an outbox',
            hint = 'Only tables that were adopted can be released.';
    end if;
    lock table tide.outboxes in share row exclusive mode;
    perform tide_internal.delete_row('tide.outboxes', o.ctid), tide_internal.invalidate(outbox)
    from tide.outboxes as o
    where o.relation = outbox;
    if not found then
        raise notice '% is not an outbox', outbox;
    end if;
end
$$;

create or replace function tide.create_schema(name text) returns boolean
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    publication pg_publication;
    schema oid;
    made boolean := false;
begin
    perform tide_internal.assert_name(name, 'schema');
    select n.oid into schema from pg_namespace as n where n.nspname = name;
    if not found then
        begin
            execute format('create schema %I', name);
            made := true;
        exception
            -- Made by another session at this very moment.
            when duplicate_schema or unique_violation then
                null;
        end;
        select n.oid into schema from pg_namespace as n where n.nspname = name;
    end if;
    publication := tide_internal.make_publication();
    if not publication.puballtables
       and not exists (select from pg_publication_namespace as p
                       where p.pnpubid = publication.oid and p.pnnspid = schema) then
        perform tide_internal.publish_schema(schema);
    end if;
    return made;
end
$$;

create or replace function tide.destroy_schema(name text, cascade boolean default false) returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
begin
    perform tide_internal.assert_name(name, 'schema');
    execute format('drop schema %I %s', name, case when cascade then 'cascade' else 'restrict' end);
exception
    when dependent_objects_still_exist then
        raise exception using
            errcode = 'dependent_objects_still_exist',
            message = sqlerrm,
            hint = format('To drop it with all that is in it: select tide.destroy_schema(%L, true);', name);
end
$$;

create or replace function tide.schema_overview(schema text, exact boolean default true)
returns table (table_name text, row_count bigint)
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    namespace oid := (select n.oid from pg_namespace as n
                      where n.nspname = schema_overview.schema and has_schema_privilege(n.oid, 'USAGE'));
begin
    if not exact then
        return query
            select c.relname::text,
                   case when c.relkind = 'p'
                        then (select coalesce(sum(tide_internal.estimated_rows(l.oid, l.reltuples)), 0)::bigint
                              from pg_partition_tree(c.oid) as t join pg_class as l on l.oid = t.relid
                              where t.isleaf)
                        else tide_internal.estimated_rows(c.oid, c.reltuples)
                   end
            from pg_class as c
            where c.relnamespace = namespace and c.relkind in ('r', 'p')
              and has_any_column_privilege(c.oid, 'SELECT')
            order by c.relname;
        return;
    end if;
    for table_name in
        select c.relname
        from pg_class as c
        where c.relnamespace = namespace and c.relkind in ('r', 'p')
          and has_any_column_privilege(c.oid, 'SELECT')
        order by c.relname
    loop
        begin
            execute format('select count(*) from %I.%I', schema, table_name) into row_count;
            return next;
        exception
            -- Dropped at this very moment.
            when undefined_table then
                null;
        end;
    end loop;
end
$$;

create or replace function tide_internal.assert_place(schema text, key text) returns void
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    if key is null then
        raise exception using
            errcode = 'null_value_not_allowed',
            message = 'no key given';
    end if;
    perform tide_internal.assert_name(schema, 'schema'), tide_internal.assert_name(tide_internal.record_table(key), 'table');
end
$$;

create or replace function tide_internal.require_record_table(schema text, "table" text) returns text
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
begin
    while not tide_internal.lock_records(schema, "table", true) loop
        perform tide_internal.make_record_table(schema, "table");
    end loop;
    return format('%I.%I', schema, "table");
end
$$;

create or replace function tide.record_get(key text, schema text default 'ds')
returns table (version bigint, value jsonb)
language plpgsql volatile parallel unsafe
-- No search_path of its own, which would double the time it takes: every name here is qualified.
as $$
begin
    if tide_internal.is_place(schema, key) is not true then
        perform tide_internal.assert_place(schema, key);
    end if;
    if tide_internal.lock_records(schema, tide_internal.record_table(key), false) then
        return query execute pg_catalog.format(
            'select version::pg_catalog.int8, val::pg_catalog.jsonb
             from %I.%I where id operator(pg_catalog.=) $1', schema, tide_internal.record_table(key))
            using tide_internal.record_id(key);
    end if;
end
$$;

create or replace function tide.record_get_many(keys text[], schema text default 'ds')
returns table (key text, version bigint, value jsonb)
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    asked record;
begin
    for asked in
        select tide_internal.record_table(k) as "table", array_agg(distinct k) as keys
        from unnest(keys) as k
        group by 1
        order by 1
    loop
        perform tide_internal.assert_place(schema, k) from unnest(asked.keys[:1]) as k;
        if tide_internal.lock_records(schema, asked.table, false) then
            return query execute format(
                'select k.key, r.version::bigint, r.val::jsonb
                 from unnest($1) as k (key)
                 join %I.%I as r on r.id = tide_internal.record_id(k.key)', schema, asked.table)
                using asked.keys;
        end if;
    end loop;
end
$$;

create or replace function tide.record_set(
    key text,
    value jsonb,
    version bigint default null,
    expected_version bigint default null,
    schema text default 'ds'
) returns bigint
language plpgsql volatile parallel unsafe
-- As for tide.record_get(): every name is qualified.
as $$
declare
    id pg_catalog.text := tide_internal.record_id(key);
    target pg_catalog.text;
    stored pg_catalog.int8;
begin
    if tide_internal.is_place(schema, key) is not true then
        perform tide_internal.assert_place(schema, key);
    end if;
    if value is null then
        raise exception using
            errcode = 'null_value_not_allowed',
            message = 'no value given',
            hint = 'JSON''s null is a value: ''null''.';
    end if;
    while not tide_internal.lock_records(schema, tide_internal.record_table(key), true) loop
        perform tide_internal.make_record_table(schema, tide_internal.record_table(key));
    end loop;
    target := pg_catalog.format('%I.%I', schema, tide_internal.record_table(key));
    if expected_version is null then
        execute pg_catalog.format(
            'insert into %s as r (id, version, val) values ($1, coalesce($2, 1), $3)
             on conflict (id) do update
             set version = coalesce($2, r.version operator(pg_catalog.+) 1, 1), val = excluded.val
             returning version', target)
            into stored using id, version, value;
        return stored;
    end if;
    if expected_version operator(pg_catalog.=) -1 then
        execute pg_catalog.format(
            'insert into %s (id, version, val) values ($1, coalesce($2, 1), $3)
             on conflict (id) do nothing returning version', target)
            into stored using id, version, value;
    else
        execute pg_catalog.format(
            'update %s set version = coalesce($2, version operator(pg_catalog.+) 1), val = $3
             where id operator(pg_catalog.=) $1 and version operator(pg_catalog.=) $4
             returning version', target)
            into stored using id, version, value, expected_version;
    end if;
    if stored is null then
        perform tide_internal.refuse_record(schema, key, expected_version);
    end if;
    return stored;
end
$$;

create or replace function tide.record_set_many(
    keys text[],
    "values" jsonb[],
    versions bigint[] default null,
    expected_versions bigint[] default null,
    schema text default 'ds'
) returns table (key text, version bigint)
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    -- Records of one table that are stored in the same way.
    given record;
begin
    if array_position(keys, null) is not null or array_position("values", null) is not null then
        raise exception using
            errcode = 'null_value_not_allowed',
            message = 'a key or value is null',
            hint = 'JSON''s null is a value: ''null''.';
    end if;
    if cardinality(keys) is distinct from cardinality("values")
       or cardinality(keys) <> cardinality(versions)
       or cardinality(keys) <> cardinality(expected_versions) then
        raise exception using
            errcode = 'array_subscript_error',
            message = 'there must be a value, and a version if versions are given, for each key';
    end if;

    -- Of a key that is given twice the last counts. All in one order, so that two calls that share
    -- records wait for each other instead of deadlocking.
    for given in
        select g."table", g.expected_version is not null as expecting, g.version is null as counting,
               array_agg(g.key order by g.id) as keys,
               array_agg(g.id order by g.id) as ids,
               array_agg(g.value order by g.id) as "values",
               array_agg(g.version order by g.id) as versions,
               array_agg(g.expected_version order by g.id) as expected_versions
        from (
            select distinct on (p."table", p.id) p."table", p.id, p.key, p.value, p.version, p.expected_version
            from (select tide_internal.record_table(u.key), tide_internal.record_id(u.key) collate "C", u.*
                  from unnest(keys, "values", versions, expected_versions)
                       with ordinality as u (key, value, version, expected_version, place)
                 ) as p ("table", id, key, value, version, expected_version, place)
            order by p."table", p.id, p.place desc
        ) as g
        group by 1, 2, 3
        order by 1, 2, 3
    loop
        perform tide_internal.assert_place(schema, given.keys[1]);
        if given.expecting then
            return query
                select u.key, tide.record_set(u.key, u.value, u.version, u.expected_version, schema)
                from unnest(given.keys, given."values", given.versions, given.expected_versions)
                     as u (key, value, version, expected_version);
        else
            return query execute format(
                'with stored as (
                     insert into %s as r (id, version, val)
                     select g.id, coalesce(g.version, 1), g.value
                     from unnest($2, $3, $4) as g (id, version, value)
                     on conflict (id) do update set version = %s, val = excluded.val
                     returning id, version
                 )
                 select g.key, s.version::bigint
                 from unnest($1, $2) as g (key, id)
                 join stored as s on s.id = g.id',
                tide_internal.require_record_table(schema, given."table"),
                case when given.counting then 'coalesce(r.version + 1, 1)' else 'excluded.version' end)
                using given.keys, given.ids, given.versions, given."values";
        end if;
    end loop;
end
$$;

create or replace function tide.record_delete_many(
    keys text[],
    schema text default 'ds',
    drop_empty boolean default false
) returns bigint
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    given record;
    deleted bigint;
    deleted_in_all bigint := 0;
begin
    for given in
        select tide_internal.record_table(k) as "table", (array_agg(k))[1] as example,
               array_agg(distinct tide_internal.record_id(k)) as ids
        from unnest(keys) as k
        group by 1
        order by 1
    loop
        perform tide_internal.assert_place(schema, given.example);
        if not tide_internal.lock_records(schema, given."table", true) then
            continue;
        end if;
        execute format('delete from %I.%I where id = any ($1)', schema, given."table")
            using given.ids;
        get diagnostics deleted = row_count;
        deleted_in_all := deleted_in_all + deleted;
        if drop_empty and deleted > 0 then
            perform tide_internal.drop_if_empty(schema, given."table");
        end if;
    end loop;
    return deleted_in_all;
end
$$;

create or replace function tide.record_delete(
    key text,
    expected_version bigint default null,
    schema text default 'ds',
    drop_empty boolean default false
) returns boolean
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    deleted bigint := 0;
begin
    if tide_internal.is_place(schema, key) is not true then
        perform tide_internal.assert_place(schema, key);
    end if;
    if tide_internal.lock_records(schema, tide_internal.record_table(key), true) then
        execute format('delete from %I.%I where id = $1 and ($2 is null or version = $2)',
                       schema, tide_internal.record_table(key))
            using tide_internal.record_id(key), expected_version;
        get diagnostics deleted = row_count;
    end if;
    if deleted = 0 and expected_version is not null then
        perform tide_internal.refuse_record(schema, key, expected_version);
    end if;
    if drop_empty and deleted > 0 then
        perform tide_internal.drop_if_empty(schema, tide_internal.record_table(key));
    end if;
    return deleted > 0;
end
$$;

create or replace function tide_internal.announce_ddl() returns event_trigger
language plpgsql volatile parallel unsafe
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    command record;
begin
    for command in
        -- One command may be several: CREATE TABLE with a foreign key also alters the table.
        select c.classid, c.objid, bool_and(starts_with(c.command_tag, 'ALTER')) as alters
        from pg_event_trigger_ddl_commands() with ordinality
                 as c (classid, objid, objsubid, command_tag, object_type, schema_name,
                       object_identity, in_extension, command, n)
        where c.classid in ('pg_class'::regclass, 'pg_namespace'::regclass)
        group by c.classid, c.objid
        order by min(c.n)
    loop
        if command.classid = 'pg_class'::regclass then
            perform tide_internal.announce_table(
                case when command.alters then 'ALTER_TABLE' else 'CREATE_TABLE' end, command.objid);
        elsif not command.alters then
            perform tide_internal.write_schema_change(json_build_object(
                        'operation', 'CREATE_SCHEMA', 'schema', n.nspname, 'oid', n.oid::bigint))
            from pg_namespace as n
            where n.oid = command.objid
              and n.nspname not in ('tide', 'tide_internal')
              and not starts_with(n.nspname::text, 'pg_');
        end if;
    end loop;
exception
    when others then
        raise warning using
            errcode = sqlstate,
            message = format('pg_tide could not tell clients of this change of the schema: %s', sqlerrm);
end
$$;

create or replace function tide_internal.check_tables()
returns table (item text, ok boolean, problem text, fix text)
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    publication pg_publication;
    found_class pg_class;
    client_roles oid[] := array(select tide_internal.client_roles());
    some_role text := coalesce(client_roles[1]::regrole::text, 'authenticated');
begin
    select p.* into publication from pg_publication as p where p.pubname = tide_internal.publication();
    return query select
        'publication', publication.oid is not null,
        format('publication "%s" does not exist: nothing is streamed', tide_internal.publication()),
        'select tide.publish(''my_table'');';
    if publication.oid is null then
        return;
    end if;
    return query select
        'published tables', exists (select from tide_internal.published_tables()),
        format('publication "%s" has no tables: nothing is streamed', publication.pubname),
        'select tide.publish(''my_table'');';

    for found_class in
        select c.* from tide_internal.published_tables() as t join pg_class as c on c.oid = t
        order by c.oid::regclass::text
    loop
        if publication.pubupdate or publication.pubdelete then
            return query select
                format('replica identity of %s', bare), false,
                'it has none: UPDATE and DELETE on the table fail',
                format('alter table %s replica identity full; -- or give it a primary key', bare)
                from tide_internal.without_replica_identity(found_class.oid) as bare;
        end if;
        if not exists (select from unnest(client_roles) as role
                       where has_schema_privilege(role, found_class.relnamespace, 'USAGE')
                         and has_any_column_privilege(role, found_class.oid, 'SELECT')) then
            return query select
                format('readers of %s', found_class.oid::regclass), false,
                'none of the roles that clients may use can read the table',
                format('grant usage on schema %s to %s; grant select on %s to %s;',
                       found_class.relnamespace::regnamespace, some_role, found_class.oid::regclass, some_role);
        end if;
    end loop;
end
$$;

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

create trigger skip_row before insert on tide.message_key for each row execute function tide_internal.skip_row();
alter table tide.message_key enable replica trigger skip_row;

create function tide_internal.skip_known_outbox() returns trigger
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (select from tide.outboxes as o where o.relation = new.relation) then
        return null;
    end if;
    return new;
end
$$;
comment on function tide_internal.skip_known_outbox() is
'Internal. Leaves out what another database, whose publication this one subscribes to, says of outboxes that are known';
revoke execute on function tide_internal.skip_known_outbox() from public;

create trigger skip_known before insert on tide.outboxes
for each row execute function tide_internal.skip_known_outbox();
-- Of subscriptions only.
alter table tide.outboxes enable replica trigger skip_known;

-- This forgets the statistics that there are.
alter table tide.secret alter column secret type text;
alter table tide.secret alter column secret set statistics 0;
alter table tide.message_key alter column key type bytea;
alter table tide.message_key alter column key set statistics 0;

create or replace function tide_internal.drop_if_empty(schema text, "table" text) returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    target text := format('%I.%I', schema, "table");
    empty boolean;
begin
    -- A snapshot of before the lock would not show what others have stored since.
    if current_setting('transaction_isolation') <> 'read committed'
       or not (select pg_has_role(c.relowner, 'USAGE') from pg_class as c where c.oid = target::regclass)
       -- There may be rows that the caller does not see.
       or row_security_active(target::regclass) then
        return;
    end if;
    execute format('select not exists (select from %s)', target) into empty;
    if not empty then
        return;
    end if;
    begin
        execute format('lock table %s in access exclusive mode nowait', target);
    exception
        when lock_not_available then
            return;
    end;
    execute format('select not exists (select from %s)', target) into empty;
    if empty then
        execute format('drop table %s', target);
    end if;
end
$$;

create or replace function tide_internal.make_record_table(schema text, "table" text) returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    namespace pg_namespace;
    membership text := case when current_setting('server_version_num')::integer >= 160000
                            then 'SET' else 'MEMBER' end;
begin
    select n.* into namespace from pg_namespace as n where n.nspname = schema;
    if not found then
        raise exception using
            errcode = 'invalid_schema_name',
            message = format('schema "%s" does not exist', schema),
            hint = format('select tide.create_schema(%L);', schema);
    end if;
    if schema in ('tide', 'tide_internal', 'information_schema') then
        raise exception using
            errcode = 'reserved_name',
            message = format('schema "%s" is not for records', schema);
    end if;
    begin
        -- Keys are compared byte by byte.
        execute format('create table %I.%I (
                            id text collate "C" primary key,
                            version bigint not null default 0,
                            val jsonb not null
                        )', schema, "table");
    exception
        -- Made by another session at this very moment.
        when duplicate_table or unique_violation then
            return;
        when duplicate_object then
            -- The row type of such a table; unless it is a type of somebody's own.
            if exists (select from pg_type as t
                       left join pg_class as c on c.oid = t.typrelid
                       where t.typname = "table" and t.typnamespace = namespace.oid
                         and coalesce(c.relkind, 'c') = 'c') then
                raise;
            end if;
            return;
    end;
    if namespace.nspowner <> current_user::regrole
       and pg_has_role(namespace.nspowner, membership)
       and has_schema_privilege(namespace.nspowner, namespace.oid, 'CREATE') then
        execute format('alter table %I.%I owner to %s', schema, "table", namespace.nspowner::regrole);
    end if;
end
$$;

create or replace function tide_internal.is_announced(relation oid) returns boolean
language sql stable strict parallel safe
set search_path = pg_catalog, pg_temp
begin atomic
    select coalesce(bool_and(c.relkind in ('r', 'p')
                             and c.relpersistence <> 't'
                             and n.nspname not in ('tide', 'tide_internal')
                             and not starts_with(n.nspname::text, 'pg_')), false)
    from pg_class as c
    join pg_namespace as n on n.oid = c.relnamespace
    where c.oid = relation;
end;

create or replace function tide_internal.announce_table(operation text, relation oid) returns void
language sql volatile strict parallel unsafe
set search_path = pg_catalog, pg_temp
begin atomic
    select tide_internal.write_schema_change(json_build_object(
               'operation', operation,
               'schema', n.nspname,
               'table', c.relname,
               'oid', c.oid::bigint,
               'columns', (select coalesce(json_agg(json_build_object(
                                                        'attnum', a.attnum,
                                                        'name', a.attname,
                                                        'type', t.typname)
                                                    order by a.attnum), '[]')
                           from pg_attribute as a
                           join pg_type as t on t.oid = a.atttypid
                           where a.attrelid = c.oid
                             and a.attnum > 0
                             and not a.attisdropped)))
    from pg_class as c
    join pg_namespace as n on n.oid = c.relnamespace
    where c.oid = relation
      and tide_internal.is_announced(c.oid);
end;

create or replace function tide_internal.outbox_problems(outbox regclass) returns setof text
language sql stable strict parallel safe
set search_path = pg_catalog, pg_temp
begin atomic
    with relation as (
        select c.*
        from pg_class as c
        where c.oid = outbox
    ),
    expected (name, types, is_required) as (
        values ('sequence_id', '{int4,int8}'::regtype[], true),
               ('mutation_id', '{text,varchar}', true),
               ('channel', '{text,varchar}', true),
               ('name', '{text,varchar}', true),
               ('rejected', '{bool}', false),
               ('data', '{json,jsonb}', false),
               ('headers', '{json,jsonb}', false),
               ('locked_by', '{text,varchar}', true),
               ('lock_expiry', '{timestamp,timestamptz}', true),
               ('processed', '{bool}', false),
               ('private', '{bool}', false)
    ),
    found as (
        select e.*, a.attnum, a.atttypid::regtype as type, a.attgenerated
        from expected as e
        left join pg_attribute as a on a.attrelid = outbox and a.attname = e.name
                                   and a.attnum > 0 and not a.attisdropped
    )
    select 'there is no such table' where not exists (select from relation)
    union all
    select case
               when relkind = 'p' then 'it is partitioned: only its partitions have rows'
               when relkind = 'f' then 'it is a foreign table: its changes are not in this server''s WAL'
               when relkind in ('v', 'm') then 'it is a view'
               when relkind <> 'r' then 'it is not a table'
               when oid < 16384 then 'it is a system table'
               when relnamespace = 'tide'::regnamespace and relname <> 'outbox'
                   then 'it is one of pg_tide''s own tables'
               when relpersistence = 't' then 'it is temporary: its changes are not in the WAL'
               when relpersistence = 'u' then 'it is unlogged: its changes are not in the WAL'
               when relispartition then 'it is a partition'
           end
    from relation
    where relkind <> 'r' or oid < 16384 or relpersistence <> 'p' or relispartition
       or (relnamespace = 'tide'::regnamespace and relname <> 'outbox')
    union all
    select case
               when f.attnum is null then format('column "%s" is missing', f.name)
               when f.attgenerated <> '' then format('column "%s" is generated', f.name)
               else format('column "%s" is of type %s, not %s', f.name, f.type,
                           array_to_string(f.types, ' or '))
           end
    from found as f
    cross join relation as r
    where r.relkind in ('r', 'p', 'f')
      and ((f.attnum is null and f.is_required) or f.attgenerated <> '' or f.type <> all (f.types))
    union all
    select 'column "sequence_id" has no unique index of its own'
    from found as f
    cross join relation as r
    where r.relkind = 'r'
      and f.name = 'sequence_id'
      and f.attnum is not null
      and not exists (select from pg_index as i
                      where i.indrelid = outbox and i.indisunique and i.indisvalid
                        and i.indpred is null and i.indnkeyatts = 1 and i.indkey[0] = f.attnum)
    union all
    select 'it forces row-level security upon its owner' from relation where relforcerowsecurity
    union all
    select format('rule "%s" rewrites what is done to it', w.rulename)
    from pg_rewrite as w
    cross join relation as r
    where w.ev_class = outbox and r.relkind = 'r'
    union all
    select format('%s refers to its rows, which are deleted once they are published', k.conrelid::regclass)
    from pg_constraint as k
    where k.confrelid = outbox and k.contype = 'f'
    union all
    select format('%s inherits from it', h.inhrelid::regclass)
    from pg_inherits as h
    cross join relation as r
    where h.inhparent = outbox and r.relkind = 'r';
end;

-- Mutations: what clients write, remembered so that each is done once.

create table tide.mutation (
    role text collate "C" not null,
    subject text collate "C" not null,
    client_id text collate "C" not null,
    n bigint not null,
    mutation_id text not null,
    digest bytea not null,
    ops text[] not null,
    status text not null,
    sqlstate text,
    outcome json not null,
    xid xid8 not null,
    at timestamptz not null,
    primary key (role, subject, client_id, n)
);
-- It is written past logical decoding: see tide_internal.insert_row().
alter table tide.mutation replica identity nothing;
create index mutation_at on tide.mutation (at);
comment on table tide.mutation is
'What clients have asked to be written, and how it ended: whatever is sent again has the same answer, and no second effect. The newest row of each client is kept until tide.forget_clients() is told otherwise, older ones for tide.mutation_retention';
comment on column tide.mutation.role is 'The role that wrote';
comment on column tide.mutation.subject is 'The claim sub of its token; empty: it had none';
comment on column tide.mutation.client_id is 'What the client calls itself: its mutations are done in the order of their numbers';
comment on column tide.mutation.n is 'Its number among those of the client';
comment on column tide.mutation.mutation_id is 'What the client calls it; the events that came of it have it, too';
comment on column tide.mutation.digest is 'SHA-256 of what was asked: the same number with another is an error';
comment on column tide.mutation.ops is 'What was asked, without values: verbs and the tables or functions that they are about';
comment on column tide.mutation.status is 'confirmed, or rejected: nothing was written';
comment on column tide.mutation.sqlstate is 'Why it was rejected';
comment on column tide.mutation.outcome is 'What the client was told';
comment on column tide.mutation.xid is 'The transaction that it was done in';
comment on column tide.mutation.at is 'When that began';
revoke all on table tide.mutation from public;
-- Clients go on in a restored database where they were.
select pg_catalog.pg_extension_config_dump('tide.mutation', '');

create table tide.write_rules (
    relation regclass primary key,
    version_column text,
    on_mutate text
);
alter table tide.write_rules replica identity nothing;
comment on table tide.write_rules is
'How clients'' writes to tables are looked at: see tide.version_column() and tide.on_mutate(), which write it. Everybody may read it';
comment on column tide.write_rules.relation is 'The table';
comment on column tide.write_rules.version_column is 'The column that if_version is compared with';
comment on column tide.write_rules.on_mutate is 'The function that says what is stored';
revoke all on table tide.write_rules from public;
grant select on table tide.write_rules to public;
select pg_catalog.pg_extension_config_dump(
    'tide.write_rules',
    'where exists (select from pg_catalog.pg_class as c where c.oid operator(pg_catalog.=) relation)'
);

create table tide.callables (
    function text primary key
);
alter table tide.callables replica identity nothing;
comment on table tide.callables is
'The functions that clients may call, if their role may execute them: see tide.allow_call(), which writes it. Everybody may read it';
comment on column tide.callables.function is 'Its name and the types of its arguments: made anew, it is callable again';
revoke all on table tide.callables from public;
grant select on table tide.callables to public;
select pg_catalog.pg_extension_config_dump('tide.callables', '');

create function tide_internal.function_identity(function regprocedure) returns text
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select format('%I.%I(%s)', n.nspname, p.proname, oidvectortypes(p.proargtypes))
    from pg_proc as p
    join pg_namespace as n on n.oid = p.pronamespace
    where p.oid = function
$$;
comment on function tide_internal.function_identity(regprocedure) is
'Internal. What tells a function apart from all others, whatever the search_path';

create function tide_internal.set_write_rule(changed regclass, field text, value text) returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    rule tide.write_rules;
    place tid;
begin
    lock table tide.write_rules in share row exclusive mode;
    select r.ctid, r.relation, r.version_column, r.on_mutate
    into place, rule.relation, rule.version_column, rule.on_mutate
    from tide.write_rules as r
    where r.relation = changed;
    if found then
        perform tide_internal.delete_row('tide.write_rules', place);
    end if;
    -- Tables that were dropped leave their oids here.
    perform tide_internal.delete_row('tide.write_rules', r.ctid)
    from tide.write_rules as r
    where not exists (select from pg_class as c where c.oid = r.relation);
    rule.relation := changed;
    if field = 'version_column' then
        rule.version_column := value;
    else
        rule.on_mutate := value;
    end if;
    if coalesce(rule.version_column, rule.on_mutate) is not null then
        perform tide_internal.insert_row('tide.write_rules', rule);
    end if;
    -- What writers remember of the table.
    perform tide_internal.invalidate(changed);
end
$$;
comment on function tide_internal.set_write_rule(regclass, text, text) is
'Internal. Changes what is to be known of writes to a table, whoever asks';
revoke execute on function tide_internal.set_write_rule(regclass, text, text) from public;

create function tide_internal.set_version_column("table" regclass, "column" text) returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
begin
    if "column" is not null
       and not exists (select from pg_attribute as a
                       where a.attrelid = "table" and a.attname = "column"
                         and a.attnum > 0 and not a.attisdropped) then
        raise exception using
            errcode = 'undefined_column',
            message = format('%s has no column "%s"', "table", "column");
    end if;
    perform tide_internal.set_write_rule("table", 'version_column', "column");
end
$$;
comment on function tide_internal.set_version_column(regclass, text) is
'Internal. Names the column, whoever asks';
revoke execute on function tide_internal.set_version_column(regclass, text) from public;

create function tide_internal.set_on_mutate("table" regclass, function regprocedure) returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    name text := (select format('%I.%I', n.nspname, p.proname)
                  from pg_proc as p
                  join pg_namespace as n on n.oid = p.pronamespace
                  where p.oid = function
                    and p.prokind = 'f' and not p.proretset and p.provariadic = 0
                    and p.prorettype = 'jsonb'::regtype
                    and p.proargtypes = array_to_string(array_fill('jsonb'::regtype::oid, array[3]), ' ')::oidvector);
begin
    if function is not null and name is null then
        raise exception using
            errcode = 'invalid_function_definition',
            message = format('%s cannot say what is stored', function),
            hint = 'create function ... (old jsonb, new jsonb, context jsonb) returns jsonb';
    end if;
    perform tide_internal.set_write_rule("table", 'on_mutate', name);
end
$$;
comment on function tide_internal.set_on_mutate(regclass, regprocedure) is
'Internal. Names the function, whoever asks';
revoke execute on function tide_internal.set_on_mutate(regclass, regprocedure) from public;

create function tide_internal.set_callable(function regprocedure, allowed boolean) returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    identity text := tide_internal.function_identity(function);
    proc pg_proc := (select p from pg_proc as p where p.oid = function);
    problem text := case
        when proc.prokind <> 'f' then 'it is no plain function'
        when proc.prorettype in ('trigger'::regtype, 'event_trigger'::regtype) then 'it is a trigger''s'
        when proc.provariadic <> 0 then 'it takes any number of arguments'
        when proc.pronargs > 0
             and (proc.proargnames is null or '' = any (proc.proargnames[1:proc.pronargs]))
        then 'its arguments have no names'
        when exists (select from unnest(proc.proargtypes) as a
                     join pg_type as t on t.oid = a where t.typtype = 'p')
        then 'its arguments are of any type'
    end;
begin
    if allowed and problem is not null then
        raise exception using
            errcode = 'invalid_function_definition',
            message = format('clients cannot call %s', function),
            detail = problem,
            hint = 'Write one that calls it, with a name and a type for each argument.';
    end if;
    lock table tide.callables in share row exclusive mode;
    perform tide_internal.delete_row('tide.callables', c.ctid)
    from tide.callables as c
    where c.function = identity;
    if allowed then
        perform tide_internal.insert_row('tide.callables', row(identity)::tide.callables);
    end if;
end
$$;
comment on function tide_internal.set_callable(regprocedure, boolean) is
'Internal. Lets clients call a function, or no longer, whoever asks';
revoke execute on function tide_internal.set_callable(regprocedure, boolean) from public;

create function tide.version_column("table" regclass, "column" text) returns void
language c volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as 'MODULE_PATHNAME', 'tide_version_column_wrapper';
comment on function tide.version_column(regclass, text) is
'Names the column that says which version of a row there is: a client''s write that gives another as if_version is rejected, with the row as it is. A number is raised by each write of a client that does not give it; what others write is theirs to count. NULL: none. For the table''s owner';

create function tide.on_mutate("table" regclass, function regprocedure) returns void
language c volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as 'MODULE_PATHNAME', 'tide_on_mutate_wrapper';
comment on function tide.on_mutate(regclass, regprocedure) is
'Has a function (old jsonb, new jsonb, context jsonb) returns jsonb look at each row that clients write to a table. old: the row as the client may see it; new: as it would be, NULL for a delete; context: op, table, mutation_id, client_id, n. What it returns is stored where it differs from old; NULL: nothing is. An error rejects the mutation. It runs as the client''s role, which needs EXECUTE. NULL: no function. For the table''s owner';

create function tide.allow_call(function regprocedure, allowed boolean default true) returns void
language c volatile strict parallel unsafe
set search_path = pg_catalog, pg_temp
as 'MODULE_PATHNAME', 'tide_allow_call_wrapper';
comment on function tide.allow_call(regprocedure, boolean) is
'Lets clients whose role may execute a function call it in their mutations, or no longer: tide.allow_call(''shop.place_order(bigint, text)''). For the function''s owner';

create function tide.forget_clients(unseen_for interval) returns bigint
language sql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
    with gone as (
        select m.role, m.subject, m.client_id
        from tide.mutation as m
        group by m.role, m.subject, m.client_id
        having max(m.at) < now() - unseen_for
    )
    select count(tide_internal.delete_row('tide.mutation', m.ctid))
    from tide.mutation as m
    join gone as g on g.role = m.role and g.subject = m.subject and g.client_id = m.client_id
$$;
comment on function tide.forget_clients(interval) is
'Forgets clients that have written nothing for so long: one of them that comes back has to take another client_id, or begin with n = 1. Says how many mutations were forgotten. For superusers, or whoever it is granted to with SELECT on tide.mutation';
revoke execute on function tide.forget_clients(interval) from public;

alter event trigger tide_ddl_command_end enable always;
alter event trigger tide_sql_drop enable always;
