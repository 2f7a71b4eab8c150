use super::*;
use proptest::prelude::*;

/// A report of this version and family with every field set to something else.
fn full(version: u32, family: u8) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..LENGTH).map(|n| (n % 251) as u8 + 1).collect();
    bytes[..4].copy_from_slice(&version.to_le_bytes());
    bytes[0x188] = family;
    // What is reserved.
    let zen5 = version >= 3 && family >= 0x1a;
    let tcb = |at: usize| if zen5 { at + 4..at + 7 } else { at + 2..at + 6 };
    let mut reserved = vec![0x4c..0x50, 0x18b..0x1a0, 0x1eb..0x1ec, 0x1ef..0x1f0, 0x208..0x2a0, 0x330..LENGTH];
    reserved.extend([0x38, 0x180, 0x1e0, 0x1f0].map(tcb));
    if version < 3 {
        reserved.push(0x188..0x18b);
    }
    if version < 5 {
        reserved.push(0x1f8..0x208);
    }
    for range in reserved {
        bytes[range].fill(0);
    }
    bytes
}

#[test]
fn every_version_is_taken_apart_and_put_together() {
    for (version, family) in [(2, 0), (3, 0x19), (4, 0x19), (3, 0x1a), (5, 0x19), (5, 0x1a)] {
        let bytes = full(version, family);
        let report = Report::parse(&bytes).unwrap_or_else(|e| panic!("{version}, {family:#x}: {e}"));
        assert_eq!(report.to_bytes().unwrap().as_slice(), bytes);
        assert_eq!(report.reported_tcb.fmc.is_some(), family == 0x1a);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
    }
}

#[test]
fn reserved_bytes_must_be_zero() {
    for (version, family) in [(2, 0), (3, 0x19), (5, 0x1a)] {
        let good = full(version, family);
        for at in 4..LENGTH {
            let mut bytes = good.clone();
            if bytes[at] == 0 && at != 0x188 {
                bytes[at] = 1;
                assert_eq!(Report::parse(&bytes), Err(ReportError::Reserved(version)), "{version} at {at:#x}");
            }
        }
    }
}

#[test]
fn other_lengths_and_versions_are_refused() {
    let good = full(3, 0x19);
    assert_eq!(Report::parse(&[]), Err(ReportError::Length(0)));
    assert_eq!(Report::parse(&good[1..]), Err(ReportError::Length(LENGTH - 1)));
    assert_eq!(Report::parse(&[good.clone(), vec![0]].concat()), Err(ReportError::Length(LENGTH + 1)));
    assert_eq!(Report::parse(&[0; LENGTH]), Err(ReportError::Version(0)));
    assert_eq!(Report::parse(&[0xff; LENGTH]), Err(ReportError::Version(u32::MAX)));
    for version in [1, 6] {
        assert_eq!(Report::parse(&full(version, 0x19)), Err(ReportError::Version(version)));
    }
}

#[test]
fn firmware_versions_are_read_and_ordered() {
    let version: Version = "1.55.29".parse().unwrap();
    assert_eq!((version.major, version.minor, version.build), (1, 55, 29));
    assert!(version < "1.56.0".parse().unwrap() && version > "1.55.28".parse().unwrap());
    for bad in ["", "1", "1.2", "1.2.3.4", "1.2.256", "a.b.c", "1..2", "-1.2.3"] {
        assert!(bad.parse::<Version>().is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_and_none_are_lost(bytes in proptest::collection::vec(0u8.., LENGTH), version in 2u32..=5) {
        let mut bytes = bytes;
        bytes[..4].copy_from_slice(&version.to_le_bytes());
        if let Ok(report) = Report::parse(&bytes) {
            prop_assert_eq!(report.to_bytes().unwrap().to_vec(), bytes);
        }
    }

    #[test]
    fn a_report_with_any_fields_survives_json(at in 4usize..0x188, byte in 0u8..) {
        let mut bytes = full(3, 0x19);
        if bytes[at] != 0 {
            bytes[at] = byte;
        }
        let report = Report::parse(&bytes).unwrap();
        let read: Report = serde_json::from_value(serde_json::to_value(&report).unwrap()).unwrap();
        prop_assert_eq!(read.to_bytes().unwrap().to_vec(), bytes);
    }
}
