//! `cloister`: the operator's and the owner's tool.
//!
//! Standard output carries what was asked for, standard error everything else. A failure is one line that says what went wrong and
//! what to do, and exit code 1; a wrong command line is exit code 2.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod commands;
mod containerd_image;
mod endorsements;
mod input;
mod install;
mod logger;
mod output;
mod places;
mod snapshotter;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Runs ordinary containers inside hardware enclaves.
#[derive(Debug, Parser)]
#[command(name = "cloister", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether this host can run guests, and what to do if not
    Check(commands::check::Args),
    /// Install Cloister on this node: binaries, guest image, configuration of containerd and CRI-O
    Install(commands::install::InstallArgs),
    /// Take back what `cloister install` has done to this node
    Uninstall(commands::install::UninstallArgs),
    /// Build or inspect the guest image: kernel and initramfs
    #[command(subcommand)]
    Guest(commands::guest::Guest),
    /// Print what the configured guest will attest, without launching it
    Measure(commands::measure::Args),
    /// Encrypt or inspect container images, or announce them to containerd
    #[command(subcommand)]
    Image(Box<commands::image::Image>),
    /// Run the key broker, or work on one
    #[command(subcommand)]
    Broker(commands::broker::Broker),
    Verify(commands::verify::Args),
    Seal(commands::seal::Args),
    /// Serve containerd as a remote snapshotter that unpacks nothing on the host
    Snapshotter(commands::snapshotter::Args),
    /// Make and inspect initdata: the owner's configuration, whose digest is attested
    #[command(subcommand)]
    Initdata(commands::initdata::Initdata),
    /// Write, explain, compare and check policies: what the host may ask of a guest
    #[command(subcommand)]
    Policy(Box<commands::policy::Command>),
    /// Check the node's configuration
    #[command(subcommand)]
    Config(commands::config::Config),
    /// Print a completion script for a shell
    Completion(commands::completion::Args),
    /// Print the manual page, or write those of all commands into a directory
    Man(commands::man::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Check(args) => commands::check::run(&args),
        Command::Install(args) => commands::install::install(&args).map(|()| ExitCode::SUCCESS),
        Command::Uninstall(args) => commands::install::uninstall(&args).map(|()| ExitCode::SUCCESS),
        Command::Guest(command) => commands::guest::run(&command).map(|()| ExitCode::SUCCESS),
        Command::Measure(args) => commands::measure::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Image(command) => commands::image::run(&command).map(|()| ExitCode::SUCCESS),
        Command::Broker(command) => commands::broker::run(&command).map(|()| ExitCode::SUCCESS),
        Command::Verify(args) => commands::verify::run(&args),
        Command::Seal(args) => commands::seal::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Snapshotter(args) => commands::snapshotter::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Initdata(command) => commands::initdata::run(&command).map(|()| ExitCode::SUCCESS),
        Command::Policy(command) => commands::policy::run(&command),
        Command::Config(command) => commands::config::run(&command).map(|()| ExitCode::SUCCESS),
        Command::Completion(args) => commands::completion::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Man(args) => commands::man::run(&args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        output::failure(&error);
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().filter(|c| c.get_name() != "help").for_each(check);
        }
        check(&Cli::command());
    }
}
