//! Dates and timestamps: ISO 8601, in UTC.

const DAYS_1970_TO_2000: i64 = 10_957;
const MICROS_PER_DAY: i64 = 86_400_000_000;
/// From 1970, where Unix begins to count, to 2000, where Postgres does, in microseconds.
pub const MICROS_1970_TO_2000: i64 = DAYS_1970_TO_2000 * MICROS_PER_DAY;

/// Writes a `date`: days since 2000-01-01, the extremes of `i32` being the infinities.
pub fn date(out: &mut Vec<u8>, days: i32) {
    match days {
        i32::MIN => out.extend_from_slice(b"\"-infinity\""),
        i32::MAX => out.extend_from_slice(b"\"infinity\""),
        _ => {
            out.push(b'"');
            let bc = day(out, i64::from(days));
            out.extend_from_slice(if bc { b" BC\"" } else { b"\"" });
        }
    }
}

/// Writes a `timestamp`, or with `zone` a `timestamptz`: microseconds since 2000-01-01, the
/// extremes of `i64` being the infinities.
pub fn timestamp(out: &mut Vec<u8>, micros: i64, zone: bool) {
    match micros {
        i64::MIN => return out.extend_from_slice(b"\"-infinity\""),
        i64::MAX => return out.extend_from_slice(b"\"infinity\""),
        _ => out.push(b'"'),
    }
    let bc = day(out, micros.div_euclid(MICROS_PER_DAY));
    let micros = micros.rem_euclid(MICROS_PER_DAY);
    let seconds = micros / 1_000_000;
    out.push(b'T');
    two_digits(out, seconds / 3600);
    out.push(b':');
    two_digits(out, seconds / 60 % 60);
    out.push(b':');
    two_digits(out, seconds % 60);
    let fraction = micros % 1_000_000;
    if fraction != 0 {
        out.push(b'.');
        padded(out, fraction, 6);
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
    if zone {
        out.extend_from_slice(b"+00:00");
    }
    out.extend_from_slice(if bc { b" BC\"" } else { b"\"" });
}

/// Writes year, month and day; returns whether that is before Christ.
fn day(out: &mut Vec<u8>, days_since_2000: i64) -> bool {
    let (year, month, day) = civil(days_since_2000 + DAYS_1970_TO_2000);
    // There is no year 0: 1 BC comes before AD 1.
    let shown = if year > 0 { year } else { 1 - year };
    if shown < 10_000 {
        two_digits(out, shown / 100);
        two_digits(out, shown % 100);
    } else {
        padded(out, shown, 4);
    }
    out.push(b'-');
    two_digits(out, month);
    out.push(b'-');
    two_digits(out, day);
    year <= 0
}

/// Year, month and day of a count of days since 1970-01-01 in the proleptic Gregorian calendar.
/// Counts in eras of 400 years that begin on the first of March, so that leap days come last.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Writes a number from 0 to 99.
fn two_digits(out: &mut Vec<u8>, number: i64) {
    let digit = |number: i64| b'0' + (number % 10) as u8;
    out.extend_from_slice(&[digit(number / 10), digit(number)]);
}

/// Writes a number that is not negative with at least `width` digits.
fn padded(out: &mut Vec<u8>, number: i64, width: usize) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(number).as_bytes();
    out.extend(std::iter::repeat_n(b'0', width.saturating_sub(digits.len())));
    out.extend_from_slice(digits);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn dates_print_as_iso() {
        for (days, expected) in [
            (0, "2000-01-01"),
            (59, "2000-02-29"),
            (-1, "1999-12-31"),
            (9_819, "2026-11-19"),
            (-730_119, "0001-01-01"),
            (-730_120, "0001-12-31 BC"),
            (-2_451_545, "4714-11-24 BC"),
            (2_145_031_948, "5874897-12-31"),
            (i32::MIN, "-infinity"),
            (i32::MAX, "infinity"),
        ] {
            assert_eq!(printed(|out| date(out, days)), format!("\"{expected}\""), "{days}");
        }
    }

    #[test]
    fn timestamps_print_as_iso_without_trailing_zeros() {
        for (micros, zone, expected) in [
            (0, false, "2000-01-01T00:00:00"),
            (0, true, "2000-01-01T00:00:00+00:00"),
            (-1, false, "1999-12-31T23:59:59.999999"),
            (45_296_120_000, false, "2000-01-01T12:34:56.12"),
            (-730_120 * MICROS_PER_DAY, true, "0001-12-31T00:00:00+00:00 BC"),
            (i64::MIN, true, "-infinity"),
            (i64::MAX, false, "infinity"),
        ] {
            assert_eq!(
                printed(|out| timestamp(out, micros, zone)),
                format!("\"{expected}\""),
                "{micros}"
            );
        }
    }
}
