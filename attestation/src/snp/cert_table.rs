//! The certificates that a host may hand to its guest beside a report: entries of GUID, offset and length (GHCB specification,
//! publication 56421, SNP Extended Guest Request), ended by a zero GUID, then the certificates. It comes from the host; nothing in it is trusted
//! before it is verified.

use crate::snp::evidence::{CertType, Certificate, KnownCert, MAX_CERTIFICATE, MAX_CERTIFICATES};
use thiserror::Error;

/// Longest table, in bytes: what the kernel's own interface allows.
pub const MAX_TABLE: usize = 0x4000;

/// Length of an entry.
const ENTRY: usize = 24;

/// The certificates that are told apart, in the usual text form of a GUID without its hyphens.
const KNOWN: [(u128, KnownCert); 5] = [
    (0x63da758d_e664_4564_adc5_f4b93be8accd, KnownCert::Vcek),
    (0xa8074bc2_a25a_483e_aae6_39c045a0b8a1, KnownCert::Vlek),
    (0x4ab7b379_bbac_4fe4_a02f_05aef327c782, KnownCert::Ask),
    (0xc0b406a4_a803_4952_9743_3fb6014cd0ae, KnownCert::Ark),
    (0x92f81bc3_5811_4d3d_97ff_d19f88dc67ea, KnownCert::Crl),
];

/// Why a table cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CertTableError {
    /// Larger than the bound.
    #[error("certificate table: {0} bytes, at most {MAX_TABLE} are read")]
    Length(usize),
    /// No zero GUID within it.
    #[error("certificate table: has no end within its {0} bytes")]
    Unended(usize),
    /// More than anybody needs.
    #[error("certificate table: more than {MAX_CERTIFICATES} entries")]
    Entries,
    /// An entry points outside, or at too much.
    #[error("certificate table: entry {entry} names {length} bytes at {offset}, which is outside the table or over the bound")]
    Bounds {
        /// From 0.
        entry: usize,
        /// From the table's first byte.
        offset: usize,
        /// In bytes.
        length: usize,
    },
}

/// Reads a table; entries of unknown kind are left out. An empty blob is an empty table: most hosts give none.
pub fn parse(table: &[u8]) -> Result<Vec<Certificate>, CertTableError> {
    if table.is_empty() {
        return Ok(Vec::new());
    }
    if table.len() > MAX_TABLE {
        return Err(CertTableError::Length(table.len()));
    }
    let mut certificates = Vec::new();
    for (number, entry) in table.chunks(ENTRY).enumerate() {
        let (Some((guid, rest)), true) = (entry.split_first_chunk::<16>(), number <= MAX_CERTIFICATES) else {
            return Err(if number > MAX_CERTIFICATES { CertTableError::Entries } else { CertTableError::Unended(table.len()) });
        };
        // The end needs no offset and length behind it.
        if *guid == [0; 16] {
            return Ok(certificates);
        }
        let field = |at: usize| rest.get(at..at + 4).and_then(|b| b.try_into().ok()).map(|b| u32::from_le_bytes(b) as usize);
        let (Some(offset), Some(length)) = (field(0), field(4)) else { return Err(CertTableError::Unended(table.len())) };
        let bounds = CertTableError::Bounds { entry: number, offset, length };
        let data = offset.checked_add(length).and_then(|end| table.get(offset..end)).filter(|data| data.len() <= MAX_CERTIFICATE);
        let data = data.ok_or(bounds)?;
        if let Some(kind) = kind(*guid) {
            certificates.push(Certificate { cert_type: CertType::Known(kind), data: data.to_vec() });
        }
    }
    Err(CertTableError::Unended(table.len()))
}

/// Hosts write GUIDs in either byte order of the first three groups. Which one it was decides nothing.
fn kind(guid: [u8; 16]) -> Option<KnownCert> {
    let mut swapped = guid;
    swapped[..4].reverse();
    swapped[4..6].reverse();
    swapped[6..8].reverse();
    let numbers = [guid, swapped].map(u128::from_be_bytes);
    KNOWN.iter().find(|(known, _)| numbers.contains(known)).map(|(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(guid: u128, offset: u32, length: u32) -> Vec<u8> {
        [&guid.to_be_bytes()[..], &offset.to_le_bytes(), &length.to_le_bytes()].concat()
    }

    #[test]
    fn a_table_is_read_in_either_byte_order() {
        let mut table = [entry(KNOWN[0].0, 72, 3), entry(0x1234, 0, 1), entry(0, 0, 0), b"abcdef".to_vec()].concat();
        let one = Certificate { cert_type: CertType::Known(KnownCert::Vcek), data: b"abc".to_vec() };
        assert_eq!(parse(&table).unwrap(), std::slice::from_ref(&one));
        table[..4].reverse();
        table[4..6].reverse();
        table[6..8].reverse();
        assert_eq!(parse(&table).unwrap(), [one]);
        assert_eq!(parse(&[]).unwrap(), []);
        assert_eq!(parse(&[0; 16]).unwrap(), []);
    }

    #[test]
    fn a_hostile_table_is_an_error() {
        let id = KNOWN[1].0;
        let end = entry(0, 0, 0);
        for table in [
            entry(id, 0, 24),
            vec![1; 15],
            vec![1; 17],
            [entry(id, 24, 24), entry(id, 0, 24)[..20].to_vec()].concat(),
            [entry(id, 48, 1), end.clone()].concat(),
            [entry(id, u32::MAX, u32::MAX), end.clone()].concat(),
            [entry(id, 0, u32::MAX), end.clone()].concat(),
            [entry(id, 0, 1).repeat(MAX_CERTIFICATES + 1), end.clone()].concat(),
            vec![0; MAX_TABLE + 1],
        ] {
            assert!(parse(&table).is_err(), "{table:.80?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_table_makes_it_panic(table in proptest::collection::vec(0u8.., 0..512)) {
            let _ = parse(&table);
        }

        #[test]
        fn nothing_beyond_the_table_is_read(offset in 0u32.., length in 0u32..) {
            let table = [entry(KNOWN[0].0, offset, length), entry(0, 0, 0)].concat();
            let read = parse(&table).map(|certs| certs[0].data.len());
            proptest::prop_assert!(read.is_err() || read == Ok(length as usize));
        }
    }
}
