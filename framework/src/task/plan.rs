//! What is to become of a task after an attempt at a stage: the engine's rules
//! in one place, without a database.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::engine::WorkerOptions;
use super::stage::{Effect, Reason, Spawn, Stage, Step, is_temporary};
use super::store::{Claimed, Move, Status, Why};
use super::{StageSpec, TWIN, TaskEntry, UNDO};
use crate::Error;

/// How long a task whose stage this process does not know is left to others.
const UNKNOWN: Duration = Duration::from_secs(10);

/// What a stage did that is to be undone if the task fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Undo {
    stage: String,
    data: Option<String>,
}

fn stack(text: Option<&str>) -> Vec<Undo> {
    text.and_then(|it| serde_json::from_str(it).ok()).unwrap_or_default()
}

fn stored(stack: &[Undo]) -> Option<String> {
    if stack.is_empty() { None } else { serde_json::to_string(stack).ok() }
}

pub(super) struct Plan {
    step: PlanStep,
    data: Option<serde_json::Result<String>>,
    undo: Option<serde_json::Result<String>>,
    after: Option<Duration>,
    pub(super) effect: Option<Effect>,
    pub(super) spawns: Vec<Spawn>,
    progress: Progress,
}

/// How far a stage told that it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    pub(crate) percent: Option<f64>,
    pub(crate) text: Option<String>,
}

enum PlanStep {
    Step(Step),
    /// The object is gone.
    Gone(Reason),
    /// This process does not know the stage.
    Leave,
}

/// The circumstances of a move.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now<'a> {
    pub(super) options: &'a WorkerOptions,
    /// The engine's time.
    pub(super) time: i64,
    /// Somebody asked to cancel while the stage ran.
    pub(super) cancel: bool,
    /// The next stage is to wait in the queue: for another process, or for its
    /// kind to be resumed.
    pub(super) stopping: bool,
}

impl Plan {
    pub(super) fn of(step: Step) -> Self {
        Self {
            step: PlanStep::Step(step),
            data: None,
            undo: None,
            after: None,
            effect: None,
            spawns: Vec::new(),
            progress: Progress::default(),
        }
    }

    pub(super) fn stage(stage: Stage, progress: Progress) -> Self {
        let Stage { step, data, undo, after, effect, spawns } = stage;
        Self { step: PlanStep::Step(step), data, undo, after, effect, spawns, progress }
    }

    pub(super) fn leave() -> Self {
        Self { step: PlanStep::Leave, ..Self::of(Step::Complete) }
    }

    pub(super) fn gone(task: &Claimed) -> Self {
        let why = Reason::from(format!("{} {} is gone", task.obj_type, task.obj_id));
        Self { step: PlanStep::Gone(why), ..Self::of(Step::Complete) }
    }

    pub(super) fn error(task: &Claimed, error: Error) -> Self {
        tracing::warn!(task = task.id, name = task.task_name, stage = task.stage, %error, "a stage failed");
        let retry = is_temporary(&error);
        let why = Reason::from(error);
        Self::of(if retry { Step::Retry(why) } else { Step::Fail(why) })
    }

    pub(super) fn told(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }

    /// The move in the database.
    pub(super) fn moved(&self, kind: &'static TaskEntry, task: &Claimed, now: &Now<'_>) -> Move {
        let rules = Rules { plan: self, kind, task, now };
        rules.moved()
    }
}

struct Rules<'a> {
    plan: &'a Plan,
    kind: &'static TaskEntry,
    task: &'a Claimed,
    now: &'a Now<'a>,
}

impl Rules<'_> {
    fn is_twin(&self) -> bool {
        self.task.stage.ends_with(TWIN)
    }

    fn is_undo(&self) -> bool {
        self.task.stage.ends_with(UNDO)
    }

    fn base(&self) -> Move {
        let winding_up = self.is_twin() || self.is_undo();
        Move {
            status: if self.now.stopping { Status::Queued } else { Status::Running },
            stage: None,
            data: None,
            retry_stage: None,
            why: if winding_up { Why::Keep } else { Why::Clear },
            cancelling: false,
            refund: false,
            delay: Duration::ZERO,
            progress: self.plan.progress.percent,
            progress_text: self.plan.progress.text.clone(),
            outcome: "done",
            // Once a cancel is in the move, or can change nothing more.
            regardless: self.now.cancel || winding_up || self.task.cancelling,
            undo: None,
            ending: None,
            children: 0,
        }
    }

    /// To the twin of a stage.
    fn twin(&self, of: &str, why: &Reason, outcome: &'static str) -> Move {
        Move { stage: Some(format!("{of}{TWIN}")), why: Why::Set(why.clone()), outcome, ..self.base() }
    }

    /// The end, if nothing is to be undone first.
    fn end(&self, status: Status, why: Option<&Reason>, outcome: &'static str) -> Move {
        let task = self.task;
        let cancelled = task.cancelling || (self.now.cancel && self.is_twin());
        let status = if cancelled { Status::Cancelled } else { status };
        let why = match why {
            // Who is cancelled knows why.
            _ if task.cancelling => Why::Keep,
            Some(why) => Why::Set(why.clone()),
            None => self.base().why,
        };
        let base = Move { why, outcome, regardless: true, ..self.base() };
        let undo = stack(task.undo.as_deref());
        match undo.last() {
            Some(last) if status != Status::Done => {
                Move { ending: Some(status.as_str()), ..self.undoing(last, base) }
            }
            _ => Move {
                status,
                undo: Some(None),
                progress: if status == Status::Done { Some(100.0) } else { base.progress },
                ..base
            },
        }
    }

    /// To the undoing of a stage.
    fn undoing(&self, last: &Undo, base: Move) -> Move {
        let stage = format!("{}{UNDO}", last.stage);
        Move { retry_stage: Some(stage.clone()), stage: Some(stage), data: Some(last.data.clone()), ..base }
    }

    fn fail(&self, why: &Reason, outcome: &'static str) -> Move {
        if self.is_twin() {
            self.end(Status::Failed, Some(why), outcome)
        } else {
            self.twin(&self.task.stage, why, outcome)
        }
    }

    /// What is to be undone from now on, since this stage has done its part.
    fn done_so_far(&self, to: Option<&str>) -> Option<Option<String>> {
        let stage = &self.task.stage;
        // A stage that goes on with itself is still at it, unless it says otherwise.
        if self.is_twin() || (to == Some(stage) && self.plan.undo.is_none()) {
            return None;
        }
        self.kind.stage(&format!("{stage}{UNDO}"))?;
        let data = match &self.plan.undo {
            Some(Ok(data)) => Some(data.clone()),
            _ => self.task.data.clone(),
        };
        let mut all = stack(self.task.undo.as_deref());
        all.push(Undo { stage: stage.clone(), data });
        Some(stored(&all))
    }

    fn moved(&self) -> Move {
        let step = match &self.plan.step {
            PlanStep::Step(step) => step,
            PlanStep::Gone(why) => {
                let end = self.end(Status::Cancelled, Some(why), "gone");
                // There is nothing left to undo it on.
                let (undo, ending) = (Some(None), Some(""));
                return Move { status: Status::Cancelled, stage: None, data: None, undo, ending, ..end };
            }
            PlanStep::Leave => {
                return Move {
                    status: Status::Queued,
                    why: Why::Keep,
                    refund: true,
                    delay: UNKNOWN,
                    outcome: "left",
                    regardless: true,
                    ..self.base()
                };
            }
        };
        if let Some(Err(error)) = self.plan.data.as_ref().or(self.plan.undo.as_ref()) {
            let why = format!("what {} hands over: {error}", self.task.stage).into();
            return if self.is_undo() { self.undo_failed(&why) } else { self.fail(&why, "failed") };
        }
        if self.is_undo() { self.undone(step) } else { self.stepped(step) }
    }

    /// After an attempt at undoing a stage.
    fn undone(&self, step: &Step) -> Move {
        match step {
            Step::Complete => {
                let mut all = stack(self.task.undo.as_deref());
                all.pop();
                let base = Move { undo: Some(stored(&all)), ..self.base() };
                match all.last() {
                    Some(last) => self.undoing(last, base),
                    None => Move {
                        status: Status::parse(&self.task.ending),
                        ending: Some(""),
                        // All is undone, so a retry begins anew.
                        retry_stage: Some("on_init".to_owned()),
                        ..base
                    },
                }
            }
            Step::Retry(why) => self.again(why).unwrap_or_else(|| self.undo_failed(why)),
            Step::Fail(why) => self.undo_failed(why),
            Step::Next(_) | Step::Wait(..) | Step::FanOut(..) => {
                self.undo_failed(&format!("{} must undo in one stage", self.task.stage).into())
            }
        }
    }

    /// What is left to undo stays, for a retry by hand.
    fn undo_failed(&self, why: &Reason) -> Move {
        let text = format!("{}; then {} failed: {why}", self.task.reason, self.task.stage);
        Move {
            status: Status::Failed,
            why: Why::Set(Reason::new(why.kind, &text)),
            outcome: "failed",
            ..self.base()
        }
    }

    /// Another attempt, if there is one left.
    fn again(&self, why: &Reason) -> Option<Move> {
        let spec = self.kind.stage(&self.task.stage)?;
        let winding_up = self.is_twin() || self.is_undo();
        (self.task.attempt < spec.attempts).then(|| Move {
            status: Status::Queued,
            // A twin has the reason that it is run for.
            why: if winding_up { Why::Keep } else { Why::Set(why.clone()) },
            delay: self.until_deadline(
                self.plan.after.unwrap_or_else(|| backoff(self.now.options, spec, self.task.attempt)),
            ),
            outcome: "retried",
            ..self.base()
        })
    }

    /// After an attempt at a stage or its twin.
    fn stepped(&self, step: &Step) -> Move {
        let task = self.task;
        // A twin that winds a task up is let do so, as is a cancel's.
        let cancel = self.now.cancel && !self.is_twin() && !task.cancelling;
        let cancelled = match task.reason.is_cancelled() {
            true => task.reason.clone(),
            false => Reason::cancelled("cancelled while it ran"),
        };
        let to = match step {
            Step::Complete => {
                let end = self.end(Status::Done, None, "done");
                // Its result; else what is to be undone has been given its own.
                let data = self.plan.data.as_ref().and_then(|it| it.as_ref().ok()).cloned();
                let data = if end.status == Status::Done { Some(data) } else { end.data.clone() };
                return Move { data, ..end };
            }
            Step::Retry(_) | Step::Fail(_) if cancel => {
                return Move { cancelling: true, ..self.twin(&task.stage, &cancelled, "failed") };
            }
            Step::Retry(why) => return self.again(why).unwrap_or_else(|| self.fail(why, "failed")),
            Step::Fail(why) => return self.fail(why, "failed"),
            Step::Next(to) | Step::Wait(to, _) | Step::FanOut(to, _) => to.as_str(),
        };
        if self.kind.stage(to).is_none() {
            return self.fail(&format!("{} has no stage {to}", self.kind.name).into(), "failed");
        }
        let undo = self.done_so_far(Some(to));
        if cancel {
            return Move { cancelling: true, undo, ..self.twin(to, &cancelled, "done") };
        }
        let data = self.plan.data.as_ref().and_then(|it| it.as_ref().ok()).cloned();
        let base = Move { stage: Some(to.to_owned()), undo, ..self.base() };
        let here = base.status;
        let spawned = i64::try_from(self.plan.spawns.len()).unwrap_or(0);
        match step {
            Step::Wait(_, time) | Step::FanOut(_, time) if matches!(step, Step::Wait(..)) || spawned > 0 => {
                Move {
                    status: Status::Waiting,
                    delay: self.until_deadline(*time),
                    outcome: "waits",
                    children: spawned,
                    ..base
                }
            }
            Step::FanOut(..) => {
                let none = r#"{"total":0,"done":0,"failed":0,"cancelled":0}"#.to_owned();
                Move { retry_stage: base.stage.clone(), data: Some(Some(none)), ..base }
            }
            _ => {
                let delay = self.until_deadline(self.plan.after.unwrap_or_default());
                Move {
                    status: if delay.is_zero() { here } else { Status::Queued },
                    retry_stage: base.stage.clone(),
                    data: Some(data),
                    delay,
                    ..base
                }
            }
        }
    }

    /// No longer than the task may take.
    fn until_deadline(&self, time: Duration) -> Duration {
        match self.task.deadline {
            Some(deadline) if !self.is_twin() && !self.is_undo() => {
                time.min(Duration::from_micros(u64::try_from(deadline - self.now.time).unwrap_or(0)))
            }
            _ => time,
        }
    }
}

/// Doubles with each attempt, up to a longest, and never the same for two.
fn backoff(options: &WorkerOptions, spec: &StageSpec, attempt: i64) -> Duration {
    let first = if spec.backoff_ms > 0 { Duration::from_millis(spec.backoff_ms) } else { options.backoff };
    let doubled = first.saturating_mul(2_u32.saturating_pow(u32::try_from(attempt - 1).unwrap_or(0).min(20)));
    let full = doubled.min(options.backoff_max.max(first));
    full.mul_f64(0.5 + 0.5 * rand::random::<f64>())
}
