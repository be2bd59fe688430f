-- Tables and schemas that are made, altered or dropped, told to clients in order with the rows.
--
-- The event triggers' functions run with their owner's rights, so that they work for everyone, and
-- swallow their own errors: nobody's DDL fails because clients cannot be told of it.

create function tide_internal.write_schema_change(change json) returns void
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_write_schema_change_wrapper';
comment on function tide_internal.write_schema_change(json) is
'Internal. Writes to the WAL what a schema change was, for those who may see it, when this transaction commits';
revoke execute on function tide_internal.write_schema_change(json) from public;

create function tide_internal.readers_before(catalog oid, object oid) returns text[]
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_readers_before_wrapper';
comment on function tide_internal.readers_before(oid, oid) is
'Internal. The clients'' roles that could see a table or schema until this transaction dropped it';
revoke execute on function tide_internal.readers_before(oid, oid) from public;

create function tide_internal.is_announced(relation oid) returns boolean
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
comment on function tide_internal.is_announced(oid) is
'Internal. Whether clients are told of what happens to the relation: a table, neither temporary nor pg_tide''s or Postgres''s own';
revoke execute on function tide_internal.is_announced(oid) from public;

create function tide_internal.announce_table(operation text, relation oid) returns void
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
comment on function tide_internal.announce_table(text, oid) is
'Internal. Tells clients that a table was made or altered, and what it is like now';
revoke execute on function tide_internal.announce_table(text, oid) from public;

create function tide_internal.announce_ddl() returns event_trigger
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
comment on function tide_internal.announce_ddl() is
'Internal. After a command that made or altered something: tells clients of tables and schemas';
revoke execute on function tide_internal.announce_ddl() from public;

create function tide_internal.announce_drops() returns event_trigger
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
comment on function tide_internal.announce_drops() is
'Internal. After a command that dropped something: tells clients of tables and schemas';
revoke execute on function tide_internal.announce_drops() from public;

create event trigger tide_ddl_command_end
on ddl_command_end
when tag in ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE', 'CREATE SCHEMA')
execute function tide_internal.announce_ddl();
comment on event trigger tide_ddl_command_end is
'Tells clients of pg_tide of tables and schemas that are made or altered';

create event trigger tide_sql_drop
on sql_drop
execute function tide_internal.announce_drops();
comment on event trigger tide_sql_drop is
'Tells clients of pg_tide of tables and schemas that are dropped';

-- In sessions that replicate as well.
alter event trigger tide_ddl_command_end enable always;
alter event trigger tide_sql_drop enable always;
