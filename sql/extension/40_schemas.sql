-- Schemas whose tables are streamed: made, taken away, and looked over.

create function tide_internal.publish_schema(schema oid) returns void
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_publish_schema_wrapper';
comment on function tide_internal.publish_schema(oid) is
'Internal. Adds a schema that the caller owns to the publication, which Postgres leaves to superusers. Every table in it is streamed from then on';

create function tide_internal.assert_name(name text, what text) returns void
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
comment on function tide_internal.assert_name(text, text) is
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
comment on function tide.create_schema(text) is
'Makes a schema, and streams all tables that are or will be in it. False: it was there already, and is streamed now if it was not before. Needs CREATE on the database, or to own the schema. Clients still get only what their roles may SELECT: grant usage on schema ds to authenticated; alter default privileges in schema ds grant select on tables to authenticated';

create function tide.destroy_schema(name text, cascade boolean default false) returns void
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
comment on function tide.destroy_schema(text, boolean) is
'Drops a schema; with cascade, all that is in it too. Fails if there is no such schema (3F000), if it is not empty (2BP01), and for others than its owner';

create function tide_internal.estimated_rows(relation oid, reltuples real) returns bigint
language sql stable parallel safe
-- A table that was never vacuumed or analyzed has -1 there.
return case when reltuples >= 0 then reltuples::bigint else pg_stat_get_live_tuples(relation) end;
comment on function tide_internal.estimated_rows(oid, real) is
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
comment on function tide.schema_overview(text, boolean) is
'The tables of a schema that the caller may read, with how many rows each has: counted, or with exact => false as the statistics have it, which takes milliseconds for a thousand tables. Nothing for a schema that does not exist';
