//! A pod: one VM, whose first container is the VM itself.

use super::*;
use crate::task::state::KILLED;

async fn pod() -> Bench {
    let bench = Bench::new().await;
    bench.tasks.create(bench.sandbox("c")).await.unwrap();
    bench.tasks.start("c", "").await.unwrap();
    bench
}

#[tokio::test]
async fn the_first_container_is_the_vm() {
    let bench = pod().await;
    assert_eq!(bench.machines(), ["remove", "boot c"]);
    assert!(bench.calls().is_empty(), "the pause image runs nowhere");
    assert_eq!(code(bench.tasks.exec(exec("c", "x")).await), Code::UNIMPLEMENTED);
    assert_eq!(code(bench.tasks.pause("c").await), Code::UNIMPLEMENTED);
    assert_eq!(code(bench.tasks.create(bench.lone("other")).await), Code::FAILED_PRECONDITION);
    assert_eq!(bench.machines(), ["remove", "boot c"], "the pod's VM is untouched");
}

#[tokio::test]
async fn members_come_and_go_in_a_living_pod() {
    let bench = pod().await;
    for _ in 0..2 {
        bench.tasks.create(bench.member("m")).await.unwrap();
        bench.tasks.start("m", "").await.unwrap();
        bench.script.end("m", "", 1, false);
        bench.tasks.process("m", "").unwrap().wait().await;
        assert_eq!(bench.tasks.delete("m", "").await.unwrap().1.status, 1);
        // containerd says this after every deletion; the pod lives on.
        bench.tasks.shut_down();
    }
    assert!(bench.calls().contains(&"delete m/".to_owned()));
    assert!(!bench.machines().contains(&"stop".to_owned()));
    let ended = tokio::time::timeout(std::time::Duration::from_millis(50), bench.tasks.asked_to_end()).await;
    assert!(ended.is_err());
}

#[tokio::test]
async fn a_member_that_cannot_be_made_leaves_the_pod_alone() {
    let bench = pod().await;
    bench.script.refuse.lock().unwrap().insert("create", "no such image");
    assert_eq!(bench.tasks.create(bench.member("m")).await.unwrap_err().to_string(), "no such image");
    assert_eq!(bench.calls(), ["create m/", "delete m/"]);
    assert!(!bench.machines().contains(&"stop".to_owned()));
}

#[tokio::test]
async fn the_pods_end_is_told_after_its_members() {
    let bench = pod().await;
    bench.tasks.create(bench.member("m")).await.unwrap();
    bench.tasks.start("m", "").await.unwrap();
    bench.tasks.kill("c", "", 9, false).await.unwrap();
    assert_eq!(bench.tasks.process("c", "").unwrap().wait().await.status, KILLED);
    assert_eq!(bench.tasks.process("m", "").unwrap().state().exit().unwrap().status, KILLED);
    for id in ["m", "c"] {
        assert_eq!(bench.tasks.delete(id, "").await.unwrap().1.status, KILLED);
    }
    bench.tasks.shut_down();
    bench.tasks.asked_to_end().await;
    assert_eq!(bench.topics().await, ["create", "start", "create", "start", "exit", "exit", "delete", "delete"]);
}

#[tokio::test]
async fn a_pod_that_never_ran_can_be_ended() {
    let bench = Bench::new().await;
    bench.tasks.create(bench.sandbox("c")).await.unwrap();
    bench.tasks.kill("c", "", 9, false).await.unwrap();
    assert_eq!(bench.tasks.process("c", "").unwrap().wait().await.status, KILLED);
    bench.tasks.delete("c", "").await.unwrap();
    assert_eq!(bench.topics().await, ["create", "exit", "delete"]);
}

/// containerd ends a pod by ending its containers: one that cannot be killed would keep the pod for ever.
#[tokio::test]
async fn a_pod_whose_guest_hangs_is_asked_killed_and_forgotten() {
    let bench = pod().await;
    let tasks = &bench.tasks;
    tasks.create(bench.member("m")).await.unwrap();
    tasks.start("m", "").await.unwrap();
    bench.script.hang.lock().unwrap().extend(["signal", "info", "delete"]);
    let member = tasks.process("m", "").unwrap();
    assert!(member.state().is_alive());
    // A wait whose caller has a deadline: dropped, and nothing of it is left.
    assert!(tokio::time::timeout(std::time::Duration::from_millis(50), member.wait()).await.is_err());
    assert_eq!(code(tasks.kill("m", "", 15, false).await), Code::UNAVAILABLE);
    tasks.kill("m", "", 9, false).await.unwrap();
    assert_eq!(member.wait().await.status, KILLED);
    assert_eq!(tasks.process("c", "").unwrap().wait().await.status, KILLED);
    for id in ["m", "c"] {
        tasks.delete(id, "").await.unwrap();
    }
    tasks.shut_down();
    tasks.asked_to_end().await;
}

#[tokio::test]
async fn a_guest_that_is_only_slow_is_not_ended_for_it() {
    let bench = pod().await;
    bench.tasks.create(bench.member("m")).await.unwrap();
    bench.tasks.start("m", "").await.unwrap();
    bench.script.hang.lock().unwrap().push("signal");
    assert_eq!(code(bench.tasks.kill("m", "", 9, false).await), Code::UNAVAILABLE);
    assert!(!bench.machines().contains(&"stop".to_owned()));
}
