//! The event log of firmware and boot loader, as it explains the registers of a TPM or of TDX (TCG PC Client Platform Firmware Profile,
//! "Crypto Agile Log Entry Format"; TDX keeps the same entries in the ACPI table CCEL). The log itself is untrusted: it counts only
//! where replaying it gives registers that hardware has signed.

use sha2::{Digest, Sha256, Sha384};
use std::collections::BTreeMap;
use thiserror::Error;

/// Longest log, in bytes; the kernel's own buffers are smaller.
pub const MAX_LOG: usize = 1 << 20;
/// Most events.
const MAX_EVENTS: usize = 4096;
/// Most banks that a log may have.
const MAX_BANKS: u32 = 16;

/// `EV_NO_ACTION`: information about the log, extended into no register.
const NO_ACTION: u32 = 3;
/// Signature of the first event, which says what digests follow.
const SPEC_ID: &[u8; 16] = b"Spec ID Event03\0";
/// Signature of the event that says at which locality the TPM was started; the value of PCR 0 begins with it.
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";

/// Why a log cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EventLogError {
    /// It ends inside an entry.
    #[error("event log: ends inside its entry {0}")]
    Truncated(usize),
    /// A bound.
    #[error("event log: more than {0}")]
    TooLong(&'static str),
    /// No crypto agile log.
    #[error("event log: does not begin with a Spec ID event of version 2")]
    Header,
    /// The bank that is asked for.
    #[error("event log: has no digests of the algorithm {0:#06x}")]
    NoBank(u16),
    /// A digest of an algorithm that the header does not name.
    #[error("event log: entry {entry} has a digest of the unknown algorithm {algorithm:#06x}")]
    Algorithm {
        /// Its number.
        entry: usize,
        /// Its TCG id.
        algorithm: u16,
    },
}

/// A bank of registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bank {
    /// SHA-256, of a TPM.
    Sha256,
    /// SHA-384, of TDX.
    Sha384,
}

impl Bank {
    /// TCG algorithm id.
    pub fn id(self) -> u16 {
        match self {
            Self::Sha256 => 0x000b,
            Self::Sha384 => 0x000c,
        }
    }

    /// A register's length in bytes.
    pub fn length(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
        }
    }

    /// What a register holds after `digest` was extended into it.
    pub fn extend(self, register: &[u8], digest: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::new().chain_update(register).chain_update(digest).finalize().to_vec(),
            Self::Sha384 => Sha384::new().chain_update(register).chain_update(digest).finalize().to_vec(),
        }
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// The register: PCR of a TPM, or TDX's measurement register (0 is MRTD, 1 is RTMR0).
    pub register: u32,
    /// TCG event type.
    pub kind: u32,
    /// What was extended, of the bank that the log was read for.
    pub digest: &'a [u8],
    /// What it is about. Only some types' digests are over it.
    pub data: &'a [u8],
}

/// A parsed log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog<'a> {
    bank: Bank,
    locality: u8,
    events: Vec<Event<'a>>,
}

impl<'a> EventLog<'a> {
    /// Reads the digests of one bank.
    pub fn parse(log: &'a [u8], bank: Bank) -> Result<Self, EventLogError> {
        if log.len() > MAX_LOG {
            return Err(EventLogError::TooLong("1 MiB"));
        }
        let mut reader = Reader { rest: log, entry: 0 };
        let banks = header(&mut reader)?;
        if !banks.contains_key(&bank.id()) {
            return Err(EventLogError::NoBank(bank.id()));
        }
        let mut parsed = Self { bank, locality: 0, events: Vec::new() };
        while !reader.at_end() {
            reader.entry += 1;
            if reader.entry > MAX_EVENTS {
                return Err(EventLogError::TooLong("4096 entries"));
            }
            let (register, kind, count) = (reader.u32()?, reader.u32()?, reader.u32()?);
            if count > MAX_BANKS {
                return Err(EventLogError::TooLong("16 digests in an entry"));
            }
            let mut digest = None;
            for _ in 0..count {
                let algorithm = reader.u16()?;
                let length = *banks.get(&algorithm).ok_or(EventLogError::Algorithm { entry: reader.entry, algorithm })?;
                let bytes = reader.take(length)?;
                if algorithm == bank.id() {
                    digest = Some(bytes);
                }
            }
            let data = reader.sized()?;
            if kind == NO_ACTION {
                if let Some([locality]) = data.strip_prefix(STARTUP_LOCALITY) {
                    parsed.locality = *locality;
                }
                continue;
            }
            let digest = digest.ok_or(EventLogError::NoBank(bank.id()))?;
            parsed.events.push(Event { register, kind, digest, data });
        }
        Ok(parsed)
    }

    /// The entries that were extended, in order.
    pub fn events(&self) -> &[Event<'a>] {
        &self.events
    }

    /// What each register holds that the log has an entry for.
    pub fn replay(&self) -> BTreeMap<u32, Vec<u8>> {
        let mut registers = BTreeMap::new();
        for event in &self.events {
            let register = registers.entry(event.register).or_insert_with(|| {
                let mut begin = vec![0; self.bank.length()];
                if let (0, Some(last)) = (event.register, begin.last_mut()) {
                    *last = self.locality;
                }
                begin
            });
            *register = self.bank.extend(register, event.digest);
        }
        registers
    }
}

/// The first event, in the old form with one SHA-1 digest: algorithms and their lengths.
fn header(reader: &mut Reader<'_>) -> Result<BTreeMap<u16, usize>, EventLogError> {
    let (_register, kind, _digest) = (reader.u32()?, reader.u32()?, reader.take(20)?);
    let mut data = Reader { rest: reader.sized()?, entry: 0 };
    if kind != NO_ACTION || data.take(16)? != SPEC_ID {
        return Err(EventLogError::Header);
    }
    // Platform class, minor and major version, errata, size of UINTN.
    let fixed = data.take(8)?;
    if fixed[5] != 2 {
        return Err(EventLogError::Header);
    }
    let count = data.u32()?;
    if count > MAX_BANKS {
        return Err(EventLogError::TooLong("16 algorithms"));
    }
    let mut banks = BTreeMap::new();
    for _ in 0..count {
        let (algorithm, length) = (data.u16()?, data.u16()?);
        banks.insert(algorithm, usize::from(length));
    }
    // A length other than the algorithm's own would shift everything that follows.
    let wrong = [Bank::Sha256, Bank::Sha384].iter().any(|bank| banks.get(&bank.id()).is_some_and(|length| *length != bank.length()));
    if wrong { Err(EventLogError::Header) } else { Ok(banks) }
}

/// Little-endian fields.
struct Reader<'a> {
    rest: &'a [u8],
    entry: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], EventLogError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(EventLogError::Truncated(self.entry))?;
        self.rest = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, EventLogError> {
        Ok(self.take(2)?.iter().rev().fold(0, |value, byte| value << 8 | u16::from(*byte)))
    }

    fn u32(&mut self) -> Result<u32, EventLogError> {
        Ok(self.take(4)?.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    fn sized(&mut self) -> Result<&'a [u8], EventLogError> {
        let length = self.u32()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    /// Whether nothing follows, or only what fills the log's memory: an entry for the register 0xffffffff, or zeros.
    fn at_end(&self) -> bool {
        self.rest.iter().take(4).all(|byte| *byte == 0xff) || self.rest.iter().all(|byte| *byte == 0)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    mod recorded;

    /// A log in the firmware's form, one SHA-256 digest in each entry.
    pub(crate) fn log(entries: &[(u32, u32, [u8; 32], &[u8])]) -> Vec<u8> {
        let mut log = [&[0; 4][..], &NO_ACTION.to_le_bytes(), &[0; 20]].concat();
        let spec = [SPEC_ID.as_slice(), &[0, 0, 0, 0, 0, 2, 0, 2], &1_u32.to_le_bytes(), &[0x0b, 0, 32, 0], &[0]].concat();
        log.extend(u32::try_from(spec.len()).unwrap().to_le_bytes());
        log.extend(spec);
        for (register, kind, digest, data) in entries {
            for field in [*register, *kind, 1] {
                log.extend(field.to_le_bytes());
            }
            log.extend([0x0b, 0]);
            log.extend(digest);
            log.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
            log.extend_from_slice(data);
        }
        log
    }

    #[test]
    fn entries_are_replayed_in_their_order() {
        let locality = [STARTUP_LOCALITY.as_slice(), &[3]].concat();
        let bytes = log(&[(0, NO_ACTION, [0; 32], &locality), (0, 8, [1; 32], b"a"), (4, 4, [2; 32], b""), (0, 8, [3; 32], b"")]);
        let log = EventLog::parse(&bytes, Bank::Sha256).unwrap();
        assert_eq!(log.events().len(), 3);
        assert_eq!((log.events()[0].data, log.events()[1].register), (&b"a"[..], 4));
        let mut begin = vec![0; 32];
        begin[31] = 3;
        let zero = Bank::Sha256.extend(&Bank::Sha256.extend(&begin, &[1; 32]), &[3; 32]);
        let wanted = BTreeMap::from([(0, zero), (4, Bank::Sha256.extend(&[0; 32], &[2; 32]))]);
        assert_eq!(log.replay(), wanted);
    }

    #[test]
    fn every_truncation_is_found() {
        let bytes = log(&[(1, 8, [1; 32], b"data"), (2, 8, [2; 32], b"more")]);
        let whole = EventLog::parse(&bytes, Bank::Sha256).unwrap();
        for length in 0..bytes.len() {
            // A cut between two entries is a shorter log; replaying it gives other registers.
            if let Ok(shorter) = EventLog::parse(&bytes[..length], Bank::Sha256) {
                assert_ne!(shorter.replay(), whole.replay());
            }
        }
    }

    #[test]
    fn hostile_logs_are_refused() {
        let good = log(&[(1, 8, [1; 32], b"data")]);
        assert_eq!(EventLog::parse(&good, Bank::Sha384), Err(EventLogError::NoBank(0x0c)));
        assert!(matches!(EventLog::parse(&vec![0; MAX_LOG + 1], Bank::Sha256), Err(EventLogError::TooLong(_))));
        assert!(EventLog::parse(&[], Bank::Sha256).is_err());
        let entries: Vec<(u32, u32, [u8; 32], &[u8])> = vec![(1, 8, [1; 32], b""); MAX_EVENTS + 1];
        assert!(matches!(EventLog::parse(&log(&entries), Bank::Sha256), Err(EventLogError::TooLong(_))));
        // The length that the header gives for SHA-256.
        let mut lies = good.clone();
        let at = lies.windows(4).position(|w| w == [0x0b, 0, 32, 0]).unwrap();
        lies[at + 2] = 20;
        assert_eq!(EventLog::parse(&lies, Bank::Sha256), Err(EventLogError::Header));
        let mut endless = good.clone();
        let size = endless.len() - 8;
        endless[size..size + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(EventLog::parse(&endless, Bank::Sha256), Err(EventLogError::Truncated(1)));
    }
}
