//! Sizes in bytes as text with a binary unit.

/// Parses a whole number and a binary unit: `512KiB`, `100MiB`, `2GiB` or `1000B`. `None` for any other text.
pub fn parse(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim_start() {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// The size that a text with a decimal or abbreviated unit probably means: `10MiB` for `10 MB`, `10mb` and `10M`.
pub fn suggest(text: &str) -> Option<String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "k" | "kb" | "kib" => "KiB",
        "m" | "mb" | "mib" => "MiB",
        "g" | "gb" | "gib" => "GiB",
        "b" | "bytes" => "B",
        _ => return None,
    };
    let size = format!("{number}{unit}");
    parse(&size).map(|_| size)
}

/// Formats a size in the largest unit that gives a whole number.
pub fn format(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = |(shift, _): &&(u32, &str)| bytes > 0 && bytes.trailing_zeros() >= *shift;
    match units.iter().find(fits) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_unit() {
        for (text, bytes) in [("0B", 0), ("512KiB", 524_288), ("100 MiB", 104_857_600), ("2GiB", 2_147_483_648)] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for text in ["", "10", "10MB", "1.5GiB", "-1B", "GiB", "99999999999999999999B", "99999999999GiB"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn decimal_units_are_understood_in_errors() {
        for (text, size) in
            [("10 MB", "10MiB"), ("10mb", "10MiB"), ("5k", "5KiB"), ("2 gib", "2GiB"), ("7 bytes", "7B")]
        {
            assert_eq!(suggest(text).as_deref(), Some(size));
        }
        for text in ["", "10", "MB", "1.5MB", "10 apples", "99999999999 GB"] {
            assert_eq!(suggest(text), None, "{text}");
        }
    }

    #[test]
    fn formatted_sizes_can_be_parsed() {
        for text in ["0B", "1000B", "1KiB", "100MiB", "3GiB"] {
            assert_eq!(parse(text).map(format).as_deref(), Some(text));
        }
    }
}
