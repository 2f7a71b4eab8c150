//! Logs of real machines.

use super::*;
use crate::encoding::from_standard;
use serde_json::Value;
use sha2::{Digest, Sha256, Sha384};
use vectors::{folder, read};

#[test]
fn logs_of_real_machines_are_read() {
    let Some(folder) = folder().map(|folder| folder.join("eventlog")) else { return };
    let cases = [
        ("gotpm_ubuntu-2404-amd-sevsnp.bin", Bank::Sha256, 116),
        ("gotpm_cos-101-amd-sev.bin", Bank::Sha256, 48),
        ("gotpm_cos-101-amd-sev.bin", Bank::Sha384, 48),
        ("gotpm_arch-linux-workstation.bin", Bank::Sha256, 24),
        ("dstack_tpm_eventlog.bin", Bank::Sha256, 43),
        ("dstack_ccel.bin", Bank::Sha384, 18),
        ("gotdx_ccel_data.dat", Bank::Sha384, 43),
        ("trustee_CCEL_data_ovmf", Bank::Sha384, 20),
        ("trustee_CCEL_data_grub", Bank::Sha384, 37),
        ("trustee_CCEL_AAEL_alibabacloud", Bank::Sha384, 87),
    ];
    for (name, bank, events) in cases {
        let bytes = read(&folder, name);
        let log = EventLog::parse(&bytes, bank).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(log.events().len(), events, "{name}");
    }
}

/// Trustee's own reading of two logs, entry by entry.
#[test]
fn entries_are_those_that_trustee_reads() {
    let Some(folder) = folder().map(|folder| folder.join("eventlog")) else { return };
    for name in ["trustee_CCEL_AAEL_alibabacloud", "trustee_CCEL_data_ovmf"] {
        let bytes = read(&folder, name);
        let log = EventLog::parse(&bytes, Bank::Sha384).unwrap();
        let expected = match name {
            "trustee_CCEL_data_ovmf" => "trustee_CCEL_data_ovmf_out.json",
            _ => "trustee_CCEL_AAEL_alibabacloud_out.json",
        };
        let expected: Value = serde_json::from_slice(&read(&folder, expected)).unwrap();
        let expected = expected["uefi_event_logs"].as_array().unwrap();
        assert_eq!(log.events().len(), expected.len());
        for (event, expected) in log.events().iter().zip(expected) {
            assert_eq!(u64::from(event.register), expected["index"]);
            assert_eq!(hex::encode(event.digest), expected["digests"][0]["digest"]);
            assert_eq!(event.data, from_standard(expected["event"].as_str().unwrap()).unwrap());
            assert_eq!(Sha384::digest(event.data)[..] == *event.digest, expected["digest_matches_event"]);
        }
    }
}

/// The registers that an independent calculation gives, by their first bytes: 1 is RTMR0.
#[test]
fn logs_of_tdx_are_replayed() {
    let Some(folder) = folder().map(|folder| folder.join("eventlog")) else { return };
    let cases: [(&str, &[&str]); 5] = [
        ("trustee_CCEL_AAEL_alibabacloud", &["b796e1c11396c198", "3b0b906140fcea68", "35f2801338c1b5fc", "5e4ecd49d3c7983d"]),
        ("trustee_CCEL_data_ovmf", &["8566f998798db094", "775b9f6bfe99f8a3", "94eaf7a7bf398ed8"]),
        ("trustee_CCEL_data_grub", &["cec0a104f691f60d", "6c289e0c62182d41", "08919d017ba0e52c"]),
        ("gotdx_ccel_data.dat", &["3fa2f61f395b7f5f", "f62dbc072bd5d3f3", "4969684dc87381fc"]),
        ("dstack_ccel.bin", &["274c2344116db7c6", "bdcf4ee0f7fdfe7c"]),
    ];
    for (name, expected) in cases {
        let bytes = read(&folder, name);
        let replayed = EventLog::parse(&bytes, Bank::Sha384).unwrap().replay();
        let found: Vec<(u32, String)> = replayed.iter().map(|(index, register)| (*index, hex::encode(&register[..8]))).collect();
        let expected: Vec<(u32, String)> = (1..).zip(expected.iter().map(|register| (*register).to_owned())).collect();
        assert_eq!(found, expected, "{name}");
    }
    // The ACPI table that stands before such a log says how long its memory is.
    let (table, log) = (read(&folder, "gotdx_ccel_table.dat"), read(&folder, "gotdx_ccel_data.dat"));
    assert_eq!((&table[..4], u64::from_le_bytes(table[40..48].try_into().unwrap())), (&b"CCEL"[..], log.len() as u64));
}

/// A cloud's TPM signed, over its PCRs 0 to 2, the digest that this log gives.
#[test]
fn a_recorded_log_gives_the_registers_of_its_quote() {
    let Some(folder) = folder() else { return };
    let bytes = read(&folder, "eventlog/dstack_tpm_eventlog.bin");
    let quote = read(&folder, "tpm/dstack_tpm_quote_sample.bin");
    let registers = EventLog::parse(&bytes, Bank::Sha256).unwrap().replay();
    let concatenated = [0, 1, 2].map(|index| registers[&index].clone()).concat();
    assert_eq!(Sha256::digest(concatenated)[..], quote[quote.len() - 32..]);
}
