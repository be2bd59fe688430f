//! What it takes to remember a table as a role may see it.

use tide_feed::catalog::{ColumnAccess, Function, Policy, RowSecurity, TableAccess};

/// Bytes that it takes up, about.
pub(crate) fn memory(table: &TableAccess) -> usize {
    let columns = table.columns.iter().map(of_column).sum::<usize>();
    let names = table.schema.len() + table.table.len();
    size_of::<TableAccess>() + names + columns + table.row_security.as_ref().map_or(0, of_policies)
}

fn of_column(column: &ColumnAccess) -> usize {
    let names = column.name.len() + column.type_name.len() + column.type_sql.len();
    size_of::<ColumnAccess>() + names + of_labels(&column.labels)
}

fn of_policies(security: &RowSecurity) -> usize {
    let policies = security.policies.iter().map(of_policy).sum::<usize>();
    let functions = security.functions.iter().map(of_function).sum::<usize>();
    let columns = size_of_val(&*security.identity) + size_of_val(&*security.nondeterministic);
    size_of::<RowSecurity>() + policies + functions + columns
}

fn of_policy(policy: &Policy) -> usize {
    let columns = policy.columns.as_deref().map_or(0, size_of_val);
    size_of::<Policy>() + policy.name.len() + policy.condition.len() + columns
}

fn of_function(function: &Function) -> usize {
    let Function { schema, name, returns, arguments, language, body, .. } = function;
    let texts = [schema, name, returns, language].map(String::len);
    let body = body.as_ref().map_or(0, String::len);
    let arguments = arguments.iter().map(|name| size_of::<String>() + name.len());
    size_of::<Function>() + texts.into_iter().sum::<usize>() + arguments.sum::<usize>() + body
}

fn of_labels(labels: &[(u32, String)]) -> usize {
    size_of_val(labels) + labels.iter().map(|(_, label)| label.len()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_policies_is_counted_with_their_table() {
        let long = || "x".repeat(1000);
        let policy = Policy { name: long(), permissive: true, condition: long(), columns: None };
        let function = Function {
            schema: "public".into(),
            name: "f".into(),
            returns: "text".into(),
            arguments: Vec::new(),
            has_defaults: false,
            volatility: 's',
            language: "sql".into(),
            body: Some(long()),
        };
        let security = RowSecurity {
            policies: vec![policy],
            functions: vec![function],
            ..RowSecurity::default()
        };
        let (schema, table) = ("public".into(), "t".into());
        let bare = TableAccess { oid: 1, schema, table, row_security: None, columns: Vec::new() };
        let secured = TableAccess { row_security: Some(security), ..bare.clone() };

        assert!(memory(&secured) >= memory(&bare) + 3 * 1000);
    }
}
