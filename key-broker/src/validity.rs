//! From when and until when a rule counts: `valid_from` and `valid_until`, a day (from its beginning, until its end, in UTC) or a moment
//! with its offset, as TOML writes them.

use serde::Deserialize;
use toml::value::{Date, Datetime, Offset};

/// The two keys of a rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Validity {
    /// Seconds since 1970.
    from: Option<i64>,
    /// Seconds since 1970; then no longer.
    until: Option<i64>,
}

/// As they are written.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(crate) struct Written {
    pub(crate) valid_from: Option<Datetime>,
    pub(crate) valid_until: Option<Datetime>,
}

impl Validity {
    /// Reads both; an error names the key.
    pub(crate) fn read(written: Written) -> Result<Self, String> {
        let read =
            |key: &str, value: Option<Datetime>, end: bool| value.map(|v| seconds(v, end).map_err(|e| format!("{key}: {e}"))).transpose();
        let validity =
            Self { from: read("valid_from", written.valid_from, false)?, until: read("valid_until", written.valid_until, true)? };
        match (validity.from, validity.until) {
            (Some(from), Some(until)) if from >= until => Err("valid_until: not after valid_from".into()),
            _ => Ok(validity),
        }
    }

    /// Whether `now` (seconds since 1970) lies in it; else why not.
    pub(crate) fn covers(self, now: u64) -> Result<(), String> {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        if self.from.is_some_and(|from| now < from) {
            return Err("the release rule is not yet valid; wait, or change its valid_from".into());
        }
        if self.until.is_some_and(|until| now >= until) {
            return Err("the release rule is no longer valid; store one with a later valid_until".into());
        }
        Ok(())
    }
}

fn seconds(value: Datetime, end: bool) -> Result<i64, String> {
    let form = "expected a day (2027-01-31) or a moment with its offset (2027-01-31T12:00:00Z)";
    let date = value.date.ok_or(form)?;
    let midnight = days(date) * 86_400;
    match (value.time, value.offset) {
        (None, None) => Ok(midnight + if end { 86_400 } else { 0 }),
        (Some(time), Some(offset)) => {
            let minutes = match offset {
                Offset::Z => 0,
                Offset::Custom { minutes } => i64::from(minutes),
            };
            Ok(midnight + i64::from(time.hour) * 3600 + (i64::from(time.minute) - minutes) * 60 + i64::from(time.second))
        }
        // A local time would be the time of whoever reads it.
        _ => Err(form.into()),
    }
}

/// Days since 1970-01-01 in the Gregorian calendar, counted in years that begin with March, so that the leap day is the last.
fn days(date: Date) -> i64 {
    let (month, day) = (i64::from(date.month), i64::from(date.day));
    let year = i64::from(date.year) - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validity(text: &str) -> Result<Validity, String> {
        Validity::read(toml::from_str(text).map_err(|e| e.to_string())?)
    }

    #[test]
    fn a_day_counts_from_its_beginning_and_until_its_end() {
        let validity = validity("valid_from = 2027-01-01\nvalid_until = 2027-01-31\n").unwrap();
        // date -u -d 2027-01-01 +%s
        let first = 1_798_761_600;
        assert!(validity.covers(first - 1).unwrap_err().contains("not yet"));
        assert_eq!(validity.covers(first), Ok(()));
        assert_eq!(validity.covers(first + 31 * 86_400 - 1), Ok(()));
        assert!(validity.covers(first + 31 * 86_400).unwrap_err().contains("no longer"));
        assert_eq!(Validity::default().covers(u64::MAX), Ok(()));
    }

    #[test]
    fn moments_have_their_offset() {
        let at = |text: &str| validity(&format!("valid_until = {text}\n")).map(|v| v.until.unwrap());
        assert_eq!(at("2000-02-29T12:00:00Z"), Ok(951_825_600));
        assert_eq!(at("2000-02-29T14:00:00+02:00"), Ok(951_825_600));
        assert_eq!(at("1970-01-01T00:00:00Z"), Ok(0));
        for bad in ["2000-01-01T12:00:00", "12:00:00"] {
            assert!(at(bad).unwrap_err().contains("valid_until: expected a day"), "{bad}");
        }
        assert!(validity("valid_from = 2027-01-02\nvalid_until = 2027-01-01\n").unwrap_err().contains("not after"));
    }
}
