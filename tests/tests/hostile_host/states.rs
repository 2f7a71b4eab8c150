//! Every request of a container's life in every state of it. What is refused changes nothing: the next row is tried on the same container.

use anyhow::{Context, Result, ensure};
use protocol::api;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use ttrpc::Code;

use protocol::stream::Kind;

use crate::bed::HostileBed;
use crate::host::{Host, TIMEOUT, creation, done, refused, valid};

const ID: &str = "life";

/// The states of a container's life, in the order in which the test goes through them.
#[derive(Clone, Copy, Debug)]
enum State {
    Absent,
    Created,
    Running,
    Paused,
    Stopped,
    Deleted,
}

/// The answer in each state; `None` is the request that leads on from there, and not tried.
type Row = (&'static str, [Option<Code>; 6]);

const fn all(code: Code) -> [Option<Code>; 6] {
    [Some(code); 6]
}

const MISSING: Option<Code> = Some(Code::NOT_FOUND);
const WRONG: Option<Code> = Some(Code::FAILED_PRECONDITION);
const DONE: Option<Code> = Some(Code::OK);
const DENIED: Option<Code> = Some(Code::PERMISSION_DENIED);

//                       absent   created  running  paused   stopped  deleted
const ROWS: [Row; 17] = [
    ("CreateSandbox", all(Code::FAILED_PRECONDITION)),
    (
        "CreateContainer",
        [None, Some(Code::ALREADY_EXISTS), Some(Code::ALREADY_EXISTS), Some(Code::ALREADY_EXISTS), Some(Code::ALREADY_EXISTS), None],
    ),
    ("PrepareVolumes", [None, WRONG, WRONG, WRONG, WRONG, None]),
    ("ReadVolume", all(Code::NOT_FOUND)),
    ("StartProcess", [MISSING, None, WRONG, WRONG, WRONG, MISSING]),
    ("ExecProcess", [MISSING, WRONG, None, WRONG, WRONG, MISSING]),
    ("ExecProcess of something else", [MISSING, WRONG, DENIED, WRONG, WRONG, MISSING]),
    ("StartProcess of no exec", all(Code::NOT_FOUND)),
    ("SignalProcess", all(Code::PERMISSION_DENIED)),
    ("WaitProcess", [MISSING, None, None, None, DONE, MISSING]),
    ("WaitOutOfMemory", [MISSING, None, None, None, WRONG, MISSING]),
    ("DeleteProcess", [MISSING, None, WRONG, WRONG, None, MISSING]),
    ("ResizePty", [MISSING, WRONG, WRONG, WRONG, WRONG, MISSING]),
    ("ListProcesses", [MISSING, DONE, DONE, DONE, DONE, MISSING]),
    ("PauseContainer", [MISSING, WRONG, None, DONE, WRONG, MISSING]),
    ("ResumeContainer", [MISSING, WRONG, DONE, None, WRONG, MISSING]),
    ("StatsContainer", [MISSING, DONE, DONE, DONE, DONE, MISSING]),
];

fn process(args: Value) -> Vec<u8> {
    json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": args}).to_string().into_bytes()
}

fn exec(args: Value) -> api::ExecProcessRequest {
    let stdio = Some(api::Stdio { stdout: true, ..Default::default() }).into();
    api::ExecProcessRequest { container_id: ID.into(), exec_id: "e".into(), process: process(args), stdio, ..Default::default() }
}

fn request(row: &str, digest: &str) -> Box<dyn protobuf::MessageDyn> {
    let container_id = ID.to_owned();
    match row {
        "CreateSandbox" => Box::new(api::CreateSandboxRequest { sandbox_id: "s".into(), ..Default::default() }),
        "CreateContainer" => Box::new(creation(ID, digest, &valid())),
        "PrepareVolumes" => Box::new(api::PrepareVolumesRequest { container_id, ..Default::default() }),
        "ReadVolume" => Box::new(api::ReadVolumeRequest { container_id, ..Default::default() }),
        "ExecProcess" => Box::new(exec(json!(["/bin/echo", "allowed"]))),
        "ExecProcess of something else" => Box::new(exec(json!(["/bin/sh"]))),
        "StartProcess of no exec" => Box::new(api::StartProcessRequest { container_id, exec_id: "none".into(), ..Default::default() }),
        "SignalProcess" => Box::new(api::SignalProcessRequest { container_id, signal: 10, all: true, ..Default::default() }),
        "ResizePty" => Box::new(api::ResizePtyRequest { container_id, width: 80, height: 24, ..Default::default() }),
        // The others have the id alone.
        _ => Box::new(api::ContainerRequest { container_id, ..Default::default() }),
    }
}

async fn try_all(host: &Host, state: State, digest: &str) -> Result<()> {
    for (row, codes) in &ROWS {
        let Some(code) = codes[state as usize] else { continue };
        let rpc = row.split(' ').next().unwrap_or_default();
        let answer = host.call(rpc, &*request(row, digest)).await?;
        let what = || format!("{row}, {state:?}");
        if code == Code::OK { done(answer).map(drop) } else { refused(answer, code, "") }.with_context(what)?;
    }
    Ok(())
}

pub fn every_request_in_every_state_has_its_answer(bed: &HostileBed) -> Result<()> {
    let (host, digest) = (bed.closed()?, bed.images.app.as_str());
    let only = |row: &str| request(row, digest);
    bed.runtime.block_on(async {
        try_all(host, State::Absent, digest).await?;
        done(host.create(ID, digest, &valid()).await?)?;
        try_all(host, State::Created, digest).await?;
        refused(host.start(ID).await?, Code::FAILED_PRECONDITION, "is not connected").context("started without its streams")?;
        let _output = [host.stream(Kind::Stdout, ID, "").await?, host.stream(Kind::Stderr, ID, "").await?];
        done(host.start(ID).await?)?;
        try_all(host, State::Running, digest).await?;

        for (attack, words) in [
            (
                json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/echo", "allowed"], "env": ["LD_PRELOAD=/x.so"]}),
                "LD_PRELOAD",
            ),
            (json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/echo", "allowed"], "terminal": true}), "terminal"),
            (json!({"user": {"uid": 7, "gid": 7}, "cwd": "/", "args": ["/bin/echo", "allowed"]}), "user 7:7"),
            (json!({"user": {"uid": 0, "gid": 0}, "cwd": "/proc/self/fd/7", "args": ["/bin/echo", "allowed"]}), "working directory"),
            (json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/echo"]}), "allow.exec"),
        ] {
            let exec = api::ExecProcessRequest { process: attack.to_string().into_bytes(), ..exec(json!([])) };
            refused(host.call("ExecProcess", &exec).await?, Code::PERMISSION_DENIED, words)?;
        }
        done(host.call("ExecProcess", &*only("ExecProcess")).await?)?;
        refused(host.call("ExecProcess", &*only("ExecProcess")).await?, Code::ALREADY_EXISTS, "process e")?;
        let mut output = host.stream(Kind::Stdout, ID, "e").await?;
        let run = api::StartProcessRequest { container_id: ID.into(), exec_id: "e".into(), ..Default::default() };
        done(host.call("StartProcess", &run).await?)?;
        let mut text = String::new();
        tokio::time::timeout(TIMEOUT, output.read_to_string(&mut text)).await??;
        ensure!(text == "allowed\n", "{text:?}");
        refused(host.call("StartProcess", &run).await?, Code::FAILED_PRECONDITION, "started already")?;
        let forget = api::DeleteProcessRequest { container_id: ID.into(), exec_id: "e".into(), ..Default::default() };
        let wait = api::WaitProcessRequest { container_id: ID.into(), exec_id: "e".into(), ..Default::default() };
        done(host.call("WaitProcess", &wait).await?)?;
        done(host.call("DeleteProcess", &forget).await?)?;
        refused(host.call("DeleteProcess", &forget).await?, Code::NOT_FOUND, "e")?;

        done(host.call("PauseContainer", &*only("PauseContainer")).await?)?;
        try_all(host, State::Paused, digest).await?;
        done(host.call("ResumeContainer", &*only("ResumeContainer")).await?)?;
        host.kill(ID).await?;
        try_all(host, State::Stopped, digest).await?;
        done(host.delete(ID).await?)?;
        try_all(host, State::Deleted, digest).await
    })
}
