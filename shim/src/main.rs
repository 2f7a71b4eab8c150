//! `containerd-shim-cloister-v2`: what containerd, CRI-O and nerdctl start for a container that is to run in a VM of its own.
//!
//! - [`args`], [`caller`], [`start`], [`delete`], [`info`]: the program as its callers run it.
//! - [`daemon`], [`connections`], [`service`]: the shim that serves a container or pod.
//! - [`task`], [`stdio`], [`events`], [`hooks`]: what it does for its containers. - [`guest`]: their VM.
//! - [`bundle`], [`pod`]: what is asked for. - [`group`], [`socket`], [`owner`], [`mod@log`]: what there is of it on this host.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod args;
mod bundle;
mod caller;
mod connections;
mod daemon;
mod delete;
mod events;
mod group;
mod guest;
mod hooks;
mod info;
mod log;
mod owner;
mod pod;
mod service;
mod socket;
mod start;
mod stdio;
mod task;
mod volumes;

use args::{Args, ArgsError, USAGE};
use runtime::vmm::launcher;
use std::{ffi::OsString, process::ExitCode};

/// Exit code of Go's `flag` package for a command line that it does not take.
const BAD_USAGE: u8 = 2;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some((word, rest)) = words.split_first()
        && word == launcher::ARGUMENT
    {
        let Err(error) = launcher::become_vm(rest);
        eprintln!("containerd-shim-cloister-v2: {error}");
        return ExitCode::FAILURE;
    }
    let args = match parse(words.into_iter()) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(BAD_USAGE);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // On one line, and no newline after it: containerd writes on behind it and makes it the user's error message.
            eprint!("containerd-shim-cloister-v2: {}", line(&error));
            ExitCode::FAILURE
        }
    }
}

fn parse(words: impl Iterator<Item = OsString>) -> Result<Args, ArgsError> {
    let words = words.map(|word| word.into_string().map_err(|word| ArgsError::NotText(word.to_string_lossy().into_owned())));
    Args::parse(words.collect::<Result<Vec<_>, _>>()?)
}

/// An error and its causes. A cause that the text before it ends with is not said twice.
fn line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |line, cause| match line.ends_with(&cause) {
        true => line,
        false if line.is_empty() => cause,
        false => format!("{line}: {cause}"),
    })
}

fn run(args: &Args) -> anyhow::Result<()> {
    if args.version {
        return info::print_version();
    }
    if args.info {
        return info::print_info();
    }
    match args.action.as_str() {
        "start" => start::run(args),
        "delete" => delete::run(args),
        "" => daemon::run(args),
        other => anyhow::bail!("unknown action {other:?}: start and delete are known"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn each_cause_is_said_once() {
        let full = || std::io::Error::from_raw_os_error(28);
        let source = bundle::BundleError::Read { path: "/b/config.json".into(), source: full() };
        let error = Err::<(), _>(source).context("start").unwrap_err();
        assert_eq!(line(&error), format!("start: /b/config.json: {}", full()));
        assert_eq!(line(&anyhow::anyhow!("alone")), "alone");
    }
}
