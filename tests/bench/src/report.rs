//! The report: Markdown with aligned columns, which reads well in a terminal too.

use std::fmt::{self, Display, Write as _};

/// A report in the making.
#[derive(Debug, Default)]
pub struct Report {
    text: String,
    bars: Vec<Bar>,
}

/// What is aimed at.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// The figure is to stay below.
    AtMost(f64),
    /// The figure is to get above.
    AtLeast(f64),
}

/// A figure with an aim.
#[derive(Debug, Clone)]
pub struct Bar {
    /// What was measured.
    pub name: String,
    /// What came out.
    pub value: f64,
    /// What is aimed at.
    pub limit: Limit,
    /// What both count in, with its space.
    pub unit: &'static str,
}

impl Bar {
    /// Whether the aim was reached.
    #[must_use]
    pub fn is_met(&self) -> bool {
        match self.limit {
            Limit::AtMost(limit) => self.value <= limit,
            Limit::AtLeast(limit) => self.value >= limit,
        }
    }
}

impl Report {
    /// Adds a heading; level 1 is the title.
    pub fn heading(&mut self, level: usize, text: &str) {
        // Writing to a string cannot fail, here and below.
        let _ = write!(self.text, "{} {text}\n\n", "#".repeat(level));
    }

    /// Adds a paragraph.
    pub fn paragraph(&mut self, text: impl Display) {
        let _ = write!(self.text, "{text}\n\n");
    }

    /// Adds a table.
    pub fn table(&mut self, table: &Table) {
        let _ = writeln!(self.text, "{table}");
    }

    /// Adds an aim, told of at the end.
    pub fn bar(&mut self, bar: Bar) {
        self.bars.push(bar);
    }

    /// Whether any aim was missed.
    #[must_use]
    pub fn has_missed(&self) -> bool {
        self.bars.iter().any(|bar| !bar.is_met())
    }

    /// Adds the table of the aims.
    pub fn bars(&mut self) {
        if self.bars.is_empty() {
            return;
        }
        let mut table = Table::new(&["bar", "limit", "measured", ""]);
        for bar in &self.bars {
            let verdict = if bar.is_met() { "met" } else { "MISSED" };
            let (sign, limit) = match bar.limit {
                Limit::AtMost(limit) => ('≤', limit),
                Limit::AtLeast(limit) => ('≥', limit),
            };
            table.row([
                bar.name.clone(),
                format!("{sign} {limit}{}", bar.unit),
                format!("{:.2}{}", bar.value, bar.unit),
                verdict.to_owned(),
            ]);
        }
        self.heading(2, "Bars");
        self.table(&table);
    }

    /// What was written so far.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// A table; the first column is text, the others are set to the right.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Starts a table with its head.
    #[must_use]
    pub fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|&cell| cell.to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0).max(3)).collect();
        for (number, row) in self.rows.iter().enumerate() {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if column == 0 {
                    write!(formatter, "| {cell:<width$} |")?;
                } else {
                    write!(formatter, " {cell:>width$} |")?;
                }
            }
            writeln!(formatter)?;
            if number == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let dashes = "-".repeat(width - 1);
                    if column == 0 {
                        write!(formatter, "| {dashes}- |")?;
                    } else {
                        write!(formatter, " {dashes}: |")?;
                    }
                }
                writeln!(formatter)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned() {
        let mut table = Table::new(&["what", "µs"]);
        table.row(["get".to_owned(), "1234".to_owned()]);
        assert_eq!(table.to_string(), "| what |   µs |\n| ---- | ---: |\n| get  | 1234 |\n");
    }

    #[test]
    fn a_missed_bar_is_told() {
        let mut report = Report::default();
        report.bar(Bar { name: "get".into(), value: 2.5, limit: Limit::AtMost(2.0), unit: "×" });
        report.bars();
        assert!(report.has_missed());
        assert!(report.text().contains("MISSED"));
    }

    #[test]
    fn a_bar_may_ask_for_more() {
        let bar = |value| Bar { name: "rate".into(), value, limit: Limit::AtLeast(3.0), unit: "×" };
        assert!(bar(3.0).is_met());
        assert!(!bar(2.9).is_met());
        // What could not be measured is no success.
        assert!(!bar(f64::NAN).is_met());
    }
}
