//! Login throttling: whoever fails too often waits, longer each time. Failures
//! are counted by user and address together, so that a stranger cannot lock
//! somebody out, by address, and, with a higher limit, by user.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Failures are forgotten after so long without another.
const MEMORY: Duration = Duration::from_secs(15 * 60);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// Most keys kept, against an attacker who invents names.
const MOST: usize = 100_000;

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
}

/// Counts failures.
#[derive(Debug, Default)]
pub(crate) struct Throttle(Mutex<HashMap<String, Failures>>);

fn keys(user: &str, address: &str) -> [(String, u32); 3] {
    [(format!("{user}\n{address}"), 5), (format!("\n{address}"), 20), (format!("{user}\n"), 100)]
}

impl Throttle {
    /// Takes an attempt, as if it had failed: attempts at once must not all
    /// pass before the first is found wrong. Says how long to wait if there
    /// were too many.
    pub(crate) fn attempt(&self, user: &str, address: &str) -> Result<(), Duration> {
        let now = Instant::now();
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() > MOST {
            map.retain(|_, it| now.duration_since(it.last) < MEMORY);
        }
        let mut wait = Duration::ZERO;
        let keys = keys(user, address);
        for (key, limit) in &keys {
            let Some(it) = map.get(key).filter(|it| now.duration_since(it.last) < MEMORY) else { continue };
            if it.count >= *limit {
                let power = (it.count - limit).min(10);
                let pause = (Duration::from_secs(5) * 2_u32.pow(power)).min(LONGEST);
                wait = wait.max((it.last + pause).saturating_duration_since(now));
            }
        }
        if !wait.is_zero() {
            return Err(wait);
        }
        for (key, _) in keys {
            let it = map.entry(key).or_insert(Failures { count: 0, last: now });
            if now.duration_since(it.last) >= MEMORY {
                it.count = 0;
            }
            it.count += 1;
            it.last = now;
        }
        Ok(())
    }

    /// The attempt was right after all.
    pub(crate) fn success(&self, user: &str, address: &str) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [pair, host, name] = keys(user, address);
        map.remove(&pair.0);
        for (key, _) in [host, name] {
            if let Some(it) = map.get_mut(&key) {
                it.count = it.count.saturating_sub(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sixth_wrong_password_waits_and_a_stranger_does_not() {
        let throttle = Throttle::default();
        for _ in 0..5 {
            throttle.attempt("ann", "1.1.1.1").unwrap();
        }
        assert!(throttle.attempt("ann", "1.1.1.1").is_err());
        throttle.attempt("ann", "2.2.2.2").unwrap();
        throttle.attempt("bob", "1.1.1.1").unwrap();
    }

    #[test]
    fn a_right_password_clears_the_count() {
        let throttle = Throttle::default();
        for _ in 0..200 {
            throttle.attempt("ann", "1.1.1.1").unwrap();
            throttle.success("ann", "1.1.1.1");
        }
    }

    #[test]
    fn many_names_from_one_address_wait() {
        let throttle = Throttle::default();
        let tried = (0..40).filter(|i| throttle.attempt(&format!("u{i}"), "1.1.1.1").is_ok()).count();
        assert_eq!(tried, 20);
    }
}
