//! Fan-in: a parent that waits for its subtasks. `store/lanes.rs`
//! (`child_ended`), `store/advance.rs` (`settle`, and `open_children` in both
//! updates), `store/outside.rs` (`cancel_children`), `store/claim.rs` and
//! `perform_cancel` in `task/resource.rs`.
//!
//! The parent waits already and its children run, but for the last, which is
//! still queued. Children end in transactions at the same time, or two of them
//! in one, as results are gathered; meanwhile the wait's time may be up and
//! somebody may cancel the parent. Transactions are taken statement by
//! statement with the rows that they hold; who waits in a circle is undone and
//! begins anew, as databases and the engine do.
//!
//! `forget_children` and `forget_cancel` are what the engine once did. It has
//! since let the twin wait for cancelled subtasks (`give_up`); here the twin runs
//! beside them, which is harder.
//!
//! Left out: deaths of workers (see the lease's model: what counts here is in
//! one transaction with the child's end), lanes, and children of children.

use stateright::{Model, Property};

use crate::search::{ENDS, Protocol, broken};
use crate::table::Table;

/// Subtasks; row 0 is the parent, they are the rows from 1.
const CHILDREN: usize = 3;
const ROWS: usize = CHILDREN + 1;
/// The transactions: of the parent's worker, of children's, of a cancel.
const PARENT: usize = 0;
const CANCEL: usize = ROWS;
const TXS: usize = ROWS + 1;

/// What happens, and bugs.
#[derive(Debug, Clone, Default)]
struct FanIn {
    /// The first two children end in one transaction.
    together: bool,
    no_timeout: bool,
    /// The twin of the wait asks for another attempt, once.
    twin_retries: bool,
    /// The child's end is committed before its parent counts it, and who does
    /// it may die between.
    count_apart: bool,
    /// The count is read, and written less one.
    read_then_write: bool,
    /// The parent is counted down whatever it does by now.
    any_parent: bool,
    /// A move that does not end the task forgets its open children.
    forget_children: bool,
    /// Once the time is up, nobody knows that a cancel was asked for.
    forget_cancel: bool,
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
struct Row {
    status: Status,
    /// It runs a twin.
    twin: bool,
    seq: u8,
    attempt: u8,
    open_children: u8,
    cancel_requested: bool,
    cancelling: bool,
    /// Of the parent: how many ended children it was told of.
    told: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    Begin,
    /// Child: ended so many of its group; going to count.
    Count(usize),
    /// Child: read the count, too early; going to write it.
    Write(usize, u8),
    /// Child: it was the last; going to tell the parent.
    Wake(usize),
    /// Parent, or a cancel of it: going to lock and cancel that child.
    Child(usize),
    /// A cancel: going to mark the parent.
    Mark,
    Commit,
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    tasks: Table<usize, Row, ROWS>,
    at: [At; TXS],
    /// How often the parent's wait ended.
    woken: u8,
    died: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// The next statement of that transaction.
    Step(usize),
    /// It waits in a circle: it is undone.
    Undo(usize),
    /// A worker claims what is queued.
    Claim(usize),
    TimeIsUp,
    Die(usize),
}

impl Status {
    fn is_ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

impl State {
    fn commit(&mut self, tx: usize) {
        for (row, old, new) in self.tasks.commit(tx) {
            // Even if it goes on waiting for something else by then.
            self.woken += u8::from(row == 0 && new.status == Status::Queued && new.seq > old.seq);
        }
    }

    /// `cancel_children`, of one child that is locked.
    fn cancel_child(row: &mut Row) {
        if row.status.is_ended() || row.cancelling || row.twin {
            return;
        }
        row.cancel_requested = true;
        if row.status == Status::Queued {
            (row.twin, row.cancelling, row.seq) = (true, true, row.seq + 1);
        }
    }
}

impl FanIn {
    /// The children that a transaction ends.
    fn group(&self, tx: usize) -> &'static [usize] {
        match (self.together, tx) {
            (true, 1) => &[1, 2],
            (true, 2) => &[],
            (_, 1) => &[1],
            (_, 2) => &[2],
            _ => &[3],
        }
    }

    /// The next statement of a transaction; an error: who holds the row.
    fn step(&self, state: &mut State, tx: usize) -> Result<(), Option<usize>> {
        state.at[tx] = match tx {
            PARENT => self.parent(state)?,
            CANCEL => Self::cancel(state)?,
            child => self.child(state, child)?,
        };
        Ok(())
    }

    fn child(&self, state: &mut State, tx: usize) -> Result<At, Option<usize>> {
        let group = self.group(tx);
        Ok(match state.at[tx] {
            At::Begin => {
                if group.is_empty()
                    || group.iter().any(|it| state.tasks.seen(tx, *it).status != Status::Running)
                {
                    return Err(None);
                }
                for child in group {
                    let row = state.tasks.locked(tx, *child)?;
                    row.status = if row.cancelling { Status::Cancelled } else { Status::Done };
                }
                if self.count_apart {
                    state.commit(tx);
                }
                At::Count(0)
            }
            At::Count(n) if n == group.len() => At::Commit,
            At::Count(n) if self.read_then_write => At::Write(n, state.tasks.seen(tx, 0).open_children),
            At::Count(n) | At::Write(n, _) => {
                let waits = |row: &Row| (row.status == Status::Waiting && row.seq == 1) || self.any_parent;
                if !waits(&state.tasks.seen(tx, 0)) {
                    state.at[tx] = At::Count(n + 1);
                    return Ok(At::Count(n + 1));
                }
                let read = match state.at[tx] {
                    At::Write(_, read) => Some(read),
                    _ => None,
                };
                let row = state.tasks.locked(tx, 0)?;
                let mut left = None;
                if waits(row) {
                    row.open_children = read.unwrap_or(row.open_children).saturating_sub(1);
                    left = Some(row.open_children);
                }
                if left == Some(0) { At::Wake(n) } else { At::Count(n + 1) }
            }
            At::Wake(n) => {
                let ended = (1..ROWS).filter(|it| state.tasks.seen(tx, *it).status.is_ended()).count();
                let row = state.tasks.locked(tx, 0)?;
                if row.cancel_requested {
                    (row.twin, row.cancelling) = (true, true);
                } else {
                    row.told = u8::try_from(ended).ok();
                }
                (row.status, row.seq, row.attempt) = (Status::Queued, row.seq + 1, 0);
                At::Count(n + 1)
            }
            At::Commit => {
                state.commit(tx);
                At::Over
            }
            At::Child(_) | At::Mark | At::Over => return Err(None),
        })
    }

    /// The end of the stage that the parent runs.
    fn parent(&self, state: &mut State) -> Result<At, Option<usize>> {
        Ok(match state.at[PARENT] {
            At::Begin => {
                if state.tasks.seen(PARENT, 0).status != Status::Running {
                    return Err(None);
                }
                let row = state.tasks.locked(PARENT, 0)?;
                if row.twin && self.twin_retries && row.attempt == 1 {
                    row.status = Status::Queued;
                    if self.forget_children {
                        row.open_children = 0;
                    }
                    state.commit(PARENT);
                    return Ok(At::Begin);
                }
                row.status = match (row.twin, row.cancelling) {
                    (_, true) => Status::Cancelled,
                    (true, _) => Status::Failed,
                    _ => Status::Done,
                };
                if row.open_children > 0 { At::Child(1) } else { At::Commit }
            }
            At::Child(ROWS) | At::Commit => {
                state.commit(PARENT);
                At::Over
            }
            At::Child(n) => {
                if !state.tasks.seen(PARENT, n).status.is_ended() {
                    State::cancel_child(state.tasks.locked(PARENT, n)?);
                }
                At::Child(n + 1)
            }
            _ => return Err(None),
        })
    }

    fn cancel(state: &mut State) -> Result<At, Option<usize>> {
        Ok(match state.at[CANCEL] {
            At::Begin => {
                let row = *state.tasks.locked(CANCEL, 0)?;
                if row.status.is_ended() || row.cancelling || row.twin {
                    state.tasks.undo(CANCEL);
                    At::Over
                } else if row.status == Status::Waiting && row.open_children > 0 {
                    At::Child(1)
                } else if row.status == Status::Queued {
                    let row = state.tasks.locked(CANCEL, 0)?;
                    (row.twin, row.cancelling, row.cancel_requested) = (true, true, true);
                    // The wait is over already: this is not its end.
                    At::Commit
                } else {
                    At::Mark
                }
            }
            At::Child(ROWS) => At::Mark,
            At::Child(n) => {
                if !state.tasks.seen(CANCEL, n).status.is_ended() {
                    State::cancel_child(state.tasks.locked(CANCEL, n)?);
                }
                At::Child(n + 1)
            }
            At::Mark => {
                state.tasks.locked(CANCEL, 0)?.cancel_requested = true;
                At::Commit
            }
            At::Commit => {
                state.commit(CANCEL);
                At::Over
            }
            _ => return Err(None),
        })
    }

    /// For whom a transaction waits.
    fn waits_for(&self, state: &State, tx: usize) -> Option<usize> {
        self.step(&mut state.clone(), tx).err().flatten()
    }

    fn waits_in_circle(&self, state: &State, tx: usize) -> bool {
        let mut at = tx;
        for _ in 0..TXS {
            match self.waits_for(state, at) {
                Some(other) if other == tx => return true,
                Some(other) => at = other,
                None => return false,
            }
        }
        false
    }
}

impl Model for FanIn {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let row = Row {
            status: Status::Running,
            twin: false,
            seq: 1,
            attempt: 1,
            open_children: 0,
            cancel_requested: false,
            cancelling: false,
            told: None,
        };
        let mut rows = [row; ROWS];
        let open_children = u8::try_from(CHILDREN).unwrap_or(u8::MAX);
        rows[0] = Row { status: Status::Waiting, open_children, attempt: 0, ..row };
        rows[CHILDREN].status = Status::Queued;
        let at = [At::Begin; TXS];
        vec![State { tasks: Table::new(rows), at, woken: 0, died: false }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for tx in 0..TXS {
            actions.push(Action::Step(tx));
            if self.waits_in_circle(state, tx) {
                actions.push(Action::Undo(tx));
            }
            if self.count_apart && !state.died && matches!(state.at[tx], At::Count(_)) {
                actions.push(Action::Die(tx));
            }
        }
        actions.extend((0..ROWS).map(Action::Claim));
        if !self.no_timeout {
            actions.push(Action::TimeIsUp);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = *last;
        let state = &mut next;
        match action {
            Action::Step(tx) => self.step(state, tx).ok()?,
            Action::Undo(tx) => {
                state.tasks.undo(tx);
                state.at[tx] = At::Begin;
            }
            Action::Die(tx) => {
                (state.at[tx], state.died) = (At::Over, true);
            }
            Action::Claim(n) => {
                if state.tasks.held(n).is_some() || state.tasks.rows[n].status != Status::Queued {
                    return None;
                }
                state.tasks.rows[n].status = Status::Running;
                state.tasks.rows[n].attempt += 1;
                if n == 0 {
                    state.at[PARENT] = At::Begin;
                }
            }
            Action::TimeIsUp => {
                let held = state.tasks.held(0).is_some();
                let row = &mut state.tasks.rows[0];
                if held || row.status != Status::Waiting {
                    return None;
                }
                (row.status, row.twin, row.seq, row.attempt) = (Status::Running, true, row.seq + 1, 1);
                row.cancelling = row.cancel_requested && !self.forget_cancel;
                state.woken += 1;
            }
        }
        (next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("a wait ends once", |_, state: &State| {
                // A cancel of what is queued does not raise `seq` here.
                state.woken <= 1
            }),
            Property::always("it goes on when all have ended", |_, state: &State| {
                let row = &state.tasks.rows[0];
                row.told.is_none_or(|it| usize::from(it) == CHILDREN)
                    && (row.status != Status::Done || row.told.is_some())
            }),
            Property::always("who was cancelled did not fail", |_, state: &State| {
                !(state.tasks.rows[0].status == Status::Failed && state.tasks.rows[0].cancel_requested)
            }),
            Property::always("no child is left alone", |_, state: &State| {
                let (parent, children) = (&state.tasks.rows[0], &state.tasks.rows[1..]);
                !parent.status.is_ended()
                    || children.iter().all(|it| it.status.is_ended() || it.cancel_requested || it.cancelling)
            }),
        ]
    }
}

impl Protocol for FanIn {
    fn is_over(&self, state: &State) -> bool {
        state.tasks.rows.iter().all(|it| it.status.is_ended())
    }

    fn is_sure(&self, action: &Action) -> bool {
        !matches!(action, Action::Die(_))
    }
}

#[test]
fn holds() {
    assert_eq!(broken(FanIn::default()), [].into());
}

#[test]
fn holds_with_results_that_are_gathered() {
    assert_eq!(broken(FanIn { together: true, ..FanIn::default() }), [].into());
}

#[test]
fn holds_with_a_twin_that_is_run_again() {
    assert_eq!(broken(FanIn { twin_retries: true, ..FanIn::default() }), [].into());
}

#[test]
fn does_without_a_timeout() {
    assert_eq!(broken(FanIn { no_timeout: true, ..FanIn::default() }), [].into());
}

#[test]
fn counting_in_another_transaction_is_found() {
    let model = FanIn { count_apart: true, no_timeout: true, ..FanIn::default() };
    assert!(broken(model).contains(ENDS));
}

#[test]
fn counting_by_reading_and_writing_is_found() {
    let model = FanIn { read_then_write: true, no_timeout: true, ..FanIn::default() };
    assert!(broken(model).contains(ENDS));
}

#[test]
fn counting_a_parent_that_does_not_wait_is_found() {
    assert!(broken(FanIn { any_parent: true, ..FanIn::default() }).contains("a wait ends once"));
}

#[test]
fn forgetting_open_children_is_found() {
    let model = FanIn { forget_children: true, twin_retries: true, ..FanIn::default() };
    assert!(broken(model).contains("no child is left alone"));
}

#[test]
fn forgetting_a_cancel_is_found() {
    let model = FanIn { forget_cancel: true, ..FanIn::default() };
    assert!(broken(model).contains("who was cancelled did not fail"));
}
