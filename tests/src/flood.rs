//! More output than all buffers on its way could hold, many times over: each byte is checked against its place, a reader stands still in the
//! middle of it, and nobody's memory grows meanwhile.

use std::io::Read;
use std::process::Stdio;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::bed::Bed;
use crate::ctr::{BOOT, Run};
use crate::memory;
use crate::oci::Image;

/// Where the image has the block that is written again and again.
const BLOCK: &str = "srv/block";
/// Lines of a block, of 16 bytes each. One more than a power of two: no buffer ends where a block does.
const LINES: usize = (1 << 16) + 1;
/// How long the reader stands still: a writer that did not stand still with it would have to keep tens of MiB somewhere.
const STILL: Duration = Duration::from_secs(3);
/// What a shim may grow by, in MiB: its heap keeps pages of chunks on their way. What it took in while the reader stood still would be more.
const SLACK: f64 = 8.0;
/// Most that the agent may have resident afterwards, in MiB.
const AGENT: f64 = 16.0;

/// What was measured.
#[derive(Debug)]
pub struct Flooded {
    /// Megabytes of output in a second, with the time of standing still taken off.
    pub mb_per_second: f64,
    /// The shim's memory before, and the most of it, in MiB.
    pub shim_mib: (f64, f64),
    /// The agent's at the end, in MiB.
    pub agent_mib: f64,
}

/// The image to flood from: `busybox` and the block.
pub fn image() -> Result<Image> {
    Ok(Image::busybox("echo no command was given")?.with_file(BLOCK, block()))
}

/// Numbered lines.
fn block() -> Vec<u8> {
    (0..LINES).flat_map(|line| format!("{line:015}\n").into_bytes()).collect()
}

/// Runs a container that writes `blocks` blocks of a little more than a MiB, and checks all of it.
pub fn run(bed: &Bed, reference: &str, id: &str, blocks: usize) -> Result<Flooded> {
    let script = format!("i=0; while [ $i -lt {blocks} ]; do cat /{BLOCK}; i=$((i+1)); done");
    let run = Run { image: reference, id, args: &["/bin/sh", "-c", &script], ..Run::default() };
    let mut command = bed.ctr().run_command(&run);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
    let output = child.stdout.take().context("no pipe")?;
    let (tell, told) = sync_channel(0);
    let reader = std::thread::spawn(move || read(output, blocks, &tell));
    let watched = (|| {
        let (mut began, mut before, mut most) = (Instant::now(), 0.0, 0.0_f64);
        for number in 0..blocks {
            match told.recv_timeout(BOOT) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => bail!("no output for {} s before block {number} of {blocks}", BOOT.as_secs()),
                // The reader says why.
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if number == blocks / 2 {
                // Who sends waits for who receives: here nothing is read.
                std::thread::sleep(STILL);
            }
            if number % (blocks / 8).max(1) == 0 {
                let now = memory::private_mib(memory::process("containerd-shim-cloister-v2", id)?)?;
                if number == 0 {
                    (began, before) = (Instant::now(), now);
                }
                most = most.max(now);
            }
        }
        Ok::<_, anyhow::Error>((began.elapsed().saturating_sub(STILL), before, most))
    })();
    drop(told);
    if watched.is_err() {
        // The end of the writer is the end of its reader.
        child.kill().ok();
    }
    let read = reader.join().map_err(|_| anyhow!("the reader panicked"))?;
    if read.is_err() || watched.is_err() {
        child.kill().ok();
        bed.ctr().remove(id)?;
    }
    let status = child.wait()?;
    let (time, before, most) = watched?;
    read?;
    ensure!(status.success(), "{status}");
    ensure!(most <= before + SLACK, "the shim grew from {before:.1} to {most:.1} MiB");
    let agent_mib = memory::agent_mib(&bed.log_lines(id)?).context("the shim's log has no agent_rss_kib")?;
    ensure!(agent_mib <= AGENT, "the agent has {agent_mib:.1} MiB");
    let bytes = (blocks * LINES * 16) as f64;
    Ok(Flooded { mb_per_second: bytes / 1e6 / time.as_secs_f64(), shim_mib: (before, most), agent_mib })
}

/// Reads it all, and tells of each block before it is read.
fn read(mut output: impl Read, blocks: usize, tell: &SyncSender<()>) -> Result<()> {
    let (wanted, mut piece) = (block(), vec![0; LINES * 16]);
    for number in 0..blocks {
        output.read_exact(&mut piece[..1]).with_context(|| format!("the output ends before block {number} of {blocks}"))?;
        // Nobody listens after an error of its own; this reads on to the end of the pipe.
        tell.send(()).ok();
        output.read_exact(&mut piece[1..]).with_context(|| format!("the output ends in block {number} of {blocks}"))?;
        if let Some(at) = (0..wanted.len()).find(|&at| piece[at] != wanted[at]) {
            let seen = String::from_utf8_lossy(&piece[at..(at + 32).min(piece.len())]).into_owned();
            bail!("byte {at} of block {number} is another: {seen:?}");
        }
    }
    let mut rest = Vec::new();
    output.take(64).read_to_end(&mut rest)?;
    ensure!(rest.is_empty(), "more than was written: {:?}", String::from_utf8_lossy(&rest));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(output: &[u8]) -> Result<()> {
        let (tell, told) = sync_channel(0);
        let listener = std::thread::spawn(move || while told.recv().is_ok() {});
        let result = read(output, 2, &tell);
        drop(tell);
        listener.join().unwrap();
        result
    }

    #[test]
    fn one_byte_less_more_or_other_is_seen() {
        let whole = [block(), block()].concat();
        check(&whole).unwrap();
        let middle = whole.len() / 3;
        let spoilt: [fn(&mut Vec<u8>, usize); 4] = [
            |bytes, at| {
                bytes.remove(at);
            },
            |bytes, at| bytes.insert(at, b'0'),
            |bytes, at| bytes[at] ^= 1,
            // Two chunks in the wrong order.
            |bytes, at| bytes[at..at + (32 << 10)].rotate_left(16 << 10),
        ];
        for spoil in spoilt {
            let mut bytes = whole.clone();
            spoil(&mut bytes, middle);
            assert!(check(&bytes).is_err());
        }
        assert!(check(&whole[..whole.len() - 1]).is_err());
        assert!(check(&[&whole[..], b"x"].concat()).is_err());
    }
}
