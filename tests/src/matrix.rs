//! kill -9 of whoever takes part in a pod's life, in the middle of each call of it. What kubelet does next has to work, and then nothing is left.
//!
//! Where a call comes to the guest, its VM is stopped before, so that the call is on its way for certain when somebody is killed. An agent's end is
//! its VM's, as the first process of a machine; one that does not answer is a VM that stands still, which is what the callers meet here.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bed::Bed;
use crate::cri::{ContainerSpec, Pod, PodSpec};
use crate::leaks;
use crate::oci::Image;

/// How long a call is on its way when somebody is killed.
const ON_ITS_WAY: Duration = Duration::from_millis(400);
/// How long kubelet may have to ask for a pod's end.
const ENDS: Duration = Duration::from_secs(60);
/// How long a VM may take to appear.
const APPEARS: Duration = Duration::from_secs(120);

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The shim.
    Shim,
    /// The VM, and so the agent in it.
    Vm,
    /// containerd, which is started again.
    Containerd,
}

impl Victim {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Shim, Self::Vm, Self::Containerd];
}

/// The calls of a pod's life, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The pod is made: the shim's start, Create and Start of its VM.
    RunPod,
    /// A container is described; nobody but containerd hears of it.
    CreateContainer,
    /// Create and Start of a task in the pod.
    StartContainer,
    /// Exec, Start and Wait of a process.
    Exec,
    /// Kill of a task.
    StopContainer,
    /// What is left of a container is removed.
    RemoveContainer,
    /// Kill and Delete of all tasks, and the end of the VM.
    StopPod,
    /// What is left of the pod is removed.
    RemovePod,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::RunPod,
        Self::CreateContainer,
        Self::StartContainer,
        Self::Exec,
        Self::StopContainer,
        Self::RemoveContainer,
        Self::StopPod,
        Self::RemovePod,
    ];

    /// Whether it cannot end while the VM stands still.
    fn needs_the_guest(self) -> bool {
        matches!(self, Self::StartContainer | Self::Exec | Self::StopContainer | Self::StopPod)
    }
}

/// Every call, and who can die in it: when a pod is removed, its shim and its VM have gone.
pub fn cells() -> impl Iterator<Item = (Step, Victim)> {
    let all = Step::ALL.into_iter().flat_map(|step| Victim::ALL.map(|victim| (step, victim)));
    all.filter(|(step, victim)| *step != Step::RemovePod || *victim == Victim::Containerd)
}

/// A bed with nothing else in it, and an image for its containers.
pub struct Matrix<'a> {
    bed: &'a Bed,
    image: String,
    count: AtomicUsize,
}

impl fmt::Debug for Matrix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matrix").field("image", &self.image).finish_non_exhaustive()
    }
}

impl<'a> Matrix<'a> {
    /// In this bed, which has a CRI.
    pub fn new(bed: &'a Bed) -> Result<Self> {
        let layout = bed.layout(&Image::busybox("sleep 3600")?, "matrix")?;
        Ok(Self { bed, image: bed.registry.push(&layout, "matrix", "1")?, count: AtomicUsize::new(0) })
    }

    /// One pod, in whose life `victim` dies at `step`, and what kubelet does then; nothing is left of it.
    pub fn cell(&self, step: Step, victim: Victim) -> Result<()> {
        let cell = || {
            if step == Step::RunPod {
                return self.while_it_boots(victim);
            }
            let pod = self.bed.cri()?.run_pod(&PodSpec { name: "matrix", ..PodSpec::default() })?;
            self.step(&pod, step, victim)
        };
        cell().and_then(|()| self.end()).with_context(|| format!("{victim:?} at {step:?}"))
    }

    /// Has all pods removed, as kubelet does it: again and again until it is done. containerd may say for a moment that a container runs whose
    /// shim it has seen die. Then nothing is left.
    pub fn end(&self) -> Result<()> {
        let deadline = Instant::now() + ENDS;
        while let Err(error) = self.bed.cri()?.remove_all() {
            ensure!(Instant::now() < deadline, "the pod cannot be removed: {error:#}");
            sleep(ON_ITS_WAY);
        }
        self.bed.no_sandbox()
    }

    /// Has `victim` die at `step` of a pod that lives. After the death of containerd it has to live on.
    pub fn step(&self, pod: &Pod<'_>, step: Step, victim: Victim) -> Result<()> {
        let one = match step {
            Step::StartContainer => pod.create(&self.container(&self.name()))?,
            Step::Exec | Step::StopContainer | Step::RemoveContainer | Step::StopPod => pod.start(&self.container(&self.name()))?,
            Step::RunPod | Step::CreateContainer | Step::RemovePod => String::new(),
        };
        match step {
            Step::RemoveContainer => pod.stop_container(&one, 0)?,
            Step::RemovePod => pod.stop()?,
            _ => {}
        }
        let name = self.name();
        let call = || match step {
            Step::RunPod => Ok(()),
            Step::CreateContainer => pod.create(&self.container(&name)).map(drop),
            Step::StartContainer => pod.start_created(&one),
            Step::Exec => pod.exec_sync(&one, &["/bin/true"], 0).map(drop),
            Step::StopContainer => pod.stop_container(&one, 0),
            Step::RemoveContainer => pod.remove_container(&one),
            Step::StopPod => pod.stop(),
            Step::RemovePod => pod.remove(),
        };
        let held = step.needs_the_guest().then(|| Held::new(self.vm()?)).transpose()?;
        self.interrupted(call, victim, held)?;
        if victim == Victim::Containerd && !matches!(step, Step::StopPod | Step::RemovePod) {
            ensure!(pod.ready()?.0, "the pod is not ready any more");
            let next = pod.start(&self.container(&self.name()))?;
            ensure!(pod.shell(&next, "echo on")? == "on\n");
            pod.stop_container(&next, 0)?;
            pod.remove_container(&next)?;
        }
        Ok(())
    }

    fn while_it_boots(&self, victim: Victim) -> Result<()> {
        let cri = self.bed.cri()?;
        std::thread::scope(|scope| {
            let running = scope.spawn(|| cri.run_pod(&PodSpec { name: "matrix", ..PodSpec::default() }).map(|pod| pod.end()));
            let mut waited = Duration::ZERO;
            while self.vm().is_err() && waited < APPEARS && !running.is_finished() {
                sleep(Duration::from_millis(5));
                waited += Duration::from_millis(5);
            }
            ensure!(!running.is_finished(), "the pod was there, or refused, before its VM");
            self.kill(victim)?;
            let answer = running.join().map_err(|_| anyhow!("the caller panicked"))?;
            ensure!(answer.is_err(), "a pod came of it");
            self.serve_again(victim)
        })
    }

    fn interrupted(&self, call: impl FnOnce() -> Result<()> + Send, victim: Victim, held: Option<Held>) -> Result<()> {
        std::thread::scope(|scope| {
            let calling = scope.spawn(call);
            sleep(ON_ITS_WAY);
            // It is let go however this ends: who calls must not wait for ever.
            let early = held.is_some() && calling.is_finished();
            let killed = self.kill(victim);
            drop(held);
            // Refused, or done as far as anyone can tell: what counts is that it is answered, and what is left of it.
            let answer = calling.join().map_err(|_| anyhow!("the caller panicked"))?;
            ensure!(!early, "it ended while the guest stood still: {answer:?}");
            killed?;
            self.serve_again(victim)
        })
    }

    fn serve_again(&self, victim: Victim) -> Result<()> {
        if victim == Victim::Containerd {
            self.bed.containerd().start_again()?;
            self.bed.cri()?.wait_serving()?;
        }
        Ok(())
    }

    fn kill(&self, victim: Victim) -> Result<()> {
        match victim {
            Victim::Shim => signal(self.find("containerd-shim-cloister-v2")?, Signal::SIGKILL),
            Victim::Vm => signal(self.vm()?, Signal::SIGKILL),
            Victim::Containerd => self.bed.containerd().kill(),
        }
    }

    fn vm(&self) -> Result<u32> {
        self.find("qemu-system")
    }

    /// The one process of the one pod that is a `program`.
    fn find(&self, program: &str) -> Result<u32> {
        leaks::serving(program, &self.bed.base().display().to_string()).with_context(|| format!("no {program} is running"))
    }

    fn name(&self) -> String {
        format!("c{}", self.count.fetch_add(1, Ordering::Relaxed))
    }

    fn container<'b>(&'b self, name: &'b str) -> ContainerSpec<'b> {
        ContainerSpec { name, image: &self.image, ..ContainerSpec::default() }
    }
}

/// A process that stands still until this is dropped.
struct Held(u32);

impl Held {
    fn new(pid: u32) -> Result<Self> {
        signal(pid, Signal::SIGSTOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Gone, where it was the victim or its shim was.
        signal(self.0, Signal::SIGCONT).ok();
    }
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(pid)?), signal).with_context(|| format!("{signal} to {pid}"))
}
