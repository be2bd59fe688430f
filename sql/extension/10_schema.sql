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
