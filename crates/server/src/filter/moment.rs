//! Dates and timestamps in the ISO form that `to_jsonb` prints, as numbers that compare.

/// Infinity is later than everything, as in Postgres.
const INFINITY: i64 = i64::MAX;
const NEGATIVE_INFINITY: i64 = i64::MIN;
const MICROS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// A date: days since 2000-01-01.
pub(super) fn date(text: &[u8]) -> Option<i64> {
    if let Some(infinite) = infinite(text) {
        return Some(infinite);
    }
    let mut reader = Reader { rest: text };
    let before_christ = reader.cut_era();
    let days = reader.date(before_christ)?;
    reader.rest.is_empty().then_some(days)
}

/// A timestamp, with or without a time zone's offset: microseconds since 2000-01-01, in UTC if
/// there is an offset. Postgres' own range fits when counted from that day.
pub(super) fn timestamp(text: &[u8]) -> Option<i64> {
    if let Some(infinite) = infinite(text) {
        return Some(infinite);
    }
    let mut reader = Reader { rest: text };
    let before_christ = reader.cut_era();
    let days = reader.date(before_christ)?;
    if !reader.eat(b'T') && !reader.eat(b' ') {
        return None;
    }
    let (seconds, micros) = reader.time()?;
    let offset = reader.offset()?;
    let seconds = days.checked_mul(SECONDS_PER_DAY)?.checked_add(seconds - offset)?;
    let moment = seconds.checked_mul(MICROS_PER_SECOND)?.checked_add(micros)?;
    reader.rest.is_empty().then_some(moment)
}

fn infinite(text: &[u8]) -> Option<i64> {
    match text {
        b"infinity" => Some(INFINITY),
        b"-infinity" => Some(NEGATIVE_INFINITY),
        _ => None,
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn eat(&mut self, byte: u8) -> bool {
        match self.rest.split_first() {
            Some((first, rest)) if *first == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// Takes ` BC` from the end.
    fn cut_era(&mut self) -> bool {
        match self.rest.strip_suffix(b" BC") {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// A number of `min` to `max` digits.
    fn number(&mut self, min: usize, max: usize) -> Option<i64> {
        let digits = self.rest.iter().take(max).take_while(|b| b.is_ascii_digit()).count();
        if digits < min {
            return None;
        }
        let (number, rest) = self.rest.split_at_checked(digits)?;
        self.rest = rest;
        Some(number.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0')))
    }

    fn number_up_to(&mut self, limit: i64) -> Option<i64> {
        self.number(2, 2).filter(|number| *number <= limit)
    }

    fn date(&mut self, before_christ: bool) -> Option<i64> {
        let year = self.number(4, 7).filter(|year| *year > 0)?;
        // There is no year 0: 1 BC is followed by 1.
        let year = if before_christ { 1 - year } else { year };
        let month = self.eat(b'-').then(|| self.number_up_to(12))??;
        let day = self.eat(b'-').then(|| self.number_up_to(31))??;
        (month > 0 && day > 0 && day <= days_of_month(year, month))
            .then(|| days_since_2000(year, month, day))
    }

    /// `hh:mm:ss[.ffffff]` as seconds and microseconds.
    fn time(&mut self) -> Option<(i64, i64)> {
        let hours = self.number_up_to(24)?;
        let minutes = self.eat(b':').then(|| self.number_up_to(59))??;
        let seconds = self.eat(b':').then(|| self.number_up_to(60))??;
        let micros = if self.eat(b'.') {
            let before = self.rest.len();
            let fraction = self.number(1, 6)?;
            let digits = u32::try_from(before - self.rest.len()).ok()?;
            fraction * 10_i64.pow(6 - digits.min(6))
        } else {
            0
        };
        Some((hours * 3600 + minutes * 60 + seconds, micros))
    }

    /// `+hh[:mm[:ss]]`, `Z`, or nothing, in seconds east of Greenwich.
    fn offset(&mut self) -> Option<i64> {
        let east = if self.eat(b'+') {
            1
        } else if self.eat(b'-') {
            -1
        } else {
            self.eat(b'Z');
            return Some(0);
        };
        let mut seconds = self.number_up_to(24)? * 3600;
        for unit in [60, 1] {
            if !self.eat(b':') {
                break;
            }
            seconds += self.number_up_to(59)? * unit;
        }
        Some(east * seconds)
    }
}

fn days_of_month(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days in the Gregorian calendar, continued backwards without end. Years begin in March, so that
/// the leap day is a year's last.
fn days_since_2000(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 730_426
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_ordered_as_time_is() {
        let dates = [
            "-infinity",
            "4714-11-24 BC",
            "0044-03-15 BC",
            "0001-12-31 BC",
            "0001-01-01",
            "1999-12-31",
            "2000-01-01",
            "2000-02-29",
            "2000-03-01",
            "9999-12-31",
            "10000-01-01",
            "5874897-12-31",
            "infinity",
        ];
        let numbers: Vec<i64> =
            dates.iter().map(|text| date(text.as_bytes()).expect(text)).collect();

        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        assert_eq!(date(b"2000-01-01"), Some(0));
        assert_eq!(date(b"1970-01-01"), Some(-10_957));
        assert_eq!(date(b"0001-12-31 BC").map(|day| day + 1), date(b"0001-01-01"));
    }

    #[test]
    fn every_day_follows_the_day_before() {
        let mut expected = date(b"1896-01-01").expect("a date");
        for year in 1896..2108 {
            for month in 1..=12 {
                for day in 1..=days_of_month(year, month) {
                    let text = format!("{year}-{month:02}-{day:02}");
                    assert_eq!(date(text.as_bytes()), Some(expected), "{text}");
                    expected += 1;
                }
            }
        }
    }

    #[test]
    fn timestamps_are_ordered_as_time_is() {
        let moments = [
            "-infinity",
            "4714-11-24T00:00:00+00:00 BC",
            "0044-03-15T12:00:00.5 BC",
            "1969-12-31T23:59:59.999999",
            "1970-01-01T00:00:00",
            "2025-11-03T09:32:55+00:00",
            "2025-11-03T09:32:55.000001+00:00",
            "2025-11-03T09:32:55.1",
            "2025-11-03T09:32:55.12",
            "2025-11-03T10:00:00",
            "10000-01-01T00:00:00",
            "294276-12-31T23:59:59.999999",
            "infinity",
        ];
        let numbers: Vec<i64> =
            moments.iter().map(|text| timestamp(text.as_bytes()).expect(text)).collect();

        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    }

    #[test]
    fn one_moment_may_be_written_in_several_ways() {
        let moment = timestamp(b"2025-11-03T09:32:55.5+00:00");

        for text in [
            "2025-11-03T09:32:55.500",
            "2025-11-03 09:32:55.500000Z",
            "2025-11-03T11:02:55.5+01:30",
            "2025-11-03T04:32:55.5-05",
            "2025-11-03T09:33:25.5+00:00:30",
        ] {
            assert_eq!(timestamp(text.as_bytes()), moment, "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_none() {
        for text in [
            "",
            "now",
            "2025",
            "2025-11-03",
            "2025-11-03T",
            "2025-11-03T09:32",
            "2025-11-03T09:32:55.",
            "2025-11-03T09:32:55.1234567",
            "2025-11-03T09:32:55+",
            "2025-11-03T09:32:55 AD",
            "2025-02-29T00:00:00",
            "2025-13-01T00:00:00",
            "2025-00-01T00:00:00",
            "0000-01-01T00:00:00",
            "9999999-01-01T00:00:00",
            "99999999-01-01T00:00:00",
        ] {
            assert_eq!(timestamp(text.as_bytes()), None, "{text}");
        }
        for text in ["", "2025-11-03T00:00:00", "2025-11-31", "25-11-03", "2025-11-03 AD"] {
            assert_eq!(date(text.as_bytes()), None, "{text}");
        }
    }
}
