//! `cloister policy`: written from what the owner has anyway, read back in sentences, compared, and tried.

mod contents;
mod draft;
mod environment;
mod images;
mod kubernetes;
mod manifest;
mod nerdctl;
#[cfg(test)]
mod tests;
mod trial;
mod volumes;
mod write;
mod yaml;

use crate::{input, output, places::RegistryArgs};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use draft::Draft;
use images::Images;
use policy::{ContainerRule, Policy, explain};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Most bytes of all annotations of an object (kubernetes apimachinery, `TotalAnnotationSizeLimitB`).
const MAX_ANNOTATIONS: usize = 256 << 10;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a policy from a manifest of Kubernetes, or from a `nerdctl run` line
    ///
    ///   cloister policy generate pod.yaml --bind-files --out policy.toml
    ///   cloister policy generate -- nerdctl run -d -e MODE=batch ghcr.io/acme/job:1
    ///
    /// A pod is found in Pod, Deployment, ReplicaSet, StatefulSet, DaemonSet, Job and CronJob. Images are pinned by the digest that
    /// their tag has now. What a policy cannot promise is said on standard error.
    #[command(verbatim_doc_comment)]
    Generate(Generate),
    /// Say a policy in sentences
    Explain {
        /// Policy (TOML), or the whole initdata
        #[arg(value_name = "FILE")]
        policy: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Say in sentences what changes from one policy to another; exit code 1 if anything does
    Diff {
        /// Policy (TOML)
        #[arg(value_name = "OLD")]
        old: PathBuf,
        /// Policy (TOML)
        #[arg(value_name = "NEW")]
        new: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Check a policy, and whether a pod would run under it; exit code 1 if not, with the rules that refuse it
    ///
    ///   cloister policy check policy.toml --pod pod.yaml
    ///   cloister policy check policy.toml -- nerdctl run -d ghcr.io/acme/job:1
    #[command(verbatim_doc_comment)]
    Check(Check),
    /// Print the annotation that carries a policy to the guest, ready for kubectl, nerdctl or ctr
    ///
    ///   cloister policy annotation policy.toml --broker https://keys.example
    ///   nerdctl run $(cloister policy annotation policy.toml --broker https://keys.example --for nerdctl) ghcr.io/acme/job:1
    #[command(verbatim_doc_comment)]
    Annotation {
        /// Policy (TOML)
        #[arg(value_name = "FILE")]
        policy: PathBuf,
        /// URL of the key broker
        #[arg(long, value_name = "URL")]
        broker: String,
        /// Certificate (PEM) to trust for that broker, beside the web's roots
        #[arg(long, value_name = "FILE")]
        cert: Option<PathBuf>,
        /// For whom
        #[arg(long = "for", value_enum, default_value_t = Tool::Kubectl)]
        tool: Tool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Tool {
    /// Lines for the metadata of a pod, or of a workload's template
    Kubectl,
    /// A flag of nerdctl run
    Nerdctl,
    /// A flag of ctr run
    Ctr,
}

/// Where images are looked up, and which workload of a file is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// Name of the workload, where a manifest has several
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Ask no registry: images must have their digest
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Generate {
    /// Manifest (YAML or JSON); `-` is standard input
    #[arg(value_name = "MANIFEST", required_unless_present = "line")]
    manifest: Option<PathBuf>,
    /// A command line, after `--`
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "manifest")]
    line: Vec<String>,
    /// Bind ConfigMaps and Secrets that are in the manifest, and read-only volumes of a command line, by the digests of their contents
    #[arg(long)]
    bind_files: bool,
    /// Seconds after the first container in which all must be there, or the machine ends
    #[arg(long, value_name = "SECONDS")]
    complete_within: Option<u32>,
    /// File to write, instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    source: Source,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Check {
    /// Policy (TOML), or the whole initdata, where that demands signatures of images
    #[arg(value_name = "FILE")]
    policy: PathBuf,
    /// Manifest of the pod to try
    #[arg(long, value_name = "FILE")]
    pod: Option<PathBuf>,
    /// A command line to try, after `--`
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "pod")]
    line: Vec<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

pub(crate) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Generate(args) => generate(args)?,
        Command::Explain { policy, json } => {
            let lines = explain::explain(&read(policy)?);
            if *json { output::json(&lines)? } else { lines.iter().try_for_each(|line| output::line(line))? }
        }
        Command::Diff { old, new, json } => {
            let lines = explain::difference(&read(old)?, &read(new)?);
            if *json {
                output::json(&lines)?
            } else {
                lines.iter().try_for_each(|line| output::line(line))?
            }
            return Ok(answer(lines.is_empty()));
        }
        Command::Check(args) => return check(args),
        Command::Annotation { policy, broker, cert, tool } => output::raw(annotation(policy, broker, cert.as_deref(), *tool)?.as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn answer(yes: bool) -> ExitCode {
    if yes { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn generate(args: &Generate) -> Result<()> {
    let mut draft = drafted(args.manifest.as_deref(), &args.line, &args.source, args.bind_files)?;
    draft.complete_within_s = args.complete_within;
    let rules = containers(&mut draft, &args.source)?;
    let text = write::policy(&draft, &rules)?;
    // As the guest will read it.
    Policy::parse(&text)?;
    draft.notes.iter().for_each(|note| output::note(note));
    match &args.out {
        None => output::raw(text.as_bytes()),
        Some(path) => fs::write(path, text).with_context(|| path.display().to_string()),
    }
}

fn check(args: &Check) -> Result<ExitCode> {
    let policy = read(&args.policy)?;
    // A guest starts nothing under it, whichever pod it is.
    if let Some(reason) = policy.secrets_for_any_image() {
        return refused(args, reason);
    }
    if args.pod.is_none() && args.line.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let mut draft = drafted(args.pod.as_deref(), &args.line, &args.source, false)?;
    let rules = containers(&mut draft, &args.source)?;
    let refusals = trial::refusals(&policy, &draft, &rules)?;
    if args.json {
        output::json(&json!({"pod": draft.title, "accepted": refusals.is_empty(), "refusals": refusals}))?;
    } else {
        refusals.iter().try_for_each(|refusal| output::line(refusal))?;
        output::note(&format!("{} {} under this policy", draft.title, if refusals.is_empty() { "would run" } else { "would not run" }));
    }
    Ok(answer(refusals.is_empty()))
}

fn refused(args: &Check, reason: &str) -> Result<ExitCode> {
    if args.json {
        output::json(&json!({"pod": null, "accepted": false, "refusals": [reason]}))?;
    } else {
        output::line(reason)?;
    }
    Ok(ExitCode::FAILURE)
}

fn drafted(manifest: Option<&Path>, line: &[String], source: &Source, bind_files: bool) -> Result<Draft> {
    let Some(path) = manifest else { return nerdctl::draft(line, bind_files) };
    let read = || kubernetes::draft(&yaml::documents(&input::text(path)?)?, source.name.as_deref(), bind_files);
    read().with_context(|| path.display().to_string())
}

fn containers(draft: &mut Draft, source: &Source) -> Result<Vec<ContainerRule>> {
    let registry = (!source.offline).then(|| source.registry.client()).transpose()?;
    input::block_on(draft.containers(&Images(registry.as_ref())))
}

fn annotation(policy: &Path, broker: &str, cert: Option<&Path>, tool: Tool) -> Result<String> {
    let (initdata, digest) = policy::Initdata::parse_toml(&super::initdata::make(broker, cert, Some(policy))?)?;
    let value = initdata.to_annotation();
    if tool == Tool::Kubectl && value.len() > MAX_ANNOTATIONS {
        bail!(
            "{}: an annotation of {} bytes, and Kubernetes takes {MAX_ANNOTATIONS} in all; bind fewer files",
            policy.display(),
            value.len()
        );
    }
    Ok(match tool {
        Tool::Kubectl => format!(
            "# initdata {digest}: what the release rule of the keys names\nmetadata:\n  annotations:\n    dev.cloister.initdata: {value}\n"
        ),
        Tool::Nerdctl | Tool::Ctr => format!("--annotation dev.cloister.initdata={value}\n"),
    })
}

/// A policy by itself, or in the initdata around it: the one has no `version`, the other must.
fn read(path: &Path) -> Result<Policy> {
    let text = input::text(path)?;
    let is_initdata = toml::from_str::<toml::Table>(&text).is_ok_and(|table| table.contains_key("version"));
    let parse = || -> Result<Policy> {
        if !is_initdata {
            return Ok(Policy::parse(&text)?);
        }
        let (initdata, _) = policy::Initdata::parse_toml(&text)?;
        Ok(Policy::from_initdata(Some(&initdata))?)
    };
    parse().with_context(|| path.display().to_string())
}
