use super::{attester::collect, *};
use crate::{
    encoding::{from_standard, standard},
    event_log::{Bank, EventLog},
    evidence::{Claims, Details, EvidenceError, Verifier},
    measure::tdx::InitrdWord,
    report_data::ReportData,
};
use serde_json::{Value, json};
use std::{
    os::unix::net::UnixStream,
    process::{Child, Command},
    time::{Duration, Instant},
};

mod recorded;

const BOUND: ReportData = [5; 48];
const INITDATA: [u8; 32] = [0x22; 32];

/// A boot of Debian 13's OVMF and kernel on QEMU's q35, as `binary_bios_measurements` gave it.
const BOOT_LOG: &[u8] = include_bytes!("testdata/boot.log");
const BOOT_CMDLINE: &str = "console=ttyS0 panic=-1 reboot=t cryptomgr.notests random.trust_cpu=on";

/// A real TPM, emulated, with the registers of [`BOOT_LOG`].
struct Swtpm {
    process: Child,
    device: Device<UnixStream>,
    directory: tempfile::TempDir,
}

impl Swtpm {
    fn booted() -> Self {
        Self::from(tempfile::tempdir().unwrap())
    }

    /// A TPM with the state of another, as the guests of a node have it that share one.
    fn copy_of(other: &Self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::copy(other.directory.path().join("tpm2-00.permall"), directory.path().join("tpm2-00.permall")).unwrap();
        Self::from(directory)
    }

    fn from(directory: tempfile::TempDir) -> Self {
        let socket = directory.path().join("s");
        let mut command = Command::new("swtpm");
        command.args(["socket", "--tpm2", "--flags", "not-need-init", "--tpmstate"]).arg(format!("dir={}", directory.path().display()));
        command.arg("--server").arg(format!("type=unixio,path={}", socket.display()));
        let process = command.spawn().expect("swtpm: install it (scripts/setup)");
        let deadline = Instant::now() + Duration::from_secs(60);
        let connection = loop {
            match UnixStream::connect(&socket) {
                Ok(connection) => break connection,
                Err(error) => assert!(Instant::now() < deadline, "swtpm: {error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut device = Device::new(connection);
        device.startup().unwrap();
        for event in EventLog::parse(BOOT_LOG, Bank::Sha256).unwrap().events() {
            device.extend(u8::try_from(event.register).unwrap(), event.digest.try_into().unwrap()).unwrap();
        }
        Self { process, device, directory }
    }

    fn evidence(&mut self, bound: &ReportData) -> Value {
        collect(&mut self.device, bound, BOOT_LOG, Some(&INITDATA), &[]).unwrap()
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn verify(evidence: &Value, bound: &ReportData) -> Result<Claims, EvidenceError> {
    TpmVerifier.verify(evidence, bound, 0)
}

/// Changes one byte of a base64 member.
fn flipped(evidence: &Value, pointer: &str, at: usize) -> Value {
    let mut changed = evidence.clone();
    let member = changed.pointer_mut(pointer).unwrap();
    let mut bytes = from_standard(member.as_str().unwrap()).unwrap();
    bytes[at] ^= 1;
    *member = json!(standard(&bytes));
    changed
}

#[test]
fn a_quote_of_a_real_tpm_is_verified_and_every_change_of_it_refused() {
    let mut tpm = Swtpm::booted();
    tpm.device.extend(INITDATA_PCR, &INITDATA).unwrap();
    let evidence = tpm.evidence(&BOUND);
    let claims = verify(&evidence, &BOUND).unwrap();
    assert_eq!((claims.tee, claims.init_data.as_slice()), (crate::Tee::Tpm, &INITDATA[..]));
    assert!(claims.has_init_data(&INITDATA) && !claims.has_init_data(&[0x23; 32]));
    let Details::Tpm(details) = &claims.details else { panic!("{claims:?}") };

    // The same TPM has the same key, and nobody else has it.
    let again = tpm.evidence(&[6; 48]);
    assert_eq!(again["ak_public"], evidence["ak_public"]);
    let spki = quote::spki(&tpm.device.attestation_key_modulus().unwrap());
    assert_eq!(Sha256::digest(&spki)[..], details.ak);
    assert_eq!(Swtpm::copy_of(&tpm).evidence(&BOUND)["ak_public"], evidence["ak_public"]);
    assert_ne!(Swtpm::booted().evidence(&BOUND)["ak_public"], evidence["ak_public"]);

    // Evidence of another handshake.
    assert!(matches!(verify(&again, &BOUND), Err(EvidenceError::Binding { .. })));
    assert!(matches!(verify(&evidence, &[6; 48]), Err(EvidenceError::Binding { .. })));

    let key = Swtpm::booted().evidence(&BOUND)["ak_public"].clone();
    let with_anothers_key = json!({"ak_public": key, "tpm_quote": evidence["tpm_quote"], "event_log": evidence["event_log"]});
    assert!(verify(&with_anothers_key, &BOUND).unwrap_err().to_string().contains(FOREIGN));
    every_change_of_a_byte_is_refused_with_its_reason(&evidence);
    for index in 0..PCRS {
        let mut changed = evidence.clone();
        changed["tpm_quote"]["pcrs"][index] = json!("77".repeat(32));
        assert!(matches!(verify(&changed, &BOUND), Err(EvidenceError::Untrusted { .. })), "PCR {index}");
    }
    let mut changed = evidence.clone();
    changed["init_data"] = json!("33".repeat(32));
    assert!(verify(&changed, &BOUND).unwrap_err().to_string().contains("PCR 8"));
}

const FOREIGN: &str = "not genuine: the signature is not the attestation key's";

fn every_change_of_a_byte_is_refused_with_its_reason(evidence: &Value) {
    let bytes = |pointer: &str| from_standard(evidence.pointer(pointer).unwrap().as_str().unwrap()).unwrap();
    let replayed = |log: &[u8]| EventLog::parse(log, Bank::Sha256).map(|log| log.replay());
    let length = [bytes("/tpm_quote/message"), bytes("/tpm_quote/signature"), bytes("/ak_public")].map(|part| part.len());
    // In a signature two numbers and a length stand before it; in a key 33 bytes before the modulus, and its exponent behind.
    let modulus = 33..length[2] - 5;
    for (pointer, length) in ["/tpm_quote/message", "/tpm_quote/signature", "/ak_public"].into_iter().zip(length) {
        for at in 0..length {
            let reason = verify(&flipped(evidence, pointer, at), &BOUND).expect_err(pointer).to_string();
            let own = match (pointer, at) {
                ("/tpm_quote/signature", 0..4) => "the signature is of another scheme",
                ("/tpm_quote/signature", 4..6) => "the signature's length",
                ("/ak_public", _) if !modulus.contains(&at) => "the key is of another kind",
                _ => FOREIGN,
            };
            assert!(reason.contains(own), "{pointer} {at}: {reason}");
        }
    }
    // Of the log, only what is extended counts: its texts are for people.
    let log = bytes("/event_log");
    for at in 0..log.len() {
        let mut changed = log.clone();
        changed[at] ^= 1;
        let result = verify(&flipped(evidence, "/event_log", at), &BOUND);
        match replayed(&changed) {
            Ok(registers) if registers == replayed(&log).unwrap() => assert!(result.is_ok(), "{at}: {result:?}"),
            Ok(_) => assert!(result.unwrap_err().to_string().contains("not genuine: the event log gives another PCR"), "{at}"),
            Err(error) => assert!(result.unwrap_err().to_string().contains(&error.to_string()), "{at}"),
        }
    }
}

#[test]
fn a_guest_without_initdata_cannot_pass_for_one_that_has_it() {
    let mut tpm = Swtpm::booted();
    // What the agent does without initdata; then somebody inside who has got at the TPM.
    tpm.device.extend(INITDATA_PCR, &initdata_event(None)).unwrap();
    let plain = collect(&mut tpm.device, &BOUND, BOOT_LOG, None, &[]).unwrap();
    assert_eq!(verify(&plain, &BOUND).unwrap().init_data, Vec::<u8>::new());
    tpm.device.extend(INITDATA_PCR, &INITDATA).unwrap();
    assert!(verify(&tpm.evidence(&BOUND), &BOUND).unwrap_err().to_string().contains("PCR 8"));
    // The zeros of "none" are no initdata either.
    let zeros = collect(&mut Swtpm::booted().device, &BOUND, BOOT_LOG, Some(&[0; 32]), &[]).unwrap();
    assert!(verify(&zeros, &BOUND).is_err());
}

#[test]
fn images_are_those_that_the_tpm_was_extended_with() {
    let mut tpm = Swtpm::booted();
    tpm.device.extend(INITDATA_PCR, &INITDATA).unwrap();
    let images = [[1; 32], [2; 32]];
    let measured = verify(&tpm.evidence(&BOUND), &BOUND).unwrap();
    for image in &images {
        tpm.device.extend(IMAGES_PCR, image).unwrap();
    }
    let evidence = |tpm: &mut Swtpm, list: &[Pcr]| collect(&mut tpm.device, &BOUND, BOOT_LOG, Some(&INITDATA), list).unwrap();
    let listed = |claims: &Claims| match &claims.details {
        Details::Tpm(details) => details.images.clone(),
        other => panic!("{other:?}"),
    };
    let good = evidence(&mut tpm, &images);
    let claims = verify(&good, &BOUND).unwrap();
    assert_eq!(listed(&measured), Some(Vec::new()));
    assert_eq!(listed(&claims), Some(images.map(|image| format!("sha256:{}", hex::encode(image))).to_vec()));
    assert_eq!(claims.launch_measurement, measured.launch_measurement, "what was launched is the same");
    // The register as anybody computes it from the images' digests alone.
    let wanted = extended(&extended(&[0; 32], &[1; 32]), &[2; 32]);
    assert_eq!(good["tpm_quote"]["pcrs"][usize::from(IMAGES_PCR)], json!(hex::encode(wanted)));
    for list in [&[][..], &images[..1], &[[2; 32], [1; 32]], &[[1; 32], [2; 32], [3; 32]]] {
        let error = verify(&evidence(&mut tpm, list), &BOUND).unwrap_err().to_string();
        assert!(error.contains("PCR 13"), "{error}");
    }
    // Trustee's guests have no list: nothing is claimed.
    let mut silent = good.clone();
    silent.as_object_mut().unwrap().remove("images");
    assert_eq!(listed(&verify(&silent, &BOUND).unwrap()), None);
    let mut malformed = good.clone();
    malformed["images"][0] = json!("sha256:xy");
    assert!(matches!(verify(&malformed, &BOUND), Err(EvidenceError::Malformed { .. })));
    // Without a handshake it is the same evidence, of which nobody knows how old it is.
    let appraised = TpmVerifier.appraise(&good).unwrap();
    assert_eq!((appraised.report_data.as_slice(), listed(&appraised)), (&BOUND[..32], listed(&claims)));
}

#[test]
fn a_quote_over_less_than_the_launch_is_refused() {
    let message = |bitmap: [u8; 3]| {
        let begin = [&[0xff, 0x54, 0x43, 0x47, 0x80, 0x18, 0, 0, 0, 32][..], &[5; 32], &[0; 25], &[0, 0, 0, 1, 0, 0x0b, 3]].concat();
        [&begin[..], &bitmap, &[0, 32], &[0; 32]].concat()
    };
    assert!(!quote::Quote::parse(&message([0xff, 0xff, 0])).unwrap().selected[16]);
    for length in 0..message([0xff; 3]).len() {
        assert!(quote::Quote::parse(&message([0xff; 3])[..length]).is_err(), "{length}");
    }
    assert!(quote::Quote::parse(&[message([0xff; 3]), vec![0]].concat()).is_err());
}

#[test]
fn the_prediction_is_what_a_boot_left() {
    let replayed = EventLog::parse(BOOT_LOG, Bank::Sha256).unwrap().replay();
    let events = EventLog::parse(BOOT_LOG, Bank::Sha256).unwrap();
    let kernel = crate::efi_kernel::tests::kernel();
    let initramfs = b"an initramfs";
    let launch = predict::Launch {
        firmware: b"unknown",
        pcr0: Some(replayed[&0].clone().try_into().unwrap()),
        initrd_word: InitrdWord::Last,
        kernel: &kernel,
        initramfs,
        cmdline: BOOT_CMDLINE,
        memory_mib: 512,
    };
    let prediction = predict::predict(&launch).unwrap();
    // Kernel and initramfs of the boot are too large to be kept here; whole boots are compared end to end.
    for index in [0, 2, 3, 5, 6, 7] {
        assert_eq!(prediction.pcrs[&index].to_vec(), replayed[&u32::try_from(index).unwrap()], "PCR {index}");
    }
    let cmdline = events.events().iter().find(|event| event.register == 9).unwrap();
    let with = |text: &str| {
        let options: Vec<u8> = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        let pcr = extended(&[0; 32], &Sha256::digest(options).into());
        extended(&pcr, &Sha256::digest(initramfs).into())
    };
    assert_eq!(prediction.pcrs[&9], with(&format!("{BOOT_CMDLINE} initrd=initrd")));
    let options: Vec<u8> = format!("{BOOT_CMDLINE} initrd=initrd").encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    assert_eq!(Sha256::digest(options)[..], *cmdline.digest);

    let other = |launch: predict::Launch<'_>| assert_ne!(predict::predict(&launch).unwrap().measurement(), prediction.measurement());
    other(predict::Launch { cmdline: "quiet", ..launch });
    other(predict::Launch { initrd_word: InitrdWord::First, ..launch });
    other(predict::Launch { initramfs: b"another", ..launch });
    other(predict::Launch { memory_mib: 1024, ..launch });
    other(predict::Launch { pcr0: Some([0; 32]), ..launch });
    let error = predict::predict(&predict::Launch { pcr0: None, ..launch }).unwrap_err().to_string();
    assert!(error.contains("check --launch") && !error.contains('\n'), "{error}");
}
