-- Requirements: what is missing, and what mends it.

create function tide_internal.names(list text) returns text[]
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
return array(
    select btrim(name, ' "')
    from string_to_table(list, ',') as name
    where btrim(name, ' "') <> ''
);
comment on function tide_internal.names(text) is 'Internal. The names in a setting that is a list';

create function tide_internal.published_tables() returns setof regclass
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
begin atomic
    -- By name, but without the right to USE the schema that ::regclass asks for.
    select c.oid::regclass
    from pg_publication_tables as t
    join pg_namespace as n on n.nspname = t.schemaname
    join pg_class as c on c.relnamespace = n.oid and c.relname = t.tablename
    where t.pubname = tide_internal.publication()
      and t.schemaname <> 'tide';
end;
comment on function tide_internal.published_tables() is
'Internal. What the publication comes down to; pg_tide''s own tables are never streamed';

create function tide_internal.check_server()
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
comment on function tide_internal.check_server() is 'Internal. The part of tide.check() about the server and the worker';
revoke execute on function tide_internal.check_server() from public;
grant execute on function tide_internal.check_server() to pg_monitor;

create function tide_internal.client_roles() returns setof oid
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
begin atomic
    -- The newest first: more likely made for this than those that came with the server.
    select r.oid
    from pg_roles as a
    join pg_roles as r on r.oid <> a.oid and pg_has_role(a.oid, r.oid, 'MEMBER')
    where a.rolname = 'tide_authenticator'
      and (coalesce(current_setting('tide.allow_privileged_roles', true), 'off')::boolean
           or not (r.rolsuper or r.rolbypassrls or r.rolreplication))
    order by r.oid desc;
end;
comment on function tide_internal.client_roles() is 'Internal. The roles that clients may use';

create function tide_internal.check_roles()
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
comment on function tide_internal.check_roles() is 'Internal. The part of tide.check() about identity';

create function tide_internal.check_tables()
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
comment on function tide_internal.check_tables() is 'Internal. The part of tide.check() about what is published';

create function tide_internal.failed_messages()
returns table (relation regclass, count bigint)
language sql volatile parallel unsafe
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    -- As the worker knows it: a look at a table that was adopted might run its owner's code.
    select o.relation, (f.value ->> 'count')::bigint
    from jsonb_array_elements(tide_internal.worker_status() -> 'failed_messages') as f
    join tide.outboxes as o on o.relation = (f.value ->> 'table')::oid
    where f.value ->> 'count' <> '0';
end;
comment on function tide_internal.failed_messages() is
'Internal. How many rows outboxes keep because they could not be published';
revoke execute on function tide_internal.failed_messages() from public;
grant execute on function tide_internal.failed_messages() to pg_monitor;

create function tide_internal.check_outboxes()
returns table (item text, ok boolean, problem text, fix text)
language sql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
begin atomic
    select format('outbox %s', o.relation), false, string_agg(p, '; ' order by p),
           format('Mend the table, or: select tide.release_outbox(%L);', o.relation)
    from tide.outboxes as o
    join pg_class as c on c.oid = o.relation
    cross join lateral tide_internal.outbox_problems(o.relation) as p
    group by o.relation
    union all
    select format('messages of %s', f.relation), false,
           format('%s could not be published, and are kept', f.count),
           format('select sequence_id, channel, name, locked_by from %1$s where locked_by like ''failed: %%'';'
                  || ' -- what follows is an SQLSTATE; insert what is still wanted anew, mended (an INSERT is what'
                  || ' publishes), and delete these: delete from %1$s where locked_by like ''failed: %%'';',
                  f.relation)
    from tide_internal.failed_messages() as f;
end;
comment on function tide_internal.check_outboxes() is 'Internal. The part of tide.check() about tables that are outboxes';
revoke execute on function tide_internal.check_outboxes() from public;
grant execute on function tide_internal.check_outboxes() to pg_monitor;

create function tide.check()
returns table (item text, ok boolean, problem text, fix text)
language sql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
begin atomic
    select c.item, c.ok,
           case when not c.ok then c.problem end,
           case when not c.ok then c.fix end
    from (
        select 1 as part, s.* from tide_internal.check_server() with ordinality as s
        union all
        select 2, r.* from tide_internal.check_roles() with ordinality as r
        union all
        select 3, t.* from tide_internal.check_tables() with ordinality as t
        union all
        select 4, o.* from tide_internal.check_outboxes() with ordinality as o
    ) as c (part, item, ok, problem, fix, place)
    order by c.part, c.place;
end;
comment on function tide.check() is
'Everything that pg_tide needs to do its work: whether it is so, what is wrong, and the SQL or the line that mends it. Look for rows that are not ok: select * from tide.check() where not ok. For members of pg_monitor';
revoke execute on function tide.check() from public;
grant execute on function tide.check() to pg_monitor;
