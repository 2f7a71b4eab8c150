//! `cloister man`.

use crate::{Cli, output};
use anyhow::{Context, Result};
use clap::CommandFactory;
use std::{fs, path::PathBuf};

/// Print the manual page, or write those of all commands into a directory
///
/// For example: cloister man | man -l -, or cloister man --dir /usr/local/share/man/man1
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory for the pages cloister.1, cloister-check.1, …; made if missing
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let command = Cli::command();
    match &args.dir {
        Some(dir) => fs::create_dir_all(dir)
            .and_then(|()| clap_mangen::generate_to(command, dir))
            .with_context(|| format!("manual pages in {}", dir.display())),
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            output::raw(&page)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_page() {
        let dir = tempfile::tempdir().unwrap();
        run(&Args { dir: Some(dir.path().join("man1")) }).unwrap();
        let page = |name: &str| fs::read_to_string(dir.path().join("man1").join(name)).unwrap();
        assert!(page("cloister.1").contains(".TH cloister 1"));
        for command in Cli::command().get_subcommands() {
            let text = page(&format!("cloister-{}.1", command.get_name()));
            assert!(text.contains(command.get_name()), "{}", command.get_name());
        }
    }
}
