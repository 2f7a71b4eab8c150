use super::*;
use crate::bundle::Bundle;
use std::{
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A bundle with a program that does `script`, as the only hook of `list`, with `extra` fields.
fn bundle(list: &str, script: &str, extra: &str) -> (TempDir, Hooks) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("hook");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let json =
        format!(r#"{{"ociVersion":"1.1.0","annotations":{{"a":"b"}},"hooks":{{"{list}":[{{"path":"{}"{extra}}}]}}}}"#, program.display());
    fs::write(dir.path().join("config.json"), json).unwrap();
    let hooks = Bundle::read(dir.path()).unwrap().hooks("c", dir.path());
    (dir, hooks)
}

fn own_pid() -> u32 {
    std::process::id()
}

#[tokio::test]
async fn a_hook_gets_words_environment_folder_and_state() {
    let script = "echo \"$0 $1 $X ${HOME-none} $(pwd)\" > out; cat > state";
    let (dir, hooks) = bundle("createRuntime", script, r#","args":["name","word"],"env":["X=1=2","odd"]"#);
    hooks.before_create(own_pid()).await.unwrap();
    let program = dir.path().join("hook");
    // A script's name is the one that the kernel gives it.
    let wanted = format!("{} word 1=2 none {}\n", program.display(), dir.path().display());
    assert_eq!(fs::read_to_string(dir.path().join("out")).unwrap(), wanted);
    let state: serde_json::Value = serde_json::from_slice(&fs::read(dir.path().join("state")).unwrap()).unwrap();
    let wanted = serde_json::json!({
        "ociVersion": "1.1.0", "id": "c", "status": "creating", "pid": own_pid(), "bundle": dir.path(), "annotations": {"a": "b"},
    });
    assert_eq!(state, wanted);
    assert!(!hooks.is_owed(), "there is no poststop hook");
}

#[tokio::test]
async fn a_failure_is_one_line_with_list_program_status_and_words() {
    let (dir, hooks) = bundle("prestart", "echo first; echo >&2; echo 'no bridge' >&2; exit 3", "");
    let error = hooks.before_create(own_pid()).await.unwrap_err().to_string();
    assert_eq!(error, format!("prestart hook {}: exit status 3: first; no bridge", dir.path().join("hook").display()));
    let (_dir, hooks) = bundle("poststart", "head -c 100000 /dev/zero | tr '\\0' x; echo end; kill -9 $$", "");
    let error = hooks.after_start(own_pid()).await.unwrap_err().to_string();
    assert!(error.contains("signal 9: xxx") && error.ends_with("xend") && error.len() < 1200, "{error}");
    let missing =
        Lists { prestart: vec![Hook { path: "/nowhere/hook".into(), args: vec![], env: vec![], timeout: None }], ..Lists::default() };
    let error = Hooks::new(hooks.0.0.clone(), missing).before_create(own_pid()).await.unwrap_err().to_string();
    assert!(error.starts_with("prestart hook /nowhere/hook: cannot start: "), "{error}");
}

#[tokio::test]
async fn a_hook_beyond_its_time_is_killed_with_what_it_started() {
    let (dir, hooks) = bundle("startContainer", "sleep 1000 & echo $! > child; echo waiting; wait", r#","timeout":1"#);
    let began = Instant::now();
    let error = hooks.before_start(own_pid()).await.unwrap_err().to_string();
    assert!(error.ends_with("did not end within 1 s: killed: waiting"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(60));
    gone(&fs::read_to_string(dir.path().join("child")).unwrap()).await;
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_it() {
    let (dir, hooks) = bundle("prestart", "echo $$ > own.new; mv own.new own; sleep 1000", "");
    let running = tokio::spawn(async move { hooks.before_create(own_pid()).await });
    let own = dir.path().join("own");
    while !own.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.abort();
    gone(&fs::read_to_string(own).unwrap()).await;
}

/// Returns once the process is gone, or only waits for being reaped by whoever inherited it.
async fn gone(pid: &str) {
    let stat = format!("/proc/{}/stat", pid.trim());
    let deadline = Instant::now() + Duration::from_secs(20);
    while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < deadline, "process {pid} lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn something_in_the_background_does_not_hold_it_up() {
    let (_dir, hooks) = bundle("poststart", "sleep 5 & exit 0", "");
    let began = Instant::now();
    hooks.after_start(own_pid()).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn poststop_is_owed_until_it_has_run() {
    let (dir, hooks) = bundle("poststop", "cat >> ran; echo >> ran", "");
    hooks.after_delete().await;
    assert!(!dir.path().join("ran").exists(), "nothing had begun");
    hooks.before_create(own_pid()).await.unwrap();
    assert!(hooks.is_owed());
    for _ in 0..2 {
        hooks.after_delete().await;
    }
    let ran = fs::read_to_string(dir.path().join("ran")).unwrap();
    assert_eq!(ran.lines().count(), 1);
    assert!(ran.contains(r#""status":"stopped""#) && !ran.contains("pid"), "{ran}");
}

#[test]
fn what_can_be_no_hook_is_refused_by_its_place() {
    for (hook, words) in [
        (r#"{"path":"bin/x"}"#, "path \"bin/x\" is not absolute"),
        (r#"{"path":"/x","timeout":0}"#, "timeout"),
        (r#"{"path":"/x","timeout":-1}"#, "timeout"),
        (r#"{"path":"/x","args":["a\u0000b"]}"#, "NUL"),
        (r#"{"path":"/x\u0000"}"#, "NUL"),
    ] {
        let lists: Lists = serde_json::from_str(&format!(r#"{{"poststop":[{{"path":"/ok"}},{hook}]}}"#)).unwrap();
        let subject = Subject { id: "c".into(), bundle: "/b".into(), oci_version: String::new(), annotations: BTreeMap::new() };
        let error = Hooks::new(subject, lists).check().unwrap_err().to_string();
        assert!(error.starts_with("config.json: hooks.poststop[1]: ") && error.contains(words), "{error}");
    }
}
