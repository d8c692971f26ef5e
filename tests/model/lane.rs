//! Lanes: `store/lanes.rs` (`enter`, `follow`, `promote`) and the end of a task
//! in `store/advance.rs`.
//!
//! One lane with a task at its head; others enter with `.behind()` while it
//! ends. Transactions are taken statement by statement, as on a server that
//! reads what is committed: a statement picks its row from what is committed
//! when it begins, waits for who holds that row, and looks again whether the
//! row still is what it wants. An insert waits for whoever is about to change
//! what the unique index says.
//!
//! Left out: further objects (`members`, promoted in the same way), unique
//! keys, delays, and that `enter` gives up after eight tries.

use stateright::{Model, Property};

use crate::search::{Protocol, broken};
use crate::table::Table;

/// Tasks: the first is the head, the others enter.
const TASKS: usize = 4;

/// Bugs.
#[derive(Debug, Clone, Default)]
struct Lane {
    /// The end reads whether somebody follows before it has the row.
    end_reads_first: bool,
    /// Who follows does not lock the head.
    follow_without_lock: bool,
    /// The head's place is free before the next one has it.
    promote_apart: bool,
    /// The next one is any, not the first.
    promote_any: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Status {
    /// Not in the table.
    None,
    Blocked,
    /// Has the lane's active key.
    Active,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Row {
    status: Status,
    lane_seq: u8,
    lane_tail: u8,
    followers: u8,
}

/// Where a task's own transaction is: the one that enters it, then the one
/// that ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    /// Going to insert it at the head.
    Head,
    /// Going to look for the head.
    Find,
    /// Found it; going to count itself among those that follow.
    Follow(usize),
    /// Has that place; going to insert it.
    Behind(u8),
    Entered,
    /// It runs and is going to end.
    End,
    /// Read how many follow it, too early.
    EndKnowing(u8),
    /// Ended it; going to look for the next.
    Next,
    /// Found the next.
    Lock(usize),
    /// Locked it; going to count who is left and make it the head.
    Promote(usize),
    Commit,
    Over,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    /// Transactions are named by their task.
    tasks: Table<usize, Row, TASKS>,
    at: [At; TASKS],
    /// In which order they came, and in which they became active.
    entered: Vec<usize>,
    ran: Vec<usize>,
}

/// A statement of the transaction of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step(usize, At);

impl State {
    fn commit(&mut self, tx: usize) {
        for (row, old, new) in self.tasks.commit(tx) {
            if old.status == Status::None {
                self.entered.push(row);
            }
            if old.status != Status::Active && new.status == Status::Active {
                self.ran.push(row);
                self.at[row] = At::End;
            }
        }
    }
}

impl Lane {
    fn step(&self, state: &mut State, me: usize) -> Option<()> {
        let blocked = |state: &State| -> Vec<(u8, usize)> {
            let seen = (0..TASKS).map(|row| (state.tasks.seen(me, row), row));
            let mut all: Vec<_> = seen
                .filter(|(it, _)| it.status == Status::Blocked)
                .map(|(it, row)| (it.lane_seq, row))
                .collect();
            all.sort_unstable();
            all
        };
        state.at[me] = match state.at[me] {
            At::Head => {
                for row in 0..TASKS {
                    let others = state.tasks.held(row).filter(|(by, _)| *by != me);
                    let active = state.tasks.rows[row].status == Status::Active;
                    if others.is_some_and(|(_, it)| active || it.status == Status::Active) {
                        return None;
                    }
                }
                let taken = (0..TASKS).any(|row| state.tasks.seen(me, row).status == Status::Active);
                if !taken {
                    state.tasks.locked(me, me).ok()?.status = Status::Active;
                    state.at[me] = At::Commit;
                    state.commit(me);
                    return Some(());
                }
                At::Find
            }
            At::Find => match (0..TASKS).find(|row| state.tasks.rows[*row].status == Status::Active) {
                Some(row) if self.follow_without_lock => At::Behind(state.tasks.rows[row].lane_tail + 1),
                Some(row) => At::Follow(row),
                None => At::Head,
            },
            At::Follow(row) => {
                let head = state.tasks.locked(me, row).ok()?;
                if head.status == Status::Active {
                    (head.followers, head.lane_tail) = (head.followers + 1, head.lane_tail + 1);
                    At::Behind(head.lane_tail)
                } else {
                    // What the lock was taken for is not so: the row is let go.
                    state.tasks.undo(me);
                    At::Head
                }
            }
            At::Behind(place) => {
                *state.tasks.locked(me, me).ok()? =
                    Row { status: Status::Blocked, lane_seq: place, lane_tail: place, followers: 0 };
                state.commit(me);
                At::Entered
            }
            At::End if self.end_reads_first => At::EndKnowing(state.tasks.rows[me].followers),
            At::End => {
                let row = state.tasks.locked(me, me).ok()?;
                row.status = Status::Ended;
                if row.followers > 0 { At::Next } else { At::Commit }
            }
            At::EndKnowing(followers) => {
                state.tasks.locked(me, me).ok()?.status = Status::Ended;
                if followers > 0 { At::Next } else { At::Commit }
            }
            At::Next => {
                if self.promote_apart {
                    state.commit(me);
                }
                let all = blocked(state);
                match if self.promote_any { all.last() } else { all.first() } {
                    Some((_, row)) => At::Lock(*row),
                    None => At::Commit,
                }
            }
            At::Lock(row) => {
                if state.tasks.locked(me, row).ok()?.status == Status::Blocked {
                    At::Promote(row)
                } else {
                    At::Commit
                }
            }
            At::Promote(row) => {
                // The unique index: a second active task is refused, and all is undone.
                let taken = (0..TASKS).any(|it| state.tasks.seen(me, it).status == Status::Active);
                if taken && self.promote_apart {
                    state.tasks.undo(me);
                    At::Over
                } else {
                    let all = blocked(state);
                    let left = u8::try_from(all.len()).ok()? - 1;
                    let tail = all.last().map_or(0, |it| it.0);
                    let next = state.tasks.locked(me, row).ok()?;
                    (next.status, next.followers, next.lane_tail) = (Status::Active, left, tail);
                    At::Commit
                }
            }
            At::Commit => {
                state.commit(me);
                At::Over
            }
            // Others make it go on, or nobody.
            At::Entered | At::Over => return None,
        };
        Some(())
    }
}

impl Model for Lane {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let none = Row { status: Status::None, lane_seq: 0, lane_tail: 0, followers: 0 };
        let mut rows = [none; TASKS];
        rows[0].status = Status::Active;
        let mut at = [At::Head; TASKS];
        at[0] = At::End;
        vec![State { tasks: Table::new(rows), at, entered: vec![0], ran: vec![0] }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        actions.extend((0..TASKS).map(|it| Step(it, state.at[it])));
    }

    fn next_state(&self, last: &State, Step(me, _): Step) -> Option<State> {
        let mut next = last.clone();
        self.step(&mut next, me)?;
        (next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one is active", |_, state: &State| {
                state.tasks.rows.iter().filter(|it| it.status == Status::Active).count() <= 1
            }),
            Property::always("nobody is blocked without a head", |_, state: &State| {
                let any = |status| state.tasks.rows.iter().any(|it| it.status == status);
                !any(Status::Blocked) || any(Status::Active)
            }),
            Property::always("they run in the order they came", |_, state: &State| {
                state.entered.starts_with(&state.ran)
            }),
        ]
    }
}

impl Protocol for Lane {
    fn is_over(&self, state: &State) -> bool {
        state.tasks.rows.iter().all(|it| it.status == Status::Ended)
    }

    fn is_sure(&self, _: &Step) -> bool {
        true
    }
}

#[test]
fn holds() {
    assert_eq!(broken(Lane::default()), [].into());
}

#[test]
fn an_end_that_reads_first_is_found() {
    let model = Lane { end_reads_first: true, ..Lane::default() };
    assert!(broken(model).contains("nobody is blocked without a head"));
}

#[test]
fn following_without_a_lock_is_found() {
    let model = Lane { follow_without_lock: true, ..Lane::default() };
    assert!(broken(model).contains("nobody is blocked without a head"));
}

#[test]
fn promoting_in_another_transaction_is_found() {
    let found = broken(Lane { promote_apart: true, ..Lane::default() });
    assert!(found.contains("nobody is blocked without a head"), "{found:?}");
}

#[test]
fn promoting_any_is_found() {
    let model = Lane { promote_any: true, ..Lane::default() };
    assert!(broken(model).contains("they run in the order they came"));
}
