//! Times of commits as Supabase writes them.

/// Appends microseconds since the Unix epoch as `2025-11-19T00:22:40.877Z`.
pub(super) fn write(out: &mut Vec<u8>, micros: i64) {
    const DAY: i64 = 86_400_000;
    let millis = micros.div_euclid(1000);
    let (year, month, day) = civil(millis.div_euclid(DAY));
    let time = millis.rem_euclid(DAY);
    let (second, minute, hour) = (time / 1000 % 60, time / 60_000 % 60, time / 3_600_000);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    // Postgres writes years past 9999 with more digits; no commit is from there.
    digits(&mut text, 0..4, year.clamp(0, 9999));
    digits(&mut text, 5..7, month);
    digits(&mut text, 8..10, day);
    digits(&mut text, 11..13, hour);
    digits(&mut text, 14..16, minute);
    digits(&mut text, 17..19, second);
    digits(&mut text, 20..23, time % 1000);
    out.extend_from_slice(&text);
}

fn digits(text: &mut [u8], place: std::ops::Range<usize>, number: i64) {
    let mut rest = number;
    for digit in text.get_mut(place).unwrap_or_default().iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
/// Years are counted from March, so that the leap day is the last of its year, and in cycles of
/// 400 years, which all have 146,097 days.
fn civil(days_since_epoch: i64) -> (i64, i64, i64) {
    /// From 0000-03-01 to 1970-01-01.
    const EPOCH: i64 = 719_468;
    const CYCLE: i64 = 146_097;
    let days = days_since_epoch + EPOCH;
    let day_of_cycle = days.rem_euclid(CYCLE);
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524
        - day_of_cycle / (CYCLE - 1))
        / 365;
    let day_of_year =
        day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    // Months from March on have 31, 30, 31, 30, 31 days, twice and a bit: 153 days in five.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = days.div_euclid(CYCLE) * 400 + year_of_cycle + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(micros: i64) -> String {
        let mut out = Vec::new();
        write(&mut out, micros);
        String::from_utf8(out).expect("digits")
    }

    #[test]
    fn times_are_cut_to_milliseconds() {
        assert_eq!(written(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(written(1_763_511_760_877_999), "2025-11-19T00:22:40.877Z");
        assert_eq!(written(-1), "1969-12-31T23:59:59.999Z");
    }

    #[test]
    fn any_number_of_microseconds_has_a_text() {
        for micros in [i64::MIN, i64::MAX, -62_167_219_200_000_001] {
            assert_eq!(written(micros).len(), 24);
        }
    }

    #[test]
    fn calendar_goes_day_by_day_through_a_whole_cycle() {
        let length = |year: i64, month: i64| match month {
            2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let mut expected = (1970, 1, 1);
        for day in 0..146_097 + 366 {
            assert_eq!(civil(day), expected);
            let (year, month, day) = expected;
            expected = match (month, day == length(year, month)) {
                (_, false) => (year, month, day + 1),
                (12, true) => (year + 1, 1, 1),
                (_, true) => (year, month + 1, 1),
            };
        }
    }
}
