//! Rows under transactions, as a server has them that reads what is committed:
//! who changes or locks a row holds it until its transaction ends, and nobody
//! else sees before then what it made of it.

/// `N` rows; `T` names a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Table<T, R, const N: usize> {
    /// What is committed.
    pub(crate) rows: [R; N],
    held: [Option<(T, R)>; N],
}

impl<T: Copy + Eq, R: Copy, const N: usize> Table<T, R, N> {
    pub(crate) fn new(rows: [R; N]) -> Self {
        Self { rows, held: [None; N] }
    }

    /// A row as a transaction sees it.
    pub(crate) fn seen(&self, tx: T, row: usize) -> R {
        self.held[row].filter(|(by, _)| *by == tx).map_or(self.rows[row], |(_, it)| it)
    }

    /// Who holds a row, and what it is to become.
    pub(crate) fn held(&self, row: usize) -> Option<(T, R)> {
        self.held[row]
    }

    pub(crate) fn is_any_held(&self) -> bool {
        self.held.iter().any(Option::is_some)
    }

    /// A row to be changed; or who holds it.
    pub(crate) fn locked(&mut self, tx: T, row: usize) -> Result<&mut R, T> {
        let (by, it) = self.held[row].get_or_insert((tx, self.rows[row]));
        if *by == tx { Ok(it) } else { Err(*by) }
    }

    /// Undoes a transaction.
    pub(crate) fn undo(&mut self, tx: T) {
        for held in &mut self.held {
            held.take_if(|(by, _)| *by == tx);
        }
    }

    /// Commits a transaction: the rows that it held, as they were and as they are.
    pub(crate) fn commit(&mut self, tx: T) -> Vec<(usize, R, R)> {
        let mut changed = Vec::new();
        for row in 0..N {
            let Some((_, new)) = self.held[row].take_if(|(by, _)| *by == tx) else { continue };
            changed.push((row, std::mem::replace(&mut self.rows[row], new), new));
        }
        changed
    }
}
