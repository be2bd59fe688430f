-- What the worker does, as seen from SQL.

create function tide_internal.control(request jsonb) returns jsonb
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_control_wrapper';
comment on function tide_internal.control(jsonb) is 'Internal. Asks the worker of this database';
revoke execute on function tide_internal.control(jsonb) from public;

create function tide_internal.worker_status() returns jsonb
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', 'tide_worker_status_wrapper';
comment on function tide_internal.worker_status() is
'Internal. What the worker of this database says of itself, or why it does not';
revoke execute on function tide_internal.worker_status() from public;

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
    out behind bigint,
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
           case when not pg_is_in_recovery() and w.decoded_lsn > 0
                then greatest(pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0'::pg_lsn + w.decoded_lsn), 0)::bigint
           end,
           w.history_events, w.history_bytes,
           coalesce(w.connections, 0), coalesce(w.channels, 0), coalesce(w.forged_messages, 0),
           coalesce((select sum((f.value ->> 'count')::bigint)::bigint
                     from jsonb_array_elements(w.failed_messages) as f), 0),
           w.url, w.listener_error, nullif(w.connection_limit, 0),
           coalesce(w.catalog_worker, false), coalesce(w.executors, 0)
    from jsonb_to_record(tide_internal.worker_status()) as w (
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
'How the worker of this database is: its process, that of its server, how the last one ended and by what this one is confined (landlock: no files; seccomp: no system calls but those that serving clients takes), whether it is live and if not, why, how far it has decoded and how many bytes of WAL it is behind, what it keeps, who is connected, where it listens. One row, also when it is stopped. For members of pg_monitor';
revoke execute on function tide.status() from public;
grant execute on function tide.status() to pg_monitor;

create function tide_internal.recent(n integer)
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
comment on function tide_internal.recent(integer) is
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
    from tide_internal.recent(coalesce(n, 20)) as r;
end;
comment on function tide.recent(integer) is
'The newest events, oldest first, as far as the worker still has them. Superusers and members of pg_monitor see all, others those of tables they own';

create function tide_internal.connections()
returns table (connection jsonb)
language sql volatile parallel unsafe
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select c.value
    from jsonb_array_elements(tide_internal.control('{"op": "connections"}') -> 'connections') as c;
end;
comment on function tide_internal.connections() is 'Internal. What the views of connections and channels show';
revoke execute on function tide_internal.connections() from public;
grant execute on function tide_internal.connections() to pg_monitor;

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
from tide_internal.connections() as l
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
       h.lag,
       h.snapshot_rows
from tide_internal.connections() as l
cross join lateral pg_catalog.jsonb_to_record(l.connection) as c (id bigint, channels jsonb)
cross join lateral pg_catalog.jsonb_to_recordset(c.channels) as h (
    topic text, role text, subject text, private boolean, joined_at bigint, bindings integer, lag bigint,
    snapshot_rows bigint
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
comment on column tide.stat_channels.snapshot_rows is 'How many rows it has been told of so far, of those that it begins with; NULL: of all, or it does not begin with rows';
revoke all on table tide.stat_channels from public;
grant select on table tide.stat_channels to pg_monitor;

-- The name tide.subscriptions is kept for durable subscriptions: a row for each, by its name, with
-- its owner and the position up to which it has acknowledged.

create function tide.disconnect(id bigint) returns boolean
language sql volatile strict parallel unsafe
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select (tide_internal.control(jsonb_build_object('op', 'disconnect', 'id', disconnect.id)) -> 'found')::boolean;
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

create function tide.snapshot_token() returns text
language c stable parallel unsafe
as 'MODULE_PATHNAME', 'tide_snapshot_token_wrapper';
comment on function tide.snapshot_token() is
'What the query that calls this can see, as a "since": a client that resumes from it gets everything that the query could not see, and nothing else. In a REPEATABLE READ transaction it stands for all of its queries. What the transaction itself has written comes, too. NULL if the worker is not live';

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
