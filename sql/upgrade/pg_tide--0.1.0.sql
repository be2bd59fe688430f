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
-- The role whose session the executors have.

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
-- Secrets, and the tokens signed with them.

create function tide._random_secret() returns text
language c volatile strict parallel safe
as 'MODULE_PATHNAME', 'tide_random_secret_wrapper';
comment on function tide._random_secret() is 'Internal. 256 random bits in hexadecimal';
revoke execute on function tide._random_secret() from public;

create function tide._insert_row("table" regclass, "row" anyelement) returns void
language c volatile strict parallel unsafe
set search_path = pg_catalog, pg_temp
as 'MODULE_PATHNAME', 'tide_insert_row_wrapper';
comment on function tide._insert_row(regclass, anyelement) is
'Internal. Adds a row to one of pg_tide''s own tables, past logical decoding: publications for all tables do not have it';
revoke execute on function tide._insert_row(regclass, anyelement) from public;

create function tide._delete_row("table" regclass, place tid) returns void
language c volatile strict parallel unsafe
set search_path = pg_catalog, pg_temp
as 'MODULE_PATHNAME', 'tide_delete_row_wrapper';
comment on function tide._delete_row(regclass, tid) is
'Internal. Deletes a row of one of pg_tide''s own tables, past logical decoding';
revoke execute on function tide._delete_row(regclass, tid) from public;

create table tide.secret (
    -- Without an index: see tide._insert_row().
    id bigint generated always as identity,
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
-- Nor for pg_read_all_data.
alter table tide.secret enable row level security;

create function tide._add_secret() returns void
language sql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
    select tide._insert_row(
               'tide.secret',
               row(nextval('tide.secret_id_seq'), tide._random_secret(), clock_timestamp())::tide.secret
           )
$$;
comment on function tide._add_secret() is 'Internal. Makes a new secret';
revoke execute on function tide._add_secret() from public;

select tide._add_secret();

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
    lock table tide.secret in share row exclusive mode;
    perform tide._add_secret();
    perform tide._delete_row('tide.secret', s.ctid)
    from (select ctid from tide.secret order by created_at desc, id desc offset 2) as s;
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
-- Which tables are streamed.

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
        when exists (select from tide.outboxes as o where o.relation = found_class.oid) then
            kind := 'an outbox';
            advice := 'Its rows are published as messages.';
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

create function tide._assert_given(tables regclass[]) returns void
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    if cardinality(tables) = 0 or array_position(tables, null) is not null then
        raise exception using
            errcode = 'null_value_not_allowed',
            message = 'no table given',
            hint = 'Name one or more, such as ''orders'', ''shop.customers''.';
    end if;
end
$$;
comment on function tide._assert_given(regclass[]) is
'Internal. Fails if there is no table in the list, or a null';

create function tide._lock_publications() returns void
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_lock_publications_wrapper';
comment on function tide._lock_publications() is
'Internal. Keeps two transactions from making the publication at once';

create function tide._make_publication() returns pg_publication
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    publication pg_publication;
begin
    perform tide._lock_publications();
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
    return publication;
end
$$;
comment on function tide._make_publication() is
'Internal. The publication, which is made if it is not there; for that the caller needs CREATE on the database';

create function tide.publish(variadic tables regclass[]) returns void
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
    perform tide._assert_given(tables);
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
-- Who may join channels, and who may say something on them.

create table tide.channel (
    topic text not null,
    extension text not null,
    constraint channel_is_always_empty check (false)
);
alter table tide.channel enable row level security;
comment on table tide.channel is
'Carries the policies of private channels; it never holds a row. A client may join a channel and receive from it if its role''s SELECT policies admit the row (topic, extension), and publish on it if its INSERT policies do; they are asked when it joins and when it renews its token, as its role and with its claims in request.jwt.claims. Without a policy nobody may. For example: create policy members on tide.channel for select to authenticated using (extension = ''broadcast'' and exists (select from members as m where m.room = tide.topic() and m.user_id = (current_setting(''request.jwt.claims'')::json ->> ''sub'')::uuid))';
comment on column tide.channel.topic is
'The channel, as applications name it; tide:notify:<channel> for notifications, tide:schema or tide:schema:<schema> for changes of the schema';
comment on column tide.channel.extension is
'What of it: broadcast (messages, from clients or the database), presence, notify (notifications) or schema (changes of the schema)';
-- Policies decide; there is nothing to read, and nothing can be inserted. REVOKE from a role works.
grant select, insert on table tide.channel to public;

create function tide.topic() returns text
language sql stable parallel safe
return nullif(pg_catalog.current_setting('request.topic', true), '');
comment on function tide.topic() is
'For policies of tide.channel and functions they call: the channel that is asked about. NULL elsewhere';
-- Messages to channels that are in the WAL and nowhere else.

create table tide.message_key (
    -- Without an index: see tide._insert_row().
    id bigint generated always as identity,
    key bytea not null default pg_catalog.convert_to(tide._random_secret(), 'UTF8'),
    created_at timestamptz not null default pg_catalog.clock_timestamp(),
    constraint key_is_long_enough check (pg_catalog.octet_length(key) >= 32)
)
-- The decoder reads it as it was when the message was written.
with (user_catalog_table = true);
comment on table tide.message_key is
'Keys that pg_tide seals its own messages in the WAL with, so that nobody can forge them with pg_logical_emit_message(). For superusers only. Not part of pg_dump''s output: a restored database has a new key';
comment on column tide.message_key.id is 'Order of creation; each message says which key it was sealed with';
comment on column tide.message_key.key is 'The key; messages are sealed with the newest';
comment on column tide.message_key.created_at is 'When it was made';
revoke all on table tide.message_key from public;
-- Nor for pg_read_all_data.
alter table tide.message_key enable row level security;

create function tide._add_message_key() returns void
language sql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
    select tide._insert_row(
               'tide.message_key',
               row(nextval('tide.message_key_id_seq'), convert_to(tide._random_secret(), 'UTF8'),
                   clock_timestamp())::tide.message_key
           )
$$;
comment on function tide._add_message_key() is 'Internal. Makes a new key for messages';
revoke execute on function tide._add_message_key() from public;

select tide._add_message_key();

create function tide.rotate_message_key() returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
begin
    lock table tide.message_key in share row exclusive mode;
    perform tide._add_message_key();
    -- The one before stays, for those who are sending at this moment.
    perform tide._delete_row('tide.message_key', k.ctid)
    from (select ctid from tide.message_key order by id desc offset 2) as k;
    -- Has every session, and the worker at this point of the WAL, read the keys again.
    perform tide._invalidate('tide.message_key');
end
$$;
comment on function tide.rotate_message_key() is
'Makes a new key for the messages in the WAL. What was sent before, whether it has been delivered or not, stays valid. Superuser only';
revoke execute on function tide.rotate_message_key() from public;

create function tide.send(channel text, name text, data jsonb, private boolean default true) returns void
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'tide_send_wrapper';
comment on function tide.send(text, text, jsonb, boolean) is
'Sends a message to those who have joined the channel, when this transaction commits, in order with its row changes: select tide.send(''room1'', ''edit'', ''{"line": 7}''). Costs one WAL record and no row. Clients get data as the payload; what is no object is its "data". A private message, as by default, goes to those who joined the channel as a private one, any other to the others. Limited by tide.max_message_size and tide.max_event_size. For superusers and those you grant it to';
revoke execute on function tide.send(text, text, jsonb, boolean) from public;

create function tide.set_mutation_id(id text) returns void
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'tide_set_mutation_id_wrapper';
comment on function tide.set_mutation_id(text) is
'Stamps all events of this transaction, those that its triggers cause included: clients get the id in meta.mutation_id, so that whoever asked for the change knows it again. Must come before anything that the transaction writes. For everyone';
-- Outboxes: tables whose inserted rows become messages.

create table tide.outboxes (
    -- Without an index: see tide._insert_row().
    relation regclass not null,
    private boolean not null default true,
    generation bigint,
    added_at timestamptz not null default pg_catalog.now()
-- The decoder reads it as it was at each point of the WAL.
) with (user_catalog_table = true);
comment on table tide.outboxes is
'The tables whose inserted rows are published as messages. tide.adopt_outbox() and tide.release_outbox() write it, everybody may read it';
comment on column tide.outboxes.relation is 'The table';
comment on column tide.outboxes.private is
'Whether its messages are for private channels, where the table has no column of that name to say so';
comment on column tide.outboxes.generation is
'The replication slot that has taken it over: rows inserted since then are published from the WAL. NULL or another slot''s: rows that wait will be put in line first';
comment on column tide.outboxes.added_at is 'Since when it is an outbox';
revoke all on table tide.outboxes from public;
grant select on table tide.outboxes to public;
-- pg_dump takes the adopted ones along.
select pg_catalog.pg_extension_config_dump('tide.outboxes', 'where relation <> ''tide.outbox''::regclass');

create function tide._invalidate(relation regclass) returns void
language c volatile strict parallel unsafe
set search_path = pg_catalog, pg_temp
as 'MODULE_PATHNAME', 'tide_invalidate_wrapper';
comment on function tide._invalidate(regclass) is
'Internal. Has every process look at the table''s definition again, and the decoder at this very point of the WAL';
revoke execute on function tide._invalidate(regclass) from public;

create function tide._outboxes_changed() returns trigger
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op <> 'INSERT' then
        perform tide._invalidate(old.relation);
    end if;
    if tg_op <> 'DELETE' then
        perform tide._invalidate(new.relation);
    end if;
    return null;
end
$$;
comment on function tide._outboxes_changed() is 'Internal. Tells the decoder which tables are outboxes';
revoke execute on function tide._outboxes_changed() from public;

create trigger outboxes_changed
after insert or update or delete on tide.outboxes
for each row execute function tide._outboxes_changed();
-- Also where a replica or a restore switches ordinary triggers off.
alter table tide.outboxes enable always trigger outboxes_changed;

create function tide._set_outbox(outbox regclass, private boolean, generation bigint) returns void
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
        perform tide._delete_row('tide.outboxes', place);
    end if;
    perform tide._insert_row(
        'tide.outboxes',
        row(outbox, private, generation, coalesce(former.added_at, now()))::tide.outboxes
    );
    perform tide._invalidate(outbox);
end
$$;
comment on function tide._set_outbox(regclass, boolean, bigint) is
'Internal. Says that a table is an outbox, and which slot has taken it over';
revoke execute on function tide._set_outbox(regclass, boolean, bigint) from public;

create table tide.outbox (
    sequence_id bigint generated by default as identity primary key,
    mutation_id text not null default pg_catalog.gen_random_uuid()::text,
    channel text not null,
    name text not null,
    rejected boolean not null default false,
    data jsonb,
    headers jsonb,
    locked_by text,
    lock_expiry timestamp,
    private boolean not null default true
);
comment on table tide.outbox is
'Messages for channels: an INSERT here is published when it commits, in commit order, from the WAL. Grant INSERT on it to the roles that may publish to any channel. Published rows are deleted, but for the newest';
comment on column tide.outbox.sequence_id is 'Counts the rows; larger ones may commit, and be published, before smaller ones';
comment on column tide.outbox.mutation_id is 'Passed on to clients, who can tell by it what they have had already; a uuid if none is given';
comment on column tide.outbox.channel is 'Where to: the name that clients join. What begins with "tide:" is refused, and what is empty or longer than 246 bytes';
comment on column tide.outbox.name is 'The name of the event';
comment on column tide.outbox.rejected is 'Passed on to clients: the mutation was refused';
comment on column tide.outbox.data is 'The payload; what is no object arrives as {"data": ...}';
comment on column tide.outbox.headers is 'Passed on to clients';
comment on column tide.outbox.locked_by is
'pg_tide''s own: "published" once that has happened; "failed: " and an SQLSTATE where it could not be: such a row stays until you delete it';
comment on column tide.outbox.lock_expiry is 'pg_tide''s own: when it was published, or could not be, in UTC';
comment on column tide.outbox.private is 'Whether it is for those who joined the channel as a private one, or for the others';
revoke all on table tide.outbox from public;
-- Messages that wait survive pg_dump.
select pg_catalog.pg_extension_config_dump('tide.outbox', 'where locked_by is distinct from ''published''');
select pg_catalog.pg_extension_config_dump('tide.outbox_sequence_id_seq', '');

select tide._set_outbox('tide.outbox', true, null);

create function tide._refuse_reserved_channel() returns trigger
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
begin
    if new.channel = '' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'the channel name is empty',
            hint = 'Name the channel that clients join.';
    end if;
    if not starts_with(new.channel, 'tide:') then
        raise exception using
            errcode = 'name_too_long',
            message = 'the channel name is too long',
            detail = format('It has %s bytes; 246 are allowed.', octet_length(new.channel)),
            hint = 'No client could join it. Use a shorter name.';
    end if;
    raise exception using
        errcode = 'reserved_name',
        message = format('channel "%s" is reserved', new.channel),
        hint = 'Channels that begin with "tide:" are pg_tide''s own. Use another name.';
end
$$;
comment on function tide._refuse_reserved_channel() is
'Internal. Refuses messages for channels that are pg_tide''s own, or that nobody can join';
revoke execute on function tide._refuse_reserved_channel() from public;

create trigger refuse_reserved_channel
before insert or update of channel on tide.outbox
for each row when (new.channel = '' or pg_catalog.octet_length(new.channel) > 246
                   or pg_catalog.starts_with(new.channel, 'tide:'))
execute function tide._refuse_reserved_channel();

create function tide.enqueue(
    channel text,
    name text,
    data jsonb,
    mutation_id text default null,
    headers jsonb default null,
    rejected boolean default false,
    private boolean default true
) returns bigint
-- Not in SQL, which before 18 plans its queries anew in each call: that takes longer than the INSERT.
language plpgsql volatile parallel unsafe
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    new_id bigint;
begin
    insert into tide.outbox as o (channel, name, data, mutation_id, headers, rejected, private)
    values (enqueue.channel, enqueue.name, enqueue.data,
            coalesce(enqueue.mutation_id, gen_random_uuid()::text),
            enqueue.headers, coalesce(enqueue.rejected, false), coalesce(enqueue.private, true))
    returning o.sequence_id into new_id;
    return new_id;
end
$$;
comment on function tide.enqueue(text, text, jsonb, text, jsonb, boolean, boolean) is
'Publishes a message to a channel when this transaction commits, and not if it does not: tide.enqueue(''room1'', ''edit'', ''{"id": 1}''). Puts it into tide.outbox, and returns its sequence_id. For superusers, and the roles you grant it to, which may then publish to any channel';
revoke execute on function tide.enqueue(text, text, jsonb, text, jsonb, boolean, boolean) from public;

create function tide._outbox_problems(outbox regclass) returns setof text
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
comment on function tide._outbox_problems(regclass) is
'Internal. What keeps a table from being an outbox';
revoke execute on function tide._outbox_problems(regclass) from public;
grant execute on function tide._outbox_problems(regclass) to pg_monitor;

create function tide._adopt_outbox(outbox regclass, is_private boolean) returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    problems text := (select string_agg(p, '; ' order by p) from tide._outbox_problems(outbox) as p);
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
               where r.prrelid = outbox and p.pubname = tide._publication()) then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = format('%s is published as a table', outbox),
            hint = format('select tide.unpublish(%L);', outbox);
    end if;
    lock table tide.outboxes in share row exclusive mode;
    -- Tables that were dropped leave their oids here.
    perform tide._delete_row('tide.outboxes', o.ctid)
    from tide.outboxes as o
    where not exists (select from pg_class as c where c.oid = o.relation);
    perform from tide.outboxes as o where o.relation = outbox and o.private = is_private;
    if not found then
        perform tide._set_outbox(
            outbox,
            is_private,
            (select o.generation from tide.outboxes as o where o.relation = outbox)
        );
    end if;
end
$$;
comment on function tide._adopt_outbox(regclass, boolean) is
'Internal. Adopts the table, whoever asks';
revoke execute on function tide._adopt_outbox(regclass, boolean) from public;

create function tide._release_outbox(outbox regclass) returns void
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
    perform tide._delete_row('tide.outboxes', o.ctid), tide._invalidate(outbox)
    from tide.outboxes as o
    where o.relation = outbox;
    if not found then
        raise notice '% is not an outbox', outbox;
    end if;
end
$$;
comment on function tide._release_outbox(regclass) is 'Internal. Releases the table, whoever asks';
revoke execute on function tide._release_outbox(regclass) from public;

create function tide.adopt_outbox("table" regclass, private boolean default true) returns void
language c volatile strict parallel unsafe
set search_path = pg_catalog, pg_temp
as 'MODULE_PATHNAME', 'tide_adopt_outbox_wrapper';
comment on function tide.adopt_outbox(regclass, boolean) is
'Makes an outbox of an existing table of Ably''s shape, under whatever schema and name: rows that are inserted are published as messages from now on, those that wait in it first, and deleted once published. private says who gets them where the table has no column private. To be called by the table''s owner, who must have been granted this function (whoever has it can publish to any channel), or a superuser. Adopting a table twice does no harm';
revoke execute on function tide.adopt_outbox(regclass, boolean) from public;

create function tide.release_outbox("table" regclass) returns void
language c volatile strict parallel unsafe
set search_path = pg_catalog, pg_temp
as 'MODULE_PATHNAME', 'tide_release_outbox_wrapper';
comment on function tide.release_outbox(regclass) is
'Makes an ordinary table of an outbox that tide.adopt_outbox() made; its rows stay. For whoever may adopt it';
revoke execute on function tide.release_outbox(regclass) from public;
-- Schemas whose tables are streamed: made, taken away, and looked over.

create function tide._publish_schema(schema oid) returns void
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_publish_schema_wrapper';
comment on function tide._publish_schema(oid) is
'Internal. Adds a schema that the caller owns to the publication, which Postgres leaves to superusers. Every table in it is streamed from then on';

create function tide._assert_name(name text, what text) returns void
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    if name is null then
        raise exception using
            errcode = 'null_value_not_allowed',
            message = format('no %s given', what);
    end if;
    if name = '' then
        raise exception using
            errcode = 'invalid_name',
            message = format('the name of the %s is empty', what);
    end if;
    if octet_length(name) > 63 then
        raise exception using
            errcode = 'name_too_long',
            message = format('the name of the %s is longer than 63 bytes', what),
            detail = format('It begins with "%s".', left(name, 40));
    end if;
end
$$;
comment on function tide._assert_name(text, text) is
'Internal. Fails if a name cannot be that of a schema or table; Postgres itself would cut off a long one';

create function tide.create_schema(name text) returns boolean
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    publication pg_publication;
    schema oid;
    made boolean := false;
begin
    perform tide._assert_name(name, 'schema');
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
    publication := tide._make_publication();
    if not publication.puballtables
       and not exists (select from pg_publication_namespace as p
                       where p.pnpubid = publication.oid and p.pnnspid = schema) then
        perform tide._publish_schema(schema);
    end if;
    return made;
end
$$;
comment on function tide.create_schema(text) is
'Makes a schema, and streams all tables that are or will be in it. False: it was there already, and is streamed now if it was not before. Needs CREATE on the database, or to own the schema. Clients still get only what their roles may SELECT: grant usage on schema ds to authenticated; alter default privileges in schema ds grant select on tables to authenticated';

create function tide.destroy_schema(name text, cascade boolean default false) returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
begin
    perform tide._assert_name(name, 'schema');
    execute format('drop schema %I %s', name, case when cascade then 'cascade' else 'restrict' end);
exception
    when dependent_objects_still_exist then
        raise exception using
            errcode = 'dependent_objects_still_exist',
            message = sqlerrm,
            hint = format('To drop it with all that is in it: select tide.destroy_schema(%L, true);', name);
end
$$;
comment on function tide.destroy_schema(text, boolean) is
'Drops a schema; with cascade, all that is in it too. Fails if there is no such schema (3F000), if it is not empty (2BP01), and for others than its owner';

create function tide._estimated_rows(relation oid, reltuples real) returns bigint
language sql stable parallel safe
-- A table that was never vacuumed or analyzed has -1 there.
return case when reltuples >= 0 then reltuples::bigint else pg_stat_get_live_tuples(relation) end;
comment on function tide._estimated_rows(oid, real) is
'Internal. About how many rows a table has, given what pg_class says';

create function tide.schema_overview(schema text, exact boolean default true)
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
                        then (select coalesce(sum(tide._estimated_rows(l.oid, l.reltuples)), 0)::bigint
                              from pg_partition_tree(c.oid) as t join pg_class as l on l.oid = t.relid
                              where t.isleaf)
                        else tide._estimated_rows(c.oid, c.reltuples)
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
comment on function tide.schema_overview(text, boolean) is
'The tables of a schema that the caller may read, with how many rows each has: counted, or with exact => false as the statistics have it, which takes milliseconds for a thousand tables. Nothing for a schema that does not exist';
-- Records: JSON values with a version, found by a key, in tables that are made when they are needed.
--
-- A table of records has the columns id (text, its primary key), version and val (jsonb, or text
-- that holds JSON). These functions run with their caller's rights and do nothing that plain SQL on
-- the tables could not.

create function tide._record_table(key text) returns text
language sql immutable parallel safe
return case when strpos(key, '/') = 0 then 'default' else left(key, strpos(key, '/') - 1) end;
comment on function tide._record_table(text) is
'Internal. The table of a record: what its key has before the first slash, or "default"';

create function tide._record_id(key text) returns text
language sql immutable parallel safe
return substr(key, strpos(key, '/') + 1);
comment on function tide._record_id(text) is
'Internal. The id of a record: what its key has after the first slash, or all of it';

create function tide._is_place(schema text, key text) returns boolean
language sql immutable parallel safe
return key is not null and schema <> '' and octet_length(schema) < 64
       and tide._record_table(key) <> '' and octet_length(tide._record_table(key)) < 64;
comment on function tide._is_place(text, text) is
'Internal. Whether there can be a record of such a key in such a schema. Part of the plan of what calls it, so it costs next to nothing';

create function tide._assert_place(schema text, key text) returns void
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    if key is null then
        raise exception using
            errcode = 'null_value_not_allowed',
            message = 'no key given';
    end if;
    perform tide._assert_name(schema, 'schema'), tide._assert_name(tide._record_table(key), 'table');
end
$$;
comment on function tide._assert_place(text, text) is
'Internal. Fails, saying why, if there can be no record of such a key in such a schema';

create function tide._lock_records(schema text, "table" text, writing boolean) returns boolean
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_lock_records_wrapper';
comment on function tide._lock_records(text, text, boolean) is
'Internal. Whether there is such a table. If so nobody drops it until this transaction ends';

create function tide._make_record_table(schema text, "table" text) returns void
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
    if schema in ('tide', 'information_schema') then
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
comment on function tide._make_record_table(text, text) is
'Internal. Makes a table of records. It belongs to the schema''s owner if the caller is a member of that role, else to the caller';

create function tide._require_record_table(schema text, "table" text) returns text
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
begin
    while not tide._lock_records(schema, "table", true) loop
        perform tide._make_record_table(schema, "table");
    end loop;
    return format('%I.%I', schema, "table");
end
$$;
comment on function tide._require_record_table(text, text) is
'Internal. The name of a table of records as SQL wants it; the table is made if it is not there, and stays until this transaction ends';

create function tide._refuse_record(schema text, key text, expected_version bigint) returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    found_record jsonb := (select jsonb_build_object('key', key, 'version', r.version, 'value', r.value)
                           from tide.record_get(key, schema) as r);
begin
    raise exception using
        errcode = 'TD001',
        message = case when expected_version = -1 then format('record "%s" is there already', key)
                       else format('record "%s" does not have version %s', key, expected_version)
                  end,
        detail = coalesce(found_record, 'null')::text,
        hint = 'The detail is the record as it is now. Decide again, and expect its version; -1 where there is none.';
end
$$;
comment on function tide._refuse_record(text, text, bigint) is
'Internal. Fails with the record as it is now';

create function tide.record_get(key text, schema text default 'ds')
returns table (version bigint, value jsonb)
language plpgsql volatile parallel unsafe
-- No search_path of its own, which would double the time it takes: every name here is qualified.
as $$
begin
    if tide._is_place(schema, key) is not true then
        perform tide._assert_place(schema, key);
    end if;
    if tide._lock_records(schema, tide._record_table(key), false) then
        return query execute pg_catalog.format(
            'select version::pg_catalog.int8, val::pg_catalog.jsonb
             from %I.%I where id operator(pg_catalog.=) $1', schema, tide._record_table(key))
            using tide._record_id(key);
    end if;
end
$$;
comment on function tide.record_get(text, text) is
'The version and value of a record: one row, or none if there is no such record, table or schema. The key is <table>/<id>, as for tide.record_set()';

create function tide.record_get_many(keys text[], schema text default 'ds')
returns table (key text, version bigint, value jsonb)
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    asked record;
begin
    for asked in
        select tide._record_table(k) as "table", array_agg(distinct k) as keys
        from unnest(keys) as k
        group by 1
        order by 1
    loop
        perform tide._assert_place(schema, k) from unnest(asked.keys[:1]) as k;
        if tide._lock_records(schema, asked.table, false) then
            return query execute format(
                'select k.key, r.version::bigint, r.val::jsonb
                 from unnest($1) as k (key)
                 join %I.%I as r on r.id = tide._record_id(k.key)', schema, asked.table)
                using asked.keys;
        end if;
    end loop;
end
$$;
comment on function tide.record_get_many(text[], text) is
'Those of the records that there are, in no particular order';

create function tide.record_set(
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
    id pg_catalog.text := tide._record_id(key);
    target pg_catalog.text;
    stored pg_catalog.int8;
begin
    if tide._is_place(schema, key) is not true then
        perform tide._assert_place(schema, key);
    end if;
    if value is null then
        raise exception using
            errcode = 'null_value_not_allowed',
            message = 'no value given',
            hint = 'JSON''s null is a value: ''null''.';
    end if;
    while not tide._lock_records(schema, tide._record_table(key), true) loop
        perform tide._make_record_table(schema, tide._record_table(key));
    end loop;
    target := pg_catalog.format('%I.%I', schema, tide._record_table(key));
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
        perform tide._refuse_record(schema, key, expected_version);
    end if;
    return stored;
end
$$;
comment on function tide.record_set(text, jsonb, bigint, bigint, text) is
'Stores a record and returns its version: the one given, else one more than it had, from 1. The key is <table>/<id>, such as cars/bmw; further slashes belong to the id, and a key without a slash is in table "default". A table that is not there is made. With expected_version the record is stored only if that is its version now, -1 meaning that there is no such record; else SQLSTATE TD001, whose detail is the record as it is, {"key", "version", "value"}, or null';

create function tide.record_set_many(
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
            from (select tide._record_table(u.key), tide._record_id(u.key) collate "C", u.*
                  from unnest(keys, "values", versions, expected_versions)
                       with ordinality as u (key, value, version, expected_version, place)
                 ) as p ("table", id, key, value, version, expected_version, place)
            order by p."table", p.id, p.place desc
        ) as g
        group by 1, 2, 3
        order by 1, 2, 3
    loop
        perform tide._assert_place(schema, given.keys[1]);
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
                tide._require_record_table(schema, given."table"),
                case when given.counting then 'coalesce(r.version + 1, 1)' else 'excluded.version' end)
                using given.keys, given.ids, given.versions, given."values";
        end if;
    end loop;
end
$$;
comment on function tide.record_set_many(text[], jsonb[], bigint[], bigint[], text) is
'Stores several records, all or none, and returns their versions; each is stored as by tide.record_set(). A version or expected version may be null for some. Of a key that is given twice the last value counts';

create function tide._drop_if_empty(schema text, "table" text) returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
    target text := format('%I.%I', schema, "table");
    empty boolean;
begin
    -- A snapshot of before the lock would not show what others have stored since.
    if current_setting('transaction_isolation') <> 'read committed'
       or not (select pg_has_role(c.relowner, 'USAGE') from pg_class as c where c.oid = target::regclass) then
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
comment on function tide._drop_if_empty(text, text) is
'Internal. Drops a table that has no rows, if the caller owns it and nobody else uses it at this moment';

create function tide.record_delete_many(
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
        select tide._record_table(k) as "table", (array_agg(k))[1] as example,
               array_agg(distinct tide._record_id(k)) as ids
        from unnest(keys) as k
        group by 1
        order by 1
    loop
        perform tide._assert_place(schema, given.example);
        if not tide._lock_records(schema, given."table", true) then
            continue;
        end if;
        execute format('delete from %I.%I where id = any ($1)', schema, given."table")
            using given.ids;
        get diagnostics deleted = row_count;
        deleted_in_all := deleted_in_all + deleted;
        if drop_empty and deleted > 0 then
            perform tide._drop_if_empty(schema, given."table");
        end if;
    end loop;
    return deleted_in_all;
end
$$;
comment on function tide.record_delete_many(text[], text, boolean) is
'Deletes several records, all or none, and returns how many there were. With drop_empty, tables that become empty are dropped, as by tide.record_delete()';

create function tide.record_delete(
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
    if tide._is_place(schema, key) is not true then
        perform tide._assert_place(schema, key);
    end if;
    if tide._lock_records(schema, tide._record_table(key), true) then
        execute format('delete from %I.%I where id = $1 and ($2 is null or version = $2)',
                       schema, tide._record_table(key))
            using tide._record_id(key), expected_version;
        get diagnostics deleted = row_count;
    end if;
    if deleted = 0 and expected_version is not null then
        perform tide._refuse_record(schema, key, expected_version);
    end if;
    if drop_empty and deleted > 0 then
        perform tide._drop_if_empty(schema, tide._record_table(key));
    end if;
    return deleted > 0;
end
$$;
comment on function tide.record_delete(text, bigint, text, boolean) is
'Deletes a record. False: there was none. With expected_version it is deleted only if that is its version now; else SQLSTATE TD001, as from tide.record_set(). With drop_empty the table is dropped if it becomes empty, the caller owns it, and nobody else uses it at that moment';
-- What the worker does, as seen from SQL.

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
    out server_pid integer,
    out last_server_failure text,
    out server_confined_by text[],
    out slot name,
    out epoch text,
    out decoded_lsn pg_lsn,
    out confirmed_lsn pg_lsn,
    out retained_wal bigint,
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
'How the worker of this database is: its process, that of its server, how the last one ended and by what this one is confined (landlock: no files; seccomp: no system calls but those that serving clients takes), whether it is live and if not, why, how far it has decoded, what it keeps, who is connected, where it listens. One row, also when it is stopped. For members of pg_monitor';
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
       c.lagging,
       c.lag
from tide._connections() as l
cross join lateral pg_catalog.jsonb_to_record(l.connection) as c (
    id bigint, address text, user_agent text, connected_at bigint, channels jsonb,
    sent_frames bigint, sent_bytes bigint, queued_frames bigint, queued_bytes bigint, lagging boolean, lag bigint
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
comment on column tide.stat_connections.lag is 'How many events of the history the slowest of its channels has still to be served';
revoke all on table tide.stat_connections from public;
grant select on table tide.stat_connections to pg_monitor;

create view tide.stat_channels as
select c.id as connection,
       h.topic,
       h.role,
       h.subject,
       h.private,
       pg_catalog.to_timestamp(h.joined_at / 1e6) as joined_at,
       h.bindings,
       h.lag
from tide._connections() as l
cross join lateral pg_catalog.jsonb_to_record(l.connection) as c (id bigint, channels jsonb)
cross join lateral pg_catalog.jsonb_to_recordset(c.channels) as h (
    topic text, role text, subject text, private boolean, joined_at bigint, bindings integer, lag bigint
);
comment on view tide.stat_channels is 'What connected clients have joined. For members of pg_monitor';
comment on column tide.stat_channels.connection is 'The id in tide.stat_connections';
comment on column tide.stat_channels.topic is 'As the client wrote it';
comment on column tide.stat_channels.role is 'The role of its token, whose privileges decide what it gets';
comment on column tide.stat_channels.subject is 'Who it is: the claim sub of its token, if that has one';
comment on column tide.stat_channels.private is 'It joined as a private channel';
comment on column tide.stat_channels.joined_at is 'Since when';
comment on column tide.stat_channels.bindings is 'How many things it is subscribed to';
comment on column tide.stat_channels.lag is 'How many events of the history it has still to be served; 0: it keeps up';
revoke all on table tide.stat_channels from public;
grant select on table tide.stat_channels to pg_monitor;

-- The name tide.subscriptions is kept for durable subscriptions: a row for each, by its name, with
-- its owner and the position up to which it has acknowledged.

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
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'tide_current_position_wrapper';
comment on function tide.current_position() is
'A position for "since": a client that resumes from it gets everything that no query could see yet when this was called. A commit that hangs (a synchronous standby is missing) makes it an earlier one, so that what has committed since comes once more. NULL if the worker is not live';

create function tide.restart_worker() returns boolean
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_restart_worker_wrapper';
comment on function tide.restart_worker() is
'Has the worker of this database stop and start with the settings as they are now. Clients reconnect by themselves and resume. False: there is none. Superuser only';
revoke execute on function tide.restart_worker() from public;

create function tide.skip_to(lsn pg_lsn) returns void
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_skip_to_wrapper';
comment on function tide.skip_to(pg_lsn) is
'The way on where decoding a record crashes the server, as tide.status() says: gives up everything that has not been decoded, this record at least, which must end at or before this address. A new slot begins after what is in the WAL now: clients that resume are told to start over (tide.resync, "skipped"), and rows that wait in outboxes are published by it. Superuser only';
revoke execute on function tide.skip_to(pg_lsn) from public;
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
                 tide._control(jsonb_build_object(
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
-- Tables and schemas that are made, altered or dropped, told to clients in order with the rows.
--
-- The event triggers' functions run with their owner's rights, so that they work for everyone, and
-- swallow their own errors: nobody's DDL fails because clients cannot be told of it.

create function tide._write_schema_change(change json) returns void
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_write_schema_change_wrapper';
comment on function tide._write_schema_change(json) is
'Internal. Writes to the WAL what a schema change was, for those who may see it, when this transaction commits';
revoke execute on function tide._write_schema_change(json) from public;

create function tide._readers_before(catalog oid, object oid) returns text[]
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_readers_before_wrapper';
comment on function tide._readers_before(oid, oid) is
'Internal. The clients'' roles that could see a table or schema until this transaction dropped it';
revoke execute on function tide._readers_before(oid, oid) from public;

create function tide._is_announced(relation oid) returns boolean
language sql stable strict parallel safe
set search_path = pg_catalog, pg_temp
begin atomic
    select coalesce(bool_and(c.relkind in ('r', 'p')
                             and c.relpersistence <> 't'
                             and n.nspname <> 'tide'
                             and not starts_with(n.nspname::text, 'pg_')), false)
    from pg_class as c
    join pg_namespace as n on n.oid = c.relnamespace
    where c.oid = relation;
end;
comment on function tide._is_announced(oid) is
'Internal. Whether clients are told of what happens to the relation: a table, neither temporary nor pg_tide''s or Postgres''s own';
revoke execute on function tide._is_announced(oid) from public;

create function tide._announce_table(operation text, relation oid) returns void
language sql volatile strict parallel unsafe
set search_path = pg_catalog, pg_temp
begin atomic
    select tide._write_schema_change(json_build_object(
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
      and tide._is_announced(c.oid);
end;
comment on function tide._announce_table(text, oid) is
'Internal. Tells clients that a table was made or altered, and what it is like now';
revoke execute on function tide._announce_table(text, oid) from public;

create function tide._announce_ddl() returns event_trigger
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
            perform tide._announce_table(
                case when command.alters then 'ALTER_TABLE' else 'CREATE_TABLE' end, command.objid);
        elsif not command.alters then
            perform tide._write_schema_change(json_build_object(
                        'operation', 'CREATE_SCHEMA', 'schema', n.nspname, 'oid', n.oid::bigint))
            from pg_namespace as n
            where n.oid = command.objid
              and n.nspname <> 'tide'
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
comment on function tide._announce_ddl() is
'Internal. After a command that made or altered something: tells clients of tables and schemas';
revoke execute on function tide._announce_ddl() from public;

create function tide._announce_drops() returns event_trigger
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
comment on function tide._announce_drops() is
'Internal. After a command that dropped something: tells clients of tables and schemas';
revoke execute on function tide._announce_drops() from public;

create event trigger tide_ddl_command_end
on ddl_command_end
when tag in ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE', 'CREATE SCHEMA')
execute function tide._announce_ddl();
comment on event trigger tide_ddl_command_end is
'Tells clients of pg_tide of tables and schemas that are made or altered';

create event trigger tide_sql_drop
on sql_drop
execute function tide._announce_drops();
comment on event trigger tide_sql_drop is
'Tells clients of pg_tide of tables and schemas that are dropped';

-- In sessions that replicate as well.
alter event trigger tide_ddl_command_end enable always;
alter event trigger tide_sql_drop enable always;
-- Requirements: what is missing, and what mends it.

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

create function tide._failed_messages()
returns table (relation regclass, count bigint)
language sql volatile parallel unsafe
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    -- As the worker knows it: a look at a table that was adopted might run its owner's code.
    select o.relation, (f.value ->> 'count')::bigint
    from jsonb_array_elements(tide._worker_status() -> 'failed_messages') as f
    join tide.outboxes as o on o.relation = (f.value ->> 'table')::oid
    where f.value ->> 'count' <> '0';
end;
comment on function tide._failed_messages() is
'Internal. How many rows outboxes keep because they could not be published';
revoke execute on function tide._failed_messages() from public;
grant execute on function tide._failed_messages() to pg_monitor;

create function tide._check_outboxes()
returns table (item text, ok boolean, problem text, fix text)
language sql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
begin atomic
    select format('outbox %s', o.relation), false, string_agg(p, '; ' order by p),
           format('Mend the table, or: select tide.release_outbox(%L);', o.relation)
    from tide.outboxes as o
    join pg_class as c on c.oid = o.relation
    cross join lateral tide._outbox_problems(o.relation) as p
    group by o.relation
    union all
    select format('messages of %s', f.relation), false,
           format('%s could not be published, and are kept', f.count),
           format('select sequence_id, channel, name, locked_by from %1$s where locked_by like ''failed: %%'';'
                  || ' -- what follows is an SQLSTATE; insert what is still wanted anew, mended (an INSERT is what'
                  || ' publishes), and delete these: delete from %1$s where locked_by like ''failed: %%'';',
                  f.relation)
    from tide._failed_messages() as f;
end;
comment on function tide._check_outboxes() is 'Internal. The part of tide.check() about tables that are outboxes';
revoke execute on function tide._check_outboxes() from public;
grant execute on function tide._check_outboxes() to pg_monitor;

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
        union all
        select 4, o.* from tide._check_outboxes() with ordinality as o
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
