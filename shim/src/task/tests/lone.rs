//! A container by itself, from its creation to its end.

use super::*;
use crate::task::{State, state::KILLED};
use nix::{sys::stat::Mode, unistd::mkfifo};
use std::time::Duration;

#[tokio::test]
async fn a_life_with_its_events_in_order() {
    let bench = Bench::new().await;
    let tasks = &bench.tasks;
    assert_eq!(tasks.create(bench.lone("c")).await.unwrap(), PID);
    assert_eq!(code(tasks.create(bench.lone("c")).await), Code::ALREADY_EXISTS);
    assert_eq!(code(tasks.delete("c", "x").await), Code::NOT_FOUND);
    assert_eq!(tasks.start("c", "").await.unwrap(), PID);
    assert_eq!(tasks.start("c", "").await.unwrap_err().to_string(), "cannot start a running process");
    assert_eq!(code(tasks.delete("c", "").await), Code::FAILED_PRECONDITION);
    let waiting = [tasks.process("c", "").unwrap(), tasks.process("c", "").unwrap()];
    bench.script.end("c", "", 42, false);
    for process in waiting {
        assert_eq!(process.wait().await.status, 42);
    }
    assert_eq!(tasks.kill("c", "", 15, false).await.unwrap_err().to_string(), "process already finished");
    assert_eq!(tasks.delete("c", "").await.unwrap().1.status, 42);
    assert_eq!(tasks.delete("c", "").await.unwrap_err().to_string(), "container not created");
    assert_eq!(bench.topics().await, ["create", "start", "exit", "delete"]);
    assert_eq!(bench.machines(), ["remove", "boot c", "allow 127.0.0.1:5000", "stop"]);
}

#[tokio::test]
async fn an_exec_ends_before_its_container() {
    let bench = Bench::new().await;
    let tasks = &bench.tasks;
    tasks.create(bench.lone("c")).await.unwrap();
    assert_eq!(tasks.exec(exec("c", "x")).await.unwrap_err().to_string(), "container c init process is not running");
    tasks.start("c", "").await.unwrap();
    tasks.exec(exec("c", "x")).await.unwrap();
    assert_eq!(code(tasks.exec(exec("c", "x")).await), Code::ALREADY_EXISTS);
    assert_eq!(code(tasks.exec(exec("c", "../x")).await), Code::INVALID_ARGUMENT);
    assert_eq!(tasks.start("c", "x").await.unwrap(), PID);
    assert_eq!(code(tasks.start("c", "y").await), Code::NOT_FOUND);
    let (init, process) = (tasks.process("c", "").unwrap(), tasks.process("c", "x").unwrap());
    // The guest reports the first process first: containerd hears of it last.
    bench.script.end("c", "", 0, false);
    assert!(tokio::time::timeout(Duration::from_millis(100), init.wait()).await.is_err());
    bench.script.end("c", "x", KILLED, false);
    init.wait().await;
    assert_eq!(process.state().exit().unwrap().status, KILLED);
    assert_eq!(tasks.delete("c", "x").await.unwrap().1.status, KILLED);
    assert_eq!(code(tasks.start("c", "x").await), Code::NOT_FOUND);
    tasks.delete("c", "").await.unwrap();
    assert_eq!(bench.topics().await, ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"]);
}

#[tokio::test]
async fn output_has_arrived_when_the_end_is_told() {
    let bench = Bench::new().await;
    let mut request = bench.lone("c");
    let out = bench.bundle("c").join("out");
    (request.stdout, request.stderr) = (format!("file://{}", out.display()), format!("file://{}", out.display()));
    bench.tasks.create(request).await.unwrap();
    bench.tasks.start("c", "").await.unwrap();
    bench.script.end("c", "", 0, false);
    bench.tasks.process("c", "").unwrap().wait().await;
    let mut lines: Vec<String> = std::fs::read_to_string(&out).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["stderr of c/", "stdout of c/"]);
}

#[tokio::test]
async fn a_program_that_cannot_run_leaves_a_container_to_delete() {
    let bench = Bench::new().await;
    bench.script.refuse.lock().unwrap().insert("start", "exec /nope: no such file");
    bench.tasks.create(bench.lone("c")).await.unwrap();
    let error = bench.tasks.start("c", "").await.unwrap_err().to_string();
    assert!(error.contains("/nope"), "{error}");
    assert_eq!(bench.tasks.process("c", "").unwrap().state(), State::Created);
    bench.tasks.delete("c", "").await.unwrap();
    assert_eq!(bench.topics().await, ["create", "exit", "delete"]);
}

#[tokio::test]
async fn a_creation_that_fails_leaves_nothing() {
    for (what, wanted) in [("boot", "no kernel"), ("create", "key refused")] {
        let bench = Bench::new().await;
        bench.script.refuse.lock().unwrap().insert(what, "key refused");
        let error = bench.tasks.create(bench.lone("c")).await.unwrap_err();
        assert_eq!(error.to_string(), wanted);
        assert_eq!(bench.machines().last().unwrap(), "remove", "{what}");
        assert_eq!(bench.machines().contains(&"stop".to_owned()), what == "create");
        // What containerd does then.
        assert_eq!(code(bench.tasks.delete("c", "").await), Code::NOT_FOUND);
        bench.tasks.shut_down();
        bench.tasks.asked_to_end().await;
        assert!(bench.topics().await.is_empty());
    }
}

#[tokio::test]
async fn a_bad_request_starts_no_vm() {
    let bench = Bench::new().await;
    let mut from_checkpoint = bench.lone("c");
    from_checkpoint.checkpoint = "/x".into();
    assert_eq!(code(bench.tasks.create(from_checkpoint).await), Code::UNIMPLEMENTED);
    let mut no_bundle = bench.lone("c");
    no_bundle.bundle = "/nowhere".into();
    assert_eq!(code(bench.tasks.create(no_bundle).await), Code::INVALID_ARGUMENT);
    let mut path = bench.lone("c");
    path.id = "../c".into();
    assert_eq!(code(bench.tasks.create(path).await), Code::INVALID_ARGUMENT);
    let initdata = bench.request("c", r#""dev.cloister.initdata":"AAAA""#);
    assert_eq!(code(bench.tasks.create(initdata).await), Code::INVALID_ARGUMENT);
    assert_eq!(code(bench.tasks.create(bench.member("m")).await), Code::FAILED_PRECONDITION);
    assert!(bench.machines().is_empty(), "{:?}", bench.machines());
}

#[tokio::test]
async fn a_caller_that_goes_away_has_its_creation_taken_back() {
    let bench = Bench::slow().await;
    let (tasks, request) = (bench.tasks.clone(), bench.lone("c"));
    let creating = tokio::spawn(async move { tasks.create(request).await });
    while !bench.machines().contains(&"boot c".to_owned()) {
        tokio::task::yield_now().await;
    }
    // Meanwhile the id is taken, and the shim does not end.
    assert_eq!(code(bench.tasks.create(bench.lone("c")).await), Code::ALREADY_EXISTS);
    bench.tasks.shut_down();
    creating.abort();
    bench.tasks.watch_count().wait_for(|count| *count == 0).await.unwrap();
    assert_eq!(bench.machines().last().unwrap(), "remove");
    assert!(bench.topics().await.is_empty());
}

#[tokio::test]
async fn the_end_of_the_vm_is_the_end_of_all() {
    let bench = Bench::new().await;
    let tasks = &bench.tasks;
    tasks.create(bench.lone("c")).await.unwrap();
    tasks.start("c", "").await.unwrap();
    tasks.exec(exec("c", "x")).await.unwrap();
    tasks.start("c", "x").await.unwrap();
    tasks.container("c").unwrap().guest.stop().await;
    assert_eq!(tasks.process("c", "").unwrap().wait().await.status, KILLED);
    assert_eq!(tasks.process("c", "x").unwrap().state().exit().unwrap().status, KILLED);
    tasks.delete("c", "").await.unwrap();
    assert_eq!(bench.topics().await, ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"]);
}

#[tokio::test]
async fn want_of_memory_is_told_before_the_end() {
    let bench = Bench::new().await;
    bench.tasks.create(bench.lone("c")).await.unwrap();
    bench.tasks.start("c", "").await.unwrap();
    bench.script.end("c", "", KILLED, true);
    bench.tasks.process("c", "").unwrap().wait().await;
    assert_eq!(bench.topics().await, ["create", "start", "oom", "exit"]);
    assert!(bench.bundle("c").join("oom").exists());
}

#[tokio::test]
async fn want_of_memory_is_told_while_the_container_lives_on() {
    let bench = Bench::new().await;
    bench.tasks.create(bench.lone("c")).await.unwrap();
    bench.tasks.start("c", "").await.unwrap();
    bench.script.kills.send_replace(1);
    let told = async {
        while !bench.bundle("c").join("oom").exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told).await.unwrap();
    assert_eq!(bench.tasks.process("c", "").unwrap().state(), State::Running);
    assert_eq!(bench.topics().await, ["create", "start", "oom"]);
    // What was told is not told again with the end.
    bench.script.end("c", "", KILLED, true);
    bench.tasks.process("c", "").unwrap().wait().await;
    assert_eq!(bench.topics().await, ["create", "start", "oom", "exit"]);
}

#[tokio::test]
async fn signals_by_state() {
    let bench = Bench::new().await;
    let tasks = &bench.tasks;
    tasks.create(bench.lone("c")).await.unwrap();
    assert_eq!(code(tasks.kill("c", "", 65, false).await), Code::INVALID_ARGUMENT);
    tasks.kill("c", "", 0, false).await.unwrap();
    tasks.start("c", "").await.unwrap();
    // A probe asks nothing of the guest.
    tasks.kill("c", "", 0, false).await.unwrap();
    assert!(!bench.calls().iter().any(|call| call.starts_with("signal")));
    tasks.kill("c", "", 15, false).await.unwrap();
    assert_eq!(tasks.process("c", "").unwrap().wait().await.status, 143);
    assert_eq!(code(tasks.kill("c", "", 0, false).await), Code::NOT_FOUND);
}

#[tokio::test]
async fn what_has_not_run_can_be_killed() {
    let bench = Bench::new().await;
    bench.tasks.create(bench.lone("c")).await.unwrap();
    bench.tasks.kill("c", "", 9, true).await.unwrap();
    assert_eq!(bench.tasks.process("c", "").unwrap().wait().await.status, KILLED);
    assert_eq!(code(bench.tasks.start("c", "").await), Code::FAILED_PRECONDITION);
    bench.tasks.delete("c", "").await.unwrap();
    assert_eq!(bench.topics().await, ["create", "exit", "delete"]);
}

#[tokio::test]
async fn a_guest_that_hangs_can_be_killed_and_asked() {
    let bench = Bench::new().await;
    bench.script.hang.lock().unwrap().extend(["signal", "pause"]);
    bench.tasks.create(bench.lone("c")).await.unwrap();
    bench.tasks.start("c", "").await.unwrap();
    assert_eq!(code(bench.tasks.pause("c").await), Code::UNAVAILABLE);
    assert_eq!(bench.tasks.process("c", "").unwrap().state(), State::Running);
    assert_eq!(code(bench.tasks.kill("c", "", 15, false).await), Code::UNAVAILABLE);
    bench.tasks.kill("c", "", 9, false).await.unwrap();
    assert_eq!(bench.tasks.process("c", "").unwrap().wait().await.status, KILLED);
}

#[tokio::test]
async fn pausing_is_a_state() {
    let bench = Bench::new().await;
    let tasks = &bench.tasks;
    tasks.create(bench.lone("c")).await.unwrap();
    assert_eq!(code(tasks.pause("c").await), Code::FAILED_PRECONDITION);
    tasks.start("c", "").await.unwrap();
    assert_eq!(code(tasks.resume("c").await), Code::FAILED_PRECONDITION);
    tasks.pause("c").await.unwrap();
    assert_eq!(tasks.process("c", "").unwrap().state(), State::Paused);
    assert_eq!(code(tasks.delete("c", "").await), Code::FAILED_PRECONDITION);
    tasks.resume("c").await.unwrap();
    assert_eq!(bench.topics().await, ["create", "start", "paused", "resumed"]);
}

#[tokio::test]
async fn a_terminals_size_is_kept_for_its_start() {
    let bench = Bench::new().await;
    let mut request = bench.lone("c");
    let out = bench.bundle("c").join("out");
    mkfifo(&out, Mode::S_IRWXU).unwrap();
    (request.terminal, request.stdout) = (true, out.display().to_string());
    bench.tasks.create(request).await.unwrap();
    bench.tasks.resize_pty("c", "", 80, 25).await.unwrap();
    assert!(!bench.calls().iter().any(|call| call.starts_with("resize")));
    bench.tasks.start("c", "").await.unwrap();
    bench.tasks.resize_pty("c", "", 132, 43).await.unwrap();
    assert_eq!(bench.calls(), ["create c/", "resize c/80x25", "start c/", "resize c/132x43"]);
    bench.script.end("c", "", 0, false);
    bench.tasks.process("c", "").unwrap().wait().await;
    assert_eq!(code(bench.tasks.resize_pty("c", "", 1, 1).await), Code::FAILED_PRECONDITION);
}

#[tokio::test]
async fn without_a_terminal_or_an_input_there_is_none_to_change() {
    let bench = Bench::new().await;
    bench.tasks.create(bench.lone("c")).await.unwrap();
    assert_eq!(code(bench.tasks.resize_pty("c", "", 80, 25).await), Code::INVALID_ARGUMENT);
    for _ in 0..2 {
        bench.tasks.close_io("c", "", true).unwrap();
    }
    assert_eq!(code(bench.tasks.close_io("c", "x", true)), Code::NOT_FOUND);
}

#[tokio::test]
async fn volumes_are_copied_in_refreshed_and_the_last_words_taken_out() {
    let bench = Bench::new().await;
    let request = bench.lone("c");
    let host = bench.bundle("c").join("host");
    let (conf, log) = (host.join("volumes/kubernetes.io~configmap/conf"), host.join("pods/u/containers/app/1a2b"));
    for directory in [conf.join("..1"), conf.join("..2"), log.parent().unwrap().to_owned()] {
        std::fs::create_dir_all(directory).unwrap();
    }
    std::fs::write(conf.join("..1/key"), "v").unwrap();
    std::fs::write(&log, "").unwrap();
    std::os::unix::fs::symlink("..1", conf.join("..data")).unwrap();
    let mounts = serde_json::json!([
        {"destination": "/etc/conf", "type": "bind", "source": conf, "options": ["rbind", "ro"]},
        {"destination": "/dev/termination-log", "type": "bind", "source": log, "options": ["rbind", "rw"]},
    ]);
    let annotation = r#""io.kubernetes.cri.image-name":"127.0.0.1:5000/demo:1""#;
    let spec = format!("{{\"annotations\":{{{annotation}}},\"mounts\":{mounts}}}");
    std::fs::write(bench.bundle("c").join("config.json"), spec).unwrap();
    bench.tasks.create(request).await.unwrap();
    assert_eq!(bench.calls(), ["volumes c/", "volume c/0", "volume c/1", "create c/"]);
    assert_eq!(*bench.script.copies.lock().unwrap(), ["..1/ ..1/key ..2/ ..data@..1 /", ""]);
    std::os::unix::fs::symlink("..2", conf.join("..new")).unwrap();
    std::fs::rename(conf.join("..new"), conf.join("..data")).unwrap();
    let refreshed = async {
        while bench.script.copies.lock().unwrap().len() < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), refreshed).await.unwrap();
    bench.tasks.start("c", "").await.unwrap();
    bench.script.end("c", "", 1, false);
    bench.tasks.process("c", "").unwrap().wait().await;
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "last words");
}

#[tokio::test]
async fn a_mount_that_cannot_be_is_refused_before_a_vm_is_booted() {
    let bench = Bench::new().await;
    let request = bench.lone("c");
    let mount = serde_json::json!([{"destination": "/data", "type": "bind", "source": bench.bundle("c"), "options": ["rbind"]}]);
    std::fs::write(bench.bundle("c").join("config.json"), format!("{{\"mounts\":{mount}}}")).unwrap();
    let refused = bench.tasks.create(request).await.unwrap_err();
    assert!(refused.to_string().contains("read-only") && refused.code() == Code::INVALID_ARGUMENT, "{refused}");
    assert_eq!(bench.machines(), Vec::<String>::new());
}
