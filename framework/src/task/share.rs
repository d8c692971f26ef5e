//! Who gets the free slots: the lowest priority number first; within it the
//! projects in turn, and within a project its kinds of task; none beyond what
//! its kind may run at once or in a second.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::store::{Floor, Share};
use super::{TaskEntry, entry};

/// How far before the last claimed task of a queue the next claim begins:
/// what was made ready at that time by another process may be seen later.
const MARGIN: i64 = 200_000;
/// How often a queue is looked through from its beginning all the same, unless
/// that takes long: an old snapshot keeps all that ended since in the index.
const WHOLE: Duration = Duration::from_secs(1);
/// Of a process's time, so much goes into it at most: one part in so many.
const PART: u32 = 20;
/// And however long it takes, it is done so often.
const SELDOM: Duration = Duration::from_secs(10);
/// A look that takes less is had as often as one likes.
const CHEAP: Duration = Duration::from_millis(2);

/// A queue's key, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Queue<'a> {
    priority: &'a str,
    project: &'a str,
    name: &'a str,
}

impl<'a> Queue<'a> {
    fn parse(key: &'a str) -> Option<Self> {
        let (priority, rest) = key.split_once('/')?;
        let (project, name) = rest.rsplit_once('/')?;
        Some(Self { priority, project, name })
    }
}

#[derive(Debug, Default)]
struct State {
    /// How many of a kind run at once at most, beside what the kind itself says.
    limits: HashMap<String, usize>,
    /// Running in this process, by name.
    running: HashMap<&'static str, usize>,
    /// What a kind may still start, and when that was counted.
    tokens: HashMap<&'static str, (f64, Instant)>,
    /// Kinds that are paused.
    paused: Vec<String>,
    /// Where the next claim of a queue begins.
    floors: HashMap<String, i64>,
    /// When all queues were looked at from their beginning, and how long that took.
    whole: Option<(Instant, Duration)>,
    turn: usize,
}

/// What a process keeps to share its slots.
#[derive(Debug, Clone)]
pub(super) struct Shares(Arc<Mutex<State>>);

impl Shares {
    pub(super) fn new(limits: HashMap<String, usize>) -> Self {
        Self(Arc::new(Mutex::new(State { limits, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets which kinds are paused.
    pub(super) fn pause(&self, names: Vec<String>) {
        self.state().paused = names;
    }

    /// Whether a kind is paused.
    pub(super) fn is_paused(&self, name: &str) -> bool {
        self.state().paused.iter().any(|it| it == name)
    }

    /// Whether this process would run what is in a queue, now.
    pub(super) fn wants(&self, names: &[&'static str], queue: &str) -> bool {
        let mut state = self.state();
        names.iter().any(|it| {
            queue.ends_with(it) && Queue::parse(queue).is_some_and(|q| q.name == *it) && state.room(it) > 0
        })
    }

    /// How much to claim of which queues, of one priority; the queues that are
    /// left are for the next try, if slots are left.
    pub(super) fn divide(&self, names: &[&'static str], heads: &mut Vec<String>, free: usize) -> Vec<Share> {
        let mut state = self.state();
        let known =
            |key: &str| Queue::parse(key).and_then(|q| names.iter().find(|it| **it == q.name).copied());
        heads.retain(|key| known(key).is_some_and(|name| state.room(name) > 0));
        let Some(priority) = heads.first().and_then(|key| Queue::parse(key)).map(|q| q.priority.to_owned())
        else {
            return Vec::new();
        };
        let level: Vec<String> = {
            let of = |key: &String| Queue::parse(key).is_some_and(|q| q.priority == priority);
            let (level, rest) = heads.drain(..).partition(of);
            *heads = rest;
            level
        };
        let mut projects: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for key in level {
            if let Some(queue) = Queue::parse(&key) {
                projects.entry(queue.project.to_owned()).or_default().push(key);
            }
        }
        state.turn = state.turn.wrapping_add(1);
        let turn = state.turn;
        let mut rooms: HashMap<&'static str, usize> = HashMap::new();
        let (mut shares, mut left) = (Vec::new(), free);
        let count = projects.len();
        let mut in_turn: Vec<Vec<String>> = projects.into_values().collect();
        in_turn.rotate_left(turn % count);
        for (i, mut queues) in in_turn.into_iter().enumerate() {
            // What earlier ones left goes to those after them.
            let mut part = left.div_ceil(count - i);
            let kinds = queues.len();
            queues.rotate_left(turn % kinds);
            for (j, queue) in queues.into_iter().enumerate() {
                let Some(name) = known(&queue) else { continue };
                let room = rooms.entry(name).or_insert_with(|| state.room(name));
                let n = part.div_ceil(kinds - j).min(*room).min(left);
                if n == 0 {
                    continue;
                }
                (*room, part, left) = (*room - n, part - n, left - n);
                let floor = state.floors.get(&queue).copied().unwrap_or(0);
                shares.push(Share { queue, n: i64::try_from(n).unwrap_or(1), floor });
            }
        }
        shares
    }

    /// Notes what a claim gave: a queue that gave less than it was asked for is
    /// looked through from its beginning next time.
    pub(super) fn note(&self, shares: &[Share], claimed: &[(&str, i64)]) {
        let mut state = self.state();
        let cheap = state.whole.is_none_or(|(_, took)| took < CHEAP);
        for share in shares {
            let of = claimed.iter().filter(|(queue, _)| *queue == share.queue);
            let (n, last) = of.fold((0_i64, 0_i64), |(n, last), (_, at)| (n + 1, last.max(*at)));
            if n < share.n && cheap {
                state.floors.remove(&share.queue);
            } else if let Some(floor) = state.floors.get_mut(&share.queue) {
                *floor = (*floor).max(last - MARGIN);
            } else if n > 0 {
                state.floors.insert(share.queue.clone(), last - MARGIN);
            }
        }
    }

    /// The queues whose floor is known, in order.
    pub(super) fn floors(&self) -> Vec<Floor> {
        let mut state = self.state();
        let (at, took) = state.whole.unwrap_or((Instant::now(), Duration::ZERO));
        if state.whole.is_none() || at.elapsed() >= (took * PART).clamp(WHOLE, SELDOM) {
            // Old ones say nothing any more, and projects come and go.
            state.floors.clear();
            state.whole = Some((Instant::now(), took));
        }
        let mut floors: Vec<_> = state.floors.iter().map(|(queue, at)| (queue.clone(), *at)).collect();
        floors.sort_unstable();
        floors
    }

    /// Notes how long it took to look at all queues from their beginning.
    pub(super) fn looked(&self, took: Duration) {
        let mut state = self.state();
        let at = state.whole.map_or_else(Instant::now, |(at, _)| at);
        state.whole = Some((at, took));
    }

    pub(super) fn begin(&self, name: &'static str) {
        let mut state = self.state();
        *state.running.entry(name).or_default() += 1;
        if let Some((tokens, _)) = state.tokens.get_mut(name) {
            *tokens -= 1.0;
        }
    }

    pub(super) fn end(&self, name: &'static str) {
        if let Some(n) = self.state().running.get_mut(name) {
            *n = n.saturating_sub(1);
        }
    }
}

impl State {
    /// How many more of a kind may start now.
    fn room(&mut self, name: &'static str) -> usize {
        if self.paused.iter().any(|it| it == name) {
            return 0;
        }
        let Some(kind) = entry(name) else { return 0 };
        let TaskEntry { options, .. } = kind;
        let running = self.running.get(name).copied().unwrap_or(0);
        let most = options.concurrency.into_iter().chain(self.limits.get(name).copied()).min();
        let mut room = most.map_or(usize::MAX, |most| most.saturating_sub(running));
        if let Some(rate) = options.per_second {
            let full = f64::from(rate).max(1.0);
            let (tokens, at) = self.tokens.entry(name).or_insert_with(|| (full, Instant::now()));
            *tokens = (*tokens + at.elapsed().as_secs_f64() * f64::from(rate)).min(full);
            *at = Instant::now();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "bounded above and below"
            )]
            let whole = tokens.clamp(0.0, 1e9) as usize;
            room = room.min(whole);
        }
        room
    }
}
