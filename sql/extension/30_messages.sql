-- Messages to channels that are in the WAL and nowhere else.

create table tide.message_key (
    -- Without an index: see tide_internal.insert_row().
    id bigint generated always as identity,
    key bytea not null default pg_catalog.convert_to(tide_internal.random_secret(), 'UTF8'),
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
-- Nor for pg_read_all_data, which reads pg_statistic, too.
alter table tide.message_key enable row level security;
alter table tide.message_key alter column key set statistics 0;
create trigger skip_row before insert on tide.message_key for each row execute function tide_internal.skip_row();
alter table tide.message_key enable replica trigger skip_row;

create function tide_internal.add_message_key() returns void
language sql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
    select tide_internal.insert_row(
               'tide.message_key',
               row(nextval('tide.message_key_id_seq'), convert_to(tide_internal.random_secret(), 'UTF8'),
                   clock_timestamp())::tide.message_key
           )
$$;
comment on function tide_internal.add_message_key() is 'Internal. Makes a new key for messages';
revoke execute on function tide_internal.add_message_key() from public;

select tide_internal.add_message_key();

create function tide.rotate_message_key() returns void
language plpgsql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
begin
    lock table tide.message_key in share row exclusive mode;
    perform tide_internal.add_message_key();
    -- The one before stays, for those who are sending at this moment.
    perform tide_internal.delete_row('tide.message_key', k.ctid)
    from (select ctid from tide.message_key order by id desc offset 2) as k;
    -- Has every session, and the worker at this point of the WAL, read the keys again.
    perform tide_internal.invalidate('tide.message_key');
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
