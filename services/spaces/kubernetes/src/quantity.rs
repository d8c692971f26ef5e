//! Quantities as the cluster writes them, to be compared: `8Gi`, `500m`, `1e9`.

/// A quantity in thousandths of its unit; none if it is not one.
pub(crate) fn parse(text: &str) -> Option<u128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + part.len() == 0 || whole.len() > 18 || part.len() > 9 || part.contains('.') {
        return None;
    }
    // A part of a thousandth counts as one.
    let (unit, parts): (_, u128) = match unit {
        "n" => ("m", 1_000_000),
        "u" => ("m", 1_000),
        _ => (unit, 1),
    };
    let factor: u128 = match unit {
        "m" => 1,
        "" => 1_000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "P" => 1_000_000_000_000_000_000,
        "Ki" => 1_000 << 10,
        "Mi" => 1_000 << 20,
        "Gi" => 1_000 << 30,
        "Ti" => 1_000 << 40,
        "Pi" => 1_000 << 50,
        _ => {
            let power: u32 = unit.strip_prefix(['e', 'E'])?.parse().ok()?;
            1_000 * 10_u128.checked_pow(power.min(18))?
        }
    };
    let digits: u128 = format!("{whole}{part}").parse().ok()?;
    let scale = 10_u128.pow(u32::try_from(part.len()).ok()?);
    Some(digits.checked_mul(factor)?.div_ceil(scale.checked_mul(parts)?))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn in_one_measure() {
        assert_eq!(parse("1Gi"), parse("1024Mi"));
        assert_eq!(parse("1.5Gi"), parse("1536Mi"));
        assert_eq!(parse("1e3"), parse("1k"));
        assert_eq!(parse("500m"), Some(500));
        assert_eq!(parse("500000u"), parse("500m"));
        assert_eq!(parse("1500000000n"), parse("1.5"));
        assert_eq!(parse("1n"), Some(1));
        assert!(parse("8Gi") > parse("8G"));
        for none in ["", "Gi", ".", "1.2.3", "-1", "1 Gi", "1gi", "e3"] {
            assert_eq!(parse(none), None, "{none}");
        }
    }
}
