//! The few commands that are needed of a TPM (TCG TPM 2.0 Library, Part 3), over anything that carries its bytes: `/dev/tpmrm0`, or the
//! socket of an emulator.

use super::{
    Pcr,
    quote::RSA_KEY_LEN,
    wire::{Reader, Writer},
};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};
use thiserror::Error;

/// The kernel's device: it gives back what we forget to flush.
pub const PATH: &str = "/dev/tpmrm0";

/// Largest response (the size of the interface's buffer in the PC client profile), in bytes.
const MAX_RESPONSE: usize = 4096;
/// Tag, size and code.
const HEADER: usize = 10;

const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;
/// The endorsement hierarchy: its keys are derived from the seed that says which TPM this is.
const ENDORSEMENT: u32 = 0x4000_000b;
/// Authorisation by an empty password.
const PASSWORD: u32 = 0x4000_0009;
const RSA: u16 = 0x0001;
const SHA256: u16 = 0x000b;
const NULL: u16 = 0x0010;
const RSASSA: u16 = 0x0014;
/// Made in this TPM, never leaves it, signs what the TPM itself says and nothing else: fixedTPM, fixedParent, sensitiveDataOrigin,
/// userWithAuth, noDA, restricted, sign.
const AK_ATTRIBUTES: u32 = 0x0005_0472;

/// A command of which this module knows a name for errors.
#[derive(Debug, Clone, Copy)]
enum Command {
    Startup = 0x144,
    CreatePrimary = 0x131,
    Quote = 0x158,
    FlushContext = 0x165,
    PcrRead = 0x17e,
    PcrExtend = 0x182,
}

/// A TPM does not do what it was asked for.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// No device, or none that answers.
    #[error("{path}: {source}")]
    Open {
        /// Its path.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// The way to it.
    #[error("TPM: {0}")]
    Io(#[from] io::Error),
    /// It refuses.
    #[error("TPM: {command} failed with code {code:#x}")]
    Refused {
        /// Of the library's specification.
        command: String,
        /// Of the same, Part 2, "TPM_RC".
        code: u32,
    },
    /// It does not keep to the specification.
    #[error("TPM: the answer to {0} is malformed")]
    Malformed(String),
}

/// A quote with the key that it verifies with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted {
    /// TPMS_ATTEST.
    pub message: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub signature: Vec<u8>,
    /// Modulus of the attestation key.
    pub modulus: Vec<u8>,
}

/// A TPM.
#[derive(Debug)]
pub struct Device<T>(T);

impl Device<File> {
    /// Opens the kernel's device.
    pub fn open() -> Result<Self, DeviceError> {
        let opened = OpenOptions::new().read(true).write(true).open(PATH);
        opened.map(Self).map_err(|source| DeviceError::Open { path: PATH.into(), source })
    }
}

/// Whether this machine has a TPM.
pub fn is_there() -> bool {
    Path::new(PATH).exists()
}

impl<T: Read + Write> Device<T> {
    /// A TPM behind this connection.
    pub fn new(connection: T) -> Self {
        Self(connection)
    }

    /// Starts a TPM that no firmware has started.
    pub fn startup(&mut self) -> Result<(), DeviceError> {
        self.call(Command::Startup, NO_SESSIONS, Writer::default().u16(0)).map(drop)
    }

    /// Extends a register of the SHA-256 bank.
    pub fn extend(&mut self, pcr: u8, digest: &Pcr) -> Result<(), DeviceError> {
        let body = authorised(Writer::default().u32(pcr.into())).u32(1).u16(SHA256).bytes(digest);
        self.call(Command::PcrExtend, SESSIONS, body).map(drop)
    }

    /// All registers of the SHA-256 bank.
    pub fn pcrs(&mut self) -> Result<Vec<Pcr>, DeviceError> {
        let mut registers = Vec::with_capacity(super::PCRS);
        // A TPM gives at most eight at once.
        for byte in 0..3 {
            let mut bitmap = [0; 3];
            bitmap[byte] = 0xff;
            let answer = self.call(Command::PcrRead, NO_SESSIONS, selection(Writer::default(), bitmap))?;
            registers.extend(read_pcrs(&answer, bitmap).ok_or_else(|| malformed(Command::PcrRead))?);
        }
        Ok(registers)
    }

    /// A quote over all registers of the SHA-256 bank, by a key that only this TPM has: the same key each time, since it is derived from
    /// the TPM's seed. `binding` is at most 64 bytes.
    pub fn quote(&mut self, binding: &[u8]) -> Result<Quoted, DeviceError> {
        let (handle, modulus) = self.attestation_key()?;
        let body = authorised(Writer::default().u32(handle)).sized(binding).u16(NULL);
        let answer = self.call(Command::Quote, SESSIONS, selection(body, [0xff; 3]));
        self.call(Command::FlushContext, NO_SESSIONS, Writer::default().u32(handle))?;
        let answer = answer?;
        let (message, signature) = read_quote(&answer).ok_or_else(|| malformed(Command::Quote))?;
        Ok(Quoted { message, signature, modulus })
    }

    /// The modulus of the attestation key.
    pub fn attestation_key_modulus(&mut self) -> Result<Vec<u8>, DeviceError> {
        let (handle, modulus) = self.attestation_key()?;
        self.call(Command::FlushContext, NO_SESSIONS, Writer::default().u32(handle))?;
        Ok(modulus)
    }

    /// Handle and modulus.
    fn attestation_key(&mut self) -> Result<(u32, Vec<u8>), DeviceError> {
        let template = Writer::default()
            .u16(RSA)
            .u16(SHA256)
            .u32(AK_ATTRIBUTES)
            .sized(&[]) // no policy
            .u16(NULL) // no symmetric cipher: it is no storage key
            .u16(RSASSA)
            .u16(SHA256)
            .u16(2048)
            .u32(0) // the usual exponent, 65537
            .sized(&[]);
        let body = authorised(Writer::default().u32(ENDORSEMENT))
            .sized(&[0; 4]) // no secret and no data of ours
            .sized(&template.0)
            .sized(&[])
            .u32(0);
        let answer = self.call(Command::CreatePrimary, SESSIONS, body)?;
        read_key(&answer).ok_or_else(|| malformed(Command::CreatePrimary))
    }

    /// Sends a command and gives what follows the header of a good answer.
    fn call(&mut self, command: Command, tag: u16, body: Writer) -> Result<Vec<u8>, DeviceError> {
        let size = u32::try_from(HEADER + body.0.len()).unwrap_or(u32::MAX);
        let request = Writer::default().u16(tag).u32(size).u32(command as u32).bytes(&body.0);
        self.0.write_all(&request.0)?;
        self.0.flush()?;
        let answer = self.receive(command)?;
        let mut reader = Reader(&answer);
        let (_, _, code) = (reader.u16(), reader.u32(), reader.u32().ok_or_else(|| malformed(command))?);
        if code != 0 {
            return Err(DeviceError::Refused { command: format!("{command:?}"), code });
        }
        Ok(reader.0.to_vec())
    }

    /// One whole answer. The kernel's device gives it in one read, a socket perhaps not.
    fn receive(&mut self, command: Command) -> Result<Vec<u8>, DeviceError> {
        let mut answer = vec![0; MAX_RESPONSE];
        let mut have = 0;
        loop {
            let more = self.0.read(&mut answer[have..])?;
            if more == 0 {
                return Err(malformed(command));
            }
            have += more;
            let size = Reader(answer.get(2..have).unwrap_or_default()).u32();
            match size.and_then(|size| usize::try_from(size).ok()) {
                Some(size) if !(HEADER..=MAX_RESPONSE).contains(&size) => return Err(malformed(command)),
                Some(size) if have >= size => {
                    answer.truncate(size);
                    return Ok(answer);
                }
                _ => {}
            }
        }
    }
}

fn malformed(command: Command) -> DeviceError {
    DeviceError::Malformed(format!("{command:?}"))
}

/// The authorisation area with one empty password.
fn authorised(handles: Writer) -> Writer {
    handles.u32(9).u32(PASSWORD).sized(&[]).u8(0).sized(&[])
}

fn selection(body: Writer, bitmap: [u8; 3]) -> Writer {
    body.u32(1).u16(SHA256).u8(3).bytes(&bitmap)
}

/// All eight that were asked for, in order.
fn read_pcrs(answer: &[u8], bitmap: [u8; 3]) -> Option<Vec<Pcr>> {
    let mut reader = Reader(answer);
    let _update_counter = reader.u32()?;
    let same = reader.u32()? == 1 && reader.u16()? == SHA256 && reader.u8()? == 3 && reader.take(3)? == bitmap;
    if !same || reader.u32()? != 8 {
        return None;
    }
    (0..8).map(|_| reader.sized()?.try_into().ok()).collect()
}

fn read_quote(answer: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut reader = Reader(answer);
    let length = reader.u32()?;
    let mut parameters = Reader(reader.take(usize::try_from(length).ok()?)?);
    Some((parameters.sized()?.to_vec(), parameters.0.to_vec()))
}

fn read_key(answer: &[u8]) -> Option<(u32, Vec<u8>)> {
    let mut reader = Reader(answer);
    let (handle, _length) = (reader.u32()?, reader.u32()?);
    let mut public = Reader(reader.sized()?);
    let form = (public.u16()?, public.u16()?, public.u32()?, public.sized()?, public.u16()?);
    let scheme = (public.u16()?, public.u16()?, public.u16()?, public.u32()?);
    let modulus = public.sized()?;
    let wanted = form == (RSA, SHA256, AK_ATTRIBUTES, &[], NULL) && scheme == (RSASSA, SHA256, 2048, 0) && modulus.len() == RSA_KEY_LEN;
    wanted.then(|| (handle, modulus.to_vec()))
}
