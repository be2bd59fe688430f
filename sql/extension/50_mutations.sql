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
