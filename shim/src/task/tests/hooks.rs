//! Hooks of the host's spec, at their points of a container's life.

use super::*;
use crate::task::state::KILLED;
use containerd_shim_protos::api::CreateTaskRequest;
use serde_json::{Value, json};
use std::{fs, os::unix::fs::PermissionsExt};

const LISTS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Gives a container one hook in each list, which notes its call; the one in `failing` fails. With `network`, a namespace is asked for.
fn add_hooks(bench: &Bench, request: &CreateTaskRequest, failing: &str, network: bool) {
    let program = bench.bundle("hook");
    let script = format!(
        "#!/bin/sh\nread state; echo \"$1 $state\" >> {}\n[ $1 != {failing:?} ] || {{ echo 'no bridge' >&2; exit 3; }}\n",
        bench.bundle("ran").display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let hooks: serde_json::Map<String, Value> =
        LISTS.iter().map(|list| ((*list).to_owned(), json!([{ "path": program, "args": ["hook", list] }]))).collect();
    let file = bench.bundle(&request.id).join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    spec["hooks"] = hooks.into();
    if network {
        spec["linux"]["namespaces"] = json!([{ "type": "network" }]);
    }
    fs::write(file, spec.to_string()).unwrap();
}

/// The lists whose hooks have run so far, with the pid and status that each was told.
fn ran(bench: &Bench) -> Vec<(String, u64, String)> {
    let text = fs::read_to_string(bench.bundle("ran")).unwrap_or_default();
    let entry = |line: &str| {
        let (list, state) = line.split_once(' ').unwrap();
        let state: Value = serde_json::from_str(state).unwrap();
        (list.to_owned(), state["pid"].as_u64().unwrap_or(0), state["status"].as_str().unwrap().to_owned())
    };
    text.lines().map(entry).collect()
}

fn names(bench: &Bench) -> Vec<String> {
    ran(bench).into_iter().map(|(list, ..)| list).collect()
}

#[tokio::test]
async fn each_list_runs_at_its_point() {
    let bench = Bench::new().await;
    let request = bench.lone("c");
    add_hooks(&bench, &request, "", true);
    let pid = u64::from(bench.tasks.create(request).await.unwrap());
    assert_eq!(names(&bench), LISTS[..3]);
    assert_eq!(bench.calls(), ["create c/"]);
    bench.tasks.start("c", "").await.unwrap();
    assert_eq!(names(&bench), LISTS[..5]);
    bench.tasks.exec(exec("c", "x")).await.unwrap();
    bench.tasks.start("c", "x").await.unwrap();
    bench.script.end("c", "x", 0, false);
    bench.script.end("c", "", 0, false);
    bench.tasks.process("c", "").unwrap().wait().await;
    assert_eq!(names(&bench), LISTS[..5], "an exec has no hooks");
    bench.tasks.delete("c", "").await.unwrap();
    assert_eq!(names(&bench), LISTS);
    let told: Vec<(u64, String)> = ran(&bench).into_iter().map(|(_, pid, status)| (pid, status)).collect();
    let statuses = ["creating", "creating", "creating", "created", "running"];
    let mut wanted: Vec<(u64, String)> = statuses.map(|status| (pid, status.to_owned())).into();
    wanted.push((0, "stopped".to_owned()));
    assert_eq!(told, wanted);
    // The namespace was there, and configured, before the VM.
    assert_eq!(bench.machines(), ["remove", "boot c", "configured", "allow 127.0.0.1:5000", "stop"]);
    assert_eq!(bench.topics().await, ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"]);
}

#[tokio::test]
async fn a_failing_hook_before_the_container_is_a_failed_create_with_all_undone() {
    for (count, failing) in [(1, "prestart"), (2, "createRuntime"), (3, "createContainer")] {
        for network in [true, false] {
            let bench = Bench::here().await;
            let request = bench.lone("c");
            add_hooks(&bench, &request, failing, network);
            let error = bench.tasks.create(request).await.unwrap_err().to_string();
            let wanted = format!("{failing} hook {}: exit status 3: no bridge", bench.bundle("hook").display());
            assert_eq!(error, wanted);
            let lists: Vec<&str> = LISTS[..count].iter().copied().chain(["poststop"]).collect();
            assert_eq!(names(&bench), lists);
            assert!(bench.calls().is_empty(), "the guest heard of it: {:?}", bench.calls());
            assert_eq!(bench.machines().last().unwrap(), "remove");
            assert!(bench.topics().await.is_empty());
            let again = bench.lone("c");
            bench.tasks.create(again).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_failing_hook_before_the_program_leaves_a_container_to_delete() {
    let bench = Bench::new().await;
    let request = bench.lone("c");
    add_hooks(&bench, &request, "startContainer", true);
    bench.tasks.create(request).await.unwrap();
    let error = bench.tasks.start("c", "").await.unwrap_err().to_string();
    assert!(error.starts_with("startContainer hook") && error.ends_with("no bridge"), "{error}");
    assert!(!bench.calls().contains(&"start c/".to_owned()));
    bench.tasks.delete("c", "").await.unwrap();
    assert_eq!(names(&bench).last().unwrap(), "poststop");
}

#[tokio::test]
async fn a_failing_hook_after_the_start_stops_the_container() {
    let bench = Bench::new().await;
    let request = bench.lone("c");
    add_hooks(&bench, &request, "poststart", true);
    bench.tasks.create(request).await.unwrap();
    let error = bench.tasks.start("c", "").await.unwrap_err().to_string();
    assert!(error.starts_with("poststart hook") && error.ends_with("no bridge"), "{error}");
    assert_eq!(bench.tasks.process("c", "").unwrap().wait().await.status, KILLED);
    bench.tasks.delete("c", "").await.unwrap();
    assert_eq!(bench.topics().await, ["create", "start", "exit", "delete"]);
}

#[tokio::test]
async fn a_failing_hook_at_the_end_keeps_nothing() {
    let bench = Bench::new().await;
    let request = bench.lone("c");
    add_hooks(&bench, &request, "poststop", true);
    bench.tasks.create(request).await.unwrap();
    bench.tasks.delete("c", "").await.unwrap();
    assert_eq!(names(&bench).last().unwrap(), "poststop");
    assert!(!bench.bundle("c").join("poststop-owed").exists());
}

#[tokio::test]
async fn a_shim_that_is_told_to_end_runs_what_is_owed() {
    let bench = Bench::new().await;
    let request = bench.lone("c");
    add_hooks(&bench, &request, "", true);
    bench.tasks.create(request).await.unwrap();
    bench.tasks.start("c", "").await.unwrap();
    for _ in 0..2 {
        bench.tasks.give_up().await;
    }
    assert_eq!(names(&bench), LISTS, "once");
    assert_eq!(bench.machines().last().unwrap(), "stop");
    assert!(!bench.bundle("c").join("poststop-owed").exists());
}

#[tokio::test]
async fn a_hook_that_cannot_be_one_starts_no_vm() {
    let bench = Bench::new().await;
    let request = bench.lone("c");
    let json = r#"{"hooks":{"createRuntime":[{"path":"relative"}]}}"#;
    fs::write(bench.bundle("c").join("config.json"), json).unwrap();
    let error = bench.tasks.create(request).await.unwrap_err();
    assert_eq!(error.code(), Code::INVALID_ARGUMENT);
    assert!(error.to_string().contains("hooks.createRuntime[0]"), "{error}");
    assert!(bench.machines().is_empty());
}

#[tokio::test]
async fn a_pods_containers_have_hooks_of_their_own() {
    let bench = Bench::here().await;
    bench.tasks.create(bench.sandbox("c")).await.unwrap();
    bench.tasks.start("c", "").await.unwrap();
    let request = bench.member("m");
    add_hooks(&bench, &request, "", false);
    bench.tasks.create(request).await.unwrap();
    bench.tasks.start("m", "").await.unwrap();
    bench.script.end("m", "", 0, false);
    bench.tasks.process("m", "").unwrap().wait().await;
    bench.tasks.delete("m", "").await.unwrap();
    assert_eq!(names(&bench), LISTS);
    assert!(ran(&bench)[..5].iter().all(|(_, pid, _)| *pid == u64::from(std::process::id())));
    assert!(!bench.machines().contains(&"configured".to_owned()));
}
