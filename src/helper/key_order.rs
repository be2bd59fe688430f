//! The order of a key, as the index behind it has it.

use pgrx::{PgSqlErrorCode, pg_sys};

use crate::encoding;
use crate::helper::table::Column;
use crate::helper::transaction::Refusal;

/// The operators that a type is ordered by, as SQL has to write them.
struct Order {
    equal: String,
    greater: String,
    /// They are found by their names alone, as those of a row are.
    is_plain: bool,
}

impl Order {
    fn of(type_id: pg_sys::Oid) -> Result<Order, Refusal> {
        let wanted = pg_sys::TYPECACHE_EQ_OPR | pg_sys::TYPECACHE_GT_OPR;
        // SAFETY: a catalogue look-up in a transaction.
        let (equal, greater) = unsafe {
            let entry = pg_sys::lookup_type_cache(type_id, wanted as i32);
            ((*entry).eq_opr, (*entry).gt_opr)
        };
        if equal == pg_sys::InvalidOid || greater == pg_sys::InvalidOid {
            let code = PgSqlErrorCode::ERRCODE_UNDEFINED_FUNCTION;
            return Err(Refusal::new(code, "the key is of a type that has no order"));
        }
        let plain = |name: &str| format!("operator(pg_catalog.{name})");
        let (equal, greater) = (operator_sql(equal)?, operator_sql(greater)?);
        let is_plain = equal == plain("=") && greater == plain(">");
        Ok(Order { equal, greater, is_plain })
    }
}

/// The condition that a row's key is another.
pub(crate) fn same(
    keys: &[String],
    values: &[String],
    columns: &[&Column],
) -> Result<String, Refusal> {
    let mut conditions = Vec::new();
    for ((key, value), column) in keys.iter().zip(values).zip(columns) {
        conditions.push(format!("{key} {} {value}", Order::of(column.type_id)?.equal));
    }
    Ok(conditions.join(" and "))
}

/// The condition that a row's key is greater than another.
pub(crate) fn beyond(
    keys: &[String],
    values: &[String],
    columns: &[Column],
) -> Result<String, Refusal> {
    let orders = columns.iter().map(|column| Order::of(column.type_id));
    let orders = orders.collect::<Result<Vec<Order>, Refusal>>()?;
    if orders.iter().all(|order| order.is_plain) {
        let (keys, values) = (keys.join(", "), values.join(", "));
        return Ok(format!("({keys}) operator(pg_catalog.>) ({values})"));
    }
    let mut condition = String::from("false");
    for ((key, value), order) in keys.iter().zip(values).zip(&orders).rev() {
        let Order { equal, greater, .. } = order;
        condition = format!("({key} {greater} {value} or {key} {equal} {value} and {condition})");
    }
    Ok(condition)
}

fn operator_sql(operator: pg_sys::Oid) -> Result<String, Refusal> {
    // SAFETY: a catalogue look-up in a transaction; the texts are copied.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::OPEROID as i32;
        let row = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(operator));
        if row.is_null() {
            return Err(Refusal::internal("the operator is gone"));
        }
        let form = &*pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_operator>(row);
        let schema = pg_sys::quote_identifier(pg_sys::get_namespace_name(form.oprnamespace));
        let encoding = encoding::Encoding::of_database();
        let (schema, name) = (encoding.owned(schema), encoding.owned(form.oprname.data.as_ptr()));
        pg_sys::ReleaseSysCache(row);
        Ok(format!("operator({schema}.{name})"))
    }
}
