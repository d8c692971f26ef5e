//! Callback against timeout against cancel: `task/callback.rs`,
//! `task/commit.rs` (`after`), `store/outside.rs`, `store/claim.rs`, and the
//! rules of `task/plan.rs` for a wait.
//!
//! One task: its first stage gives a token out and asks to wait for the
//! second, whose twin runs if that fails. Transactions are taken statement by
//! statement, as on a server that reads what is committed: who changes or
//! locks the task's row holds it until its transaction ends, and others wait.
//! A claim is one step, since it skips what is locked.
//!
//! Callers hold the token from when the stage begins. A call may come at any
//! time; one whose answer is lost is one that is called again, which is what
//! the second caller does. The first worker may die in any stage.
//!
//! Left out: deadlines, undoing, tokens that are not genuine, and a callback
//! to a task that waits for subtasks.

use stateright::{Model, Property};

use crate::search::{ENDS, Protocol, broken};
use crate::table::Table;

/// Callers with the token.
const CALLERS: usize = 2;
/// Attempts at the first stage.
const ATTEMPTS: u8 = 2;

/// Bugs.
#[derive(Debug, Clone, Default)]
struct Callback {
    /// No timeout comes: a callback must do.
    no_timeout: bool,
    /// Parking does not look whether the callback was quicker.
    park_blindly: bool,
    /// Parking looks before it has the row.
    park_looks_first: bool,
    /// A callback reads the task without locking it.
    no_lock: bool,
    /// A callback does not mind that one was made already.
    again: bool,
    /// The end of a wait does not change its token.
    timeout_keeps_seq: bool,
    /// A callback makes the task go on whatever its status is by now.
    resume_anything: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Status {
    Queued,
    Running,
    Waiting,
    Done,
    Failed,
    Cancelled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    Asks,
    Asked,
    /// The twin of either.
    Failed,
}

/// The task's row, its ready row and its callback row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Row {
    status: Status,
    stage: Stage,
    seq: u8,
    epoch: u8,
    attempt: u8,
    /// What the stage is given is what the callback brought.
    data: bool,
    cancel_requested: bool,
    cancelling: bool,
    /// The ready row; whether it is due.
    due: Option<bool>,
}

/// Who ended the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Winner {
    Callback,
    Timeout,
    Cancel,
}

/// A transaction, by the statement that it is at; with it, what it has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    Before,
    /// Read the task; going to store the callback.
    Keep(Row),
    /// Stored it; going to change the task.
    Resume(Row),
    Commit,
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Caller {
    at: At,
    acknowledged: bool,
}

/// Where the worker is with what it has claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Work {
    Idle,
    Stage(Row),
    /// Parked it, in a transaction that is open; `found`: what an early look said.
    Parking {
        found: bool,
    },
}

/// Who holds the task's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Holder {
    Worker,
    Caller(usize),
    Cancel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    task: Table<Holder, Row, 1>,
    /// The token's callback row: whose it is, and whether it is committed.
    kept: Option<(usize, bool)>,
    work: Work,
    /// What an early look of the worker said.
    looked: Option<bool>,
    callers: [Caller; CALLERS],
    cancel: At,
    may_die: bool,
    /// What happened.
    parked: bool,
    winners: [u8; 3],
    consumed: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Claim,
    TimeIsUp,
    /// The first stage asks to wait.
    Park,
    ParkLooks,
    ParkLooksFirst,
    /// The first stage asks for another attempt.
    Retry,
    /// The second stage, or a twin, ends the task.
    End,
    DieAndRecover,
    Call(usize),
    Cancel,
}

impl Status {
    fn is_ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

impl State {
    fn row(&self) -> Row {
        self.task.rows[0]
    }

    fn won(&mut self, by: Winner) {
        self.winners[by as usize] += 1;
    }

    /// `store::resume`.
    fn resume(&mut self, who: Holder, anything: bool) -> Option<()> {
        let row = self.task.locked(who, 0).ok()?;
        if row.status == Status::Waiting || anything {
            (row.status, row.seq, row.attempt, row.data) = (Status::Queued, row.seq + 1, 0, true);
            row.due = Some(true);
            self.won(Winner::Callback);
        }
        Some(())
    }
}

impl Callback {
    fn call(&self, state: &mut State, n: usize) -> Option<()> {
        let who = Holder::Caller(n);
        match state.callers[n].at {
            At::Before => {
                if !self.no_lock {
                    state.task.locked(who, 0).ok()?;
                }
                let row = state.row();
                // The token is that of the first stage; its seq is 1.
                let late = row.seq != 1 || row.status.is_ended();
                state.callers[n].at = if late { At::Over } else { At::Keep(row) };
                if late {
                    state.task.commit(who);
                }
            }
            At::Keep(row) => {
                match state.kept {
                    // The index waits for who is about to.
                    Some((other, false)) if other != n => return None,
                    Some(_) if !self.again => {
                        state.callers[n].at = At::Over;
                        state.task.commit(who);
                        return Some(());
                    }
                    Some(_) => {}
                    None => state.kept = Some((n, false)),
                }
                state.callers[n].at =
                    if row.status == Status::Waiting { At::Resume(row) } else { At::Commit };
            }
            At::Resume(_) => {
                state.resume(who, self.resume_anything)?;
                state.callers[n].at = At::Commit;
            }
            At::Commit => {
                state.task.commit(who);
                state.kept = state.kept.map(|(by, done)| (by, done || by == n));
                state.callers[n] = Caller { at: At::Over, acknowledged: true };
            }
            At::Over => return None,
        }
        Some(())
    }

    fn cancel(state: &mut State) -> Option<()> {
        let who = Holder::Cancel;
        match state.cancel {
            At::Before => {
                let row = *state.task.locked(who, 0).ok()?;
                let refused = row.status.is_ended() || row.cancelling || row.stage == Stage::Failed;
                state.cancel = if refused { At::Over } else { At::Resume(row) };
                if refused {
                    state.task.undo(who);
                }
            }
            At::Resume(row) => {
                if row.status == Status::Waiting {
                    state.won(Winner::Cancel);
                }
                let to = state.task.locked(who, 0).ok()?;
                to.cancel_requested = true;
                if row.status != Status::Running {
                    (to.status, to.stage, to.seq, to.attempt) =
                        (Status::Queued, Stage::Failed, row.seq + 1, 0);
                    (to.cancelling, to.due) = (true, Some(true));
                }
                state.cancel = At::Commit;
            }
            At::Commit => {
                state.task.commit(who);
                state.cancel = At::Over;
            }
            At::Keep(_) | At::Over => return None,
        }
        Some(())
    }

    /// The first statement of a result: moves the task if the worker holds it.
    fn advance(state: &mut State, mine: Row, to: impl FnOnce(&mut Row)) -> Option<bool> {
        let row = state.task.locked(Holder::Worker, 0).ok()?;
        if row.status != Status::Running || row.epoch != mine.epoch {
            state.task.undo(Holder::Worker);
            state.work = Work::Idle;
            return Some(false);
        }
        let regardless = mine.stage == Stage::Failed || mine.cancelling;
        if row.cancel_requested && !regardless && mine.stage != Stage::Asked {
            // Refused; `held` says why, and the next try goes to the twin.
            (row.stage, row.seq, row.epoch, row.attempt) = (Stage::Failed, row.seq + 1, row.epoch + 1, 1);
            row.cancelling = true;
            state.work = Work::Stage(*row);
            state.task.commit(Holder::Worker);
            return Some(false);
        }
        to(row);
        Some(true)
    }
}

impl Model for Callback {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            task: Table::new([Row {
                status: Status::Queued,
                stage: Stage::Asks,
                seq: 1,
                epoch: 0,
                attempt: 0,
                data: false,
                cancel_requested: false,
                cancelling: false,
                due: Some(true),
            }]),
            kept: None,
            work: Work::Idle,
            looked: None,
            callers: [Caller { at: At::Before, acknowledged: false }; CALLERS],
            cancel: At::Before,
            may_die: true,
            parked: false,
            winners: [0; 3],
            consumed: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // The token is known once the first stage has begun.
        let callers = if state.row().epoch > 0 { CALLERS } else { 0 };
        actions.extend((0..callers).map(Action::Call));
        actions.push(Action::Cancel);
        if !self.no_timeout {
            actions.push(Action::TimeIsUp);
        }
        match state.work {
            Work::Idle => actions.push(Action::Claim),
            Work::Stage(row) => {
                match row.stage {
                    Stage::Asks if row.attempt > ATTEMPTS => actions.push(Action::End),
                    Stage::Asks => {
                        if self.park_looks_first && state.looked.is_none() {
                            actions.push(Action::ParkLooksFirst);
                        } else {
                            actions.push(Action::Park);
                        }
                        if row.attempt < ATTEMPTS {
                            actions.push(Action::Retry);
                        }
                    }
                    Stage::Asked | Stage::Failed => actions.push(Action::End),
                }
                if state.may_die {
                    actions.push(Action::DieAndRecover);
                }
            }
            Work::Parking { .. } => actions.push(Action::ParkLooks),
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = *last;
        let state = &mut next;
        match action {
            Action::Call(n) => self.call(state, n)?,
            Action::Cancel => Self::cancel(state)?,
            Action::TimeIsUp => {
                // Only timers are not due; both statements skip what is locked.
                if state.task.is_any_held() || state.row().due != Some(false) {
                    return None;
                }
                state.task.rows[0].due = Some(true);
            }
            Action::Claim => {
                let held = state.task.is_any_held();
                let row = &mut state.task.rows[0];
                if held || row.due != Some(true) {
                    return None;
                }
                if row.status == Status::Waiting {
                    (row.stage, row.attempt) = (Stage::Failed, 0);
                    row.seq += u8::from(!self.timeout_keeps_seq);
                    state.winners[Winner::Timeout as usize] += 1;
                }
                (row.status, row.due) = (Status::Running, None);
                row.epoch += 1;
                row.attempt += 1;
                state.work = Work::Stage(*row);
            }
            Action::ParkLooksFirst => state.looked = Some(state.kept.is_some_and(|(_, done)| done)),
            Action::Park => {
                let Work::Stage(mine) = state.work else { return None };
                let moved = Self::advance(state, mine, |row| {
                    (row.status, row.stage, row.attempt) = (Status::Waiting, Stage::Asked, 0);
                    row.due = Some(false);
                })?;
                if moved {
                    state.work = Work::Parking { found: state.looked.take().unwrap_or(false) };
                    state.parked = true;
                }
            }
            Action::ParkLooks => {
                let Work::Parking { found } = state.work else { return None };
                let there = state.kept.is_some_and(|(_, done)| done);
                if if self.park_looks_first { found } else { there && !self.park_blindly } {
                    state.resume(Holder::Worker, false)?;
                }
                state.task.commit(Holder::Worker);
                state.work = Work::Idle;
            }
            Action::Retry => {
                let Work::Stage(mine) = state.work else { return None };
                state.looked = None;
                if Self::advance(state, mine, |row| (row.status, row.due) = (Status::Queued, Some(true)))? {
                    state.task.commit(Holder::Worker);
                    state.work = Work::Idle;
                }
            }
            Action::End => {
                let Work::Stage(mine) = state.work else { return None };
                let moved = Self::advance(state, mine, |row| {
                    row.status = match mine.stage {
                        Stage::Asked => Status::Done,
                        _ if mine.cancelling => Status::Cancelled,
                        _ => Status::Failed,
                    };
                })?;
                if moved {
                    state.task.commit(Holder::Worker);
                    state.work = Work::Idle;
                    state.consumed += u8::from(mine.stage == Stage::Asked && mine.data);
                }
            }
            Action::DieAndRecover => {
                let Work::Stage(_) = state.work else { return None };
                if state.task.is_any_held() {
                    return None;
                }
                let row = &mut state.task.rows[0];
                (row.status, row.due) = (Status::Queued, Some(true));
                (state.work, state.looked, state.may_die) = (Work::Idle, None, false);
            }
        }
        (next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one of the three ends the wait", |_, state: &State| {
                state.winners.iter().sum::<u8>() <= 1
            }),
            Property::always("a callback is accepted once", |_, state: &State| {
                state.callers.iter().filter(|it| it.acknowledged).count() <= 1
            }),
            Property::always("a callback is consumed once", |_, state: &State| state.consumed <= 1),
            Property::always("what was accepted is not lost", |_, state: &State| {
                // A wait that never began, since the stage failed or was
                // cancelled first, consumes nothing.
                let accepted = state.callers.iter().any(|it| it.acknowledged);
                let lost =
                    state.winners[Winner::Timeout as usize] + state.winners[Winner::Cancel as usize] > 0;
                !(accepted && state.parked && lost)
            }),
            Property::always("who goes on was called", |_, state: &State| {
                state.row().status != Status::Done || (state.row().data && state.kept.is_some())
            }),
        ]
    }
}

impl Protocol for Callback {
    fn is_over(&self, state: &State) -> bool {
        let open = state.task.is_any_held()
            || state.callers.iter().any(|it| matches!(it.at, At::Keep(_) | At::Commit));
        let accepted = state.callers.iter().any(|it| it.acknowledged);
        let waits = self.no_timeout && state.row().status == Status::Waiting && !accepted;
        !open && (state.row().status.is_ended() || waits)
    }

    fn is_sure(&self, action: &Action) -> bool {
        !matches!(action, Action::DieAndRecover)
    }
}

#[test]
fn holds() {
    assert_eq!(broken(Callback::default()), [].into());
}

#[test]
fn a_callback_does_without_a_timeout() {
    assert_eq!(broken(Callback { no_timeout: true, ..Callback::default() }), [].into());
}

#[test]
fn parking_without_a_look_at_the_callback_is_found() {
    assert!(
        broken(Callback { park_blindly: true, ..Callback::default() })
            .contains("what was accepted is not lost")
    );
    let stuck = Callback { park_blindly: true, no_timeout: true, ..Callback::default() };
    let found = broken(stuck);
    assert!(found.contains(ENDS) || found.contains("what was accepted is not lost"), "{found:?}");
}

#[test]
fn parking_that_looks_too_early_is_found() {
    let model = Callback { park_looks_first: true, ..Callback::default() };
    assert!(broken(model).contains("what was accepted is not lost"));
}

#[test]
fn a_callback_that_does_not_lock_is_found() {
    let model = Callback { no_lock: true, ..Callback::default() };
    assert!(broken(model).contains("what was accepted is not lost"));
}

#[test]
fn a_callback_that_is_taken_twice_is_found() {
    let model = Callback { again: true, ..Callback::default() };
    assert!(broken(model).contains("a callback is accepted once"));
}

#[test]
fn a_timeout_that_leaves_the_token_alone_is_found() {
    let model = Callback { timeout_keeps_seq: true, ..Callback::default() };
    assert!(broken(model).contains("what was accepted is not lost"));
}

#[test]
fn a_callback_that_resumes_anything_is_found() {
    let model = Callback { no_lock: true, resume_anything: true, ..Callback::default() };
    assert!(broken(model).contains("one of the three ends the wait"));
}
