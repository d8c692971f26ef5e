use std::process::Command;

use super::*;

/// A launch with all that a pod needs and nothing more.
pub(crate) fn launch() -> Launch {
    Launch {
        id: "s1".into(),
        sid: "0123456789abcdef01234567".into(),
        base_path: "/ws/0123456789abcdef01234567/".into(),
        command: vec!["serve".into(), "--port={port}".into(), "{dir}".into(), "$(HOME) $x".into()],
        env: vec![("BASE".into(), "{base}".into())],
        cpu: "500m".into(),
        memory: "1Gi".into(),
        storage: "8Gi".into(),
        user: "ann".into(),
        name: "My space".into(),
        container: Some(Container { image: "example.org/ide:1".into(), port: 8080, ..Container::default() }),
    }
}

pub(crate) fn run() -> Run {
    Run { instance: "i1".into(), secret: "hush".into() }
}

fn made(launch: &Launch) -> Value {
    pod(launch, &Options::default(), &run(), None, None).unwrap()
}

pub(crate) fn with(change: impl FnOnce(&mut Container)) -> Launch {
    let mut launch = launch();
    change(launch.container.as_mut().unwrap());
    launch
}

#[test]
fn the_whole_pod() {
    let wanted = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "ws-ann-0123456789abcdef01234567",
            "labels": {
                "app.kubernetes.io/name": "space",
                "app.kubernetes.io/managed-by": "podyard",
                "podyard.dev/installation": "podyard",
                "podyard.dev/space": "s1",
                "podyard.dev/user": "ann",
                "podyard.dev/sid": "0123456789abcdef01234567",
            },
            "annotations": {
                "podyard.dev/space": "s1",
                "podyard.dev/user": "ann",
                "podyard.dev/name": "My space",
                "podyard.dev/instance": "i1",
            },
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 10,
            "securityContext": {
                "runAsNonRoot": true,
                "fsGroup": 1000,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "main",
                "image": "example.org/ide:1",
                "command": ["serve", "--port=8080", "/workspace", "$$(HOME) $$x"],
                "workingDir": "/workspace",
                "env": [
                    { "name": "HOME", "value": "/workspace" },
                    { "name": "BASE", "value": "/ws/0123456789abcdef01234567/" },
                    { "name": "PODYARD_SPACE_ID", "value": "s1" },
                    { "name": "PODYARD_SPACE_SID", "value": "0123456789abcdef01234567" },
                    { "name": "PODYARD_SPACE_DIR", "value": "/workspace" },
                    { "name": "PODYARD_SPACE_SECRET", "value": "hush" },
                    { "name": "PODYARD_PORT", "value": "8080" },
                    { "name": "PODYARD_BASE_PATH", "value": "/ws/0123456789abcdef01234567/" },
                    { "name": "PODYARD_CPU", "value": "500m" },
                    { "name": "PODYARD_MEMORY", "value": "1Gi" },
                    { "name": "PODYARD_STORAGE", "value": "8Gi" },
                ],
                "ports": [{ "name": "http", "containerPort": 8080 }],
                "resources": {
                    "requests": { "cpu": "500m", "memory": "1Gi" },
                    "limits": { "cpu": "500m", "memory": "1Gi" },
                },
                "volumeMounts": [{ "name": "files", "mountPath": "/workspace" }],
                "readinessProbe": {
                    "tcpSocket": { "port": 8080 },
                    "periodSeconds": 2,
                    "timeoutSeconds": 2,
                    "failureThreshold": 3,
                },
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
            }],
            "volumes": [{
                "name": "files",
                "persistentVolumeClaim": { "claimName": "ws-ann-0123456789abcdef01234567" },
            }],
        },
    });
    assert_eq!(made(&launch()), wanted);
}

#[test]
fn files_stay_with_a_space_that_is_given_away() {
    let kept = Kept { name: "ws-bob-0123456789abcdef01234567".into(), ..Kept::default() };
    let pod = pod(&launch(), &Options::default(), &run(), Some(&kept), None).unwrap();
    assert_eq!(pod["metadata"]["name"], "ws-ann-0123456789abcdef01234567");
    assert_eq!(
        pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"],
        "ws-bob-0123456789abcdef01234567"
    );
}

#[test]
fn all_that_a_template_may_say() {
    let mut launch = with(|it| {
        it.pull_policy = "Always".into();
        it.pull_secrets = vec!["login".into(), "both".into()];
        it.probe_path = "{base}healthz".into();
        it.mount = "/home/coder".into();
        it.node_selector =
            [("disk".to_owned(), "ssd".to_owned()), ("zone".to_owned(), "a".to_owned())].into();
        it.tolerations = vec![json!({ "key": "ide", "operator": "Exists" })];
        it.run_as = Some(1234);
        it.repository =
            Some(Repository { url: "https://example.org/$(HOME).git".into(), branch: "main".into() });
    });
    launch.command.clear();
    launch.env = vec![("HOME".into(), "/a".into()), ("A".into(), "1".into()), ("A".into(), "2".into())];
    let options = Options {
        pull_secrets: vec!["both".into()],
        node_selector: [("pool".to_owned(), "spaces".to_owned()), ("zone".to_owned(), "b".to_owned())].into(),
        git_image: "example.org/git:1".into(),
        ..Options::default()
    };
    let owner =
        OwnerReference { kind: "Space".into(), name: "s".into(), uid: "u".into(), ..Default::default() };
    let pod = pod(&launch, &options, &run(), None, Some(&owner)).unwrap();
    assert_eq!(
        pod["metadata"]["ownerReferences"],
        json!([{ "apiVersion": "", "kind": "Space", "name": "s", "uid": "u" }])
    );
    let spec = &pod["spec"];
    assert_eq!(spec["imagePullSecrets"], json!([{ "name": "both" }, { "name": "login" }]));
    assert_eq!(spec["nodeSelector"], json!({ "disk": "ssd", "pool": "spaces", "zone": "a" }));
    assert_eq!(spec["tolerations"], json!([{ "key": "ide", "operator": "Exists" }]));
    assert_eq!(
        spec["securityContext"],
        json!({
            "runAsNonRoot": true, "runAsUser": 1234, "runAsGroup": 1234, "fsGroup": 1234,
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": { "type": "RuntimeDefault" },
        })
    );
    let main = &spec["containers"][0];
    assert_eq!(main["imagePullPolicy"], "Always");
    assert_eq!(main.get("command"), None);
    assert_eq!(
        main["env"].as_array().unwrap()[..2],
        [json!({ "name": "HOME", "value": "/a" }), json!({ "name": "A", "value": "2" })]
    );
    assert_eq!(
        main["readinessProbe"]["httpGet"],
        json!({
            "path": "/ws/0123456789abcdef01234567/healthz",
            "port": 8080,
            "httpHeaders": [{ "name": "X-Podyard-Space-Secret", "value": "hush" }],
        })
    );
    let clone = &spec["initContainers"][0];
    assert_eq!(clone["image"], "example.org/git:1");
    let command = clone["command"].as_array().unwrap();
    assert_eq!(command[..2], [json!("sh"), json!("-c")]);
    assert_eq!(
        command[3..],
        [json!("clone"), json!("https://example.org/$$(HOME).git"), json!("main"), json!("/home/coder")]
    );
    assert_eq!(
        clone["securityContext"],
        json!({
            "runAsUser": 1234, "runAsGroup": 1234,
            "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
        })
    );
    assert_eq!(clone["volumeMounts"], json!([{ "name": "files", "mountPath": "/home/coder" }]));
}

#[test]
fn a_patch_is_laid_over_the_pod() {
    let launch = with(|it| {
        it.patch = Some(json!({
            "metadata": { "labels": { "team": "a" } },
            "spec": {
                "restartPolicy": "Always",
                "containers": [
                    { "name": "main", "env": [{ "name": "MORE", "value": "1" }] },
                    { "name": "side", "image": "example.org/side:1" },
                ],
                "volumes": [{ "name": "tmp", "emptyDir": {} }],
            },
        }));
    });
    let pod = made(&launch);
    assert_eq!(pod["metadata"]["labels"]["team"], "a");
    assert_eq!(pod["spec"]["restartPolicy"], "Always");
    assert_eq!(pod["spec"]["containers"][0]["env"][11], json!({ "name": "MORE", "value": "1" }));
    let side = json!({
        "name": "side",
        "image": "example.org/side:1",
        "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
    });
    assert_eq!(pod["spec"]["containers"][1], side);
    assert_eq!(pod["spec"]["volumes"][1], json!({ "name": "tmp", "emptyDir": {} }));
}

#[test]
fn what_no_pod_is_made_of() {
    let refused =
        |launch: &Launch| pod(launch, &Options::default(), &run(), None, None).unwrap_err().to_string();
    let cases: Vec<(Launch, &str)> = vec![
        (Launch { container: None, ..launch() }, "needs an image"),
        (with(|it| it.image = " ".into()), "no image"),
        (with(|it| it.port = 0), "no port"),
        (with(|it| it.run_as = Some(0)), "root"),
        (with(|it| it.mount = "relative".into()), "\"relative\""),
        (with(|it| it.mount = "/".into()), "\"/\""),
        (with(|it| it.mount = "/a/../b".into()), "\"/a/../b\""),
        (Launch { command: vec!["{podyard}".into()], ..launch() }, "{podyard}"),
        (Launch { env: vec![("PODYARD_X".into(), "1".into())], ..launch() }, "PODYARD_X"),
        (Launch { env: vec![("A=B".into(), "1".into())], ..launch() }, "\"A=B\""),
        (Launch { command: vec!["a\0".into()], ..launch() }, "NUL"),
        (Launch { cpu: "many".into(), ..launch() }, "cpu"),
        (Launch { memory: "0".into(), ..launch() }, "memory"),
        (with(|it| it.patch = Some(json!([]))), "must be an object"),
    ];
    for (launch, text) in &cases {
        assert!(refused(launch).contains(text), "{}", refused(launch));
    }
    let repository = |url: &str, branch: &str| {
        with(|it| it.repository = Some(Repository { url: url.into(), branch: branch.into() }))
    };
    for url in
        ["", "-u", "--upload-pack=x", "ext::sh -c x", "file:///etc", "/etc", "https://", "https://-x", "a b"]
    {
        assert!(refused(&repository(url, "")).contains("repository"), "{url}");
    }
    for url in
        ["https://example.org/a.git", "ssh://git@example.org/a", "git@example.org:a/b.git", "git://h/x"]
    {
        assert!(pod(&repository(url, "b/c-1"), &Options::default(), &run(), None, None).is_ok(), "{url}");
    }
    for branch in ["-x", "--help", "a b", "a\nb"] {
        assert!(refused(&repository("https://example.org/a", branch)).contains("branch"), "{branch}");
    }
}

/// The script is run for real, against a repository of this machine.
mod cloning {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn git(dir: &Path, args: &[&str]) {
        let done = Command::new("git").args(args).current_dir(dir).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn repository(root: &Path) -> String {
        let dir = root.join("origin");
        fs::create_dir(&dir).unwrap();
        git(&dir, &["init", "-q", "-b", "main"]);
        fs::write(dir.join("a file"), "one").unwrap();
        fs::write(dir.join(".hidden"), "h").unwrap();
        git(&dir, &["add", "."]);
        git(&dir, &["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "one"]);
        git(&dir, &["checkout", "-qb", "other"]);
        fs::write(dir.join("a file"), "two").unwrap();
        git(&dir, &["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qam", "two"]);
        format!("file://{}", dir.display())
    }

    fn clone_into(dir: &Path, url: &str, branch: &str) -> bool {
        let mut command = Command::new("sh");
        command.args(["-c", CLONE_SCRIPT, CLONE, url, branch]).arg(dir);
        command.env("GIT_TERMINAL_PROMPT", "0").output().unwrap().status.success()
    }

    fn files(root: &Path) -> std::path::PathBuf {
        let dir = root.join("files");
        fs::create_dir(&dir).unwrap();
        fs::create_dir(dir.join("lost+found")).unwrap();
        dir
    }

    #[test]
    fn into_empty_files() {
        let root = tempfile::tempdir().unwrap();
        let (url, dir) = (repository(root.path()), files(root.path()));
        assert!(clone_into(&dir, &url, "other"));
        assert_eq!(fs::read_to_string(dir.join("a file")).unwrap(), "two");
        assert!(dir.join(".hidden").exists() && dir.join(".git").exists());
        assert!(!dir.join(".podyard-clone").exists());
        // The next start finds work, and leaves it alone.
        fs::write(dir.join("a file"), "mine").unwrap();
        assert!(clone_into(&dir, &url, "main"));
        assert_eq!(fs::read_to_string(dir.join("a file")).unwrap(), "mine");
    }

    #[test]
    fn it_is_finished_after_a_cut() {
        let root = tempfile::tempdir().unwrap();
        let (url, dir) = (repository(root.path()), files(root.path()));
        // Cut while it was fetched.
        fs::create_dir_all(dir.join(".podyard-clone/files/half")).unwrap();
        assert!(clone_into(&dir, &url, ""));
        assert_eq!(fs::read_to_string(dir.join("a file")).unwrap(), "two");
        assert!(!dir.join("half").exists());
        // Cut while it was moved.
        fs::create_dir_all(dir.join(".podyard-clone/files/rest")).unwrap();
        fs::write(dir.join(".podyard-clone/whole"), "").unwrap();
        assert!(clone_into(&dir, &url, ""));
        assert!(dir.join("rest").exists() && !dir.join(".podyard-clone").exists());
    }

    #[test]
    fn a_failure_is_one() {
        let root = tempfile::tempdir().unwrap();
        let (url, dir) = (repository(root.path()), files(root.path()));
        assert!(!clone_into(&dir, &url, "none"));
        assert!(!clone_into(&dir, "file:///nowhere", ""));
        assert!(clone_into(&dir, &url, "main"));
    }

    #[test]
    fn arguments_are_no_script() {
        let root = tempfile::tempdir().unwrap();
        let dir = files(root.path());
        let mark = root.path().join("mark");
        for bad in [format!("$(touch {})", mark.display()), format!("\"; touch {}; \"", mark.display())] {
            assert!(!clone_into(&dir, &bad, &bad));
        }
        assert!(!mark.exists());
    }
}
