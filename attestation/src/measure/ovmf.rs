//! What an OVMF image says about itself. From its end backwards there is a table of GUIDs; entries of it point to the descriptions
//! of the pages that are measured at launch: one for SEV-SNP, one for TDX. (EDK II, `OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm`,
//! `OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm` and `IntelTdxMetadata.asm`.)

use thiserror::Error;

/// Largest image that is read, in bytes.
pub const MAX_IMAGE: usize = 64 << 20;

/// Sections that a description may have.
const MAX_SECTIONS: usize = 64;

/// Length of an entry's own part: its length and GUID.
const HEADER: usize = 18;

/// The reset vector, which follows the table.
const RESET_VECTOR: usize = 32;

const FOOTER: Guid = guid("96b582de-1fb2-45f7-baea-a366c55a082d");
const SEV_HASH_TABLE: Guid = guid("7255371f-3a3b-4b04-927b-1da6efa8d454");
const SEV_ES_RESET: Guid = guid("00f771de-1a7e-4fcb-890e-68c77e2fb44e");
const SEV_METADATA: Guid = guid("dc886566-984a-4798-a75e-5585a7bf67cc");
const TDX_METADATA: Guid = guid("e47a6535-984a-4798-865e-4685a7bf8ec2");

/// A GUID in the byte order of UEFI.
pub(crate) type Guid = [u8; 16];

/// Why an image cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OvmfError {
    /// Not an image of OVMF, or one for something else.
    #[error("firmware: {0}")]
    Malformed(&'static str),
    /// Too much of something.
    #[error("firmware: {0} bytes; between 4 KiB and 64 MiB in whole pages are read")]
    Length(usize),
    /// It was not built to check what it is given.
    #[error(
        "firmware: has no section for the hashes of kernel, initramfs and command line; take one that is built for SEV-SNP with direct boot \
         (OVMF.amdsev.fd of Debian's ovmf-amdsev)"
    )]
    NoKernelHashes,
    /// It is not for this TEE.
    #[error("firmware: has no {0} metadata; take one that is built for it")]
    NoMetadata(&'static str),
}

/// A section of SEV-SNP's description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SevSection {
    /// Address in the guest.
    pub gpa: u64,
    /// In bytes.
    pub size: u32,
    /// What it is for: 1 memory, 2 secrets, 3 CPUID, 4 the calling area of a service module, 0x10 hashes of what is booted.
    pub kind: u32,
}

/// A section of TDX's description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TdxSection {
    /// In the file.
    pub offset: u32,
    /// Bytes in the file.
    pub raw_size: u32,
    /// Address in the guest.
    pub gpa: u64,
    /// Bytes in the guest.
    pub size: u64,
    /// What it is for: 0 firmware, 1 its variables, 2 the hand-off block, 3 temporary memory.
    pub kind: u32,
    /// Bit 0: its contents are measured. Bit 1: its pages are added later, and not measured.
    pub attributes: u32,
}

/// An image, taken apart as far as a launch measures it.
#[derive(Debug, Clone, Copy)]
pub struct Ovmf<'a> {
    image: &'a [u8],
    table: &'a [u8],
}

impl<'a> Ovmf<'a> {
    /// Finds the table of an image.
    pub fn parse(image: &'a [u8]) -> Result<Self, OvmfError> {
        if image.len() > MAX_IMAGE || image.len() < 4096 || !image.len().is_multiple_of(4096) {
            return Err(OvmfError::Length(image.len()));
        }
        let before = &image[..image.len() - RESET_VECTOR];
        let (rest, footer) = before.split_at(before.len() - HEADER);
        let (length, found) = entry_header(footer).ok_or(OvmfError::Malformed("its table of GUIDs has no end"))?;
        if found != FOOTER {
            return Err(OvmfError::Malformed("it has no table of GUIDs; is it an OVMF for SEV or TDX?"));
        }
        let length = length.checked_sub(HEADER).filter(|length| *length <= rest.len());
        let length = length.ok_or(OvmfError::Malformed("its table of GUIDs is longer than the file"))?;
        Ok(Self { image, table: &rest[rest.len() - length..] })
    }

    /// The whole image.
    pub fn image(&self) -> &'a [u8] {
        self.image
    }

    /// The data of an entry of the table; it is walked from its end.
    fn entry(&self, wanted: Guid) -> Option<&'a [u8]> {
        let mut table = self.table;
        while table.len() >= HEADER {
            let (length, found) = entry_header(&table[table.len() - HEADER..])?;
            let start = table.len().checked_sub(length).filter(|_| length >= HEADER)?;
            if found == wanted {
                return Some(&table[start..table.len() - HEADER]);
            }
            table = &table[..start];
        }
        None
    }

    /// Where the table of hashes is in the guest's memory; none where the firmware checks no hashes.
    pub fn sev_hash_table(&self) -> Option<u32> {
        // A base of zero is how a build without hashes fills its entry.
        number32(self.entry(SEV_HASH_TABLE)?, 0).filter(|base| *base != 0)
    }

    /// Where the processors other than the first begin.
    pub fn sev_es_reset(&self) -> Option<u32> {
        number32(self.entry(SEV_ES_RESET)?, 0)
    }

    /// The pages that SEV-SNP measures beside the image, in the order of the description.
    pub fn sev_sections(&self) -> Result<Vec<SevSection>, OvmfError> {
        let malformed = || OvmfError::Malformed("its SEV metadata is broken");
        let data = self.described(SEV_METADATA, "SEV")?;
        if data.get(..4) != Some(b"ASEV") || number32(data, 8) != Some(1) {
            return Err(malformed());
        }
        let section = |at: usize| {
            let [gpa, size, kind] = [0, 4, 8].map(|part| number32(data, at + part));
            Some(SevSection { gpa: gpa?.into(), size: size?, kind: kind? })
        };
        sections(data, 12, 12, section).ok_or_else(malformed)
    }

    /// The sections that TDX loads, in the order of the description.
    pub fn tdx_sections(&self) -> Result<Vec<TdxSection>, OvmfError> {
        let malformed = || OvmfError::Malformed("its TDX metadata is broken");
        let data = self.described(TDX_METADATA, "TDX")?;
        if data.get(..4) != Some(b"TDVF") || number32(data, 8) != Some(1) {
            return Err(malformed());
        }
        let section = |at: usize| {
            let [offset, raw_size, kind, attributes] = [0, 4, 24, 28].map(|part| number32(data, at + part));
            let [gpa, size] = [8, 16].map(|part| number64(data, at + part));
            Some(TdxSection { offset: offset?, raw_size: raw_size?, gpa: gpa?, size: size?, kind: kind?, attributes: attributes? })
        };
        sections(data, 12, 32, section).ok_or_else(malformed)
    }

    /// What an entry points to: a description at an offset from the end of the file.
    fn described(&self, wanted: Guid, name: &'static str) -> Result<&'a [u8], OvmfError> {
        let offset = self.entry(wanted).and_then(|entry| number32(entry, 0)).ok_or(OvmfError::NoMetadata(name))?;
        let start = self.image.len().checked_sub(offset as usize);
        start.map(|start| &self.image[start..]).ok_or(OvmfError::Malformed("its metadata lies outside the file"))
    }
}

/// The sections of a description: their number is just before them.
fn sections<T>(data: &[u8], count_at: usize, length: usize, read: impl Fn(usize) -> Option<T>) -> Option<Vec<T>> {
    let count = number32(data, count_at)? as usize;
    if count > MAX_SECTIONS {
        return None;
    }
    (0..count).map(|n| read(count_at + 4 + n * length)).collect()
}

/// Length (of the whole entry) and GUID.
fn entry_header(header: &[u8]) -> Option<(usize, Guid)> {
    let (length, guid) = header.split_first_chunk::<2>()?;
    Some((u16::from_le_bytes(*length).into(), guid.try_into().ok()?))
}

pub(crate) fn number32(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

pub(crate) fn number64(data: &[u8], at: usize) -> Option<u64> {
    data.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

/// A GUID from its text form: the first three groups are little-endian.
pub(crate) const fn guid(text: &str) -> Guid {
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    const fn digit(byte: u8) -> u8 {
        match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => panic!("a GUID is lower-case hexadecimal"),
        }
    }
    let text = text.as_bytes();
    let mut out = [0; 16];
    let (mut at, mut byte) = (0, 0);
    while byte < 16 {
        if text[at] == b'-' {
            at += 1;
        }
        out[ORDER[byte]] = digit(text[at]) << 4 | digit(text[at + 1]);
        at += 2;
        byte += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use vectors::{folder, read};

    #[test]
    fn a_guid_is_in_uefis_order() {
        assert_eq!(hex::encode(FOOTER), "de82b596b21ff745baeaa366c55a082d");
    }

    #[test]
    fn the_recorded_suffixes_describe_themselves() {
        let Some(folder) = folder() else { return };
        let amd = read(&folder, "measure/ovmf_AmdSev_suffix.bin");
        let amd = Ovmf::parse(&amd).unwrap();
        assert!(amd.sev_hash_table().is_some() && amd.sev_es_reset().is_some());
        assert_eq!(amd.sev_sections().unwrap().iter().filter(|section| section.kind == 0x10).count(), 1);
        let other = read(&folder, "measure/ovmf_OvmfX64_suffix.bin");
        let other = Ovmf::parse(&other).unwrap();
        assert!(other.sev_sections().unwrap().iter().all(|section| section.kind != 0x10));
    }

    #[test]
    fn what_is_no_firmware_is_refused() {
        assert_eq!(Ovmf::parse(&[]).unwrap_err(), OvmfError::Length(0));
        assert_eq!(Ovmf::parse(&[0; 4097]).unwrap_err(), OvmfError::Length(4097));
        assert!(matches!(Ovmf::parse(&[0; 4096]).unwrap_err(), OvmfError::Malformed(_)));
    }

    /// An image whose table holds these entries.
    fn image(entries: &[(Guid, &[u8])], body: &[u8]) -> Vec<u8> {
        let entry = |(guid, data): &(Guid, &[u8])| [data, &((data.len() + HEADER) as u16).to_le_bytes()[..], guid].concat();
        let mut table: Vec<u8> = entries.iter().flat_map(entry).collect();
        let length = (table.len() + HEADER) as u16;
        table.extend(length.to_le_bytes());
        table.extend(FOOTER);
        let mut image = body.to_vec();
        image.resize(4096 - RESET_VECTOR - table.len(), 0);
        image.extend(table);
        image.resize(4096, 0);
        image
    }

    #[test]
    fn hostile_tables_are_errors() {
        for (pointer, body) in [(&5000u32.to_le_bytes()[..], &b""[..]), (b"", b""), (&4096u32.to_le_bytes(), b"ASEV")] {
            assert!(Ovmf::parse(&image(&[(SEV_METADATA, pointer)], body)).unwrap().sev_sections().is_err());
        }
        let many = [b"ASEV".as_slice(), &[0; 4], &1u32.to_le_bytes(), &u32::MAX.to_le_bytes()].concat();
        let many = image(&[(SEV_METADATA, &4096u32.to_le_bytes())], &many);
        assert!(matches!(Ovmf::parse(&many).unwrap().sev_sections(), Err(OvmfError::Malformed(_))));
        assert_eq!(Ovmf::parse(&image(&[], b"")).unwrap().tdx_sections(), Err(OvmfError::NoMetadata("TDX")));
        // An entry whose length leads nowhere ends the walk.
        let mut broken = image(&[(SEV_HASH_TABLE, &[1; 8]), (SEV_ES_RESET, &[1; 4])], b"");
        let at = 4096 - RESET_VECTOR - 2 * HEADER;
        broken[at..at + 2].copy_from_slice(&3u16.to_le_bytes());
        assert_eq!(Ovmf::parse(&broken).unwrap().sev_hash_table(), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(tail in proptest::collection::vec(0u8.., 512)) {
            let mut bytes = image(&[], b"");
            bytes[4096 - RESET_VECTOR - HEADER - 512..4096 - RESET_VECTOR - HEADER].copy_from_slice(&tail);
            bytes[4096 - RESET_VECTOR - HEADER..][..2].copy_from_slice(&((512 + HEADER) as u16).to_le_bytes());
            let ovmf = Ovmf::parse(&bytes).unwrap();
            let _ = (ovmf.sev_hash_table(), ovmf.sev_es_reset(), ovmf.sev_sections(), ovmf.tdx_sections());
        }
    }
}
