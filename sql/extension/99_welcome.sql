create function tide_internal.port_is_free(host text, port integer) returns boolean
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_port_is_free_wrapper';

-- CREATE EXTENSION lets only warnings through, until it ends.
set local client_min_messages = notice;

do $$
declare
    host text := coalesce((tide_internal.names(pg_catalog.current_setting('tide.listen_addresses')))[1], 'localhost');
    port integer := pg_catalog.current_setting('tide.port');
    rival name;
    next integer;
begin
    host := case when host = '*' then '0.0.0.0' else host end;
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
    -- A worker that is there already, as after DROP EXTENSION in the same transaction, listens itself.
    if rival is not null
       or port <> 0 and coalesce((tide_internal.worker_status() ->> 'pid')::pg_catalog.int4, 0) = 0
          and not tide_internal.port_is_free(host, port) then
        select p into next
        from pg_catalog.generate_series(port + 1, 65535) as p
        where tide_internal.port_is_free(host, p)
        limit 1;
        raise notice using
            message = case
                when rival is null
                    then pg_catalog.format('something else listens on port %s already: this database needs another',
                                           port)
                else pg_catalog.format('database "%s" has port %s already: this one needs a port of its own',
                                       rival, port)
            end,
            hint = pg_catalog.format('Next: alter database %I set tide.port = %s; select tide.restart_worker();',
                                     pg_catalog.current_database(), next);
        return;
    end if;
    raise notice using
        message = pg_catalog.format('pg_tide serves this database at %s://%s:%s/',
            case when pg_catalog.current_setting('tide.ssl')::boolean then 'https' else 'http' end,
            case when host in ('*', '0.0.0.0', '::') then 'localhost' else host end, port),
        hint = 'Next: select tide.publish(''my_table''); and then: select * from tide.check() where not ok;';
end
$$;

drop function tide_internal.port_is_free(text, integer);
