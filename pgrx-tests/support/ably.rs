//! What users of Ably's Postgres connector have in their databases.

/// Its published table with its trigger, under any name; also makes the schema.
pub fn outbox(schema: &str, table: &str) -> String {
    format!(
        r#"create schema if not exists "{schema}";
        create table "{schema}"."{table}" (
            sequence_id serial primary key,
            mutation_id text not null,
            channel text not null,
            name text not null,
            rejected boolean not null default false,
            data jsonb,
            headers jsonb,
            locked_by text,
            lock_expiry timestamp without time zone,
            processed boolean not null default false
        );
        create function "{schema}"."{table}_notify"() returns trigger as $$
        begin
            perform pg_notify('ably_adbc'::text, ''::text);
            return null;
        exception when others then
            raise warning 'unexpected error: %', sqlerrm;
            return null;
        end; $$ language plpgsql;
        create trigger "{schema}_{table}_trigger" after insert on "{schema}"."{table}"
        for each statement execute procedure "{schema}"."{table}_notify"();"#
    )
}
