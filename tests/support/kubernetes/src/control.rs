//! `/_double/`: what a test steers.
//!
//! - `POST faults` adds a fault (see `faults::Fault`), `DELETE faults` takes all away.
//! - `POST watches/<store>` disturbs the watches of a kind (`{"silent": true}`,
//!   `{"duplicates": 1}`, `{"delayMs": 300}`); `POST cut/<store>` cuts them; `*` is all.
//!   `POST cut/logs` ends the logs that are followed, as if they were over.
//! - `GET stats` counts requests by verb and resource, `DELETE stats` begins anew.
//! - `POST restart` `{"milliseconds": 500}`: the server goes away and comes back. With
//!   `"graceful": true` it goes as one that is asked to: not ready at once, deaf to new
//!   connections after a second, and a minute later an end for what is open.
//! - `POST compact`: what is older than now can neither be listed nor watched from.
//!   `{"watches": "pods"}`: only pods cannot be watched from it; `""`: all still can.
//! - `POST clock` `{"speed": 20}`.
//! - `POST pods/<namespace>/<name>/<exit|oom|evict|ready|unready|kill>`: a container's end
//!   (`{"code": 1}`), an eviction, its probe, or a pod that is gone from one moment to the next.
//! - `POST node` `{"ready": false}` or `{"memory": "1Gi", "cpu": "2"}`.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::Server;
use crate::cluster::{Steer, Word};
use crate::http::{self, Request, Response};
use crate::serve::Absence;
use crate::status::Failure;
use crate::value::{now, text, uid};

fn body<T: DeserializeOwned>(request: &Request) -> Result<T, Failure> {
    let bytes: &[u8] = if request.body.is_empty() { b"{}" } else { &request.body };
    serde_json::from_slice(bytes).map_err(|error| Failure::bad(format!("no such order: {error}")))
}

pub(crate) async fn handle(server: &Arc<Server>, request: &Request, path: &str) -> Result<Response, Failure> {
    let steps: Vec<&str> = path.split('/').collect();
    match (&request.method, steps.as_slice()) {
        (&Method::POST, ["faults"]) => server.faults.add(body(request)?),
        (&Method::DELETE, ["faults"]) => server.faults.clear(),
        (&Method::POST, ["watches", store]) => server.faults.disturb(store, body(request)?),
        (&Method::POST, ["cut", store]) => {
            server.faults.cut_watches(if *store == "*" { "" } else { store }, false);
        }
        (&Method::GET, ["stats"]) => return Ok(http::json(200, &server.faults.counts())),
        (&Method::DELETE, ["stats"]) => server.faults.reset_counts(),
        (&Method::POST, ["restart"]) => {
            let order: Value = body(request)?;
            let time = Duration::from_millis(order["milliseconds"].as_u64().unwrap_or(500));
            server.door.leave(Absence { time, graceful: order["graceful"] == true }).await;
        }
        (&Method::POST, ["compact"]) => {
            let order: Value = body(request)?;
            server.store.write(|state| {
                state.compact();
                state.narrow(order["watches"].as_str().unwrap_or("*"));
            });
        }
        (&Method::POST, ["clock"]) => {
            let order: Value = body(request)?;
            let speed = order["speed"].as_f64();
            server.cluster.set_speed(speed.ok_or_else(|| Failure::bad("speed is not a number"))?);
        }
        (&Method::POST, ["pods", space, name, what]) => {
            steer(server, space, name, what, &body(request)?)?;
        }
        (&Method::POST, ["node"]) => node(server, &body(request)?),
        _ => return Err(Failure::page()),
    }
    Ok(http::json(200, &json!({"done": true})))
}

fn steer(server: &Server, space: &str, name: &str, what: &str, order: &Value) -> Result<(), Failure> {
    let pod = server.store.read(|state| state.get("pods", space, name));
    let pod = pod.ok_or_else(|| Failure::new(404, "NotFound", format!("no pod {space}/{name}")))?;
    let steer = match what {
        "kill" => {
            server.store.write(|state| state.remove("pods", space, name));
            return Ok(());
        }
        "exit" => Steer::Exit(i32::try_from(order["code"].as_i64().unwrap_or(1)).unwrap_or(1)),
        "oom" => Steer::Oom,
        "evict" => Steer::Evict(
            order["message"].as_str().unwrap_or("The node was low on resource: memory.").to_owned(),
        ),
        "ready" => Steer::Ready(true),
        "unready" => Steer::Ready(false),
        other => return Err(Failure::bad(format!("nobody can {other} a pod"))),
    };
    if let Some(known) = server.cluster.pod(uid(&pod)) {
        let _ = known.words.send(Word::Steer(steer));
    }
    Ok(())
}

fn node(server: &Server, order: &Value) {
    server.store.write(|state| {
        let Some(node) = state.get("nodes", "", "node1") else { return };
        let mut node = Value::clone(&node);
        if let Some(ready) = order["ready"].as_bool() {
            let (status, reason) =
                if ready { ("True", "KubeletReady") } else { ("Unknown", "NodeStatusUnknown") };
            node["status"]["conditions"] = json!([{"type": "Ready", "status": status,
                "reason": reason, "lastTransitionTime": now()}]);
        }
        for what in ["memory", "cpu", "pods"] {
            if let Some(value) = order[what].as_str() {
                node["status"]["allocatable"][what] = json!(value);
                node["status"]["capacity"][what] = json!(value);
            }
        }
        state.put("nodes", node);
        // Pods of a node that is silent are ready no more; they are deleted minutes later.
        if order["ready"] == false {
            for pod in state.all("pods", None) {
                if text(&pod["spec"]["nodeName"]).is_empty() {
                    continue;
                }
                let mut pod = Value::clone(&pod);
                for condition in pod["status"]["conditions"].as_array_mut().into_iter().flatten() {
                    if condition["type"] == "Ready" {
                        condition["status"] = json!("False");
                        condition["reason"] = json!("NodeNotReady");
                        condition["lastTransitionTime"] = json!(now());
                    }
                }
                state.put("pods", pod);
            }
        }
    });
}
