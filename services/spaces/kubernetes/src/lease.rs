//! Which of several processes reconciles: the one that holds a Lease.
//!
//! The holder renews it three times within its length and gives up the lead
//! in time when it cannot. The others take it once they have seen it unchanged
//! for its length by their own clock, so that clocks need not agree. Only one
//! of those who write at the same time succeeds: a write names the version
//! that it replaces.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::driver::Role;
use crate::error::is;
use crate::options::Cluster;
use crate::{Options, names};

/// What to do about a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Create,
    Renew,
    Take,
    Wait,
}

/// `unchanged`: how long it has been as it is, as far as this process saw.
fn next_step(lease: Option<&LeaseSpec>, me: &str, unchanged: Duration) -> Step {
    let Some(lease) = lease else { return Step::Create };
    let holder = lease.holder_identity.as_deref().unwrap_or_default();
    let length = u64::try_from(lease.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
    if holder == me {
        Step::Renew
    } else if holder.is_empty() || unchanged >= Duration::from_secs(length) {
        Step::Take
    } else {
        Step::Wait
    }
}

/// The lease as it is to be after a step.
fn written(before: Option<&LeaseSpec>, step: Step, me: &str, length: Duration, now: Timestamp) -> LeaseSpec {
    let now = MicroTime(now);
    let mut spec = before.cloned().unwrap_or_default();
    spec.lease_duration_seconds = Some(i32::try_from(length.as_secs()).unwrap_or(i32::MAX).max(1));
    spec.renew_time = Some(now.clone());
    if step != Step::Renew {
        spec.holder_identity = Some(me.to_owned());
        spec.acquire_time = Some(now);
        spec.lease_transitions = Some(before.map_or(0, |it| it.lease_transitions.unwrap_or(0) + 1));
    }
    spec
}

/// The name of the Lease of those who do the same.
pub(crate) fn name(options: &Options, role: Role) -> String {
    format!("podyard-{}{}", names::part(&options.installation, 40), role.suffix())
}

struct Election {
    api: Api<Lease>,
    name: String,
    me: String,
    length: Duration,
    /// The lease as it was last seen, and since when.
    last: Option<(Lease, Instant)>,
}

impl Election {
    fn new(cluster: &Cluster, options: &Options, role: Role) -> Self {
        Self {
            api: Api::namespaced(cluster.client.clone(), &cluster.namespace),
            name: name(options, role),
            me: options.identity.clone(),
            length: options.lease.max(Duration::from_secs(3)),
            last: None,
        }
    }

    fn saw(&mut self, lease: Option<Lease>) {
        let version = |it: &Lease| it.metadata.resource_version.clone();
        self.last = lease.map(|lease| match self.last.take() {
            Some((before, since)) if version(&before) == version(&lease) => (lease, since),
            _ => (lease, Instant::now()),
        });
    }

    /// One round: whether this process holds it now.
    async fn round(&mut self) -> Result<bool, kube::Error> {
        // Who holds it knows what it is like; if not, the write is refused.
        let held = self.last.as_ref().is_some_and(|(it, _)| self.is_mine(it));
        if !held {
            let there = self.api.get_opt(&self.name).await?;
            self.saw(there);
        }
        let spec = self.last.as_ref().map(|(it, _)| it.spec.clone().unwrap_or_default());
        let unchanged = self.last.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let step = next_step(spec.as_ref(), &self.me, unchanged);
        let new = written(spec.as_ref(), step, &self.me, self.length, Timestamp::now());
        let done = match (step, &self.last) {
            (Step::Wait, _) => return Ok(false),
            (Step::Create, _) | (_, None) => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                self.api.create(&PostParams::default(), &Lease { metadata, spec: Some(new) }).await
            }
            (_, Some((before, _))) => {
                let mut lease = before.clone();
                lease.spec = Some(new);
                lease.metadata.managed_fields = None;
                self.api.replace(&self.name, &PostParams::default(), &lease).await
            }
        };
        match done {
            Ok(lease) => {
                self.saw(Some(lease));
                Ok(true)
            }
            // Somebody was faster: what they wrote is read in the next round.
            Err(error) if is(&error, 409) || is(&error, 404) => {
                let there = self.api.get_opt(&self.name).await?;
                self.saw(there);
                Ok(false)
            }
            Err(error) => {
                // What it is like now is not known.
                self.last = self.last.take().filter(|(it, _)| !self.is_mine(it));
                Err(error)
            }
        }
    }

    fn is_mine(&self, lease: &Lease) -> bool {
        lease.spec.as_ref().and_then(|it| it.holder_identity.as_ref()) == Some(&self.me)
    }
}

/// Holds the lease whenever it is to be had, until it is dropped.
pub(crate) async fn hold(
    cluster: Cluster,
    options: Arc<Options>,
    role: Role,
    leads: Arc<watch::Sender<bool>>,
) {
    let mut election = Election::new(&cluster, &options, role);
    let period = election.length / 3;
    let mut renewed = Instant::now();
    let mut quiet = true;
    loop {
        let began = Instant::now();
        let round = tokio::time::timeout(period, election.round()).await;
        match round {
            Ok(Ok(held)) => {
                if held {
                    renewed = began;
                }
                if leads.send_replace(held) != held {
                    tracing::info!(identity = election.me, held, "which process reconciles has changed");
                }
                quiet = true;
            }
            failed => {
                // Two thirds of its length: no other has taken it before then.
                if began.duration_since(renewed) >= period && leads.send_replace(false) {
                    tracing::warn!(
                        identity = election.me,
                        "the lease cannot be renewed: the lead is given up"
                    );
                }
                if std::mem::take(&mut quiet) {
                    let why = failed.map_or_else(
                        |_| "no answer".to_owned(),
                        |it| it.err().map(|it| it.to_string()).unwrap_or_default(),
                    );
                    tracing::warn!(why, "the lease cannot be had; it is tried again");
                }
            }
        }
        tokio::time::sleep_until(began + period).await;
    }
}

/// Gives the lease up, so that another need not wait for its end.
pub(crate) async fn release(cluster: &Cluster, options: &Options, role: Role) {
    let election = Election::new(cluster, options, role);
    let given = async {
        let Some(mut lease) = election.api.get_opt(&election.name).await? else { return Ok(()) };
        if !election.is_mine(&lease) {
            return Ok(());
        }
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        lease.metadata.managed_fields = None;
        election.api.replace(&election.name, &PostParams::default(), &lease).await.map(drop)
    };
    match tokio::time::timeout(Duration::from_secs(3), given).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the lease was not given up"),
        Err(_) => tracing::debug!("the lease was not given up in time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(2),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn steps() {
        let step = |lease: Option<&LeaseSpec>, seconds| next_step(lease, "a", Duration::from_secs(seconds));
        assert_eq!(step(None, 0), Step::Create);
        assert_eq!(step(Some(&lease("a")), 100), Step::Renew);
        assert_eq!(step(Some(&lease("b")), 14), Step::Wait);
        assert_eq!(step(Some(&lease("b")), 15), Step::Take);
        assert_eq!(step(Some(&lease("")), 0), Step::Take);
        assert_eq!(step(Some(&LeaseSpec::default()), 0), Step::Take);
    }

    #[test]
    fn what_is_written() {
        let now: Timestamp = "2026-11-20T21:00:05.123456Z".parse().unwrap();
        let taken = written(Some(&lease("b")), Step::Take, "a", Duration::from_secs(15), now);
        let json = serde_json::to_value(&taken).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "holderIdentity": "a", "leaseDurationSeconds": 15, "leaseTransitions": 3,
                "acquireTime": "2026-11-20T21:00:05.123456Z", "renewTime": "2026-11-20T21:00:05.123456Z",
            })
        );
        let later: Timestamp = "2026-11-20T21:00:10Z".parse().unwrap();
        let renewed = written(Some(&taken), Step::Renew, "a", Duration::from_secs(15), later);
        let json = serde_json::to_value(&renewed).unwrap();
        assert_eq!(json["renewTime"], "2026-11-20T21:00:10.000000Z");
        assert_eq!(json["acquireTime"], "2026-11-20T21:00:05.123456Z");
        assert_eq!(json["leaseTransitions"], 3);
    }
}
