//! A place in the log, as watchers name it.

use std::fmt;
use std::str::FromStr;

/// The transaction and the sequence number of a record. PostgreSQL gives out
/// sequence numbers in another order than it commits, but whatever is below
/// the oldest transaction that runs is final: records in this order, read up
/// to there, are read once each. SQLite has one writer, and its transactions
/// are all 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The transaction's number, of 64 bits.
    pub xid: i64,
    /// The record's.
    pub seq: i64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.xid, self.seq)
    }
}

impl FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|_| digits).ok_or(())
        };
        let (xid, seq) = text.split_once('-').ok_or(())?;
        Ok(Self { xid: number(xid)?, seq: number(seq)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_are_written() {
        let at = Position { xid: 1 << 40, seq: 7 };
        assert_eq!(at.to_string().parse(), Ok(at));
        for bad in ["", "-", "1", "1-", "-1-2", "+1-2", "1-2-3", "1-2 ", "9223372036854775808-1", "a-b"] {
            assert_eq!(bad.parse::<Position>(), Err(()), "{bad}");
        }
        let (first, second) = (Position { xid: 3, seq: 9 }, Position { xid: 4, seq: 1 });
        assert!(first < second);
    }
}
