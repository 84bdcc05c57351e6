//! Dates as images write them: RFC 3339 in, and the calendar that labels show.

/// Seconds of a day.
const DAY: i64 = 86_400;

/// A second, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    /// The Gregorian calendar's, also before it was used.
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
    /// 0 is Sunday.
    pub weekday: u8,
}

impl Date {
    /// The date `seconds` after 1970 began.
    pub fn from_seconds(seconds: i64) -> Self {
        let days = seconds.div_euclid(DAY);
        let rest = seconds.rem_euclid(DAY);
        // Years that begin in March end with the leap day; 400 of them have 146,097 days
        // (Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days).
        let from_march_0000 = days + 719_468;
        let (era, day_of_era) = (
            from_march_0000.div_euclid(146_097),
            from_march_0000.rem_euclid(146_097),
        );
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let months = (5 * day_of_year + 2) / 153;
        let month = if months < 10 { months + 3 } else { months - 9 };
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * months + 2) / 5 + 1) as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
            weekday: (days + 4).rem_euclid(7) as u8,
        }
    }

    /// As `org.label-schema.build-date` shows it: `Sunday_22_November_2026_6:44:30_UTC`.
    pub fn label(&self) -> String {
        const WEEKDAYS: [&str; 7] = [
            "Sunday",
            "Monday",
            "Tuesday",
            "Wednesday",
            "Thursday",
            "Friday",
            "Saturday",
        ];
        const MONTHS: [&str; 12] = [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ];
        format!(
            "{}_{}_{}_{}_{}:{}:{}_UTC",
            WEEKDAYS[usize::from(self.weekday)],
            self.day,
            MONTHS[usize::from(self.month - 1)],
            self.year,
            self.hour,
            self.minute,
            self.second
        )
    }
}

/// Seconds since 1970 of a date as RFC 3339 writes it; fractions are cut off.
pub fn seconds(rfc3339: &str) -> Option<i64> {
    let number = |from: usize, len: usize| -> Option<i64> {
        let digits = rfc3339.get(from..from + len)?;
        digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| digits.parse().ok())?
    };
    let separated = |at: usize, by: &[u8]| by.contains(rfc3339.as_bytes().get(at)?).then_some(());
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    for (at, by) in [(4, "-"), (7, "-"), (10, "Tt "), (13, ":"), (16, ":")] {
        separated(at, by.as_bytes())?;
    }
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let rest = rfc3339.get(19..)?;
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|digit: char| digit.is_ascii_digit()),
        None => rest,
    };
    let ahead = match zone.as_bytes() {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let minutes =
                zone.get(1..3)?.parse::<i64>().ok()? * 60 + zone.get(4..6)?.parse::<i64>().ok()?;
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let day_of_era = year.rem_euclid(400) * 365 + year.rem_euclid(400) / 4
        - year.rem_euclid(400) / 100
        + (153 * month + 2) / 5
        + day
        - 1;
    let days = year.div_euclid(400) * 146_097 + day_of_era - 719_468;
    Some(days * DAY + hour * 3600 + minute * 60 + second - ahead * 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_date_command() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("2026-11-22T06:44:30.123456789Z", 1_795_329_870),
            ("2026-11-22T07:44:30+01:00", 1_795_329_870),
            ("1969-12-31T23:59:59-00:00", -1),
            ("0001-01-01T00:00:00Z", -62_135_596_800),
        ] {
            assert_eq!(seconds(text), Some(expected), "{text}");
            let date = Date::from_seconds(expected);
            let again = format!(
                "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
                date.year, date.month, date.day, date.hour, date.minute, date.second
            );
            assert_eq!(seconds(&again), Some(expected), "{again}");
        }
    }

    #[test]
    fn anything_else_is_no_date() {
        for text in [
            "",
            "yesterday",
            "2026-11-22",
            "2026-13-22T06:44:30Z",
            "2026-11-22T06:44:30",
            "2026-11-22T06:44:30.5",
            "2026-11-22T06:44:30+1:00x",
            "+026-11-22T06:44:30Z",
            "2026-11-22T06:44:30éZ",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    #[test]
    fn a_label_shows_the_weekday() {
        let date = Date::from_seconds(1_795_329_870);
        assert_eq!(date.label(), "Sunday_22_November_2026_6:44:30_UTC");
    }
}
