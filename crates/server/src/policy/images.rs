//! A row before and after a change, as far as the WAL has it.

use std::borrow::Cow;
use std::sync::Arc;

use tide_feed::event::{Batch, Change, Column, Datum, Kind, Operation, Relation, RowRef};
use tide_feed::labels::Labels;

/// The images that a policy is held against.
#[derive(Clone, Copy)]
pub struct Images<'a> {
    relation: &'a Relation,
    operation: Operation,
    old: Option<RowRef<'a>>,
    new: Option<RowRef<'a>>,
}

impl<'a> Images<'a> {
    pub fn of(batch: &'a Batch, change: &'a Change) -> Images<'a> {
        Images {
            relation: &change.relation,
            operation: change.operation,
            old: change.old.map(|row| batch.row(row)),
            new: change.new.map(|row| batch.row(row)),
        }
    }

    /// There is a row before the change.
    pub fn has_before(&self) -> bool {
        matches!(self.operation, Operation::Update | Operation::Delete)
    }

    /// There is a row after the change.
    pub fn has_after(&self) -> bool {
        matches!(self.operation, Operation::Insert | Operation::Update)
    }

    /// A column's value before the change: `Absent` if that is not known.
    pub fn before(&self, attnum: i16) -> Datum<'a> {
        let place = self.place(attnum);
        place.map_or(Datum::Absent, |(index, column)| self.before_at(index, column))
    }

    /// A column's value after the change: `Absent` if that is not known.
    pub fn after(&self, attnum: i16) -> Datum<'a> {
        self.place(attnum).map_or(Datum::Absent, |(index, _)| self.after_at(index))
    }

    /// A column's value before the change, in JSON that its [text](Images::text) can be taken
    /// from.
    /// `Absent` if that is not known.
    pub fn exact_before(&self, attnum: i16) -> Datum<'a> {
        self.exact(attnum, |index, column| self.before_at(index, column))
    }

    /// The same after the change.
    pub fn exact_after(&self, attnum: i16) -> Datum<'a> {
        self.exact(attnum, |index, _| self.after_at(index))
    }

    /// Of a column, the value there, or its text.
    fn before_at(&self, index: usize, column: &Column) -> Datum<'a> {
        match (self.old, self.new) {
            (Some(old), _) => known(old.get(index)),
            // An UPDATE leaves the old row out if the replica identity is what it was.
            (None, Some(new)) if column.identity && self.has_before() => known(new.get(index)),
            _ => Datum::Absent,
        }
    }

    fn after_at(&self, index: usize) -> Datum<'a> {
        match self.new.map(|new| new.get(index)) {
            Some(Datum::Unchanged) => known(self.old.map_or(Datum::Absent, |old| old.get(index))),
            Some(datum) => datum,
            None => Datum::Absent,
        }
    }

    fn exact(&self, attnum: i16, at: impl Fn(usize, &Column) -> Datum<'a>) -> Datum<'a> {
        let Some((index, column)) = self.place(attnum) else { return Datum::Absent };
        match known(at(index, column)) {
            Datum::Json(_) if column.lossy => known(at(self.relation.text_index(index), column)),
            value => value,
        }
    }

    /// The text that a column's type reads as the value; `None`: it cannot be had.
    pub fn text(&self, attnum: i16, exact: &'a [u8]) -> Option<Cow<'a, str>> {
        let (_, column) = self.place(attnum)?;
        // What jsonb is printed as is its text; so are numbers and booleans.
        let is_quoted = exact.first() == Some(&b'"') && (column.lossy || column.kind != Kind::Json);
        if is_quoted {
            return serde_json::from_slice(exact).ok().map(Cow::Owned);
        }
        std::str::from_utf8(exact).ok().map(Cow::Borrowed)
    }

    /// The texts of a row's key, after the change or before it; `None`: the image does not have all of it.
    pub fn key_texts(&self, key: &[i16], is_after: bool) -> Option<Vec<String>> {
        let text = |attnum: &i16| {
            let exact =
                if is_after { self.exact_after(*attnum) } else { self.exact_before(*attnum) };
            match exact {
                Datum::Json(json) => self.text(*attnum, json).map(Cow::into_owned),
                _ => None,
            }
        };
        key.iter().map(text).collect()
    }

    /// The same as an object of JSON.
    pub fn key_object(&self, key: &[i16], is_after: bool) -> Option<String> {
        let mut object = String::from("{");
        for attnum in key {
            let value = if is_after { self.after(*attnum) } else { self.before(*attnum) };
            let Datum::Json(json) = value else { return None };
            let (_, column) = self.place(*attnum)?;
            if object.len() > 1 {
                object.push(',');
            }
            object += &serde_json::to_string(&*column.name).ok()?;
            object.push(':');
            object += std::str::from_utf8(json).ok()?;
        }
        object.push('}');
        Some(object)
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> usize {
        let rows = [self.old, self.new].into_iter().flatten();
        let values = rows.flat_map(|row| (0..row.len()).map(move |index| row.get(index)));
        values.map(|value| if let Datum::Json(json) = value { json.len() } else { 0 }).sum()
    }

    /// A value as it is compared: what stands for a label is the same whatever it is called.
    pub(super) fn compared(&self, attnum: i16, datum: Datum<'a>) -> Datum<'a> {
        let Some(labels) = self.own_labels(attnum) else { return datum };
        let Datum::Json(json) = datum else { return datum };
        let key = serde_json::from_slice::<Cow<'_, str>>(json);
        let key = key.ok().and_then(|label| labels.json_key(&label));
        key.map_or(Datum::Absent, Datum::Json)
    }

    /// The oid of the label that a value of an enum is.
    pub fn label(&self, attnum: i16, json: &[u8]) -> Option<u32> {
        let label = serde_json::from_slice::<Cow<'_, str>>(json).ok()?;
        self.own_labels(attnum)?.oid(&label)
    }

    /// The labels that a column's values are printed with.
    pub fn labels(&self, attnum: i16) -> &'a [Arc<Labels>] {
        self.place(attnum).map_or(&[], |(_, column)| &column.labels)
    }

    /// Of a column that is an enum.
    fn own_labels(&self, attnum: i16) -> Option<&'a Labels> {
        let (_, column) = self.place(attnum)?;
        column.labels.first().filter(|_| column.kind == Kind::Enum).map(|labels| &**labels)
    }

    fn place(&self, attnum: i16) -> Option<(usize, &'a Column)> {
        let mut columns = self.relation.columns.iter().enumerate();
        columns.find(|(_, column)| column.attnum == attnum)
    }
}

fn known(datum: Datum<'_>) -> Datum<'_> {
    if datum == Datum::Unchanged { Datum::Absent } else { datum }
}

#[cfg(test)]
mod tests {
    use tide_feed::event::{BatchBuilder, Column};

    use super::*;

    fn relation() -> Arc<Relation> {
        let column = |attnum, kind, identity| {
            Column::new(attnum, &format!("c{attnum}"), "t", kind, identity)
        };
        Arc::new(Relation {
            oid: 1,
            schema: "public".into(),
            name: "t".into(),
            columns: [
                column(1, Kind::Int, true),
                column(3, Kind::Text, false),
                column(4, Kind::Json, false),
            ]
            .into(),
            identity_full: false,
        })
    }

    #[test]
    fn what_the_images_do_not_have_is_not_known() {
        let mut batch = BatchBuilder::default();
        let new = batch.row_of(&[Some("1"), Some("unchanged"), Some("null")]);
        let change = Change {
            relation: relation(),
            operation: Operation::Update,
            old: None,
            new: Some(new),
        };
        let batch = batch.finish();
        let images = Images::of(&batch, &change);

        assert_eq!(images.before(1), Datum::Json(b"1"), "the key is what it was");
        assert_eq!(images.before(3), Datum::Absent);
        assert_eq!(images.after(3), Datum::Absent);
        assert_eq!(
            images.exact_after(4),
            Datum::Json(b"null"),
            "a null of JSON's is none of SQL's"
        );
        assert_eq!(images.text(4, b"null").as_deref(), Some("null"));
        assert_eq!(images.exact_before(3), Datum::Absent);
        assert_eq!(images.after(2), Datum::Absent, "no such column");
    }

    #[test]
    fn a_value_that_json_does_not_say_all_of_has_its_own_text_or_is_not_known() {
        let mut table = Relation::clone(&relation());
        (table.columns[1].kind, table.columns[1].lossy) = (Kind::Other, true);
        let table = Arc::new(table);
        let exact = |with_text: bool| {
            let mut batch = BatchBuilder::default();
            let mut values = vec![Some("1"), Some("[7, 8]"), Some("\"x\"")];
            values.extend(with_text.then_some(Some(r#""[5:6]={7,8}""#)));
            let new = Some(batch.row_of(&values));
            let (relation, operation) = (Arc::clone(&table), Operation::Insert);
            let change = Change { relation, operation, old: None, new };
            let batch = batch.finish();
            let images = Images::of(&batch, &change);
            match images.exact_after(3) {
                Datum::Json(json) => images.text(3, json).map(Cow::into_owned),
                _ => None,
            }
        };

        assert_eq!(exact(true).as_deref(), Some("[5:6]={7,8}"));
        assert_eq!(exact(false), None);
    }

    #[test]
    fn an_unchanged_value_is_the_old_rows_where_that_has_it() {
        let mut batch = BatchBuilder::default();
        let old = batch.row_of(&[Some("1"), Some("\"x\""), None]);
        let new = batch.row_of(&[Some("2"), Some("unchanged"), Some("{}")]);
        let change = Change {
            relation: relation(),
            operation: Operation::Update,
            old: Some(old),
            new: Some(new),
        };
        let batch = batch.finish();
        let images = Images::of(&batch, &change);

        assert_eq!(images.before(1), Datum::Json(b"1"));
        assert_eq!(images.after(1), Datum::Json(b"2"));
        assert_eq!(images.after(3), Datum::Json(b"\"x\""));
        assert_eq!(images.before(4), Datum::Absent);
    }

    #[test]
    fn a_label_is_the_same_whatever_it_is_called() {
        let relation = |labels: &[(u32, &str)]| {
            let labels = labels.iter().map(|(oid, label)| (*oid, Box::from(*label)));
            let mut relation = Relation::clone(&relation());
            relation.columns[1].kind = Kind::Enum;
            relation.columns[1].labels = [Arc::new(Labels::new(labels.collect()))].into();
            Arc::new(relation)
        };
        let mut batch = BatchBuilder::default();
        let new = batch.row_of(&[Some("1"), Some("\"a\""), None]);
        let compared = |relation| {
            let change =
                Change { relation, operation: Operation::Insert, old: None, new: Some(new) };
            let batch = batch.finish();
            let images = Images::of(&batch, &change);
            match images.compared(3, images.after(3)) {
                Datum::Json(json) => Some(json.to_vec()),
                _ => None,
            }
        };

        let first = compared(relation(&[(7, "a"), (8, "b")]));
        assert!(first.is_some());
        assert_eq!(first, compared(relation(&[(7, "a"), (8, "c")])));
        assert_ne!(first, compared(relation(&[(7, "b"), (8, "a")])));
        assert_eq!(compared(relation(&[(7, "b")])), None, "not known");
    }

    #[test]
    fn an_inserted_row_was_not_there_before() {
        let mut batch = BatchBuilder::default();
        let new = batch.row_of(&[Some("1"), Some("\"x\""), Some("{}")]);
        let change = Change {
            relation: relation(),
            operation: Operation::Insert,
            old: None,
            new: Some(new),
        };
        let batch = batch.finish();
        let images = Images::of(&batch, &change);

        assert!(!images.has_before() && images.has_after());
        assert_eq!(images.before(1), Datum::Absent);
    }

    #[test]
    fn what_stands_for_a_label_is_no_text() {
        let labels = tide_feed::labels::Labels::new(vec![(16_384, "16384".into())]);
        let json = labels.json_key("16384").unwrap();
        let read = crate::filter::index_key(Kind::Enum, json).unwrap();

        assert_eq!(*read, *tide_feed::labels::key(16_384));
        assert!(tide_feed::labels::is_key(&read) && !tide_feed::labels::is_key(b"16384"));
    }
}
