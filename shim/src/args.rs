//! The command line as containerd and CRI-O write it: flags in the manner of Go's `flag` package, the action last.

use std::path::PathBuf;
use thiserror::Error;

/// Printed for a command line that is none.
pub const USAGE: &str = "usage: containerd-shim-cloister-v2 -namespace NAME -id ID [-address SOCKET] [-publish-binary PATH] \
[-bundle PATH] [-socket PATH] [-debug-socket PATH] [-debug] start|delete\n       containerd-shim-cloister-v2 -v|-version|-info";

/// A command line that is none of the contract's.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ArgsError {
    /// No such flag.
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    /// A flag that wants a value and stands last.
    #[error("flag needs an argument: -{0}")]
    Missing(String),
    /// A value that is no boolean.
    #[error("invalid boolean value {value:?} for -{flag}")]
    Boolean {
        /// The flag.
        flag: String,
        /// Its value.
        value: String,
    },
    /// A word that cannot be text.
    #[error("argument {0:?} is not UTF-8")]
    NotText(String),
}

/// What the caller asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    /// `-namespace`: containerd's namespace.
    pub namespace: String,
    /// `-id`: container or sandbox.
    pub id: String,
    /// `-address`: containerd's gRPC socket; empty from CRI-O.
    pub address: String,
    /// `-bundle`: where it is not the working directory.
    pub bundle: Option<PathBuf>,
    /// `-debug`: log more.
    pub debug: bool,
    /// `-v`, `-version`.
    pub version: bool,
    /// `-info`.
    pub info: bool,
    /// The last positional word: `start`, `delete`, or nothing for the daemon.
    pub action: String,
}

impl Args {
    /// Reads the words after the program's name.
    pub fn parse<S: AsRef<str>>(words: impl IntoIterator<Item = S>) -> Result<Self, ArgsError> {
        let mut args = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let word = word.as_ref();
            let flag = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|flag| !flag.is_empty());
            let Some(flag) = flag else {
                // Go stops at the first word that is no flag; "--" alone ends the flags and is itself none of the words.
                let mut rest = (word != "--").then(|| word.to_owned());
                if let Some(last) = words.last() {
                    rest = Some(last.as_ref().to_owned());
                }
                args.action = rest.unwrap_or_default();
                break;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            args.set(name, value, &mut words)?;
        }
        Ok(args)
    }

    fn set<S: AsRef<str>>(&mut self, name: &str, value: Option<String>, rest: &mut impl Iterator<Item = S>) -> Result<(), ArgsError> {
        let switch = |value: Option<String>| parse_bool(name, value.as_deref().unwrap_or("true"));
        match name {
            "debug" => self.debug = switch(value)?,
            "v" | "version" => self.version = switch(value)?,
            "info" => self.info = switch(value)?,
            "namespace" | "id" | "address" | "bundle" | "publish-binary" | "socket" | "debug-socket" => {
                let value = value.or_else(|| rest.next().map(|word| word.as_ref().to_owned()));
                let value = value.ok_or_else(|| ArgsError::Missing(name.to_owned()))?;
                match name {
                    "namespace" => self.namespace = value,
                    "id" => self.id = value,
                    "address" => self.address = value,
                    "bundle" => self.bundle = Some(value.into()).filter(|path: &PathBuf| !path.as_os_str().is_empty()),
                    // The others name things that this shim has no use for; callers pass them all the same.
                    _ => {}
                }
            }
            _ => return Err(ArgsError::Unknown(name.to_owned())),
        }
        Ok(())
    }
}

/// What Go's `strconv.ParseBool` takes.
fn parse_bool(flag: &str, value: &str) -> Result<bool, ArgsError> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(ArgsError::Boolean { flag: flag.to_owned(), value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ArgsError> {
        Args::parse(line.split(' '))
    }

    #[test]
    fn containerds_line_is_read() {
        let args = parse("-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id a -debug start").unwrap();
        assert_eq!((args.namespace.as_str(), args.id.as_str(), args.address.as_str()), ("k8s.io", "a", "/run/c.sock"));
        assert!(args.debug);
        assert_eq!(args.action, "start");
    }

    #[test]
    fn crios_empty_address_is_an_address() {
        let args = Args::parse(["-namespace", "default", "-address", "", "-publish-binary", "/c", "-id", "a", "start"]).unwrap();
        assert_eq!((args.address.as_str(), args.action.as_str()), ("", "start"));
    }

    #[test]
    fn gos_ways_to_write_a_flag() {
        for line in ["--id=a -v", "-id a --version", "-v=true -id=a", "-version=1 --id a"] {
            let args = parse(line).unwrap();
            assert_eq!((args.id.as_str(), args.version), ("a", true), "{line}");
        }
        assert!(!parse("-debug=false start").unwrap().debug);
        assert_eq!(parse("-id a -- delete").unwrap().action, "delete");
        assert_eq!(parse("-bundle /b delete").unwrap().bundle, Some("/b".into()));
    }

    #[test]
    fn the_action_is_the_last_word() {
        assert_eq!(parse("-id a x y delete").unwrap().action, "delete");
        assert_eq!(parse("-id a").unwrap().action, "");
    }

    #[test]
    fn what_is_no_flag_of_ours_is_refused() {
        assert_eq!(parse("-nope start"), Err(ArgsError::Unknown("nope".into())));
        assert_eq!(parse("start -nope").unwrap().action, "-nope");
        assert_eq!(parse("-debug -id"), Err(ArgsError::Missing("id".into())));
        assert!(matches!(parse("-debug=maybe"), Err(ArgsError::Boolean { .. })));
    }
}
