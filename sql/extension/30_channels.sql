-- Who may join channels, and who may say something on them.

create table tide.channel (
    topic text not null,
    extension text not null,
    constraint channel_is_always_empty check (false)
);
alter table tide.channel enable row level security;
comment on table tide.channel is
'Carries the policies of private channels; it never holds a row. A client may join a channel and receive from it if its role''s SELECT policies admit the row (topic, extension), and publish on it if its INSERT policies do; they are asked when it joins and when it renews its token, as its role and with its claims in request.jwt.claims. Without a policy nobody may. For example: create policy members on tide.channel for select to authenticated using (extension = ''broadcast'' and exists (select from members as m where m.room = tide.topic() and m.user_id = (current_setting(''request.jwt.claims'')::json ->> ''sub'')::uuid))';
comment on column tide.channel.topic is
'The channel, as applications name it; tide:notify:<channel> for notifications, tide:schema or tide:schema:<schema> for changes of the schema';
comment on column tide.channel.extension is
'What of it: broadcast (messages, from clients or the database), presence, notify (notifications) or schema (changes of the schema)';
-- Policies decide; there is nothing to read, and nothing can be inserted. REVOKE from a role works.
grant select, insert on table tide.channel to public;

create function tide.topic() returns text
language sql stable parallel safe
return nullif(pg_catalog.current_setting('request.topic', true), '');
comment on function tide.topic() is
'For policies of tide.channel and functions they call: the channel that is asked about. NULL elsewhere';
