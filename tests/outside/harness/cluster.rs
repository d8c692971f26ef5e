//! The double of a cluster as a process, whose containers really run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::server::built;
use super::{Answer, Client, HELPER, House, Server, body, key, until};

/// Where everything of a test is.
const NAMESPACE: &str = "default";

/// A cluster that runs. Its pods end with it.
pub(crate) struct Cluster {
    child: Child,
    client: Client,
    folder: TempDir,
}

impl Cluster {
    /// One whose time goes so much faster than a real one's.
    pub(crate) fn start(speed: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("podyard-cluster-").tempdir().unwrap();
        let binary = built("PODYARD_DOUBLE_BIN", "podyard-kubernetes-double", "podyard-kubernetes-double");
        let mut command = Command::new(binary);
        command.args(["--real", "--speed", speed, "--kubeconfig"]).arg(folder.path().join("kubeconfig"));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        assert!(url.starts_with("http://"), "the double says {url:?}");
        Self { child, client: Client::new(url.trim()), folder }
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// A request of one who may do everything.
    #[track_caller]
    pub(crate) fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let headers = [("Authorization", "Bearer double-admin"), ("Content-Type", "application/json")];
        let body = body.map(Value::to_string);
        self.client.send(method, path, &headers, body.as_ref().map(String::as_bytes))
    }

    /// What there is of a kind: `pods`.
    #[track_caller]
    pub(crate) fn all(&self, plural: &str) -> Vec<Value> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/{plural}");
        self.send("GET", &path, None).expect(200).json()["items"].as_array().unwrap().clone()
    }

    /// Names of what there is of a kind.
    pub(crate) fn names(&self, plural: &str) -> Vec<String> {
        let name = |it: &Value| it["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        self.all(plural).iter().map(name).collect()
    }

    /// Does something to a pod that nobody in Podyard did: `kill`, `evict`, `oom`.
    #[track_caller]
    pub(crate) fn pod(&self, name: &str, what: &str) {
        self.send("POST", &format!("/_double/pods/{NAMESPACE}/{name}/{what}"), None).expect(200);
    }

    /// What `kubectl delete pod` does.
    #[track_caller]
    pub(crate) fn delete_pod(&self, name: &str) {
        self.send("DELETE", &format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}"), None).expect(200);
    }

    /// What `kubectl apply --server-side` does with YAML, at that path of the API.
    #[track_caller]
    pub(crate) fn apply(&self, path: &str, yaml: &str) -> Answer {
        let headers =
            [("Authorization", "Bearer double-admin"), ("Content-Type", "application/apply-patch+yaml")];
        self.client.send("PATCH", &format!("{path}?fieldManager=somebody"), &headers, Some(yaml.as_bytes()))
    }

    /// What `kubectl patch --type=merge` does, at that path of the API.
    #[track_caller]
    pub(crate) fn merge(&self, path: &str, patch: &Value) -> Answer {
        let headers =
            [("Authorization", "Bearer double-admin"), ("Content-Type", "application/merge-patch+json")];
        self.client.send("PATCH", path, &headers, Some(patch.to_string().as_bytes()))
    }

    /// The path of the custom resources.
    pub(crate) fn spaces_path() -> String {
        format!("/apis/podyard.dev/v1alpha1/namespaces/{NAMESPACE}/spaces")
    }

    /// A custom resource, if it is there.
    #[track_caller]
    pub(crate) fn space(&self, name: &str) -> Option<Value> {
        let answer = self.send("GET", &format!("{}/{name}", Self::spaces_path()), None);
        if answer.status == 404 { None } else { Some(answer.expect(200).json()) }
    }

    /// What it was asked since the last time, by verb and kind, without what
    /// goes on whatever there is: watches and leases.
    #[track_caller]
    pub(crate) fn asked(&self) -> BTreeMap<String, u64> {
        let stats = self.send("GET", "/_double/stats", None).expect(200).json();
        self.send("DELETE", "/_double/stats", None).expect(200);
        let all: BTreeMap<String, u64> = serde_json::from_value(stats["requests"].clone()).unwrap();
        all.into_iter()
            .filter(|(what, _)| !what.starts_with("watch ") && !what.ends_with(" leases"))
            .collect()
    }

    /// Who holds the lease of the servers.
    pub(crate) fn leader(&self) -> String {
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases");
        let leases = self.send("GET", &path, None).expect(200).json();
        leases["items"][0]["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
    }
}

/// How long the servers' first sight of a cluster may take.
const SEEN: Duration = Duration::from_secs(40);

/// A process that ends with the test.
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl House {
    /// Tells a cluster of the custom resource, and starts what looks after it.
    pub(crate) fn control(&self, cluster: &Cluster) -> Process {
        let made = self.command().arg("crd").output().unwrap();
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/spaces.podyard.dev";
        cluster.apply(path, &String::from_utf8(made.stdout).unwrap()).expect(201);
        until("the cluster knows of the custom resource", SEEN, || {
            (cluster.send("GET", &Cluster::spaces_path(), None).status == 200).then_some(())
        });
        self.controller(cluster)
    }

    /// What makes pods of custom resources.
    pub(crate) fn controller(&self, cluster: &Cluster) -> Process {
        let mut command = self.command();
        command.args(["controller", "--kubernetes-lease", "3", "--kubernetes-kubeconfig"]);
        let log = File::create(self.folder().join("log-controller")).unwrap();
        Process(command.arg(cluster.kubeconfig()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    /// A server with that cluster, of which it has seen that it is there.
    pub(crate) fn serve_in(&self, cluster: &Cluster, more: &[&str]) -> Server {
        let kubeconfig = cluster.kubeconfig();
        let mut args =
            vec!["--driver", "kubernetes", "--kubernetes-kubeconfig", kubeconfig.to_str().unwrap()];
        args.extend(["--kubernetes-lease", "3", "--kubernetes-orphan-grace", "2", "--max-running", "0"]);
        if !more.contains(&"--kubernetes-reach") {
            args.extend(["--kubernetes-reach", "direct"]);
        }
        args.extend(more);
        let server = self.serve(&args);
        let admin = server.admin();
        until("the cluster was seen", SEEN, || {
            (admin.get("/templates/code-server").of("template")["available"] == true).then_some(())
        });
        server
    }
}

impl Client {
    /// A template whose container is the tests' own program, but for what `more` says.
    #[track_caller]
    pub(crate) fn container_template(&self, name: &str, more: &Value) -> String {
        let mut fields = json!({
            "name": name, "kind_id": "ide", "driver": "kubernetes", "start_limit": 20,
            "command": [HELPER, "serve-at", "0.0.0.0", "{port}"], "container": {"image": "echo:1"},
        });
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        key(&self.post("/templates", &body("template", fields)).expect(201).of("template"), "id")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Asked, it ends its containers' processes as well.
        let pid = i32::try_from(self.child.id()).unwrap_or_default();
        super::kill(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}
