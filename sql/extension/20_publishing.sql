-- Which tables are streamed.

create function tide_internal.publication() returns text
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
return coalesce(nullif(current_setting('tide.publication', true), ''), 'tide');
comment on function tide_internal.publication() is 'Internal. Name of the publication';

create function tide_internal.without_replica_identity(relation oid) returns setof regclass
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
comment on function tide_internal.without_replica_identity(oid) is
'Internal. The table, or those of its partitions, of which an UPDATE or DELETE does not say which row it was about';

create function tide_internal.assert_publishable(relation regclass) returns void
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
comment on function tide_internal.assert_publishable(regclass) is
'Internal. Fails, saying why, if a relation has no changes to publish';

create function tide_internal.assert_given(tables regclass[]) returns void
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
comment on function tide_internal.assert_given(regclass[]) is
'Internal. Fails if there is no table in the list, or a null';

create function tide_internal.lock_publications() returns void
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_lock_publications_wrapper';
comment on function tide_internal.lock_publications() is
'Internal. Keeps two transactions from making the publication at once';

create function tide_internal.make_publication() returns pg_publication
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
comment on function tide_internal.make_publication() is
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
comment on function tide.unpublish(regclass[]) is
'Ends the streaming of tables. Takes them out of the publication that tide.publication names';
