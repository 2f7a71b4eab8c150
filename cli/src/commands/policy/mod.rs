//! `cloister policy`: written from what the owner has anyway, read back in sentences, compared, and tried.

mod images;
mod kubernetes;
mod nerdctl;
mod trial;
mod wish;
mod write;
mod yaml;

use crate::{input, output};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use images::Images;
use policy::{ContainerRule, Policy, explain};
use std::{
    fs,
    path::{Path, PathBuf},
};
use wish::Wish;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a policy from a manifest of Kubernetes, or from a `nerdctl run` line
    ///
    ///   cloister policy generate pod.yaml --out policy.toml
    ///   cloister policy generate -- nerdctl run -d -e MODE=batch ghcr.io/acme/job:1
    ///
    /// A pod is found in Pod, Deployment, ReplicaSet, StatefulSet, DaemonSet, Job and CronJob. Images are pinned by the digest that
    /// their tag has now.
    #[command(verbatim_doc_comment)]
    Generate(Generate),
    /// Say a policy in sentences
    Explain {
        /// Policy (TOML)
        #[arg(value_name = "FILE")]
        policy: PathBuf,
    },
    /// Say in sentences what changes from one policy to another; exit code 1 if anything does
    Diff {
        /// Policy (TOML)
        #[arg(value_name = "OLD")]
        old: PathBuf,
        /// Policy (TOML)
        #[arg(value_name = "NEW")]
        new: PathBuf,
    },
    /// Check a policy, and whether a pod would run under it
    ///
    ///   cloister policy check policy.toml --pod pod.yaml
    #[command(verbatim_doc_comment)]
    Check {
        /// Policy (TOML)
        #[arg(value_name = "FILE")]
        policy: PathBuf,
        /// Manifest of the pod to try
        #[arg(long, value_name = "FILE")]
        pod: Option<PathBuf>,
        #[command(flatten)]
        source: Source,
    },
    /// Print the annotation that carries a policy to the guest, ready for kubectl and nerdctl
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
    /// Lines for the metadata of a pod or of a pod's template
    Kubectl,
    /// A flag of nerdctl run and ctr run
    Nerdctl,
}

/// Where images are looked up.
#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// Registry (host:port) that speaks plain HTTP; may be repeated
    #[arg(long, value_name = "HOST")]
    plain_http: Vec<String>,
    /// Ask no registry: images must have their digest
    #[arg(long)]
    offline: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Generate {
    /// Manifest (YAML); `-` is standard input
    #[arg(value_name = "MANIFEST", required_unless_present = "line")]
    manifest: Option<PathBuf>,
    /// A command line, after `--`
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "manifest")]
    line: Vec<String>,
    /// Bind ConfigMaps and Secrets that are in the manifest by their content
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

/// A pod as its owner described it.
#[derive(Debug, Clone, Default)]
struct Draft {
    title: String,
    wishes: Vec<Wish>,
    order: bool,
    network_off: bool,
    complete_within_s: Option<u32>,
    env: Vec<String>,
    exec: Vec<Vec<String>>,
    /// For whoever reads the policy before he signs it.
    notes: Vec<String>,
}

impl Draft {
    /// The containers, with what their images are.
    async fn containers(&self, images: &Images) -> Result<Vec<ContainerRule>> {
        let mut rules = Vec::new();
        for wish in &self.wishes {
            rules.push(wish.clone().finish(&images.facts(wish).await?, None)?);
        }
        Ok(rules)
    }
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Generate(args) => generate(args),
        Command::Explain { policy } => explain::explain(&read(policy)?).iter().try_for_each(|line| output::line(line)),
        Command::Diff { old, new } => {
            let lines = explain::difference(&read(old)?, &read(new)?);
            lines.iter().try_for_each(|line| output::line(line))?;
            if lines.is_empty() { Ok(()) } else { bail!("the policies differ in {} sentences", lines.len()) }
        }
        Command::Check { policy, pod, source } => {
            let policy = read(policy)?;
            let Some(pod) = pod else { return Ok(()) };
            let draft = manifest(pod, false)?;
            let images = Images::new(&source.plain_http, source.offline)?;
            let denials = trial::denials(&policy, &draft, &input::block_on(draft.containers(&images))?);
            denials.iter().try_for_each(|denial| output::line(denial))?;
            if denials.is_empty() { Ok(()) } else { bail!("{} would not run under this policy", draft.title) }
        }
        Command::Annotation { policy, broker, cert, tool } => {
            let initdata = super::initdata::make(broker, cert.as_deref(), Some(policy))?;
            let (initdata, digest) = policy::Initdata::parse_toml(&initdata)?;
            let value = initdata.to_annotation();
            match tool {
                Tool::Kubectl => {
                    output::line(&format!("# initdata {digest}: the release rule of the pod's keys names it"))?;
                    output::line(&format!("metadata:\n  annotations:\n    dev.cloister.initdata: {value}"))
                }
                Tool::Nerdctl => output::line(&format!("--annotation dev.cloister.initdata={value}")),
            }
        }
    }
}

fn generate(args: &Generate) -> Result<()> {
    let mut draft = match &args.manifest {
        Some(path) => manifest(path, args.bind_files)?,
        None => nerdctl::draft(&args.line)?,
    };
    draft.complete_within_s = args.complete_within;
    let images = Images::new(&args.source.plain_http, args.source.offline)?;
    let rules = input::block_on(draft.containers(&images))?;
    let text = write::policy(&draft, &rules)?;
    // As the guest will read it.
    Policy::parse(&text)?;
    draft.notes.iter().for_each(|note| output::note(note));
    match &args.out {
        None => output::raw(text.as_bytes()),
        Some(path) => fs::write(path, text).with_context(|| path.display().to_string()),
    }
}

fn manifest(path: &Path, bind_files: bool) -> Result<Draft> {
    let documents = yaml::documents(&input::text(path)?).with_context(|| path.display().to_string())?;
    kubernetes::draft(&documents, bind_files).with_context(|| path.display().to_string())
}

fn read(path: &Path) -> Result<Policy> {
    Policy::parse(&input::text(path)?).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests;
