//! The labels of an enum, as of the change that is being decoded.

use pgrx::pg_sys;
use tide_feed::labels::Labels;

use crate::encoding::Encoding;

const LOCK: pg_sys::LOCKMODE = pg_sys::AccessShareLock as pg_sys::LOCKMODE;

/// # Safety
/// Under a historic snapshot. Takes memory from the current context.
pub(super) unsafe fn of(type_id: pg_sys::Oid) -> std::sync::Arc<Labels> {
    let mut pairs = Vec::new();
    let encoding = Encoding::of_database();
    // SAFETY: as above. A scan by `systable_` functions is what a historic snapshot allows; a row is
    // valid until the next one is asked for.
    unsafe {
        let relation = pg_sys::table_open(pg_sys::EnumRelationId, LOCK);
        let mut key = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyInit(
            &raw mut key,
            pg_sys::Anum_pg_enum_enumtypid as pg_sys::AttrNumber,
            pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
            pg_sys::F_OIDEQ.into(),
            pg_sys::Datum::from(type_id),
        );
        let (index, snapshot) = (pg_sys::EnumTypIdLabelIndexId.into(), std::ptr::null_mut());
        let scan = pg_sys::systable_beginscan(relation, index, true, snapshot, 1, &raw mut key);
        loop {
            let row = pg_sys::systable_getnext(scan);
            if row.is_null() {
                break;
            }
            let data = (*row).t_data.cast::<u8>().add(usize::from((*(*row).t_data).t_hoff));
            let form = data.cast::<pg_sys::FormData_pg_enum>();
            let label = encoding.owned((*form).enumlabel.data.as_ptr());
            pairs.push(((*form).oid.to_u32(), label));
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, LOCK);
    }
    Labels::new(pairs).into()
}
