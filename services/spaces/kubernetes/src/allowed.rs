//! The members of a pod that are known to be no way out of it, and their values.
//!
//! What is not in here is refused: a cluster's next release may bring a member
//! that opens what the last one closed. The values are those of the Pod
//! Security Standard "restricted", and groups other than root's.

use serde_json::Value;

use Rule::{Any, Each, Is, Keys, Map};

/// What a value may be.
enum Rule {
    Any,
    Is(fn(&Value) -> bool),
    /// An object with these members.
    Map(&'static [(&'static str, Rule)]),
    /// An object with members that nobody can list.
    Keys(fn(&str, &Value) -> bool),
    /// A list of such values.
    Each(&'static Rule),
}

/// Why a value is not allowed.
pub(crate) enum Not {
    /// Nobody has said that this member is harmless.
    Known(String),
    /// The member is, its value is not.
    Safe(String),
}

/// The path of the first thing in a pod that is not allowed.
pub(crate) fn check(pod: &Value) -> Result<(), Not> {
    POD.check(pod, "")
}

const POD: Rule = Map(&[
    ("apiVersion", Any),
    ("kind", Any),
    (
        "metadata",
        Map(&[
            ("name", Any),
            ("namespace", Any),
            ("labels", Any),
            ("annotations", Keys(annotation)),
            ("ownerReferences", Any),
        ]),
    ),
    ("spec", SPEC),
]);

const SPEC: Rule = Map(&[
    ("activeDeadlineSeconds", Any),
    ("affinity", Any),
    ("automountServiceAccountToken", Is(no)),
    ("containers", Each(&CONTAINER)),
    ("dnsConfig", Any),
    ("dnsPolicy", Any),
    ("enableServiceLinks", Any),
    ("hostAliases", Any),
    ("hostIPC", Is(no)),
    ("hostNetwork", Is(no)),
    ("hostPID", Is(no)),
    // False is a user namespace of the pod's own; true is what it is without.
    ("hostUsers", Any),
    ("hostname", Any),
    ("imagePullSecrets", Any),
    ("initContainers", Each(&CONTAINER)),
    ("nodeSelector", Any),
    ("os", Map(&[("name", Is(|it| it == "linux"))])),
    ("preemptionPolicy", Any),
    // The system's own come before everybody's pods, and push them out.
    ("priorityClassName", Is(|it| it.as_str().is_some_and(|it| !it.starts_with("system-")))),
    ("readinessGates", Any),
    ("resourceClaims", Any),
    ("resources", Any),
    ("restartPolicy", Any),
    ("runtimeClassName", Any),
    ("schedulerName", Any),
    ("schedulingGates", Any),
    (
        "securityContext",
        Map(&[
            ("appArmorProfile", PROFILE),
            ("fsGroup", Is(not_root)),
            ("fsGroupChangePolicy", Any),
            ("runAsGroup", Is(not_root)),
            ("runAsNonRoot", Is(yes)),
            ("runAsUser", Is(not_root)),
            ("seLinuxChangePolicy", Any),
            ("seLinuxOptions", SELINUX),
            ("seccompProfile", PROFILE),
            ("supplementalGroups", Each(&Is(not_root))),
            ("supplementalGroupsPolicy", Any),
            ("sysctls", Each(&Map(&[("name", Is(sysctl)), ("value", Any)]))),
            ("windowsOptions", WINDOWS),
        ]),
    ),
    ("setHostnameAsFQDN", Any),
    // The program's environment has its secret, which other containers would see.
    ("shareProcessNamespace", Is(no)),
    ("subdomain", Any),
    ("terminationGracePeriodSeconds", Any),
    ("tolerations", Any),
    ("topologySpreadConstraints", Any),
    ("volumes", Each(&VOLUME)),
]);

const CONTAINER: Rule = Map(&[
    ("args", Any),
    ("command", Any),
    ("env", Any),
    ("envFrom", Any),
    ("image", Any),
    ("imagePullPolicy", Any),
    ("lifecycle", Map(&[("postStart", Map(HANDLER)), ("preStop", Map(HANDLER)), ("stopSignal", Any)])),
    ("livenessProbe", PROBE),
    ("name", Any),
    (
        "ports",
        Each(&Map(&[
            ("containerPort", Any),
            ("hostPort", Is(|it| *it == 0)),
            ("name", Any),
            ("protocol", Any),
        ])),
    ),
    ("readinessProbe", PROBE),
    ("resizePolicy", Any),
    ("resources", Any),
    ("restartPolicy", Any),
    ("restartPolicyRules", Any),
    (
        "securityContext",
        Map(&[
            ("allowPrivilegeEscalation", Is(no)),
            ("appArmorProfile", PROFILE),
            ("capabilities", Map(&[("add", Each(&Is(|it| it == "NET_BIND_SERVICE"))), ("drop", Any)])),
            ("privileged", Is(no)),
            ("procMount", Is(|it| it == "Default")),
            ("readOnlyRootFilesystem", Any),
            ("runAsGroup", Is(not_root)),
            ("runAsNonRoot", Is(yes)),
            ("runAsUser", Is(not_root)),
            ("seLinuxOptions", SELINUX),
            ("seccompProfile", PROFILE),
            ("windowsOptions", WINDOWS),
        ]),
    ),
    ("startupProbe", PROBE),
    ("stdin", Any),
    ("stdinOnce", Any),
    ("terminationMessagePath", Any),
    ("terminationMessagePolicy", Any),
    ("tty", Any),
    ("volumeDevices", Any),
    ("volumeMounts", Any),
    ("workingDir", Any),
]);

const PROBE: Rule = Map(&[
    EXEC,
    HTTP_GET,
    TCP_SOCKET,
    ("failureThreshold", Any),
    // A call has no host: it goes to the pod.
    ("grpc", Map(&[("port", Any), ("service", Any)])),
    ("initialDelaySeconds", Any),
    ("periodSeconds", Any),
    ("successThreshold", Any),
    ("terminationGracePeriodSeconds", Any),
    ("timeoutSeconds", Any),
]);

const HANDLER: &[(&str, Rule)] = &[EXEC, HTTP_GET, TCP_SOCKET, ("sleep", Any)];

const EXEC: (&str, Rule) = ("exec", Any);

// The kubelet asks on its node's network: another host than the pod would be in
// reach of whoever writes the probe.
const HTTP_GET: (&str, Rule) = (
    "httpGet",
    Map(&[("host", Is(empty)), ("httpHeaders", Any), ("path", Any), ("port", Any), ("scheme", Any)]),
);

const TCP_SOCKET: (&str, Rule) = ("tcpSocket", Map(&[("host", Is(empty)), ("port", Any)]));

/// Of seccomp and of AppArmor.
const PROFILE: Rule =
    Map(&[("type", Is(|it| it == "RuntimeDefault" || it == "Localhost")), ("localhostProfile", Any)]);

const SELINUX: Rule = Map(&[
    ("level", Any),
    ("role", Is(empty)),
    (
        "type",
        Is(|it| {
            let types = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
            it.as_str().is_some_and(|it| types.contains(&it))
        }),
    ),
    ("user", Is(empty)),
]);

/// A pod that is not Windows' has no use for these.
const WINDOWS: Rule = Map(&[("hostProcess", Is(no))]);

const VOLUME: Rule = Map(&[
    ("configMap", Any),
    ("csi", Any),
    ("downwardAPI", Any),
    ("emptyDir", Any),
    (
        "ephemeral",
        Map(&[(
            "volumeClaimTemplate",
            Map(&[
                ("metadata", Any),
                (
                    "spec",
                    // Not what is made of another claim's content, or takes a volume by its name.
                    Map(&[
                        ("accessModes", Any),
                        ("resources", Any),
                        ("storageClassName", Any),
                        ("volumeAttributesClassName", Any),
                        ("volumeMode", Any),
                    ]),
                ),
            ]),
        )]),
    ),
    ("name", Any),
    ("persistentVolumeClaim", Any),
    (
        "projected",
        Map(&[
            ("defaultMode", Any),
            (
                "sources",
                // Not what a pod could show to the cluster: a token, a certificate.
                Each(&Map(&[
                    ("clusterTrustBundle", Any),
                    ("configMap", Any),
                    ("downwardAPI", Any),
                    ("secret", Any),
                ])),
            ),
        ]),
    ),
    ("secret", Any),
]);

fn yes(value: &Value) -> bool {
    *value == true
}

fn no(value: &Value) -> bool {
    *value == false
}

fn empty(value: &Value) -> bool {
    value == ""
}

fn not_root(id: &Value) -> bool {
    id.as_i64().is_some_and(|it| it > 0)
}

/// The ones that hold for the pod alone.
fn sysctl(name: &Value) -> bool {
    const SAFE: &[&str] = &[
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_syncookies",
    ];
    name.as_str().is_some_and(|it| SAFE.contains(&it))
}

/// Profiles were annotations before they were members, and AppArmor's still count.
fn annotation(key: &str, value: &Value) -> bool {
    let profile = key.starts_with("container.apparmor.security.beta.kubernetes.io/")
        || key.starts_with("container.seccomp.security.alpha.kubernetes.io/")
        || key == "seccomp.security.alpha.kubernetes.io/pod";
    let fine = |it: &str| it == "runtime/default" || it.starts_with("localhost/");
    !profile || value.as_str().is_some_and(fine)
}

impl Rule {
    fn check(&self, value: &Value, at: &str) -> Result<(), Not> {
        // The cluster takes it for a member that is not there.
        if value.is_null() {
            return Ok(());
        }
        match self {
            Any => Ok(()),
            Is(fine) if fine(value) => Ok(()),
            Map(rules) => {
                let members = value.as_object().ok_or_else(|| Not::Safe(at.to_owned()))?;
                members.iter().try_for_each(|(key, value)| {
                    let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                    match rules.iter().find(|(name, _)| name == key) {
                        Some((_, rule)) => rule.check(value, &path),
                        None if value.is_null() => Ok(()),
                        None => Err(Not::Known(path)),
                    }
                })
            }
            Keys(fine) => {
                let members = value.as_object().ok_or_else(|| Not::Safe(at.to_owned()))?;
                match members.iter().find(|(key, value)| !fine(key, value)) {
                    Some((key, _)) => Err(Not::Safe(format!("{at}[{key}]"))),
                    None => Ok(()),
                }
            }
            Each(rule) => {
                let items = value.as_array().ok_or_else(|| Not::Safe(at.to_owned()))?;
                items.iter().enumerate().try_for_each(|(i, item)| {
                    let name = item["name"].as_str().map_or_else(|| i.to_string(), str::to_owned);
                    rule.check(item, &format!("{at}[{name}]"))
                })
            }
            Is(_) => Err(Not::Safe(at.to_owned())),
        }
    }
}
