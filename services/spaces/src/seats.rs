//! Places of which there are few: so many in all and so many for each space,
//! and none any more once the server ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// The places of one kind on this server.
#[derive(Debug)]
pub struct Seats {
    /// How many are taken, by space.
    taken: Mutex<HashMap<String, usize>>,
    stopping: watch::Sender<bool>,
    /// Changes whenever one is given back.
    freed: watch::Sender<()>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The server ends.
    Stopping,
    /// So many are taken in all.
    Server(usize),
    /// So many are taken in the space.
    Space(usize),
}

impl Default for Seats {
    fn default() -> Self {
        let (stopping, freed) = (watch::Sender::new(false), watch::Sender::new(()));
        Self { taken: Mutex::default(), stopping, freed }
    }
}

impl Seats {
    fn taken(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are taken.
    #[must_use]
    pub fn count(&self) -> usize {
        self.taken().values().sum()
    }

    /// Takes one in a space, of `most` in all and `most_in_space` there.
    ///
    /// # Errors
    /// Why there is none.
    pub fn take(self: &Arc<Self>, space: &str, most: usize, most_in_space: usize) -> Result<Seat, Full> {
        if *self.stopping.borrow() {
            return Err(Full::Stopping);
        }
        let mut taken = self.taken();
        let all = taken.values().sum();
        if all >= most {
            return Err(Full::Server(all));
        }
        let here = taken.get(space).copied().unwrap_or_default();
        if here >= most_in_space {
            return Err(Full::Space(here));
        }
        taken.insert(space.to_owned(), here + 1);
        Ok(Seat { seats: self.clone(), space: space.to_owned() })
    }

    /// Gives out no more, and asks those who sit to go.
    pub fn shut_down(&self) {
        self.stopping.send_replace(true);
    }

    /// Comes to its end when those who sit are asked to go.
    pub async fn stopping(&self) {
        // An error would be that the seats are gone, and those who sit hold them.
        let _ = self.stopping.subscribe().wait_for(|it| *it).await;
    }

    /// Comes to its end when nobody sits any more.
    pub async fn empty(&self) {
        let mut freed = self.freed.subscribe();
        while !self.taken().is_empty() {
            if freed.changed().await.is_err() {
                return;
            }
        }
    }
}

/// A place that is taken, given back when dropped.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
    space: String,
}

impl Seat {
    /// Comes to its end when whoever sits here is to go.
    pub async fn stopping(&self) {
        self.seats.stopping().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken();
        if let Some(count) = taken.get_mut(&self.space) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.space);
            }
        }
        drop(taken);
        self.seats.freed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_and_no_more() {
        let seats = Arc::new(Seats::default());
        let take = |space: &str| seats.take(space, 4, 2);
        let mut all = vec![take("a").unwrap(), take("a").unwrap(), take("b").unwrap()];
        assert_eq!(take("a").unwrap_err(), Full::Space(2));
        all.push(take("b").unwrap());
        assert_eq!(take("c").unwrap_err(), Full::Server(4));
        all.remove(0);
        assert_eq!(take("b").unwrap_err(), Full::Space(2));
        drop(take("c").unwrap());
        drop(all);
        assert_eq!(seats.count(), 0);
        seats.shut_down();
        assert_eq!(take("a").unwrap_err(), Full::Stopping);
    }
}
