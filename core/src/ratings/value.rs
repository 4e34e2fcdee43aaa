//! Numbers and times in text.

/// Powers of ten that are exact in f64.
const TENS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

/// A finite number.
#[inline]
pub(super) fn number(text: &[u8]) -> Option<f64> {
    // Up to fifteen digits are an exact integer, which one exact division rounds correctly.
    let (mut sum, mut digits, mut decimals) = (0_u64, 0_usize, None);
    for byte in text {
        match byte {
            b'0'..=b'9' => {
                sum = sum * 10 + u64::from(byte - b'0');
                digits += 1;
                decimals = decimals.map(|d: usize| d + 1);
            }
            b'.' if decimals.is_none() => decimals = Some(0),
            _ => return slow(text),
        }
        if digits > 15 {
            return slow(text);
        }
    }
    if digits == 0 {
        return None;
    }
    Some(sum as f64 / TENS[decimals.unwrap_or(0)])
}

#[cold]
fn slow(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text).ok()?.parse().ok().filter(|number: &f64| number.is_finite())
}

/// A time: an integer as it is, or a date (and time of day) as Unix seconds, UTC unless it says otherwise.
pub(super) fn time(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    if let Ok(integer) = text.parse() {
        return Some(integer);
    }
    date(text.as_bytes()).or_else(|| number(text.as_bytes()).map(|seconds| seconds.floor() as i64))
}

/// `YYYY-MM-DD`, then perhaps a `T` or a blank and `HH:MM`, `HH:MM:SS` or `HH:MM:SS.fff`, then
/// perhaps `Z` or an offset such as `+02:00`.
fn date(text: &[u8]) -> Option<i64> {
    let digits = |from: usize, to: usize| -> Option<i64> {
        text.get(from..to)?.iter().try_fold(0, |sum, byte| {
            let digit = byte.wrapping_sub(b'0');
            (digit < 10).then(|| sum * 10 + i64::from(digit))
        })
    };
    let is = |at: usize, wanted: &[u8]| text.get(at).is_some_and(|byte| wanted.contains(byte));
    let (year, month, day) = (digits(0, 4)?, digits(5, 7)?, digits(8, 10)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(is(4, b"-") && is(7, b"-") && (1..=length).contains(&day)) {
        return None;
    }
    // Days since 1970-01-01, counting years from March so that the leap day comes last (Hinnant,
    // "chrono-compatible low-level date algorithms").
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day - 719_469;
    let mut seconds = days * 86_400;
    if text.len() == 10 {
        return Some(seconds);
    }
    let clock = |hours: i64, minutes: i64| (hours < 24 && minutes < 60).then_some(hours * 3600 + minutes * 60);
    if !(is(10, b" T") && is(13, b":")) {
        return None;
    }
    seconds += clock(digits(11, 13)?, digits(14, 16)?)?;
    let mut at = 16;
    if is(at, b":") {
        seconds += digits(17, 19).filter(|&s| s <= 60)?;
        at = 19;
        if is(at, b".") {
            at += 1;
            while is(at, b"0123456789") {
                at += 1;
            }
        }
    }
    if is(at, b"Z") {
        at += 1;
    } else if is(at, b"+-") {
        let offset = clock(digits(at + 1, at + 3)?, digits(at + 4, at + 6).filter(|_| is(at + 3, b":"))?)?;
        seconds += if text[at] == b'+' { -offset } else { offset };
        at += 6;
    }
    (at == text.len()).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_times() {
        for (text, seconds) in [
            ("1112486027", 1_112_486_027),
            ("2005-04-02 23:53:47", 1_112_486_027),
            ("2005-04-02T23:53:47.25Z", 1_112_486_027),
            ("2005-04-03T01:53:47+02:00", 1_112_486_027),
            ("2005-04-02 23:53", 1_112_485_980),
            ("1970-01-01", 0),
            ("2000-02-29", 951_782_400),
            ("1969-12-31", -86_400),
            ("1506826828020", 1_506_826_828_020),
            ("978300760.0", 978_300_760),
        ] {
            assert_eq!(time(text.as_bytes()), Some(seconds), "{text}");
        }
        for text in ["", "yesterday", "2005-13-01", "2001-02-29", "2005-04-02 25:00", "2005-04-02x", "12/1/2010 8:26"] {
            assert_eq!(time(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_number_is_what_the_standard_library_reads(n in -1e15..1e15_f64, digits in 0..12_usize) {
            let text = format!("{n:.digits$}");
            prop_assert_eq!(number(text.as_bytes()), Some(text.parse::<f64>().unwrap()));
        }

        #[test]
        fn any_bytes_are_a_number_or_not(bytes in prop::collection::vec(any::<u8>(), 0..24)) {
            number(&bytes);
            time(&bytes);
        }

        #[test]
        fn any_text_of_digits_and_signs_is_a_number_or_not(text in "[0-9+:TZ. -]{0,28}|NaN|inf|-?[0-9.]{0,20}e?[0-9]{0,4}") {
            number(text.as_bytes());
            time(text.as_bytes());
        }
    }
}
