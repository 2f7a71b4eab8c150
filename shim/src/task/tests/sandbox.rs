//! A pod of the Sandbox service, from its description to the end of its shim.

use super::*;
use crate::task::{Life, state::KILLED};
use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use std::time::Duration;
use tokio::time::timeout;

fn request(id: &str) -> CreateSandboxRequest {
    CreateSandboxRequest { sandbox_id: id.to_owned(), ..Default::default() }
}

async fn started() -> Bench {
    let bench = Bench::new().await;
    bench.tasks.create_sandbox(&request("c")).unwrap();
    assert_eq!(bench.tasks.start_sandbox("c").await.unwrap().0, PID);
    bench
}

async fn asked_to_end(bench: &Bench) -> bool {
    timeout(Duration::from_millis(50), bench.tasks.asked_to_end()).await.is_ok()
}

#[tokio::test]
async fn a_life_from_its_description_to_the_end_of_the_shim() {
    let bench = Bench::new().await;
    let tasks = &bench.tasks;
    assert_eq!(code(tasks.sandbox("c").map(drop)), Code::NOT_FOUND);
    tasks.create_sandbox(&request("c")).unwrap();
    assert!(bench.machines().is_empty(), "described, not made");
    assert_eq!(code(tasks.ping_sandbox("c")), Code::FAILED_PRECONDITION);
    assert_eq!(code(tasks.create_sandbox(&request("c"))), Code::ALREADY_EXISTS);
    assert_eq!(code(tasks.create_sandbox(&request("d"))), Code::FAILED_PRECONDITION);
    assert_eq!(code(tasks.create(bench.lone("l")).await), Code::FAILED_PRECONDITION);
    tasks.start_sandbox("c").await.unwrap();
    assert_eq!(bench.machines(), ["remove", "boot c"]);
    assert_eq!(code(tasks.start_sandbox("c").await), Code::FAILED_PRECONDITION);
    tasks.ping_sandbox("c").unwrap();
    assert!(matches!(tasks.sandbox("c").unwrap().life(), Life::Ready(guest) if guest.pid() == PID));
    for _ in 0..2 {
        tasks.stop_sandbox("c").await.unwrap();
    }
    assert_eq!(tasks.sandbox("c").unwrap().ended().await.status, 0, "its end was asked for");
    assert_eq!(bench.machines(), ["remove", "boot c", "stop"]);
    assert!(!asked_to_end(&bench).await);
    tasks.shut_down_sandbox("c").await.unwrap();
    assert!(asked_to_end(&bench).await);
    assert_eq!(code(tasks.sandbox("c").map(drop)), Code::NOT_FOUND);
    assert!(bench.topics().await.is_empty(), "a pod is no task: nothing of it is told as one");
}

#[tokio::test]
async fn its_containers_come_and_go_and_it_stays() {
    let bench = started().await;
    for _ in 0..2 {
        bench.tasks.create(bench.member("m")).await.unwrap();
        bench.tasks.start("m", "").await.unwrap();
        bench.script.end("m", "", 3, false);
        bench.tasks.process("m", "").unwrap().wait().await;
        bench.tasks.delete("m", "").await.unwrap();
        // containerd says this after every task.
        bench.tasks.shut_down();
    }
    assert!(!asked_to_end(&bench).await);
    assert!(!bench.machines().contains(&"stop".to_owned()));
    bench.tasks.ping_sandbox("c").unwrap();
}

#[tokio::test]
async fn the_end_of_its_vm_is_told_after_its_containers() {
    let bench = started().await;
    bench.tasks.create(bench.member("m")).await.unwrap();
    bench.tasks.start("m", "").await.unwrap();
    let sandbox = bench.tasks.sandbox("c").unwrap();
    let Life::Ready(guest) = sandbox.life() else { panic!("not ready") };
    guest.stop().await;
    assert_eq!(sandbox.ended().await.status, KILLED, "nobody asked for it");
    assert_eq!(bench.tasks.process("m", "").unwrap().state().exit().unwrap().status, KILLED);
    assert_eq!(code(bench.tasks.ping_sandbox("c")), Code::FAILED_PRECONDITION);
    // What containerd does then.
    bench.tasks.delete("m", "").await.unwrap();
    bench.tasks.shut_down_sandbox("c").await.unwrap();
    assert!(asked_to_end(&bench).await);
    assert_eq!(bench.topics().await, ["create", "start", "exit", "delete"]);
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing_and_the_shim_can_be_ended() {
    let bench = Bench::new().await;
    bench.script.refuse.lock().unwrap().insert("boot", "");
    bench.tasks.create_sandbox(&request("c")).unwrap();
    assert_eq!(bench.tasks.start_sandbox("c").await.unwrap_err().to_string(), "no kernel");
    assert_eq!(bench.machines(), ["remove", "boot c", "remove"]);
    assert_eq!(bench.tasks.sandbox("c").unwrap().ended().await.status, KILLED);
    bench.tasks.shut_down_sandbox("c").await.unwrap();
    assert!(asked_to_end(&bench).await);
}

#[tokio::test]
async fn a_shutdown_of_what_was_never_described_ends_the_shim_too() {
    let bench = Bench::new().await;
    bench.tasks.shut_down_sandbox("c").await.unwrap();
    assert!(asked_to_end(&bench).await);
}

#[tokio::test]
async fn a_start_is_taken_back_when_its_caller_goes_or_its_pod_is_stopped() {
    for stop in [false, true] {
        let bench = Bench::slow().await;
        bench.tasks.create_sandbox(&request("c")).unwrap();
        let tasks = bench.tasks.clone();
        let starting = tokio::spawn(async move { tasks.start_sandbox("c").await });
        while !bench.machines().contains(&"boot c".to_owned()) {
            tokio::task::yield_now().await;
        }
        if stop {
            bench.tasks.stop_sandbox("c").await.unwrap();
            assert_eq!(code(starting.await.unwrap()), Code::FAILED_PRECONDITION);
        } else {
            starting.abort();
            bench.tasks.sandbox("c").unwrap().ended().await;
        }
        assert_eq!(bench.machines(), ["remove", "boot c", "remove"]);
    }
}

#[tokio::test]
async fn one_that_never_started_is_stopped_at_once() {
    let bench = Bench::new().await;
    bench.tasks.create_sandbox(&request("c")).unwrap();
    bench.tasks.stop_sandbox("c").await.unwrap();
    assert_eq!(bench.tasks.sandbox("c").unwrap().ended().await.status, 0);
    assert_eq!(code(bench.tasks.start_sandbox("c").await), Code::FAILED_PRECONDITION);
    assert!(bench.machines().is_empty());
}

#[tokio::test]
async fn a_pod_is_in_use_as_long_as_it_is_known() {
    let bench = Bench::new().await;
    let count = bench.tasks.watch_count();
    bench.tasks.create_sandbox(&request("c")).unwrap();
    assert_eq!(*count.borrow(), 1);
    bench.tasks.shut_down_sandbox("c").await.unwrap();
    assert_eq!(*count.borrow(), 0);
}

#[tokio::test]
async fn what_no_vm_can_be_is_told_before_there_is_one() {
    let bench = Bench::new().await;
    assert_eq!(code(bench.tasks.create_sandbox(&request("../c"))), Code::INVALID_ARGUMENT);
    let mut other = request("c");
    other.options.mut_or_insert_default().type_url = "windows.PodSandboxConfig".into();
    assert_eq!(code(bench.tasks.create_sandbox(&other)), Code::INVALID_ARGUMENT);
    assert_eq!(code(bench.tasks.sandbox("c").map(drop)), Code::NOT_FOUND);
}
