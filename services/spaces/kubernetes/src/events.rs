//! What the cluster tells of a space's objects.

use k8s_openapi::api::core::v1::Event;
use kube::Client;
use kube::api::{Api, ListParams};
use podyard_driver::{Happening, Result};

use crate::error::ask;

/// Most events that are read of an object. The cluster itself keeps them for an hour.
const MOST: u32 = 200;

/// What was told of objects of a name: a space's pod and claim have the same.
pub(crate) async fn of(client: &Client, namespace: &str, name: &str) -> Result<Vec<Happening>> {
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let wanted = ListParams::default().fields(&format!("involvedObject.name={name}")).limit(MOST);
    let list = ask("the events cannot be read", api.list(&wanted)).await?;
    let mut all: Vec<Happening> = list.items.iter().map(happening).collect();
    all.sort_by_key(|it| it.at);
    Ok(all)
}

/// An event in the driver's own form. Kubelets write times of whole seconds
/// and counts, schedulers a time of their own and maybe a series.
pub(crate) fn happening(event: &Event) -> Happening {
    let series = event.series.as_ref();
    let at = series
        .and_then(|it| it.last_observed_time.as_ref().map(|it| it.0))
        .or_else(|| event.last_timestamp.as_ref().map(|it| it.0))
        .or_else(|| event.event_time.as_ref().map(|it| it.0))
        .or_else(|| event.first_timestamp.as_ref().map(|it| it.0))
        .or_else(|| event.metadata.creation_timestamp.as_ref().map(|it| it.0));
    let count = series.and_then(|it| it.count).or(event.count).unwrap_or(1);
    let source = event.source.as_ref().and_then(|it| it.component.clone()).filter(|it| !it.is_empty());
    Happening {
        at: at.map_or(0, |it| it.as_microsecond()),
        warning: event.type_.as_deref() == Some("Warning"),
        reason: event.reason.clone().unwrap_or_default(),
        message: event.message.clone().unwrap_or_default(),
        count: u32::try_from(count).unwrap_or(1),
        source: source.or_else(|| event.reporting_component.clone()).unwrap_or_default(),
        about: event.involved_object.kind.clone().unwrap_or_default().to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(event: serde_json::Value) -> Happening {
        happening(&serde_json::from_value(event).unwrap())
    }

    #[test]
    fn of_a_kubelet_and_of_a_scheduler() {
        let kubelet = told(json!({
            "metadata": {}, "type": "Warning", "reason": "Failed", "message": "Error: x", "count": 3,
            "firstTimestamp": "2026-11-20T21:08:10Z", "lastTimestamp": "2026-11-20T21:08:15Z", "eventTime": null,
            "source": { "component": "kubelet", "host": "n" }, "reportingComponent": "kubelet",
            "involvedObject": { "kind": "Pod", "name": "p" },
        }));
        let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_microsecond();
        assert_eq!(
            kubelet,
            Happening {
                at: at("2026-11-20T21:08:15Z"),
                warning: true,
                reason: "Failed".into(),
                message: "Error: x".into(),
                count: 3,
                source: "kubelet".into(),
                about: "pod".into(),
            }
        );
        let scheduler = told(json!({
            "metadata": {}, "type": "Normal", "reason": "Scheduled", "message": "m", "firstTimestamp": null,
            "lastTimestamp": null, "eventTime": "2026-11-20T21:08:04.678631Z", "source": {},
            "reportingComponent": "default-scheduler", "involvedObject": { "kind": "Pod", "name": "p" },
        }));
        assert_eq!((scheduler.at, scheduler.count), (at("2026-11-20T21:08:04.678631Z"), 1));
        assert_eq!((scheduler.source.as_str(), scheduler.warning), ("default-scheduler", false));
    }
}
