//! Claim, lease, commit, recovery: `task/worker.rs` with its rooms, `store/claim.rs`,
//! `store/lease.rs`, `store/advance.rs` and `store/keep.rs`.
//!
//! A step is a transaction, or what a process does between two. That is fine
//! enough: all these transactions begin by locking what they decide by (the
//! task's row, or the worker's), so that on a server, too, they come out as if
//! one ran after the other. A process may die or be stopped between any two
//! steps, and wake later with what it knew; a transaction's answer may be lost.
//!
//! Beats are counted up to [`MANY`]; beyond, a count that was seen is either
//! the row's or it is not. Each observer has a clock, which ticks by itself;
//! all that is assumed of clocks is that a process which is neither dead nor
//! stopped, and holds tasks, beats before any observer has counted a lease.
//!
//! `from_one` and `old_claims` are what the engine once did.
//!
//! Left out: `/proc` (it only makes a death known earlier), priorities and
//! shares (which task is taken matters to nobody here), twins and undoing (a
//! task that fails ends at once), giving back at a shutdown, the stage's own
//! time limit (its commits are those of an attempt that failed).

use stateright::{Model, Property};

use crate::search::{ENDS, Protocol, broken};

/// Worker processes.
const WORKERS: usize = 2;
/// Ticks without a beat after which a worker is taken for dead.
const LEASE: u8 = 2;
/// Ticks without a look after which an observer begins anew.
const GAP: u8 = 1;
/// Attempts at a stage.
const ATTEMPTS: u8 = 2;
/// Stages of a task: the first has an effect, the second ends it.
const STAGES: usize = 2;
/// A count of beats that stands for all from there.
const MANY: u8 = 3;

/// What may go wrong, how often; and bugs.
#[derive(Debug, Clone, Default)]
struct Lease {
    tasks: usize,
    /// Only the worker that never fails looks at the other.
    one_observer: bool,
    deaths: u8,
    stops: u8,
    lost_answers: u8,
    outages: u8,
    /// The commit's condition is without the epoch.
    no_epoch: bool,
    /// The effect is not in the transaction that moves the task on.
    effect_apart: bool,
    /// Recovery takes whatever beat the row has by now.
    any_beat: bool,
    /// Observers count on after they have not looked for long.
    no_gap: bool,
    /// A row that is made anew counts from one again.
    from_one: bool,
    /// What was claimed with a lease that was lost meanwhile is run.
    old_claims: bool,
    /// Nobody looks for tasks whose worker has no row.
    no_housekeeping: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Status {
    Queued,
    Running,
    Done,
    Failed,
}

/// A process and which of its leases.
type Id = (usize, u8);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Task {
    status: Status,
    stage: usize,
    epoch: u8,
    attempt: u8,
    worker_id: Option<Id>,
    /// What happened, by stage.
    effects: [u8; STAGES],
    commits: [u8; STAGES],
}

/// A row of `workers`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Row {
    id: Id,
    beat: u8,
    /// The truth: by each observer's clock, how long ago it was lengthened, not
    /// counting times at which nobody could.
    quiet: [u8; WORKERS],
}

/// A beat that somebody has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Seen {
    id: Id,
    beat: u8,
    /// Whether the row has that beat now.
    current: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Watched {
    seen: Seen,
    since: u8,
    looked: u8,
}

/// A task that a process has in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Run {
    task: usize,
    worker: Id,
    epoch: u8,
    stage: usize,
    attempt: u8,
    /// The effect was tried and no answer came.
    used_up: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Claim {
    No,
    /// About to, with that id; `fresh`: the lease need not be lengthened.
    Asked {
        id: Id,
        fresh: bool,
    },
    /// Done; the answer is under way.
    Made {
        run: Run,
        fresh: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Worker {
    alive: bool,
    stopped: bool,
    lease: Id,
    /// Its lease is known to hold for at least a half.
    sure: bool,
    claim: Claim,
    runs: Vec<Run>,
    /// A claim with this lease has been made.
    begun: bool,
    /// Leases that it has lost and whose tasks it is going to set free.
    lost: Vec<Id>,
    watched: Vec<Watched>,
    judged: Vec<Seen>,
}

impl Worker {
    fn acts(&self) -> bool {
        self.alive && !self.stopped
    }

    fn is_busy(&self) -> bool {
        !self.runs.is_empty() || self.claim != Claim::No
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    tasks: Vec<Task>,
    rows: Vec<Row>,
    workers: Vec<Worker>,
    deaths: u8,
    stops: u8,
    lost_answers: u8,
    outages: u8,
    /// While the database is away: how long it has been, by each clock.
    away: Option<[u8; WORKERS]>,
    /// A task that seems to be stuck to some housekeeper, and its epoch.
    suspect: Option<(usize, u8)>,
    /// A task was taken from somebody who beats.
    robbed: bool,
    /// Somebody dropped its tasks for a lease that it never had.
    renounced: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Tick(usize),
    AskClaim(usize),
    Claim(usize),
    TakeClaim(usize),
    LoseClaim(usize),
    Commit(usize, usize),
    CommitLosingAnswer(usize, usize),
    Beat(usize),
    FreeLost(usize),
    Look(usize),
    Recover(usize),
    Suspect(usize),
    TakeOne,
    Die(usize),
    Stop(usize),
    Wake(usize),
    DatabaseGoes,
    DatabaseComes,
}

impl State {
    /// A row has a new beat: what was seen of it is old, unless it was the same number.
    fn beaten(&mut self, id: Id, beat: u8) {
        for worker in &mut self.workers {
            let seen = worker.watched.iter_mut().map(|it| &mut it.seen).chain(worker.judged.iter_mut());
            for it in seen.filter(|it| it.id == id) {
                it.current = it.beat == beat && beat < MANY;
            }
        }
    }

    fn renew(&mut self, id: Id) -> bool {
        let Some(row) = self.rows.iter_mut().find(|it| it.id == id) else { return false };
        row.beat = (row.beat + 1).min(MANY);
        row.quiet = [0; WORKERS];
        let beat = row.beat;
        self.beaten(id, beat);
        true
    }

    fn delete_row(&mut self, id: Id) {
        self.rows.retain(|it| it.id != id);
        self.beaten(id, MANY);
    }

    fn requeue(&mut self, task: usize) {
        let task = &mut self.tasks[task];
        (task.status, task.worker_id) = (Status::Queued, None);
    }

    fn take_back(&mut self, id: Id) {
        self.delete_row(id);
        for task in 0..self.tasks.len() {
            if self.tasks[task].status == Status::Running && self.tasks[task].worker_id == Some(id) {
                self.requeue(task);
            }
        }
    }

    /// Whether nobody who is awake has that claim of a task in hand.
    fn is_forsaken(&self, task: usize, epoch: u8) -> bool {
        let mine = |run: &Run| run.task == task && run.epoch == epoch;
        !self.workers.iter().filter(|it| it.acts()).any(|it| {
            it.runs.iter().any(mine) || matches!(it.claim, Claim::Made { ref run, .. } if mine(run))
        })
    }
}

impl Lease {
    fn claim(&self, state: &mut State, w: usize) {
        let Claim::Asked { id, fresh } = state.workers[w].claim else { return };
        let Some(n) = state.tasks.iter().position(|it| it.status == Status::Queued) else {
            state.workers[w].claim = Claim::No;
            return;
        };
        let task = &mut state.tasks[n];
        (task.status, task.worker_id) = (Status::Running, Some(id));
        task.epoch += 1;
        task.attempt += 1;
        let (epoch, stage, attempt) = (task.epoch, task.stage, task.attempt);
        if !fresh && !state.renew(id) {
            let beat = if self.from_one { 1 } else { MANY };
            state.rows.push(Row { id, beat, quiet: [0; WORKERS] });
            state.rows.sort_by_key(|it| it.id);
            state.beaten(id, beat);
        }
        state.workers[w].begun |= state.workers[w].lease == id;
        let run = Run { task: n, worker: id, epoch, stage, attempt, used_up: false };
        state.workers[w].claim = Claim::Made { run, fresh };
    }

    /// The transaction of a result; the run that the process goes on with.
    fn commit(&self, state: &mut State, run: Run) -> Option<Run> {
        let task = &mut state.tasks[run.task];
        let held = task.status == Status::Running
            && task.worker_id == Some(run.worker)
            && (self.no_epoch || task.epoch == run.epoch);
        let spent = run.attempt > ATTEMPTS;
        let effect = run.stage == 0 && !run.used_up && !spent;
        if effect && (held || self.effect_apart) {
            task.effects[run.stage] += 1;
        }
        if !held {
            return None;
        }
        if spent || (run.used_up && run.attempt == ATTEMPTS) {
            (task.status, task.worker_id) = (Status::Failed, None);
            return None;
        }
        if run.used_up {
            (task.status, task.worker_id) = (Status::Queued, None);
            return None;
        }
        task.commits[run.stage] += 1;
        if run.stage + 1 == STAGES {
            (task.status, task.worker_id) = (Status::Done, None);
            return None;
        }
        (task.stage, task.epoch, task.attempt) = (run.stage + 1, run.epoch + 1, 1);
        Some(Run { stage: task.stage, epoch: task.epoch, attempt: 1, ..run })
    }

    fn look(&self, state: &mut State, w: usize) {
        let State { rows, workers, .. } = state;
        let me = &mut workers[w];
        let busy = !me.runs.is_empty();
        me.watched.retain(|it| rows.iter().any(|row| row.id == it.seen.id));
        for row in rows.iter() {
            if row.id == me.lease && busy {
                continue;
            }
            let seen = Seen { id: row.id, beat: row.beat, current: true };
            let fresh = Watched { seen, since: 0, looked: 0 };
            match me.watched.iter_mut().find(|it| it.seen.id == row.id) {
                None => me.watched.push(fresh),
                Some(it) if !it.seen.current || (it.looked > GAP && !self.no_gap) => *it = fresh,
                Some(it) => {
                    it.looked = 0;
                    if it.since >= LEASE && !me.judged.contains(&seen) {
                        me.judged.push(seen);
                    }
                }
            }
        }
        me.watched.sort_by_key(|it| it.seen.id);
    }

    fn recover(&self, state: &mut State, w: usize) {
        for seen in std::mem::take(&mut state.workers[w].judged) {
            let Some(row) = state.rows.iter().find(|it| it.id == seen.id) else { continue };
            if !seen.current && !self.any_beat {
                continue;
            }
            let held = state.tasks.iter().any(|it| it.worker_id == Some(seen.id));
            state.robbed |= held && row.quiet[w] < LEASE;
            state.take_back(seen.id);
        }
    }
}

impl Model for Lease {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let task = Task {
            status: Status::Queued,
            stage: 0,
            epoch: 0,
            attempt: 0,
            worker_id: None,
            effects: [0; STAGES],
            commits: [0; STAGES],
        };
        let worker = |w| Worker {
            alive: true,
            stopped: false,
            lease: (w, 0),
            sure: false,
            claim: Claim::No,
            runs: Vec::new(),
            begun: false,
            lost: Vec::new(),
            watched: Vec::new(),
            judged: Vec::new(),
        };
        vec![State {
            tasks: vec![task; self.tasks],
            rows: Vec::new(),
            workers: (0..WORKERS).map(worker).collect(),
            deaths: self.deaths,
            stops: self.stops,
            lost_answers: self.lost_answers,
            outages: self.outages,
            away: None,
            suspect: None,
            robbed: false,
            renounced: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if self.is_over(state) {
            // All that can still do harm is a result that comes too late.
            for (w, me) in state.workers.iter().enumerate() {
                actions.extend(me.stopped.then_some(Action::Wake(w)));
                actions.extend((0..me.runs.len()).filter(|_| me.acts()).map(|run| Action::Commit(w, run)));
            }
            return;
        }
        for w in 0..WORKERS {
            let me = &state.workers[w];
            let last = state.workers.iter().filter(|it| it.acts()).count() == 1;
            // Who is awake beats in time, if the database is there.
            let in_time = |it: &Row| {
                let holder = &state.workers[it.id.0];
                let beats = holder.acts() && holder.is_busy() && holder.lease == it.id;
                state.away.is_some() || !beats || it.quiet[w] + 1 < LEASE
            };
            if me.alive && (!me.watched.is_empty() || state.away.is_some()) && state.rows.iter().all(in_time)
            {
                actions.push(Action::Tick(w));
            }
            if me.alive && state.deaths > 0 && w == 0 && (me.stopped || !last) {
                actions.push(Action::Die(w));
            }
            if me.stopped {
                actions.push(Action::Wake(w));
            }
            if !me.acts() {
                continue;
            }
            if state.stops > 0 && w == 0 && !last {
                actions.push(Action::Stop(w));
            }
            if matches!(me.claim, Claim::Made { .. }) {
                actions.push(Action::TakeClaim(w));
                if state.lost_answers > 0 {
                    actions.push(Action::LoseClaim(w));
                }
            }
            if state.away.is_some() {
                continue;
            }
            // The dispatcher does one thing after the other.
            match me.claim {
                _ if !me.judged.is_empty() => actions.push(Action::Recover(w)),
                Claim::No => {
                    if w > 0 || !self.one_observer {
                        actions.push(Action::Look(w));
                    }
                    if state.tasks.iter().any(|it| it.status == Status::Queued) {
                        actions.push(Action::AskClaim(w));
                    }
                }
                Claim::Asked { .. } => actions.push(Action::Claim(w)),
                Claim::Made { .. } => {}
            }
            for run in 0..me.runs.len() {
                actions.push(Action::Commit(w, run));
                if state.lost_answers > 0 {
                    actions.push(Action::CommitLosingAnswer(w, run));
                }
            }
            if !me.runs.is_empty() && me.lost.is_empty() {
                actions.push(Action::Beat(w));
            }
            if !me.lost.is_empty() {
                actions.push(Action::FreeLost(w));
            }
        }
        if state.away.is_none() && !self.no_housekeeping {
            for (n, task) in state.tasks.iter().enumerate() {
                if task.status == Status::Running && state.is_forsaken(n, task.epoch) {
                    actions.push(Action::Suspect(n));
                }
            }
        }
        if state.away.is_none() && state.suspect.is_some() {
            actions.push(Action::TakeOne);
        }
        if state.away.is_none() && state.outages > 0 {
            actions.push(Action::DatabaseGoes);
        }
        if state.away.is_some_and(|it| state.workers.iter().zip(it).all(|(w, ticks)| !w.alive || ticks > GAP))
        {
            actions.push(Action::DatabaseComes);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        let state = &mut next;
        match action {
            Action::Tick(w) => {
                for it in &mut state.workers[w].watched {
                    it.since = (it.since + 1).min(LEASE);
                    if self.outages > 0 {
                        it.looked = (it.looked + 1).min(GAP + 1);
                    }
                }
                match &mut state.away {
                    Some(away) => away[w] = (away[w] + 1).min(GAP + 1),
                    None => state.rows.iter_mut().for_each(|it| it.quiet[w] = (it.quiet[w] + 1).min(LEASE)),
                }
                state.workers.iter_mut().for_each(|it| it.sure = false);
            }
            Action::AskClaim(w) => {
                let me = &mut state.workers[w];
                me.claim = Claim::Asked { id: me.lease, fresh: me.sure };
            }
            Action::Claim(w) => self.claim(state, w),
            Action::TakeClaim(w) => {
                let me = &mut state.workers[w];
                let Claim::Made { run, fresh } = me.claim else { return None };
                me.claim = Claim::No;
                me.sure |= !fresh && run.worker == me.lease;
                if run.worker == me.lease || self.old_claims {
                    me.runs.push(run);
                    me.runs.sort_unstable();
                } else {
                    me.lost.push(run.worker);
                }
            }
            Action::LoseClaim(w) => {
                state.lost_answers -= 1;
                state.workers[w].claim = Claim::No;
            }
            Action::Commit(w, run) => {
                let run = state.workers[w].runs.remove(run);
                let on = self.commit(state, run);
                state.workers[w].runs.extend(on);
                state.workers[w].runs.sort_unstable();
            }
            Action::CommitLosingAnswer(w, run) => {
                state.lost_answers -= 1;
                let old = state.workers[w].runs[run];
                self.commit(state, old);
                state.workers[w].runs[run].used_up |= old.stage == 0 && old.attempt <= ATTEMPTS;
                state.workers[w].runs.sort_unstable();
            }
            Action::Beat(w) => {
                let id = state.workers[w].lease;
                let beats = state.renew(id);
                let me = &mut state.workers[w];
                if beats {
                    me.sure = true;
                } else {
                    state.renounced |= !me.begun;
                    (me.lease, me.sure, me.begun) = ((w, id.1 + 1), false, false);
                    me.lost.push(id);
                    me.runs.clear();
                }
            }
            Action::FreeLost(w) => {
                let id = state.workers[w].lost.remove(0);
                state.take_back(id);
            }
            Action::Look(w) => self.look(state, w),
            Action::Recover(w) => self.recover(state, w),
            Action::Suspect(n) => state.suspect = Some((n, state.tasks[n].epoch)),
            Action::TakeOne => {
                let (n, epoch) = state.suspect.take()?;
                if state.tasks[n].status == Status::Running && state.tasks[n].epoch == epoch {
                    state.requeue(n);
                }
            }
            Action::Die(w) => {
                state.deaths -= 1;
                let lease = state.workers[w].lease;
                state.workers[w] = Worker {
                    alive: false,
                    stopped: false,
                    lease,
                    sure: false,
                    claim: Claim::No,
                    runs: Vec::new(),
                    begun: false,
                    lost: Vec::new(),
                    watched: Vec::new(),
                    judged: Vec::new(),
                };
            }
            Action::Stop(w) => {
                state.stops -= 1;
                state.workers[w].stopped = true;
            }
            Action::Wake(w) => state.workers[w].stopped = false,
            Action::DatabaseGoes => {
                state.outages -= 1;
                state.away = Some([0; WORKERS]);
            }
            Action::DatabaseComes => state.away = None,
        }
        (next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("an effect once", |_, state: &State| {
                state.tasks.iter().all(|it| it.effects.iter().all(|n| *n <= 1))
            }),
            Property::always("a stage is committed once", |_, state: &State| {
                state.tasks.iter().all(|it| it.commits.iter().all(|n| *n <= 1))
            }),
            Property::always("done with all its effects", |_, state: &State| {
                state.tasks.iter().all(|it| it.status != Status::Done || it.effects[0] == 1)
            }),
            Property::always("no lease is lost that was none", |_, state: &State| !state.renounced),
            Property::always("nobody who beats is robbed", |_, state: &State| !state.robbed),
        ]
    }
}

impl Protocol for Lease {
    fn is_over(&self, state: &State) -> bool {
        state.tasks.iter().all(|it| matches!(it.status, Status::Done | Status::Failed))
    }

    fn is_sure(&self, action: &Action) -> bool {
        !matches!(
            action,
            Action::LoseClaim(_)
                | Action::CommitLosingAnswer(..)
                | Action::Die(_)
                | Action::Stop(_)
                | Action::Wake(_)
                | Action::DatabaseGoes
        )
    }
}

/// One task, two workers, a fault of each kind but outages.
fn faults() -> Lease {
    Lease { tasks: 1, deaths: 1, stops: 1, lost_answers: 1, ..Lease::default() }
}

#[test]
fn holds_with_a_zombie_a_death_and_a_lost_answer() {
    assert_eq!(broken(Lease { one_observer: true, ..faults() }), [].into());
}

#[test]
fn holds_with_a_zombie_that_stops_twice() {
    let model = Lease { one_observer: true, stops: 2, lost_answers: 0, ..faults() };
    assert_eq!(broken(model), [].into());
}

#[test]
fn holds_with_a_zombie_that_judges_others() {
    assert_eq!(broken(Lease { lost_answers: 0, ..faults() }), [].into());
}

#[test]
fn holds_with_two_that_judge_each_other() {
    assert_eq!(broken(Lease { stops: 0, ..faults() }), [].into());
}

#[test]
fn holds_with_two_tasks() {
    let model = Lease { tasks: 2, deaths: 1, one_observer: true, ..Lease::default() };
    assert_eq!(broken(model), [].into());
}

#[test]
fn holds_when_the_database_goes_away() {
    assert_eq!(broken(Lease { tasks: 1, deaths: 1, outages: 1, ..Lease::default() }), [].into());
}

#[test]
fn a_commit_without_the_epoch_is_found() {
    let found = broken(Lease { no_epoch: true, ..faults() });
    assert!(found.contains("a stage is committed once") || found.contains("an effect once"), "{found:?}");
}

#[test]
fn an_effect_outside_of_the_transaction_is_found() {
    assert!(broken(Lease { effect_apart: true, ..faults() }).contains("an effect once"));
}

#[test]
fn recovery_that_does_not_look_at_the_beat_is_found() {
    assert!(broken(Lease { any_beat: true, ..faults() }).contains("nobody who beats is robbed"));
}

#[test]
fn beats_that_begin_at_one_again_are_found() {
    assert!(broken(Lease { from_one: true, ..faults() }).contains("nobody who beats is robbed"));
}

#[test]
fn running_what_was_claimed_with_a_lost_lease_is_found() {
    assert!(broken(Lease { old_claims: true, ..faults() }).contains("no lease is lost that was none"));
}

#[test]
fn judging_by_a_time_without_looks_is_found() {
    let model = Lease { tasks: 1, outages: 1, no_gap: true, ..Lease::default() };
    assert!(broken(model).contains("nobody who beats is robbed"));
}

#[test]
fn tasks_of_workers_without_a_row_are_found_stuck() {
    let model = Lease { lost_answers: 0, one_observer: true, no_housekeeping: true, ..faults() };
    assert!(broken(model).contains(ENDS));
}
