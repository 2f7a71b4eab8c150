//! Who runs `start`, and in which form it wants the answer. Five callers read the same program's output in different ways, so
//! the caller is told apart by what it sends: `MAX_SHIM_VERSION` cannot be used, as containerd 2.x still sends 2.

use crate::args::Args;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message;
use std::io::Read;
use thiserror::Error;

/// Most that is read from standard input, in bytes; containerd's own shims read as much.
pub const MAX_STDIN: u64 = 10 << 20;

/// The input was refused.
#[derive(Debug, Error)]
pub enum CallerError {
    /// Longer than [`MAX_STDIN`].
    #[error("standard input is longer than {MAX_STDIN} bytes")]
    TooLong,
    /// It cannot be read.
    #[error("standard input: {0}")]
    Read(#[from] std::io::Error),
}

/// The program that runs `start`.
#[derive(Debug, Clone, PartialEq)]
pub enum Caller {
    /// containerd 1.6: wants the bare address.
    Containerd16,
    /// containerd 1.7 to 2.2: takes the bare address as version 2; 1.7 refuses version 3, and the two cannot be told apart.
    Containerd17,
    /// containerd 2.3 and newer: sent its parameters, wants a `BootstrapResult`.
    Containerd23(Box<BootstrapParams>),
    /// CRI-O: has no events service, never runs `delete`, wants the bare address.
    CriO,
}

impl Caller {
    /// Tells the caller by its flags, its environment and what it wrote to standard input.
    ///
    /// Runtime options of older callers (`Any`) have the same wire shape as the parameters, and can even decode as such: only
    /// parameters that repeat the id and the namespace of the flags are parameters.
    pub fn detect(args: &Args, environment: impl Fn(&str) -> Option<String>, stdin: &[u8]) -> Self {
        let given = |name: &str| environment(name).is_some_and(|value| !value.is_empty());
        if let Ok(params) = BootstrapParams::parse_from_bytes(stdin)
            && !stdin.is_empty()
            && params.instance_id == args.id
            && params.namespace == args.namespace
        {
            return Self::Containerd23(Box::new(params));
        }
        if environment("MAX_SHIM_VERSION").is_none() {
            return Self::Containerd16;
        }
        if args.address.is_empty() && !given("TTRPC_ADDRESS") {
            return Self::CriO;
        }
        Self::Containerd17
    }

    /// What goes to standard output, and nothing else with it.
    pub fn answer(&self, address: &str) -> Vec<u8> {
        match self {
            Self::Containerd23(_) => {
                let result =
                    BootstrapResult { version: 3, address: address.to_owned(), protocol: "ttrpc".to_owned(), ..Default::default() };
                // Writing to memory fails only for a message that lacks required fields; proto3 has none.
                result.write_to_bytes().unwrap_or_default()
            }
            _ => address.as_bytes().to_vec(),
        }
    }

    /// The parameters, where the caller sent them.
    pub fn params(&self) -> Option<&BootstrapParams> {
        match self {
            Self::Containerd23(params) => Some(params),
            _ => None,
        }
    }

    /// Whether more is to be logged.
    pub fn wants_debug(&self) -> bool {
        self.params().is_some_and(|params| params.log_level.value() < 0)
    }
}

/// Reads standard input to its end, within its bound.
pub fn read_stdin(stdin: impl Read) -> Result<Vec<u8>, CallerError> {
    let mut bytes = Vec::new();
    stdin.take(MAX_STDIN + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_STDIN { Err(CallerError::TooLong) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protobuf::well_known_types::any::Any;

    fn args() -> Args {
        Args { namespace: "k8s.io".into(), id: "a".into(), address: "/run/c.sock".into(), action: "start".into(), ..Args::default() }
    }

    fn environment(pairs: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
        move |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
    }

    const NEW: &[(&str, &str)] = &[("MAX_SHIM_VERSION", "2"), ("TTRPC_ADDRESS", "/run/c.sock.ttrpc")];

    fn params(id: &str) -> Vec<u8> {
        let params = BootstrapParams { instance_id: id.into(), namespace: "k8s.io".into(), ..Default::default() };
        params.write_to_bytes().unwrap()
    }

    #[test]
    fn each_caller_is_told_apart() {
        let old = environment(&[("TTRPC_ADDRESS", "/run/c.sock.ttrpc")]);
        assert_eq!(Caller::detect(&args(), old, b""), Caller::Containerd16);
        assert_eq!(Caller::detect(&args(), environment(NEW), b""), Caller::Containerd17);
        assert!(matches!(Caller::detect(&args(), environment(NEW), &params("a")), Caller::Containerd23(_)));
        let crio = Args { address: String::new(), ..args() };
        let empty = environment(&[("MAX_SHIM_VERSION", "2"), ("TTRPC_ADDRESS", "")]);
        assert_eq!(Caller::detect(&crio, empty, b""), Caller::CriO);
    }

    #[test]
    fn parameters_of_another_container_are_runtime_options() {
        assert_eq!(Caller::detect(&args(), environment(NEW), &params("b")), Caller::Containerd17);
    }

    #[test]
    fn runtime_options_are_not_parameters() {
        let options = Any { type_url: "containerd.runc.v1.Options".into(), value: vec![0xff, 0xfe, 8], ..Default::default() };
        let bytes = options.write_to_bytes().unwrap();
        assert_eq!(Caller::detect(&args(), environment(NEW), &bytes), Caller::Containerd17);
        assert_eq!(Caller::detect(&args(), |_| None, &bytes), Caller::Containerd16);
    }

    #[test]
    fn only_parameters_are_answered_with_a_message() {
        let address = "unix:///run/cloister/s/00";
        let new = Caller::detect(&args(), environment(NEW), &params("a"));
        let result = BootstrapResult::parse_from_bytes(&new.answer(address)).unwrap();
        assert_eq!((result.version, result.address.as_str(), result.protocol.as_str()), (3, address, "ttrpc"));
        for old in [Caller::Containerd16, Caller::Containerd17, Caller::CriO] {
            assert_eq!(old.answer(address), address.as_bytes());
        }
    }

    #[test]
    fn the_log_level_is_taken() {
        let mut params = BootstrapParams { instance_id: "a".into(), namespace: "k8s.io".into(), ..Default::default() };
        params.log_level = protobuf::EnumOrUnknown::from_i32(-4);
        assert!(Caller::Containerd23(Box::new(params.clone())).wants_debug());
        params.log_level = protobuf::EnumOrUnknown::from_i32(0);
        assert!(!Caller::Containerd23(Box::new(params)).wants_debug());
    }

    #[test]
    fn endless_input_is_cut_off() {
        assert!(matches!(read_stdin(std::io::repeat(0)), Err(CallerError::TooLong)));
        assert_eq!(read_stdin(&b"x"[..]).unwrap(), b"x");
    }

    proptest! {
        #[test]
        fn no_input_panics_or_passes_for_parameters(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let caller = Caller::detect(&args(), environment(NEW), &bytes);
            if let Caller::Containerd23(params) = caller {
                prop_assert_eq!(&params.instance_id, "a");
            }
        }

        /// A new containerd tries the message first: an address must never pass for one.
        #[test]
        fn an_address_is_never_a_message(path in "/[a-z0-9/._-]{1,100}") {
            let address = format!("unix://{path}");
            prop_assert!(BootstrapResult::parse_from_bytes(address.as_bytes()).is_err());
        }
    }
}
