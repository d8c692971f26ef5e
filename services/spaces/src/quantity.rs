//! Quantities as Kubernetes writes them: `2`, `500m`, `4Gi`.

/// A quantity, in thousandths of its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(u128);

/// A thousandth, as a unit of [`Quantity::in_units`].
pub(crate) const THOUSANDTH: u128 = 1;
/// 2^20, as a unit of [`Quantity::in_units`].
pub(crate) const MEBIBYTE: u128 = 1_000 << 20;

impl Quantity {
    /// How many units (each so many thousandths) it is, rounded up.
    pub(crate) fn in_units(self, unit: u128) -> i64 {
        i64::try_from(self.0.div_ceil(unit)).unwrap_or(i64::MAX)
    }
}

/// Most that is taken for a size: beyond it is a slip of the keyboard.
const MOST: u128 = 1_000_000_000_000_000_000_000;

impl std::str::FromStr for Quantity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a quantity like 2, 500m or 4Gi");
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && part.is_empty() || part.contains('.') || number.len() > 24 || part.len() > 9 {
            return Err(wrong());
        }
        // In thousandths, as a fraction, so that 0.5Gi is exact.
        let (factor, divisor): (u128, u128) = match unit {
            "n" => (1, 1_000_000),
            "u" => (1, 1_000),
            "m" => (1, 1),
            "" => (1_000, 1),
            "k" => (1_000_000, 1),
            "M" => (1_000_000_000, 1),
            "G" => (1_000_000_000_000, 1),
            "T" => (1_000_000_000_000_000, 1),
            "P" => (1_000_000_000_000_000_000, 1),
            "Ki" => (1_000 << 10, 1),
            "Mi" => (1_000 << 20, 1),
            "Gi" => (1_000 << 30, 1),
            "Ti" => (1_000 << 40, 1),
            "Pi" => (1_000 << 50, 1),
            _ => return Err(wrong()),
        };
        let digits: u128 = format!("{whole}{part}").parse().map_err(|_| wrong())?;
        let scale = 10_u128.pow(u32::try_from(part.len()).map_err(|_| wrong())?);
        let value = digits.checked_mul(factor).ok_or_else(wrong)?.div_ceil(scale * divisor);
        if value == 0 {
            return Err(format!("{text:?} is nothing; it must be more than 0"));
        }
        if value > MOST {
            return Err(format!("{text:?} is too much"));
        }
        Ok(Self(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubernetes_notation() {
        let of = |text: &str| text.parse::<Quantity>().unwrap();
        assert_eq!(of("1"), of("1000m"));
        assert_eq!(of("0.5Gi"), of("512Mi"));
        assert_eq!(of("1k"), of("1000"));
        assert!(of("4Gi") > of("4G"));
    }

    #[test]
    fn what_is_none() {
        for bad in
            ["", "Gi", ".", "4 Gi", "4gi", "-1", "1e3", "0", "0Gi", "1.2.3", "９", "99999999999999999999999P"]
        {
            assert!(bad.parse::<Quantity>().is_err(), "{bad}");
        }
    }
}
