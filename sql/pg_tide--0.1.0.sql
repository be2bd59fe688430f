-- pg_tide: what CREATE EXTENSION makes.
--
-- Names that begin with an underscore are pg_tide's own and closed to everyone else. Functions that
-- run with their owner's rights say so, pin their search_path, and are closed to PUBLIC unless
-- their comment says otherwise.

\echo Use "create extension pg_tide" to load this file. \quit

create schema tide;
comment on schema tide is 'pg_tide: changes of this database, live to clients over websockets';
grant usage on schema tide to public;

create function tide._require_preload() returns void
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'require_preload_wrapper';
comment on function tide._require_preload() is
'Internal. Fails, with the line to add to postgresql.conf, if the server did not load pg_tide at its start';
revoke execute on function tide._require_preload() from public;

select tide._require_preload();


-- Roles -------------------------------------------------------------------------------------------

do $$
declare
    powers text;
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
end
$$;


-- Secrets -----------------------------------------------------------------------------------------

create function tide._random_secret() returns text
language c volatile strict parallel safe
as 'MODULE_PATHNAME', 'tide_random_secret_wrapper';
comment on function tide._random_secret() is 'Internal. 256 random bits in hexadecimal';
revoke execute on function tide._random_secret() from public;

create table tide.secret (
    id bigint generated always as identity primary key,
    secret text not null default tide._random_secret(),
    created_at timestamptz not null default pg_catalog.clock_timestamp(),
    constraint secret_is_long_enough check (pg_catalog.octet_length(secret) >= 32)
);
comment on table tide.secret is
'Secrets that clients'' tokens may be signed with (HS256), unless tide.jwt_secret is set. For superusers only. Deliberately not part of pg_dump''s output, so that a copy of the database does not accept the original''s tokens: a restored database has a new secret. pg_upgrade and physical backups keep it';
comment on column tide.secret.id is 'Order of creation';
comment on column tide.secret.secret is 'The secret; tide.token() signs with the newest';
comment on column tide.secret.created_at is 'When it was made';
revoke all on table tide.secret from public;

insert into tide.secret default values;

create function tide._reload_at_commit() returns void
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_reload_at_commit_wrapper';
comment on function tide._reload_at_commit() is
'Internal. Has the worker read the secrets again when this transaction commits';
revoke execute on function tide._reload_at_commit() from public;

create function tide.rotate_jwt_secret() returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into tide.secret default values;
    delete from tide.secret
    where id not in (select id from tide.secret order by created_at desc, id desc limit 2);
    perform tide._reload_at_commit();
end
$$;
comment on function tide.rotate_jwt_secret() is
'Makes a new secret for tokens. Those signed with the one before stay valid until the next rotation; older ones end. Superuser only';
revoke execute on function tide.rotate_jwt_secret() from public;

create function tide._sign(role text, claims jsonb, seconds bigint) returns text
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_sign_wrapper';
comment on function tide._sign(text, jsonb, bigint) is 'Internal. A token, whoever it is for';
revoke execute on function tide._sign(text, jsonb, bigint) from public;

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
            message = format('role "%s" is too powerful for clients', token.role),
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
comment on function tide.token(text, jsonb, interval) is
'A signed token with which a client acts as the role, such as tide.token(''authenticated'', ''{"sub": "42"}''). The claims role, iat and exp are set here; aud follows tide.jwt_audience. Whoever may execute this can act as any role granted to tide_authenticator: superusers, and those you grant it to';
revoke execute on function tide.token(text, jsonb, interval) from public;


-- Publishing --------------------------------------------------------------------------------------

create function tide._publication() returns text
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
return coalesce(nullif(current_setting('tide.publication', true), ''), 'tide');
comment on function tide._publication() is 'Internal. Name of the publication';

create function tide._without_replica_identity(relation oid) returns setof regclass
language sql stable strict parallel safe
set search_path = pg_catalog, pg_temp
begin atomic
    -- A partitioned table keeps no rows: each of its partitions must have one.
    select c.oid::regclass
    from pg_class as c
    where c.relkind = 'r'
      and (c.oid = relation
           or c.oid in (select t.relid from pg_partition_tree(relation) as t where t.isleaf))
      and c.relreplident <> 'f'
      and not exists (select from pg_index as i
                      where i.indrelid = c.oid
                        and case c.relreplident
                                when 'd' then i.indisprimary
                                when 'i' then i.indisreplident
                                else false
                            end);
end;
comment on function tide._without_replica_identity(oid) is
'Internal. The table, or those of its partitions, of which an UPDATE or DELETE does not say which row it was about';

create function tide._assert_publishable(relation regclass) returns void
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    found_class pg_class;
    kind text;
    advice text := 'Only tables can be published.';
begin
    select c.* into found_class from pg_class as c where c.oid = relation;
    if not found then
        raise exception using
            errcode = 'undefined_table',
            message = format('there is no table with oid %s', relation::oid);
    end if;
    case
        when found_class.relkind = 'v' then
            kind := 'a view';
            advice := 'Publish the tables that it reads.';
        when found_class.relkind = 'm' then
            kind := 'a materialized view';
            advice := 'Publish the tables that it reads.';
        when found_class.relkind = 'f' then
            kind := 'a foreign table';
            advice := 'Its changes are not in this server''s WAL.';
        when found_class.relkind not in ('r', 'p') then
            kind := 'not a table';
        when found_class.oid < 16384 or found_class.relnamespace = 'pg_catalog'::regnamespace then
            kind := 'a system table';
        when found_class.relnamespace = 'tide'::regnamespace then
            kind := 'one of pg_tide''s own tables';
        when found_class.relpersistence = 't' then
            kind := 'a temporary table';
            advice := 'Its changes are not in the WAL.';
        when found_class.relpersistence = 'u' then
            kind := 'an unlogged table';
            advice := format('Its changes are not in the WAL. To change that: alter table %s set logged;',
                             relation);
        else
            return;
    end case;
    raise exception using
        errcode = 'wrong_object_type',
        message = format('%s cannot be published: it is %s', relation, kind),
        hint = advice;
end
$$;
comment on function tide._assert_publishable(regclass) is
'Internal. Fails, saying why, if a relation has no changes to publish';

create function tide.publish(variadic tables regclass[]) returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    publication pg_publication;
    relation regclass;
    bare regclass;
begin
    if cardinality(tables) = 0 or array_position(tables, null) is not null then
        raise exception using
            errcode = 'null_value_not_allowed',
            message = 'no table given',
            hint = 'For example: select tide.publish(''orders'', ''customers'');';
    end if;
    foreach relation in array tables loop
        perform tide._assert_publishable(relation);
    end loop;

    select p.* into publication from pg_publication as p where p.pubname = tide._publication();
    if not found then
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
    if publication.puballtables then
        raise notice 'publication "%" has all tables already', publication.pubname;
    end if;

    foreach relation in array tables loop
        if not publication.puballtables
           and not exists (select from pg_publication_rel as r
                           where r.prpubid = publication.oid and r.prrelid = relation) then
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
comment on function tide.publish(regclass[]) is
'Streams the changes of tables from now on: tide.publish(''orders'', ''shop.customers''). Adds them to the publication that tide.publication names, and makes it on first use; so the caller must own the tables and the publication, or have CREATE on the database. Clients get what their roles may SELECT. Publishing a table twice does no harm';

create function tide.unpublish(variadic tables regclass[]) returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    publication pg_publication;
    relation regclass;
begin
    if cardinality(tables) = 0 or array_position(tables, null) is not null then
        raise exception using
            errcode = 'null_value_not_allowed',
            message = 'no table given',
            hint = 'For example: select tide.unpublish(''orders'');';
    end if;
    select p.* into publication from pg_publication as p where p.pubname = tide._publication();
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
comment on function tide.unpublish(regclass[]) is
'Ends the streaming of tables. Takes them out of the publication that tide.publication names';


-- Looking at it -----------------------------------------------------------------------------------

create function tide._control(request jsonb) returns jsonb
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_control_wrapper';
comment on function tide._control(jsonb) is 'Internal. Asks the worker of this database';
revoke execute on function tide._control(jsonb) from public;

create function tide._worker_status() returns jsonb
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_worker_status_wrapper';
comment on function tide._worker_status() is
'Internal. What the worker of this database says of itself, or why it does not';
revoke execute on function tide._worker_status() from public;

create function tide.status(
    out pid integer,
    out state text,
    out reason text,
    out started_at timestamptz,
    out restarts integer,
    out slot name,
    out epoch text,
    out decoded_lsn pg_lsn,
    out confirmed_lsn pg_lsn,
    out retained_wal bigint,
    out history_events bigint,
    out history_bytes bigint,
    out connections bigint,
    out channels bigint,
    out url text,
    out listener_error text,
    out steward boolean,
    out executors integer
)
language sql volatile parallel unsafe
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select w.pid, w.state, w.reason, to_timestamp(w.started_at / 1e6), w.restarts, s.slot_name, w.epoch,
           case when w.decoded_lsn > 0 then '0/0'::pg_lsn + w.decoded_lsn end,
           s.confirmed_flush_lsn,
           case when not pg_is_in_recovery()
                then pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::bigint
           end,
           w.history_events, w.history_bytes,
           coalesce(w.connections, 0), coalesce(w.channels, 0),
           w.url, w.listener_error,
           coalesce(w.steward, false), coalesce(w.executors, 0)
    from jsonb_to_record(tide._worker_status()) as w (
        pid integer, state text, reason text, started_at bigint, restarts integer,
        epoch text, decoded_lsn numeric,
        history_events bigint, history_bytes bigint, connections bigint, channels bigint,
        url text, listener_error text, steward boolean, executors integer
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
'How the worker of this database is: its process, whether it is live and if not, why, how far it has decoded, what it keeps, who is connected, where it listens. One row, also when it is stopped. For members of pg_monitor';
revoke execute on function tide.status() from public;
grant execute on function tide.status() to pg_monitor;

create function tide._recent(n integer)
returns table (
    id text,
    commit_time timestamptz,
    schema text,
    "table" text,
    operation text,
    record text,
    old_record text
)
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_recent_wrapper';
comment on function tide._recent(integer) is
'Internal. The newest events of the tables that the caller may see all of';

create function tide.recent(n integer default 20)
returns table (
    id text,
    commit_time timestamptz,
    schema text,
    "table" text,
    operation text,
    record jsonb,
    old_record jsonb
)
language sql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
begin atomic
    select r.id, r.commit_time, r.schema, r."table", r.operation,
           r.record::jsonb, r.old_record::jsonb
    from tide._recent(coalesce(n, 20)) as r;
end;
comment on function tide.recent(integer) is
'The newest events, oldest first, as far as the worker still has them. Superusers and members of pg_monitor see all, others those of tables they own';

create function tide._connections()
returns table (connection jsonb)
language sql volatile parallel unsafe
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select c.value
    from jsonb_array_elements(tide._control('{"op": "connections"}') -> 'connections') as c;
end;
comment on function tide._connections() is 'Internal. What the views of connections and channels show';
revoke execute on function tide._connections() from public;
grant execute on function tide._connections() to pg_monitor;

create view tide.stat_connections as
select c.id,
       c.address,
       c.user_agent,
       pg_catalog.to_timestamp(c.connected_at / 1e6) as connected_at,
       pg_catalog.jsonb_array_length(c.channels) as channels,
       c.sent_frames,
       c.sent_bytes,
       c.queued_frames,
       c.queued_bytes,
       c.lagging
from tide._connections() as l
cross join lateral pg_catalog.jsonb_to_record(l.connection) as c (
    id bigint, address text, user_agent text, connected_at bigint, channels jsonb,
    sent_frames bigint, sent_bytes bigint, queued_frames bigint, queued_bytes bigint, lagging boolean
);
comment on view tide.stat_connections is 'The clients that are connected. For members of pg_monitor';
comment on column tide.stat_connections.id is 'For tide.disconnect()';
comment on column tide.stat_connections.address is 'Address and port of the client, or of the proxy before it';
comment on column tide.stat_connections.user_agent is 'What the client calls itself';
comment on column tide.stat_connections.connected_at is 'Since when';
comment on column tide.stat_connections.channels is 'How many channels it has joined; tide.stat_channels has them';
comment on column tide.stat_connections.sent_frames is 'Frames written to its socket';
comment on column tide.stat_connections.sent_bytes is 'Bytes of them';
comment on column tide.stat_connections.queued_frames is 'Frames that wait for it';
comment on column tide.stat_connections.queued_bytes is 'Bytes of them; bounded by tide.send_queue_size';
comment on column tide.stat_connections.lagging is 'It reads so slowly that it is served from the history';
revoke all on table tide.stat_connections from public;
grant select on table tide.stat_connections to pg_monitor;

create view tide.stat_channels as
select c.id as connection,
       h.topic,
       h.role,
       h.bindings
from tide._connections() as l
cross join lateral pg_catalog.jsonb_to_record(l.connection) as c (id bigint, channels jsonb)
cross join lateral pg_catalog.jsonb_to_recordset(c.channels) as h (
    topic text, role text, bindings integer
);
comment on view tide.stat_channels is 'What connected clients have joined. For members of pg_monitor';
comment on column tide.stat_channels.connection is 'The id in tide.stat_connections';
comment on column tide.stat_channels.topic is 'As the client wrote it';
comment on column tide.stat_channels.role is 'The role of its token, whose privileges decide what it gets';
comment on column tide.stat_channels.bindings is 'How many things it is subscribed to';
revoke all on table tide.stat_channels from public;
grant select on table tide.stat_channels to pg_monitor;

create function tide.disconnect(id bigint) returns boolean
language sql volatile strict parallel unsafe
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select (tide._control(jsonb_build_object('op', 'disconnect', 'id', disconnect.id)) -> 'found')::boolean;
end;
comment on function tide.disconnect(bigint) is
'Ends a client''s connection; the id is from tide.stat_connections. False: there was none. The client may come back. For members of pg_monitor and pg_signal_backend';
revoke execute on function tide.disconnect(bigint) from public;
grant execute on function tide.disconnect(bigint) to pg_monitor, pg_signal_backend;

create function tide.current_position() returns text
language sql volatile parallel unsafe
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    -- Before the record that would be written next, after everything written so far.
    select epoch || '.' || lpad(to_hex((pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint - 1), 16, '0')
           || 'ffffffff'
    from jsonb_to_record(tide._worker_status()) as w (epoch text);
end;
comment on function tide.current_position() is
'A position for "since": a client that resumes from it gets what commits after this call. NULL if the worker is not live';

create function tide.restart_worker() returns boolean
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_restart_worker_wrapper';
comment on function tide.restart_worker() is
'Has the worker of this database stop and start with the settings as they are now. Clients reconnect by themselves and resume. False: there is none. Superuser only';
revoke execute on function tide.restart_worker() from public;


-- Requirements ------------------------------------------------------------------------------------

create function tide._names(list text) returns text[]
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
return array(
    select btrim(name, ' "')
    from string_to_table(list, ',') as name
    where btrim(name, ' "') <> ''
);
comment on function tide._names(text) is 'Internal. The names in a setting that is a list';

create function tide._published_tables() returns setof regclass
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
begin atomic
    -- By name, but without the right to USE the schema that ::regclass asks for.
    select c.oid::regclass
    from pg_publication_tables as t
    join pg_namespace as n on n.nspname = t.schemaname
    join pg_class as c on c.relnamespace = n.oid and c.relname = t.tablename
    where t.pubname = tide._publication()
      and t.schemaname <> 'tide';
end;
comment on function tide._published_tables() is
'Internal. What the publication comes down to; pg_tide''s own tables are never streamed';

create function tide._check_server()
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
               + (not status.steward)::integer
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
        format('the server keeps %s of WAL, less than twice tide.history_size (%s)',
               current_setting('max_slot_wal_keep_size'), current_setting('tide.history_size')),
        format('alter system set max_slot_wal_keep_size = %L; select pg_reload_conf();',
               pg_size_pretty(greatest(4 * history, 1 << 30)));
    held_back := pg_size_bytes(nullif(current_setting('tide.max_slot_wal_keep_size'), '-1'));
    return query select
        'tide.max_slot_wal_keep_size', held_back is null or held_back > 2 * history,
        format('it is %s, less than twice tide.history_size (%s)',
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
        format('alter database %I set tide.port = %s; select tide.restart_worker();',
               current_database(), current_setting('tide.port')::integer % 65535 + 1);
    return query select
        'steward', status.steward,
        'the process that asks the catalogue is not there: joins wait for it',
        'It is started by itself; the server log says what keeps it.';
    return query select
        'executors', status.executors >= current_setting('tide.executors')::integer,
        format('%s of %s are there', status.executors, current_setting('tide.executors')),
        'They are started by themselves; the server log says what keeps them.';
end
$$;
comment on function tide._check_server() is 'Internal. The part of tide.check() about the server and the worker';
revoke execute on function tide._check_server() from public;
grant execute on function tide._check_server() to pg_monitor;

create function tide._client_roles() returns setof oid
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
comment on function tide._client_roles() is 'Internal. The roles that clients may use';

create function tide._check_roles()
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
                    then format('role "%s" is too powerful for clients', anon_name)
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
comment on function tide._check_roles() is 'Internal. The part of tide.check() about identity';

create function tide._check_tables()
returns table (item text, ok boolean, problem text, fix text)
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    publication pg_publication;
    found_class pg_class;
    client_roles oid[] := array(select tide._client_roles());
    some_role text := coalesce(client_roles[1]::regrole::text, 'authenticated');
begin
    select p.* into publication from pg_publication as p where p.pubname = tide._publication();
    return query select
        'publication', publication.oid is not null,
        format('publication "%s" does not exist: nothing is streamed', tide._publication()),
        'select tide.publish(''my_table'');';
    if publication.oid is null then
        return;
    end if;
    return query select
        'published tables', exists (select from tide._published_tables()),
        format('publication "%s" has no tables: nothing is streamed', publication.pubname),
        'select tide.publish(''my_table'');';

    for found_class in
        select c.* from tide._published_tables() as t join pg_class as c on c.oid = t
        order by c.oid::regclass::text
    loop
        if publication.pubupdate or publication.pubdelete then
            return query select
                format('replica identity of %s', bare), false,
                'it has none: UPDATE and DELETE on the table fail',
                format('alter table %s replica identity full; -- or give it a primary key', bare)
                from tide._without_replica_identity(found_class.oid) as bare;
        end if;
        if found_class.relrowsecurity then
            return query select
                format('row-level security of %s', found_class.oid::regclass), false,
                'policies are not evaluated yet: roles that are subject to them get no changes of the table',
                null::text;
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
comment on function tide._check_tables() is 'Internal. The part of tide.check() about what is published';

create function tide.check()
returns table (item text, ok boolean, problem text, fix text)
language sql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
begin atomic
    select c.item, c.ok,
           case when not c.ok then c.problem end,
           case when not c.ok then c.fix end
    from (
        select 1 as part, s.* from tide._check_server() with ordinality as s
        union all
        select 2, r.* from tide._check_roles() with ordinality as r
        union all
        select 3, t.* from tide._check_tables() with ordinality as t
    ) as c (part, item, ok, problem, fix, place)
    order by c.part, c.place;
end;
comment on function tide.check() is
'Everything that pg_tide needs to do its work: whether it is so, what is wrong, and the SQL or the line that mends it. Look for rows that are not ok: select * from tide.check() where not ok. For members of pg_monitor';
revoke execute on function tide.check() from public;
grant execute on function tide.check() to pg_monitor;


-- CREATE EXTENSION lets only warnings through, until it ends.
set local client_min_messages = notice;

do $$
declare
    host text := coalesce((tide._names(pg_catalog.current_setting('tide.listen_addresses')))[1], 'localhost');
    port integer := pg_catalog.current_setting('tide.port');
    rival name;
begin
    -- A database of this cluster that listens on the same port.
    select d.datname into rival
    from pg_catalog.pg_replication_slots as r
    join pg_catalog.pg_database as d on d.datname = r.database
    left join pg_catalog.pg_db_role_setting as s on s.setdatabase = d.oid and s.setrole = 0
    where r.plugin = 'pg_tide'
      and d.datname <> pg_catalog.current_database()
      and coalesce((select pg_catalog.split_part(c, '=', 2) from pg_catalog.unnest(s.setconfig) as c
                    where c like 'tide.port=%'),
                   (select g.reset_val from pg_catalog.pg_settings as g
                    where g.name = 'tide.port' and g.source <> 'database'),
                   (select g.boot_val from pg_catalog.pg_settings as g where g.name = 'tide.port')
                  ) = port::pg_catalog.text
    limit 1;
    if found then
        raise notice using
            message = pg_catalog.format('database "%s" has port %s already: this one needs a port of its own',
                                        rival, port),
            hint = pg_catalog.format('Next: alter database %I set tide.port = %s; select tide.restart_worker();',
                                     pg_catalog.current_database(), port % 65535 + 1);
        return;
    end if;
    raise notice using
        message = pg_catalog.format('pg_tide serves this database at %s://%s:%s/',
            case when pg_catalog.current_setting('tide.ssl')::boolean then 'https' else 'http' end,
            case when host in ('*', '0.0.0.0', '::') then 'localhost' else host end, port),
        hint = 'Next: select tide.publish(''my_table''); and then: select * from tide.check() where not ok;';
end
$$;
