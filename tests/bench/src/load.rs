//! The load: connections that send one request after the other, and what came of it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::{
    Result,
    http::{Connection, Timing},
};

/// Writes the next request of one connection into the buffer.
pub type Script = Box<dyn FnMut(&mut Vec<u8>) + Send>;

/// What a phase of load did.
#[derive(Debug, Default)]
pub struct Tally {
    /// The time from the first request to the last answer.
    pub elapsed: Duration,
    /// How long each answer took, in nanoseconds, in no order.
    pub latencies: Vec<u32>,
    /// Answers that were no success.
    pub errors: u64,
    /// The first of them.
    pub first_error: Option<String>,
    /// The sum of what the server said of its time.
    pub timing: Timing,
    /// The number of answers that said it.
    pub timed: u64,
}

impl Tally {
    /// Answers per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// The time within which this part of the answers came, in microseconds.
    ///
    /// The latencies must be sorted.
    #[must_use]
    pub fn percentile(&self, part: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let index = (last as f64 * part).round() as usize;
        self.latencies.get(index).map_or(f64::NAN, |&nanoseconds| f64::from(nanoseconds) / 1e3)
    }

    /// The mean time of an answer, in microseconds.
    #[must_use]
    pub fn mean(&self) -> f64 {
        let sum: f64 = self.latencies.iter().map(|&nanoseconds| f64::from(nanoseconds)).sum();
        sum / self.latencies.len() as f64 / 1e3
    }
}

/// A connection and what it sends.
struct Client {
    connection: Connection,
    script: Script,
}

/// Connections that are kept open between the phases.
pub struct Crowd {
    clients: Vec<Client>,
}

impl Crowd {
    /// Opens one connection for each script.
    pub async fn open(address: SocketAddr, scripts: impl IntoIterator<Item = Script>) -> Result<Self> {
        let mut clients = Vec::new();
        for script in scripts {
            clients.push(Client { connection: Connection::open(address).await?, script });
        }
        Ok(Self { clients })
    }

    /// Lets all send until the time is over, and waits for the last answers.
    ///
    /// Nothing is under way before or after, so counters read around it belong to it alone.
    pub async fn run(&mut self, time: Duration) -> Result<Tally> {
        let start = Instant::now();
        let end = start + time;
        let mut running = JoinSet::new();
        for client in self.clients.drain(..) {
            running.spawn(one(client, end));
        }
        let mut sum = Tally::default();
        while let Some(done) = running.join_next().await {
            let (client, mut tally) = done??;
            self.clients.push(client);
            sum.latencies.append(&mut tally.latencies);
            sum.errors += tally.errors;
            sum.first_error = sum.first_error.or(tally.first_error);
            sum.timing.database += tally.timing.database;
            sum.timing.statements += tally.timing.statements;
            sum.timed += tally.timed;
        }
        sum.elapsed = start.elapsed();
        sum.latencies.sort_unstable();
        Ok(sum)
    }
}

async fn one(mut client: Client, end: Instant) -> Result<(Client, Tally)> {
    let mut tally = Tally { latencies: Vec::with_capacity(16 * 1024), ..Tally::default() };
    let mut request = Vec::with_capacity(1024);
    let mut now = Instant::now();
    while now < end {
        (client.script)(&mut request);
        let answer = client.connection.send(&request).await?;
        if !answer.is_success() {
            tally.errors += 1;
            if tally.first_error.is_none() {
                let body = String::from_utf8_lossy(answer.body);
                tally.first_error = Some(format!("{}: {body:.300}", answer.status));
            }
        }
        if let Some(timing) = answer.timing {
            tally.timing.database += timing.database;
            tally.timing.statements += timing.statements;
            tally.timed += 1;
        }
        let answered = Instant::now();
        tally.latencies.push(u32::try_from((answered - now).as_nanos()).unwrap_or(u32::MAX));
        now = answered;
    }
    Ok((client, tally))
}

/// Random numbers that are the same in every run (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// A number below the bound.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        ((u128::from(mixed) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_within_the_latencies() {
        let tally = Tally { latencies: (1..=101).map(|n| n * 1000).collect(), ..Tally::default() };
        assert!((tally.percentile(0.5) - 51.0).abs() < 1e-9);
        assert!((tally.percentile(0.99) - 100.0).abs() < 1e-9);
        assert!((tally.mean() - 51.0).abs() < 1e-9);
    }

    #[test]
    fn random_numbers_stay_below_their_bound() {
        let mut random = Random(1);
        let drawn: Vec<usize> = (0..1000).map(|_| random.below(10)).collect();
        assert!(drawn.iter().all(|&n| n < 10));
        assert!((0..10).all(|n| drawn.contains(&n)));
    }
}
