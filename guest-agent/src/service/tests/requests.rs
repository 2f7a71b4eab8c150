//! The other requests of the differential test. An exec goes through the same mutations as a container. Every field of every request of the
//! proto is in [`FIELDS`], with what holds it, and each that a host may choose with the reason.

use super::{
    mutations::{POLICY, accounts, additions_to, derived, image, mutations, valid, without_limits},
    *,
};
use crate::containers::{
    bundle,
    derive::derive_exec,
    host_spec::{parse_process, parse_resources},
};
use policy::Policy;
use protobuf::reflect::{FieldDescriptor, ReflectValueBox, RuntimeFieldType, RuntimeType};
use serde_json::{Value, json};

/// What keeps a host from choosing a field.
enum Held {
    /// The gate asks the policy.
    Gate,
    /// It is asked about elsewhere, in a test of its own.
    There(&'static str),
    /// Nothing: why that gains a host nothing.
    Free(&'static str),
}
use Held::{Free, Gate, There};

const LABEL: &str =
    "a name that the host chose itself: with another it speaks of another container or process of the same pod, for which it may ask too";
const NETWORK: &str =
    "the network is the host's: what is said over it is for TLS and digests to protect; whether there is one, the policy says";
const LIVES: &str = "it can stop the whole machine, and sees when something ends";

/// One line for each field, in the proto's order.
const FIELDS: &[(&str, Held)] = &[
    ("CreateSandboxRequest.sandbox_id", Free("for its own log; the pod's name where none is given")),
    ("CreateSandboxRequest.hostname", Free("the pod's name is Kubernetes' to give; it decides nothing")),
    ("CreateSandboxRequest.interfaces", There("network_statistics_and_secrets")),
    ("CreateSandboxRequest.routes", There("network_statistics_and_secrets")),
    ("CreateSandboxRequest.initdata", There("a_machine_belongs_to_the_initdata_that_it_was_launched_for")),
    ("CreateSandboxRequest.host_time", There("the_clock_is_never_put_back")),
    ("CreateSandboxRequest.neighbours", Free(NETWORK)),
    ("CreateSandboxRequest.dns", Free(NETWORK)),
    ("CreateSandboxRequest.sysctls", There("a_host_opens_nothing_where_the_owner_decides")),
    ("PrepareVolumesRequest.container_id", Free(LABEL)),
    ("PrepareVolumesRequest.volumes", There("every_change_of_a_valid_volume_is_refused_or_without_effect")),
    ("ReadVolumeRequest.container_id", Free(LABEL)),
    ("ReadVolumeRequest.number", Free("what is read back was announced so, and admitted, before")),
    ("CreateContainerRequest.container_id", Free(LABEL)),
    ("CreateContainerRequest.image_reference", There("every_other_field_of_the_request_counts_too")),
    (
        "CreateContainerRequest.image_digest_hint",
        Free("where to look first: what is fetched must have the digest or signature that the policy names"),
    ),
    ("CreateContainerRequest.spec", There("every_change_of_a_valid_container_is_refused_or_without_effect")),
    ("CreateContainerRequest.stdio", Gate),
    ("CreateContainerRequest.plain_http_registries", Free("how bytes come that are then verified; credentials are not sent over it")),
    ("StartProcessRequest.container_id", Free(LABEL)),
    ("StartProcessRequest.exec_id", Free("what was admitted when it was prepared")),
    ("ExecProcessRequest.container_id", Free("the policy's list of commands is one for all containers of the pod")),
    ("ExecProcessRequest.exec_id", Free(LABEL)),
    ("ExecProcessRequest.process", There("every_change_of_a_valid_exec_is_refused_or_without_effect")),
    ("ExecProcessRequest.stdio", Gate),
    ("SignalProcessRequest.container_id", Free(LABEL)),
    ("SignalProcessRequest.exec_id", Free(LABEL)),
    ("SignalProcessRequest.signal", Gate),
    ("SignalProcessRequest.all", Free("a signal that the policy allows may be sent to each process by itself")),
    ("WaitProcessRequest", Free(LIVES)),
    ("WaitOutOfMemoryRequest", Free(LIVES)),
    ("DeleteProcessRequest", Free(LIVES)),
    ("ResizePtyRequest", Free("the size of a window that the policy let it have")),
    ("ListProcessesRequest.container_id", Free(LABEL)),
    ("ContainerRequest.container_id", Free(LABEL)),
    ("UpdateContainerRequest", There("every_change_of_limits_changes_limits")),
];

/// The fields of all requests, as `Message.field`, with the RPC that takes them.
fn fields() -> Vec<(&'static str, String, FieldDescriptor)> {
    let mut all = Vec::new();
    let file = api::file_descriptor();
    for (rpc, message) in rpcs() {
        let descriptor = file.message_by_package_relative_name(message).unwrap();
        all.extend(descriptor.fields().map(|field| (rpc, format!("{message}.{}", field.name()), field)));
    }
    all
}

/// The line of a field, or of its whole message.
fn held(field: &str) -> &'static Held {
    let message = field.split('.').next().unwrap();
    let found = FIELDS.iter().find(|(line, _)| *line == field || *line == message);
    &found.unwrap_or_else(|| panic!("{field} has no line in FIELDS: what keeps a host from choosing it?")).1
}

#[test]
fn every_field_of_every_request_is_held_or_free_with_a_reason() {
    let all = fields();
    for (_, field, _) in &all {
        if let Free(reason) | There(reason) = held(field) {
            assert!(!reason.is_empty());
        }
    }
    for (line, _) in FIELDS {
        assert!(all.iter().any(|(_, field, _)| field == line || field.split('.').next() == Some(line)), "{line} is not in the proto");
    }
}

/// Other values of a field within its bounds; none of a message that is free or held as a whole.
fn others(field: &str, kind: &RuntimeType) -> Vec<ReflectValueBox> {
    match kind {
        RuntimeType::String if field.ends_with("digest_hint") => vec![ReflectValueBox::String(format!("sha256:{}", "0".repeat(64)))],
        RuntimeType::String => vec![ReflectValueBox::String("other".into())],
        RuntimeType::Bool => vec![ReflectValueBox::Bool(true)],
        RuntimeType::U32 => vec![ReflectValueBox::U32(12)],
        RuntimeType::U64 => vec![ReflectValueBox::U64(12)],
        // Each stream by itself.
        RuntimeType::Message(stdio) if field.ends_with(".stdio") => {
            let with = |stream: FieldDescriptor| {
                let mut message = stdio.new_instance();
                stream.set_singular_field(&mut *message, ReflectValueBox::Bool(true));
                ReflectValueBox::Message(message)
            };
            stdio.fields().map(with).collect()
        }
        RuntimeType::Message(_) if field.starts_with("CreateSandboxRequest.") => Vec::new(),
        other => panic!("{field}: no other value of {other:?} is known here"),
    }
}

/// Each field by itself, changed in a request that a closed door lets through: refused by the policy where it is held at the gate; where it
/// is free, the answer is the same as before.
#[tokio::test]
async fn every_change_of_a_field_at_the_gate_is_refused_or_without_effect() {
    let host = Host::of(guarded(Some(Sandbox::for_test(Some("[allow]\noutput = false\nstats = true\n"))))).await;
    let (mut refused, mut same) = (0, 0);
    for (rpc, name, field) in fields() {
        let (kind, repeated) = match field.runtime_field_type() {
            RuntimeFieldType::Singular(kind) => (kind, false),
            RuntimeFieldType::Repeated(kind) => (kind, true),
            RuntimeFieldType::Map(..) => continue,
        };
        let held = held(&name);
        if matches!(held, There(_)) {
            continue;
        }
        let base = match rpc {
            // A host may always end what runs: a signal that needs no line in the policy.
            "SignalProcess" => {
                api::SignalProcessRequest { container_id: "c".into(), signal: 9, ..Default::default() }.write_to_bytes().unwrap()
            }
            _ => request(rpc),
        };
        let before = host.raw(rpc, base.clone()).await.map_or_else(|status| status.code(), |_| Code::OK);
        assert_ne!(before, Code::PERMISSION_DENIED, "{rpc}: not let through as it is");
        for value in others(&name, &kind) {
            let mut message = field.containing_message().parse_from_bytes(&base).unwrap();
            let shown = format!("{name} = {value:?}");
            if repeated {
                field.mut_repeated(&mut *message).push(value);
            } else {
                field.set_singular_field(&mut *message, value);
            }
            let after = host.code(rpc, &*message).await;
            if matches!(held, Gate) {
                assert_eq!(after, Code::PERMISSION_DENIED, "{shown}");
                refused += 1;
            } else {
                assert_eq!(after, before, "{shown}");
                same += 1;
            }
        }
    }
    assert!(refused == 9 && same > 25, "{refused} refused, {same} without effect");
}

/// What the agent would run in the container for this process; or the refusal.
fn decide_exec(policy: &Policy, process: &Value) -> Result<String, String> {
    let container = derived(&valid())?.1;
    let host = parse_process(process.to_string().as_bytes()).map_err(|e| e.to_string())?;
    let exec = derive_exec(&container, &host, &accounts()).map_err(|e| e.to_string())?;
    policy.exec(&exec.args).map_err(|e| e.to_string())?;
    policy.overrides(&exec.overrides).map_err(|e| e.to_string())?;
    let oci = bundle::process(&exec, &host, &Default::default(), policy.is_open()).map_err(|e| e.to_string())?;
    let mut spec = without_limits(json!({"process": oci}));
    if !policy.is_open() {
        // Fewer than its container has are the host's to give: no process gains by having less.
        assert!(exec.capabilities.is_subset(&container.capabilities), "{process}");
        spec["process"].as_object_mut().unwrap().remove("capabilities");
    }
    Ok(spec.to_string())
}

/// The process of `kubectl exec POD -- /bin/health` as containerd writes it: the container's, with another command line.
fn valid_exec() -> Value {
    let mut process = valid()["process"].clone();
    process["args"] = json!(["/bin/health", "--quick"]);
    process
}

#[test]
fn every_change_of_a_valid_exec_is_refused_or_without_effect() {
    let policy = Policy::parse(&format!("{POLICY}\n[allow]\nexec = [[\"/bin/health\", \"--quick\"]]\n")).unwrap();
    policy.image(&image()).unwrap();
    let wanted = decide_exec(&policy, &valid_exec()).expect("the exec is valid");
    let mut all = Vec::new();
    mutations(&valid_exec(), "", &mut all);
    all.extend(additions_to(&json!({"process": valid_exec()})).into_iter().map(|(label, spec)| (label, spec["process"].clone())));
    let (mut refused, mut same, mut wrong) = (0, 0, Vec::new());
    for (label, process) in &all {
        match decide_exec(&policy, process) {
            Err(_) => refused += 1,
            Ok(other) if other == wanted => same += 1,
            Ok(other) => wrong.push(format!("{label}: {other}")),
        }
    }
    assert!(wrong.is_empty(), "these run something else than {wanted}:\n{}", wrong.join("\n"));
    assert!(refused > 60 && same > 40, "{refused} refused, {same} without effect");
    // The pair: an open door lets them through.
    let open = Policy::from_initdata(None).unwrap();
    let plain = decide_exec(&open, &valid_exec()).unwrap();
    assert!(all.iter().filter(|(_, process)| decide_exec(&open, process).is_ok_and(|other| other != plain)).count() > 50);
}

/// Of new limits nothing but limits is read, whatever else is in them.
#[test]
fn every_change_of_limits_changes_limits() {
    let limits = json!({
        "memory": {"limit": 100_000_000}, "cpu": {"shares": 1024, "quota": 100_000}, "pids": {"limit": 100},
        "unified": {"memory.oom.group": "1"}, "devices": [{"allow": true, "access": "rwm"}],
    });
    let mut all = Vec::new();
    mutations(&limits, "", &mut all);
    let mut read = 0;
    for (label, changed) in all {
        let Ok(resources) = parse_resources(changed.to_string().as_bytes()) else { continue };
        read += 1;
        let kept = serde_json::to_value(resources).unwrap();
        for key in kept.as_object().unwrap().keys() {
            assert!(["memory", "cpu", "pids", "unified"].contains(&key.as_str()), "{label}: {key}");
        }
    }
    assert!(read > 20, "{read}");
}
