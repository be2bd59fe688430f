//! What the README says of the settings is what Postgres says of them.

use crate::support::Cluster;

#[test]
fn its_table_of_settings_is_that_of_the_server() {
    let mut sql = Cluster::shared().connect("postgres");
    // A preloaded library's settings are known in every session.
    let rows = sql.query(include_str!("settings.sql"), &[]).unwrap();
    let served: Vec<String> = rows.iter().map(|row| row.get(0)).collect();

    let lines = include_str!("../README.md").lines();
    let is_setting = |line: &&str| {
        let name = line.strip_prefix("| `tide.").and_then(|rest| rest.split('`').next());
        name.is_some_and(|name| !name.contains('('))
    };
    let written: Vec<&str> = lines.filter(is_setting).collect();

    assert_eq!(written, served);
}
