//! What this process knows of all pods and claims of its installation.
//!
//! Two watches feed it ([`crate::watches`]), and whoever just asked the API
//! server about one pod. What it learns it tells: to observers, and to those
//! who wait for a change. It asks for nothing itself.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use podyard_driver::{Endpoint, Exit, Observed, Phase};
use tokio::sync::{broadcast, mpsc, watch};

use crate::claim::Kept;
use crate::known::{Awaited, BEING_DELETED, DELETED, Entry, Known, Look, Tomb, awaiting, detail, exit_of};
use crate::seen::Seen;
use crate::why::{Ended, NODE_LOST, Stage};

/// How many events an observer may lag behind.
const EVENTS: usize = 4096;

/// For how long an exit that nobody took note of is told.
const REMEMBERED: Duration = Duration::from_secs(600);

/// How long a controller may take to make a pod anew.
const AWAITED: Duration = Duration::from_secs(60);
/// After how long without one it is asked whether the space is still to run.
const MISSED: Duration = Duration::from_secs(2);
/// How long it may take to make the first, before it is asked why there is none.
const TAKEN_UP: Duration = Duration::from_secs(5);
/// And how often from then on.
const ASKED_AGAIN: Duration = Duration::from_secs(10);

/// A pod whose end is to be looked into: its space, and what is known of it.
pub(crate) type Finished = (String, Seen);

/// How a pod's endpoint is made: the driver knows the way.
pub(crate) type Ways = Box<dyn Fn(&Seen, SocketAddr) -> Endpoint + Send + Sync>;

pub(crate) struct Cache {
    known: Mutex<Known>,
    observed: broadcast::Sender<Observed>,
    changed: watch::Sender<()>,
    finished: mpsc::UnboundedSender<Finished>,
    ways: Ways,
    /// Whether a pod that is deleted from outside is made anew by a controller.
    remade: bool,
}

impl Cache {
    pub(crate) fn new(finished: mpsc::UnboundedSender<Finished>, ways: Ways, remade: bool) -> Self {
        Self {
            known: Mutex::default(),
            observed: broadcast::Sender::new(EVENTS),
            changed: watch::Sender::new(()),
            finished,
            ways,
            remade,
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn observe(&self) -> broadcast::Receiver<Observed> {
        self.observed.subscribe()
    }

    /// Told at every change.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn phase(&self, entry: &Entry) -> Phase {
        match (&entry.seen.stage, &entry.exit) {
            (Stage::Over(_), Some(exit)) => Phase::Exited(exit.clone()),
            (Stage::Ready, _) => match entry.seen.ip {
                Some(ip) => Phase::Ready { endpoint: self.endpoint_of(&entry.seen, ip) },
                None => Phase::Starting,
            },
            // Over, but how is still being read.
            _ => Phase::Starting,
        }
    }

    fn endpoint_of(&self, seen: &Seen, ip: IpAddr) -> Endpoint {
        (self.ways)(seen, SocketAddr::new(ip, seen.port))
    }

    fn observed_of(&self, space: &str, entry: &Entry) -> Observed {
        Observed {
            id: space.to_owned(),
            instance: entry.seen.instance.to_string(),
            phase: self.phase(entry),
            detail: detail(entry),
        }
    }

    fn tell(&self, observed: Observed) {
        // That nobody listens is no error: `list` tells the same later.
        let _ = self.observed.send(observed);
    }

    fn exited(&self, space: &str, instance: &str, exit: Exit) {
        let detail = exit.reason.clone();
        self.tell(Observed {
            id: space.to_owned(),
            instance: instance.to_owned(),
            phase: Phase::Exited(exit),
            detail,
        });
    }

    /// A pod was seen: by the watch, or `fresh` from an answer of its own.
    pub(crate) fn put(&self, space: &str, mut seen: Seen, fresh: bool) {
        let before = self.pod(space).filter(|it| it.uid != seen.uid);
        if let Some(before) = before {
            // Old news of the pod before this one, or the end of that.
            if (seen.made_at, seen.version) < (before.made_at, before.version) {
                return;
            }
            self.gone(space, &before.uid);
        }
        let mut known = self.known();
        if known.dead.contains_key(&seen.uid) {
            return;
        }
        let mut fresh = fresh.then(Instant::now);
        let (mut events, mut stopped, mut before) = (String::new(), false, None);
        if let Some(entry) = known.pods.get_mut(space) {
            if fresh.is_none() {
                entry.fresh = None;
            }
            // The watch may bring what an answer has told already.
            if entry.seen.uid != seen.uid || (seen.version != 0 && seen.version <= entry.seen.version) {
                return;
            }
            before = Some((entry.seen.stage.clone(), detail(entry)));
            stopped = entry.stopped;
            fresh = fresh.and(entry.fresh);
            if seen.stage == Stage::Starting {
                events = std::mem::take(&mut entry.events);
            }
            // The program is over once.
            if entry.seen.is_over() {
                return;
            }
        }
        if !stopped {
            self.taken_away(&mut seen);
        }
        let over = seen.is_over().then(|| seen.clone());
        let entry = Entry { seen, events, exit: None, fresh, stopped };
        let changed = before != Some((entry.seen.stage.clone(), detail(&entry)));
        let told = (changed && over.is_none()).then(|| self.observed_of(space, &entry));
        if entry.seen.stage == Stage::Starting {
            known.looks.entry(space.to_owned()).or_insert(Look { began: Instant::now(), done: 0 });
        } else {
            known.looks.remove(space);
        }
        known.tombs.remove(space);
        known.awaited.remove(space);
        known.pods.insert(space.to_owned(), entry);
        drop(known);
        if let Some(told) = told {
            self.tell(told);
        }
        if let Some(seen) = over {
            // The receiver lives as long as the driver.
            let _ = self.finished.send((space.to_owned(), seen));
        }
        self.changed.send_replace(());
    }

    /// A program that is over since the cluster, or somebody in it, ends its pod
    /// did not end by itself.
    fn taken_away(&self, seen: &mut Seen) {
        let Stage::Over(ended) = &mut seen.stage else { return };
        if self.remade && ended.moved {
            // The run goes on in the next pod.
            seen.why = format!("{}; it is made anew", ended.reason);
            seen.stage = Stage::Starting;
        } else if seen.going && ended.reason != NODE_LOST {
            if self.remade {
                BEING_DELETED.clone_into(&mut seen.why);
                seen.stage = Stage::Starting;
            } else if ended.reason.is_empty() {
                DELETED.clone_into(&mut ended.reason);
            }
        }
    }

    /// A pod is no more.
    pub(crate) fn gone(&self, space: &str, uid: &str) {
        let mut known = self.known();
        if known.pods.get(space).is_none_or(|it| &*it.seen.uid != uid) {
            return;
        }
        let Some(entry) = known.pods.remove(space) else { return };
        known.looks.remove(space);
        if self.remade && !entry.stopped && !entry.seen.is_over() {
            let instance = entry.seen.instance.clone();
            known.dead.insert(uid.into(), Instant::now());
            let why = "its pod was deleted in the cluster and is made anew".to_owned();
            let awaited = Awaited { instance, since: Instant::now(), why, first: false, asked: None };
            let told = awaiting(space, &awaited);
            known.awaited.insert(space.to_owned(), awaited);
            drop(known);
            self.tell(told);
            self.changed.send_replace(());
            return;
        }
        let untold = entry.exit.is_none();
        let exit = entry.exit.unwrap_or_else(|| {
            let ended = match entry.seen.stage {
                Stage::Over(ended) => ended,
                _ if entry.stopped => Ended::default(),
                _ => Ended { reason: DELETED.to_owned(), ..Ended::default() },
            };
            exit_of(&ended, Vec::new())
        });
        known.tombs.retain(|_, tomb| tomb.since.elapsed() < REMEMBERED);
        known.dead.retain(|_, since| since.elapsed() < REMEMBERED);
        known.dead.insert(uid.into(), Instant::now());
        let tomb = Tomb { instance: entry.seen.instance.clone(), exit: exit.clone(), since: Instant::now() };
        known.tombs.insert(space.to_owned(), tomb);
        drop(known);
        if untold {
            self.exited(space, &entry.seen.instance, exit);
        }
        self.changed.send_replace(());
    }

    /// How a pod ended was looked into.
    pub(crate) fn finish(&self, space: &str, uid: &str, lines: Vec<String>) {
        let mut known = self.known();
        let Some(entry) = known.pods.get_mut(space).filter(|it| &*it.seen.uid == uid) else { return };
        let Stage::Over(ended) = &entry.seen.stage else { return };
        if entry.exit.is_some() {
            return;
        }
        let exit = exit_of(ended, lines);
        entry.exit = Some(exit.clone());
        let instance = entry.seen.instance.clone();
        drop(known);
        self.exited(space, &instance, exit);
        self.changed.send_replace(());
    }

    /// What events say of a pod that is on its way.
    pub(crate) fn explain(&self, space: &str, uid: &str, why: String) {
        let mut known = self.known();
        let Some(entry) = known.pods.get_mut(space).filter(|it| &*it.seen.uid == uid) else { return };
        if entry.seen.stage != Stage::Starting || entry.events == why {
            return;
        }
        entry.events = why;
        let told = self.observed_of(space, entry);
        drop(known);
        self.tell(told);
        self.changed.send_replace(());
    }

    /// All pods of the installation were listed: what was not among them is
    /// gone, unless an answer has told of it since the list `began`.
    pub(crate) fn pods_listed(&self, seen: &HashSet<String>, began: Instant) {
        let gone: Vec<(String, Box<str>)> = {
            let mut known = self.known();
            known.synced.0 = true;
            known.trouble = None;
            let missing = known
                .pods
                .iter()
                .filter(|(space, entry)| !seen.contains(*space) && entry.fresh.is_none_or(|at| at < began));
            missing.map(|(space, entry)| (space.clone(), entry.seen.uid.clone())).collect()
        };
        for (space, uid) in gone {
            self.gone(&space, &uid);
        }
        self.changed.send_replace(());
    }

    pub(crate) fn put_claim(&self, space: &str, kept: Kept) {
        self.known().claims.insert(space.to_owned(), kept);
        self.changed.send_replace(());
    }

    pub(crate) fn claim_gone(&self, space: &str, uid: &str) {
        let mut known = self.known();
        if known.claims.get(space).is_some_and(|it| it.uid == uid) {
            known.claims.remove(space);
            drop(known);
            self.changed.send_replace(());
        }
    }

    pub(crate) fn claims_listed(&self, all: HashMap<String, Kept>) {
        let mut known = self.known();
        known.claims = all;
        known.synced.1 = true;
        known.trouble = None;
        drop(known);
        self.changed.send_replace(());
    }

    pub(crate) fn claim(&self, space: &str) -> Option<Kept> {
        self.known().claims.get(space).cloned()
    }

    pub(crate) fn failed(&self, why: String) {
        self.known().trouble = Some(why);
        self.changed.send_replace(());
    }

    /// Whether all was listed once; else why not.
    pub(crate) fn synced(&self) -> Result<(), String> {
        let known = self.known();
        match (known.synced, &known.trouble) {
            ((true, true), _) => Ok(()),
            (_, Some(why)) => Err(why.clone()),
            _ => Err("it has not answered yet".to_owned()),
        }
    }

    pub(crate) fn pod(&self, space: &str) -> Option<Seen> {
        self.known().pods.get(space).map(|it| it.seen.clone())
    }

    /// Why a pod is no further, with what its events say.
    pub(crate) fn why(&self, space: &str) -> String {
        self.known().pods.get(space).map(detail).unwrap_or_default()
    }

    /// That this process ends a pod: nobody else did.
    pub(crate) fn stopping(&self, space: &str, uid: &str) {
        if let Some(entry) = self.known().pods.get_mut(space).filter(|it| &*it.seen.uid == uid) {
            entry.stopped = true;
        }
    }

    pub(crate) fn endpoint(&self, space: &str) -> Option<Endpoint> {
        let known = self.known();
        let seen = &known.pods.get(space)?.seen;
        (seen.stage == Stage::Ready).then(|| seen.ip.map(|ip| self.endpoint_of(seen, ip))).flatten()
    }

    pub(crate) fn list(&self) -> Vec<Observed> {
        let known = self.known();
        let pods = known.pods.iter().map(|(space, entry)| self.observed_of(space, entry));
        let tombs = known.tombs.iter().map(|(space, tomb)| Observed {
            id: space.clone(),
            instance: tomb.instance.to_string(),
            phase: Phase::Exited(tomb.exit.clone()),
            detail: tomb.exit.reason.clone(),
        });
        let awaited = known.awaited.iter().map(|(space, it)| awaiting(space, it));
        pods.chain(tombs).chain(awaited).collect()
    }

    /// A controller is to make the pod of a run.
    pub(crate) fn expect(&self, space: &str, instance: &str) {
        let mut known = self.known();
        if !known.pods.contains_key(space) {
            let (instance, since, why) = (instance.into(), Instant::now(), String::new());
            let awaited = Awaited { instance, since, why, first: true, asked: None };
            known.awaited.insert(space.to_owned(), awaited);
        }
    }

    /// The spaces whose pods are missed for a while: their resources are to be
    /// asked what becomes of them. One whose pod went is asked once.
    pub(crate) fn missed(&self) -> Vec<String> {
        let mut known = self.known();
        let is_due = |it: &Awaited| match it.asked {
            None => it.since.elapsed() >= if it.first { TAKEN_UP } else { MISSED },
            Some(at) => it.first && at.elapsed() >= ASKED_AGAIN,
        };
        let missed = known.awaited.iter_mut().filter(|(_, it)| is_due(it));
        let ask = |(space, it): (&String, &mut Awaited)| {
            it.asked = Some(Instant::now());
            space.clone()
        };
        missed.map(ask).collect()
    }

    /// Why the first pod of a run is not there yet.
    pub(crate) fn explain_missed(&self, space: &str, why: &str) {
        let mut known = self.known();
        let Some(it) = known.awaited.get_mut(space).filter(|it| it.first && it.why != why) else { return };
        why.clone_into(&mut it.why);
        let told = awaiting(space, it);
        drop(known);
        self.tell(told);
    }

    /// The runs whose pods no controller made anew are over.
    pub(crate) fn give_up_waiting(&self) {
        let late: Vec<String> = {
            let known = self.known();
            let late = known.awaited.iter().filter(|(_, it)| !it.first && it.since.elapsed() >= AWAITED);
            late.map(|(space, _)| space.clone()).collect()
        };
        for space in late {
            self.await_no_more(&space, "its pod was deleted in the cluster, and no controller made it anew");
        }
    }

    /// A run is over whose pod was awaited.
    pub(crate) fn await_no_more(&self, space: &str, reason: &str) {
        let mut known = self.known();
        let Some(Awaited { instance, .. }) = known.awaited.remove(space) else { return };
        let exit = exit_of(&Ended { reason: reason.to_owned(), ..Ended::default() }, Vec::new());
        let tomb = Tomb { instance: instance.clone(), exit: exit.clone(), since: Instant::now() };
        known.tombs.insert(space.to_owned(), tomb);
        drop(known);
        self.exited(space, &instance, exit);
    }

    /// Pods whose nodes should have told of their end long ago are over.
    pub(crate) fn give_up_lost(&self) {
        let mut lost = Vec::new();
        for (space, entry) in &mut self.known().pods {
            let seen = &mut entry.seen;
            if !seen.is_over() && seen.is_given_up() {
                seen.why = NODE_LOST.to_owned();
                seen.stage = Stage::Over(Ended { reason: seen.why.clone(), ..Ended::default() });
                lost.push((space.clone(), seen.clone()));
            }
        }
        for (space, seen) in lost {
            tracing::warn!(space, pod = %seen.name, "a pod that is to go does not: its node is given up");
            self.known().looks.remove(&space);
            // The receiver lives as long as the driver.
            let _ = self.finished.send((space, seen));
            self.changed.send_replace(());
        }
    }

    /// Somebody takes note of an exit: it is not told again.
    pub(crate) fn take_note(&self, space: &str) -> Option<Exit> {
        let mut known = self.known();
        known.awaited.remove(space);
        known.tombs.remove(space).map(|it| it.exit)
    }

    /// Whether an exit waits to be taken note of.
    pub(crate) fn is_noted(&self, space: &str) -> bool {
        self.known().tombs.contains_key(space)
    }

    /// The starts that are to be looked at now.
    pub(crate) fn due(&self) -> Vec<(String, Seen)> {
        let mut known = self.known();
        let Known { looks, pods, .. } = &mut *known;
        let mut due = Vec::new();
        for (space, look) in looks.iter_mut() {
            if look.is_due() {
                look.done += 1;
                due.extend(pods.get(space).map(|it| (space.clone(), it.seen.clone())));
            }
        }
        due
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
