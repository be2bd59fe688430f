//! What a binding was made of: a table by its name, and the columns that it names. Where the stream comes
//! to another of these, the binding has to be made anew.

use std::sync::Arc;

use tide_feed::catalog::{ColumnAccess, TableAccess};
use tide_feed::event::{Column, Kind, Relation};

/// The table that a binding names, as it was when the binding was made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Basis {
    schema: Box<str>,
    table: Box<str>,
    /// Those that its filter, or its choice of columns, names.
    columns: Box<[Known]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Known {
    attnum: i16,
    name: Box<str>,
    type_name: Box<str>,
    kind: Kind,
    /// Of an enum that the filter compares: by their oids.
    labels: Box<[(u32, Box<str>)]>,
    /// The filter compares it.
    is_compared: bool,
}

impl Basis {
    /// `compared` are the columns that the filter names, `chosen` those that are to be sent.
    pub fn of(access: &TableAccess, compared: &[&str], chosen: &[Box<str>]) -> Arc<Basis> {
        let is_named = |column: &&ColumnAccess| {
            compared.contains(&&*column.name) || chosen.iter().any(|name| **name == *column.name)
        };
        let columns = access.columns.iter().filter(is_named);
        Arc::new(Basis {
            schema: access.schema.as_str().into(),
            table: access.table.as_str().into(),
            columns: columns
                .map(|column| Known::of(column, compared.contains(&&*column.name)))
                .collect(),
        })
    }

    /// Bytes that it takes up.
    pub fn memory(&self) -> usize {
        let labels = |known: &Known| {
            let texts = known.labels.iter().map(|(_, label)| label.len());
            size_of_val(&*known.labels) + texts.sum::<usize>()
        };
        let columns = self.columns.iter().map(|known| {
            size_of::<Known>() + known.name.len() + known.type_name.len() + labels(known)
        });
        size_of::<Basis>() + self.schema.len() + self.table.len() + columns.sum::<usize>()
    }

    pub(super) fn names(&self, relation: &Relation) -> bool {
        self.table == relation.name && self.schema == relation.schema
    }

    /// Whether the table is what it was, as far as that matters.
    pub(super) fn is_same(&self, relation: &Relation) -> bool {
        self.names(relation) && self.columns.iter().all(|known| known.is_in(relation))
    }

    /// The columns that the binding names.
    pub(super) fn attnums(&self) -> impl Iterator<Item = i16> {
        self.columns.iter().map(|known| known.attnum)
    }

    /// Whether the filter can be held against rows of the table.
    pub(super) fn is_comparable(&self, relation: &Relation) -> bool {
        let mut compared = self.columns.iter().filter(|known| known.is_compared);
        compared.all(|known| known.is_compared_in(relation))
    }
}

impl Known {
    fn of(column: &ColumnAccess, is_compared: bool) -> Known {
        let labels = column.labels.iter().filter(|_| is_compared);
        let mut labels: Vec<(u32, Box<str>)> =
            labels.map(|(oid, label)| (*oid, label.as_str().into())).collect();
        labels.sort_unstable();
        Known {
            attnum: column.attnum,
            name: column.name.as_str().into(),
            type_name: column.type_name.as_str().into(),
            kind: column.kind,
            labels: labels.into(),
            is_compared,
        }
    }

    fn is_in(&self, relation: &Relation) -> bool {
        let column = self.column(relation);
        column.is_some_and(|column| {
            column.name == self.name && column.type_name == self.type_name && self.compares(column)
        })
    }

    fn is_compared_in(&self, relation: &Relation) -> bool {
        self.column(relation).is_some_and(|column| self.compares(column))
    }

    fn column<'r>(&self, relation: &'r Relation) -> Option<&'r Column> {
        relation.columns.iter().find(|column| column.attnum == self.attnum)
    }

    /// Labels that are too many to be told are compared by their names.
    fn compares(&self, column: &Column) -> bool {
        let labels = || column.labels.iter().flat_map(|labels| labels.pairs());
        let known = || self.labels.iter().map(|(oid, label)| (*oid, &**label));
        column.kind == self.kind && (self.labels.is_empty() || labels().eq(known()))
    }
}

#[cfg(test)]
mod tests {
    use tide_feed::labels::Labels;

    use super::*;

    fn access() -> TableAccess {
        let column = |attnum, name: &str, kind, type_name: &str, labels: &[(u32, &str)]| {
            let labels = labels.iter().map(|(oid, label)| (*oid, (*label).to_owned())).collect();
            ColumnAccess {
                attnum,
                name: name.into(),
                type_name: type_name.into(),
                type_sql: type_name.into(),
                kind,
                readable: true,
                primary_key: false,
                labels,
            }
        };
        TableAccess {
            oid: 7,
            schema: "public".into(),
            table: "t".into(),
            row_security: None,
            columns: vec![
                column(1, "n", Kind::Int, "int4", &[]),
                column(2, "m", Kind::Enum, "mood", &[(9, "sad"), (8, "ok")]),
                column(3, "x", Kind::Text, "text", &[]),
            ],
        }
    }

    fn relation() -> Relation {
        let mut columns = [
            Column::new(1, "n", "int4", Kind::Int, true),
            Column::new(2, "m", "mood", Kind::Enum, false),
            Column::new(3, "x", "text", Kind::Text, false),
        ];
        columns[1].labels = labels(&[(9, "sad"), (8, "ok")]);
        Relation {
            oid: 7,
            schema: "public".into(),
            name: "t".into(),
            columns: columns.into(),
            identity_full: false,
        }
    }

    fn labels(pairs: &[(u32, &str)]) -> Box<[Arc<Labels>]> {
        let pairs = pairs.iter().map(|(oid, label)| (*oid, Box::from(*label))).collect();
        [Arc::new(Labels::new(pairs))].into()
    }

    #[test]
    fn what_a_binding_does_not_name_may_change() {
        let basis = Basis::of(&access(), &["n"], &[]);
        let mut now = relation();
        now.columns[1].kind = Kind::Text;
        now.columns[2].name = "y".into();

        assert!(basis.is_same(&now) && basis.is_comparable(&now));
        assert!(Basis::of(&access(), &["m"], &["x".into()]).is_same(&relation()));
    }

    #[test]
    fn each_thing_that_it_names_is_missed() {
        let changes: [fn(&mut Relation); 8] = [
            |now| now.name = "t_old".into(),
            |now| now.schema = "other".into(),
            |now| now.columns[0].name = "n_old".into(),
            |now| now.columns[0].attnum = 4,
            |now| now.columns[0].kind = Kind::Numeric,
            |now| now.columns[2].type_name = "varchar".into(),
            |now| now.columns[1].labels = labels(&[(9, "sad"), (8, "ok"), (10, "happy")]),
            |now| now.columns[1].labels = labels(&[(9, "ok"), (8, "sad")]),
        ];
        let basis = Basis::of(&access(), &["n", "m"], &["x".into()]);
        assert!(basis.is_same(&relation()));

        for (index, change) in changes.iter().enumerate() {
            let mut now = relation();
            change(&mut now);
            assert!(!basis.is_same(&now), "change {index}");
        }
    }

    #[test]
    fn a_filter_is_held_against_what_it_was_made_for() {
        let basis = Basis::of(&access(), &["n"], &["x".into()]);
        let mut renamed = relation();
        (renamed.name, renamed.columns[0].name) = ("t_old".into(), "n_old".into());
        renamed.columns[2].kind = Kind::Int;
        let mut altered = relation();
        altered.columns[0].kind = Kind::Numeric;

        assert!(basis.is_comparable(&renamed));
        assert!(!basis.is_comparable(&altered));
    }
}
