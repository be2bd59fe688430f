-- Records: JSON values with a version, found by a key, in tables that are made when they are needed.
--
-- A table of records has the columns id (text, its primary key), version and val (jsonb, or text
-- that holds JSON). These functions run with their caller's rights and do nothing that plain SQL on
-- the tables could not.

create function tide_internal.record_table(key text) returns text
language sql immutable parallel safe
return case when strpos(key, '/') = 0 then 'default' else left(key, strpos(key, '/') - 1) end;
comment on function tide_internal.record_table(text) is
'Internal. The table of a record: what its key has before the first slash, or "default"';

create function tide_internal.record_id(key text) returns text
language sql immutable parallel safe
return substr(key, strpos(key, '/') + 1);
comment on function tide_internal.record_id(text) is
'Internal. The id of a record: what its key has after the first slash, or all of it';

create function tide_internal.is_place(schema text, key text) returns boolean
language sql immutable parallel safe
return key is not null and schema <> '' and octet_length(schema) < 64
       and tide_internal.record_table(key) <> '' and octet_length(tide_internal.record_table(key)) < 64;
comment on function tide_internal.is_place(text, text) is
'Internal. Whether there can be a record of such a key in such a schema. Part of the plan of what calls it, so it costs next to nothing';

create function tide_internal.assert_place(schema text, key text) returns void
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
comment on function tide_internal.assert_place(text, text) is
'Internal. Fails, saying why, if there can be no record of such a key in such a schema';

create function tide_internal.lock_records(schema text, "table" text, writing boolean) returns boolean
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_lock_records_wrapper';
comment on function tide_internal.lock_records(text, text, boolean) is
'Internal. Whether there is such a table. If so nobody drops it until this transaction ends';

create function tide_internal.make_record_table(schema text, "table" text) returns void
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
comment on function tide_internal.make_record_table(text, text) is
'Internal. Makes a table of records. It belongs to the schema''s owner if the caller is a member of that role, else to the caller';

create function tide_internal.require_record_table(schema text, "table" text) returns text
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
comment on function tide_internal.require_record_table(text, text) is
'Internal. The name of a table of records as SQL wants it; the table is made if it is not there, and stays until this transaction ends';

create function tide_internal.refuse_record(schema text, key text, expected_version bigint) returns void
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
comment on function tide_internal.refuse_record(text, text, bigint) is
'Internal. Fails with the record as it is now';

create function tide.record_get(key text, schema text default 'ds')
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
comment on function tide.record_set_many(text[], jsonb[], bigint[], bigint[], text) is
'Stores several records, all or none, and returns their versions; each is stored as by tide.record_set(). A version or expected version may be null for some. Of a key that is given twice the last value counts';

create function tide_internal.drop_if_empty(schema text, "table" text) returns void
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
comment on function tide_internal.drop_if_empty(text, text) is
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
comment on function tide.record_delete(text, bigint, text, boolean) is
'Deletes a record. False: there was none. With expected_version it is deleted only if that is its version now; else SQLSTATE TD001, as from tide.record_set(). With drop_empty the table is dropped if it becomes empty, the caller owns it, and nobody else uses it at that moment';
