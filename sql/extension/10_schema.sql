-- pg_tide: what CREATE EXTENSION makes.
--
-- What is in tide is for everybody, as far as it is granted; what is in tide_internal is pg_tide's own, and
-- closed to PUBLIC unless something that runs with a caller's rights needs it. Functions that run with
-- their owner's rights say so, pin their search_path, and are closed to PUBLIC unless their comment says
-- otherwise.

\echo Use "create extension pg_tide" to load this file. \quit

create schema tide;
comment on schema tide is 'pg_tide: changes of this database, live to clients over websockets';
grant usage on schema tide to public;

create schema tide_internal;
comment on schema tide_internal is 'pg_tide: what the functions of schema tide are made of. Nothing here is meant to be called by others';
-- For those of its functions that run with the caller's rights; each says for itself who may execute it.
grant usage on schema tide_internal to public;

create function tide_internal.require_preload() returns void
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'require_preload_wrapper';
comment on function tide_internal.require_preload() is
'Internal. Fails, with the line to add to postgresql.conf, if the server did not load pg_tide at its start';
revoke execute on function tide_internal.require_preload() from public;

select tide_internal.require_preload();
