//! How often one caller may ask: a bucket of tokens for each user, and for
//! each address of those without a token, in this process's memory.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

static LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
static REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
static RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// Parts with a lock each, so that callers seldom wait for each other.
const PARTS: usize = 16;
/// Most buckets of a part: callers who have not asked for a while are
/// forgotten, which is to have a full bucket.
const MOST: usize = 8192;

/// How often one caller may ask.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rate {
    /// Requests a second, in the long run; 0: as often as they like.
    pub per_second: u32,
    /// Requests at once, after a pause.
    pub burst: u32,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// How a caller stands after a request was taken or refused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Standing {
    limit: u32,
    remaining: u32,
    /// Seconds until the bucket is full.
    reset: u32,
    /// Seconds to wait, if it was refused.
    pub(super) wait: Option<u32>,
}

impl Standing {
    pub(super) fn tell(self, headers: &mut HeaderMap) {
        headers.insert(LIMIT.clone(), HeaderValue::from(self.limit));
        headers.insert(REMAINING.clone(), HeaderValue::from(self.remaining));
        headers.insert(RESET.clone(), HeaderValue::from(self.reset));
    }
}

/// The buckets of one kind of caller.
pub(super) struct Buckets {
    rate: Rate,
    parts: [Mutex<HashMap<Box<str>, Bucket>>; PARTS],
    hasher: RandomState,
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a small number that is not below 0"
)]
fn whole(number: f64) -> u32 {
    number.max(0.0) as u32
}

impl Buckets {
    /// None without a limit.
    pub(super) fn new(rate: Rate) -> Option<Self> {
        let rate = Rate { burst: rate.burst.max(rate.per_second).max(1), ..rate };
        let parts = std::array::from_fn(|_| Mutex::default());
        (rate.per_second > 0).then(|| Self { rate, parts, hasher: RandomState::new() })
    }

    fn refilled(&self, bucket: Bucket, now: Instant) -> f64 {
        let new = now.saturating_duration_since(bucket.at).as_secs_f64() * f64::from(self.rate.per_second);
        (bucket.tokens + new).min(f64::from(self.rate.burst))
    }

    /// Takes a request of a caller.
    pub(super) fn take(&self, key: &str, now: Instant) -> Standing {
        let most = f64::from(self.rate.burst);
        let part = usize::try_from(self.hasher.hash_one(key) % PARTS as u64).unwrap_or(0);
        let mut part = self.parts[part].lock().unwrap_or_else(PoisonError::into_inner);
        let mut tokens = part.get(key).map_or(most, |it| self.refilled(*it, now));
        let wait = if tokens >= 1.0 {
            tokens -= 1.0;
            None
        } else {
            Some(whole(((1.0 - tokens) / f64::from(self.rate.per_second)).ceil()).max(1))
        };
        let bucket = Bucket { tokens, at: now };
        match part.get_mut(key) {
            Some(it) => *it = bucket,
            None => {
                if part.len() >= MOST {
                    part.retain(|_, it| self.refilled(*it, now) < most);
                    if part.len() >= MOST {
                        // A flood of addresses: to forget is better than to grow.
                        part.clear();
                    }
                }
                part.insert(key.into(), bucket);
            }
        }
        let reset = whole(((most - tokens) / f64::from(self.rate.per_second)).ceil());
        Standing { limit: self.rate.burst, remaining: whole(tokens), reset, wait }
    }
}

/// All limits of a process.
pub(super) struct Limits {
    pub(super) users: Option<Buckets>,
    pub(super) strangers: Option<Buckets>,
}

impl Limits {
    pub(super) fn new(users: Rate, strangers: Rate) -> Self {
        Self { users: Buckets::new(users), strangers: Buckets::new(strangers) }
    }

    pub(super) fn is_on(&self) -> bool {
        self.users.is_some() || self.strangers.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let buckets = Buckets::new(Rate { per_second: 2, burst: 3 }).unwrap();
        let start = Instant::now();
        for left in [2, 1, 0] {
            let standing = buckets.take("ann", start);
            assert_eq!((standing.remaining, standing.wait), (left, None));
        }
        assert_eq!(buckets.take("ann", start).wait, Some(1));
        assert_eq!(buckets.take("bob", start).wait, None);
        let later = start + Duration::from_millis(500);
        assert_eq!(buckets.take("ann", later).wait, None);
        assert_eq!(buckets.take("ann", later).wait, Some(1));
        assert_eq!(buckets.take("ann", start + Duration::from_secs(60)).remaining, 2);
    }

    #[test]
    fn memory_is_bounded() {
        let buckets = Buckets::new(Rate { per_second: 1, burst: 1 }).unwrap();
        let now = Instant::now();
        for i in 0..(PARTS * MOST + 50_000) {
            buckets.take(&i.to_string(), now);
        }
        let kept: usize = buckets.parts.iter().map(|it| it.lock().unwrap().len()).sum();
        assert!(kept <= PARTS * MOST, "{kept}");
        assert!(Buckets::new(Rate::default()).is_none());
    }
}
