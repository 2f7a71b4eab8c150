//! `cloister verify`: what a file of evidence proves, without a broker and without a network.

use crate::{
    commands::broker::read_rule,
    endorsements::{Endorsements, Service},
    input, output,
};
use anyhow::{Context, Result, bail};
use attestation::{
    Claims, Details, EvidenceError, Tee, Verifier,
    snp::{
        Report, SnpVerifier,
        evidence::{CertType, Certificate, KnownCert, SnpEvidence},
        report,
    },
    tdx::{TdxEvidence, TdxVerifier},
    tpm::TpmVerifier,
};
use serde::Serialize;
use serde_json::Value;
use std::{path::PathBuf, process::ExitCode, time::SystemTime};

/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Verify a file of evidence: who made it, what it says, and whether a release rule would release to it
///
///   cloister verify evidence.json --rule rule.toml
///   cloister verify report.bin --certificate vcek.der --at 1772323200 --json
///
/// Evidence is the JSON of a handshake (all of it, or the part of the TEE) or of the workload API, or the report of SEV-SNP or quote of TDX
/// itself. Nobody is asked over the network unless a service is named. The exit code is 0 only if it is genuine, bound to what is wanted, and the rule releases.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The evidence; `-` is standard input
    #[arg(value_name = "FILE")]
    evidence: PathBuf,
    /// The release rule (TOML) to hold it against
    #[arg(long, value_name = "FILE")]
    rule: Option<PathBuf>,
    /// What it must be bound to, hexadecimal; zeros may follow it. Without it, that the evidence is fresh is not proved
    #[arg(long, value_name = "HEX")]
    report_data: Option<String>,
    /// Certificate of the chip or provider (DER or PEM), for an SNP report that comes without; may be repeated
    #[arg(long, value_name = "FILE")]
    certificate: Vec<PathBuf>,
    /// The time to verify at, seconds since 1970, instead of now
    #[arg(long, value_name = "SECONDS")]
    at: Option<u64>,
    #[command(flatten)]
    endorsements: Endorsements,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Verdict {
    genuine: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Whether it was held against something that it should be bound to.
    fresh: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    claims: Option<Claims>,
    /// Whether the rule releases; none without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    released: Option<bool>,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
}

enum AnyVerifier {
    Snp(SnpVerifier),
    Tdx(TdxVerifier),
    Tpm(TpmVerifier),
}

impl AnyVerifier {
    async fn verify(&self, evidence: &Value, now: u64) -> Result<Claims, EvidenceError> {
        match self {
            Self::Snp(verifier) => {
                verifier.prepare(evidence, now).await?;
                verifier.appraise(evidence, now)
            }
            Self::Tdx(verifier) => {
                verifier.prepare(evidence, now).await?;
                verifier.appraise(evidence, now)
            }
            Self::Tpm(verifier) => verifier.appraise(evidence),
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let verdict = verdict(args)?;
    if args.json {
        output::json(&verdict)?
    } else {
        show(&verdict)?
    }
    Ok(if verdict.genuine && verdict.released != Some(false) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn verdict(args: &Args) -> Result<Verdict> {
    let bytes = input::read(&args.evidence, MAX_FILE)?;
    let certificates = args.certificate.iter().map(|path| input::read(path, MAX_FILE)).collect::<Result<Vec<_>>>()?;
    let (tee, evidence) = recognise(&bytes, &certificates).with_context(|| args.evidence.display().to_string())?;
    let verifier = match tee {
        Tee::Snp => AnyVerifier::Snp(args.endorsements.snp(Service::Nobody)?),
        Tee::Tdx => AnyVerifier::Tdx(args.endorsements.tdx(Service::Nobody)?),
        Tee::Tpm => AnyVerifier::Tpm(TpmVerifier),
        tee => bail!("{}: evidence of type {tee} cannot be verified from a file", args.evidence.display()),
    };
    let rule = args.rule.as_deref().map(read_rule).transpose()?;
    let wanted = args.report_data.as_deref().map(|text| hex::decode(text).context("--report-data is not hexadecimal")).transpose()?;
    let now = args.at.unwrap_or_else(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()));
    let result = input::block_on(async { Ok(verifier.verify(&evidence, now).await) })?;
    let result = result.and_then(|claims| bound(claims, tee, wanted.as_deref()));

    let has_rule = rule.is_some();
    let (claims, reason) = result.map_or_else(|error| (None, Some(error.to_string())), |claims| (Some(claims), None));
    let refusal = claims.as_ref().zip(rule).and_then(|(claims, rule)| rule.check(claims).err());
    let genuine = claims.is_some();
    let released = has_rule.then_some(genuine && refusal.is_none());
    Ok(Verdict { genuine, reason, fresh: genuine && wanted.is_some(), claims, released, refusal })
}

/// Whether claims are bound to what is wanted: to that, followed by zeros; a TPM's to no less than the first 32 bytes of it.
fn bound(claims: Claims, tee: Tee, wanted: Option<&[u8]>) -> Result<Claims, EvidenceError> {
    let Some(wanted) = wanted else { return Ok(claims) };
    let cut = if tee == Tee::Tpm { wanted.len().min(claims.report_data.len().max(32)) } else { wanted.len() };
    let rest = claims.report_data.strip_prefix(&wanted[..cut]).filter(|_| !wanted.is_empty());
    if rest.is_some_and(|rest| rest.iter().all(|byte| *byte == 0)) {
        return Ok(claims);
    }
    Err(EvidenceError::Binding { tee, found: hex::encode(&claims.report_data), wanted: hex::encode(wanted) })
}

/// What kind of evidence a file holds, in the JSON form of its kind.
fn recognise(bytes: &[u8], certificates: &[Vec<u8>]) -> Result<(Tee, Value)> {
    // A report has one length, and a quote begins with its version and the kind of its key; JSON looks like neither.
    if bytes.len() == report::LENGTH {
        let report = Report::parse(bytes).context("not a report of SEV-SNP")?;
        return Ok((Tee::Snp, with_certificates(SnpEvidence { attestation_report: report, cert_chain: None }, certificates)?));
    }
    if matches!(bytes, [4 | 5, 0, 2, 0, ..]) {
        return Ok((Tee::Tdx, TdxEvidence { quote: bytes.to_vec(), images: None }.to_json()?));
    }
    let json: Value = serde_json::from_slice(bytes).context("neither JSON, nor a report of SEV-SNP, nor a quote of TDX")?;
    let inner = json.pointer("/tee-evidence/primary_evidence").unwrap_or(&json);
    if inner.get("attestation_report").is_some() {
        return Ok((Tee::Snp, with_certificates(SnpEvidence::from_json(inner)?, certificates)?));
    }
    if inner.get("tpm_quote").is_some() {
        return Ok((Tee::Tpm, inner.clone()));
    }
    if inner.get("quote").is_some() {
        return Ok((Tee::Tdx, inner.clone()));
    }
    if inner.get("svn").is_some() {
        return Ok((Tee::Sample, inner.clone()));
    }
    bail!("JSON, but with neither `attestation_report` (SEV-SNP) nor `quote` (TDX) nor `tpm_quote` (TPM) in it")
}

fn with_certificates(mut evidence: SnpEvidence, certificates: &[Vec<u8>]) -> Result<Value> {
    // Of which kind one is shows when it is verified; it stands for both.
    let kinds = [KnownCert::Vcek, KnownCert::Vlek];
    let given = certificates.iter().flat_map(|data| kinds.map(|kind| Certificate { cert_type: CertType::Known(kind), data: data.clone() }));
    let given: Vec<Certificate> = given.collect();
    if !given.is_empty() {
        evidence.cert_chain.get_or_insert_default().extend(given);
    }
    Ok(serde_json::to_value(evidence)?)
}

fn show(verdict: &Verdict) -> Result<()> {
    let Some(claims) = &verdict.claims else {
        return output::line(verdict.reason.as_deref().unwrap_or("not genuine"));
    };
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        row(
            "genuine",
            match claims.tee {
                Tee::Tpm => "tpm evidence, signed by its key; whose TPM that is, nobody vouches for".into(),
                tee => format!("{tee} evidence, up to its maker's root"),
            },
        ),
        row("launch_measurement", hex::encode(&claims.launch_measurement)),
        row("init_data", hex::encode(&claims.init_data)),
        row("report_data", hex::encode(&claims.report_data)),
    ];
    rows.push(row(
        "fresh",
        if verdict.fresh { "bound to what was wanted".into() } else { "not known: --report-data was not given".into() },
    ));
    match &claims.details {
        Details::Snp(snp) => {
            rows.push(row(
                "processor",
                format!("{}, signed by its {}, report version {}", snp.generation, snp.signing_key, snp.report_version),
            ));
            rows.push(row("policy", format!("{:#x}, platform {:#x}, VMPL {}", snp.policy, snp.platform_info, snp.vmpl)));
            rows.push(row("reported TCB", snp.reported_tcb.to_string()));
            rows.push(row("committed TCB", snp.committed_tcb.to_string()));
            rows.push(row("firmware", snp.current_firmware.to_string()));
            rows.push(row("chip", hex::encode(snp.chip_id)));
        }
        Details::Tdx(tdx) => {
            rows.push(row("platform", format!("{}, quote version {}", hex::encode(tdx.fmspc), tdx.quote_version)));
            let open = if tdx.advisories.is_empty() { "none".into() } else { tdx.advisories.join(", ") };
            rows.push(row("TCB status", format!("{}, advisories open: {open}, evaluation {}", tdx.tcb_status, tdx.evaluation)));
            rows.push(row("attributes", format!("{:#x}, XFAM {:#x}", tdx.attributes, tdx.xfam)));
            for (name, register) in
                [("MRTD", &tdx.mr_td), ("RTMR0", &tdx.rtmr0), ("RTMR1", &tdx.rtmr1), ("RTMR2", &tdx.rtmr2), ("RTMR3", &tdx.rtmr3)]
            {
                rows.push(row(name, hex::encode(register)));
            }
        }
        Details::Tpm(tpm) => rows.push(row("key", hex::encode(&tpm.ak))),
        Details::None => {}
    }
    rows.extend(images(&claims.details).iter().map(|image| row("has run", image.clone())));
    if claims.is_debug() {
        rows.push(row("WARNING", "the host can read this guest's memory: nothing in it is confidential".into()));
    }
    output::table(&rows)?;
    match (&verdict.refusal, verdict.released) {
        (Some(refusal), _) => output::line(&format!("the rule refuses: {refusal}")),
        (None, Some(true)) => output::line("the rule releases"),
        _ => Ok(()),
    }
}

/// The images that a machine says it has run, where it can.
fn images(details: &Details) -> &[String] {
    let list = match details {
        Details::Tdx(tdx) => tdx.images.as_deref(),
        Details::Tpm(tpm) => tpm.images.as_deref(),
        Details::Snp(_) | Details::None => None,
    };
    list.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn evidence_is_recognised_by_what_is_in_it() {
        let tdx = json!({"quote": "BAAC", "cc_eventlog": null});
        let whole = json!({"tee-evidence": {"primary_evidence": tdx, "additional_evidence": ""}});
        for json in [&tdx, &whole] {
            assert_eq!(recognise(json.to_string().as_bytes(), &[]).unwrap(), (Tee::Tdx, tdx.clone()));
        }
        assert_eq!(recognise(&[4, 0, 2, 0, 0x81], &[]).unwrap().0, Tee::Tdx);
        assert_eq!(recognise(br#"{"ak_public": "", "tpm_quote": {}}"#, &[]).unwrap().0, Tee::Tpm);
        let mut report = vec![0; report::LENGTH];
        report[0] = 2;
        let (tee, evidence) = recognise(&report, &[vec![1, 2]]).unwrap();
        assert_eq!((tee, evidence["cert_chain"].as_array().unwrap().len()), (Tee::Snp, 2));
        for bad in [&b"junk"[..], b"{}", b"", &[9; report::LENGTH]] {
            assert!(recognise(bad, &[]).is_err());
        }
    }

    #[test]
    fn what_is_wanted_may_be_padded_and_nothing_else() {
        let claims = || Claims {
            tee: Tee::Snp,
            launch_measurement: vec![1; 48],
            init_data: vec![0; 32],
            report_data: [vec![7; 48], vec![0; 16]].concat(),
            details: Details::None,
        };
        assert!(bound(claims(), Tee::Snp, None).is_ok());
        assert!(bound(claims(), Tee::Snp, Some(&[7; 48])).is_ok());
        for wanted in [&[7; 47][..], &[8; 48], &[], &[7; 65]] {
            assert!(matches!(bound(claims(), Tee::Snp, Some(wanted)), Err(EvidenceError::Binding { .. })), "{wanted:?}");
        }
        // A TPM signs the first 32 bytes of a digest; less is nothing.
        let of_tpm = |length| Claims { report_data: vec![7; length], ..claims() };
        assert!(bound(of_tpm(32), Tee::Tpm, Some(&[7; 48])).is_ok() && bound(of_tpm(32), Tee::Snp, Some(&[7; 48])).is_err());
        assert!(bound(of_tpm(31), Tee::Tpm, Some(&[7; 48])).is_err() && bound(of_tpm(32), Tee::Tpm, Some(&[8; 48])).is_err());
    }

    /// The command on files of real machines.
    #[test]
    fn recorded_evidence_is_judged() {
        let Some(folder) = vectors::folder() else { return };
        let dir = tempfile::tempdir().unwrap();
        let rule = dir.path().join("rule.toml");
        let text =
            |measurement: &str| format!("tee = 'snp'\nlaunch_measurement = '{measurement}'\ninit_data = 'sha256:{}'\n", "00".repeat(32));
        std::fs::write(&rule, text(&"11".repeat(48))).unwrap();
        let evidence = folder.join("kbs/snp_evidence_trustee_sev7_dstack_milan.json");
        let of = |evidence: &std::path::Path, more: &[&str]| {
            let line = ["verify", evidence.to_str().unwrap()].iter().chain(more).map(ToString::to_string).collect::<Vec<_>>();
            verdict(
                &<Args as clap::FromArgMatches>::from_arg_matches(
                    &<Args as clap::Args>::augment_args(clap::Command::new("verify")).get_matches_from(line),
                )
                .unwrap(),
            )
            .unwrap()
        };
        let args = |more: &[&str]| of(&evidence, more);
        let now = ["--at", "1795000000"];
        let genuine = args(&now);
        assert!(genuine.genuine && !genuine.fresh && genuine.released.is_none(), "{genuine:?}");
        let measured = genuine.claims.as_ref().map(|claims| hex::encode(&claims.launch_measurement)).unwrap();
        assert!(measured.starts_with("7f51e17f"), "{measured}");
        let refused = args(&[&now[..], &["--rule", rule.to_str().unwrap()]].concat());
        assert_eq!((refused.genuine, refused.released), (true, Some(false)));
        assert!(refused.refusal.unwrap().starts_with("launch_measurement is 7f51e17f"));
        let bound = hex::encode(genuine.claims.unwrap().report_data);
        assert!(args(&[&now[..], &["--report-data", &bound]].concat()).fresh);
        let stale = args(&[&now[..], &["--report-data", &"07".repeat(48)]].concat());
        assert!(!stale.genuine && stale.reason.unwrap().contains("another challenge"));
        assert!(args(&["--at", "0"]).reason.unwrap().contains("valid from"));
        let tpm = folder.join("tpm/trustee_tpm_evidence.json");
        let verdict = of(&tpm, &[]);
        assert!(verdict.genuine && !verdict.fresh && images(&verdict.claims.unwrap().details).is_empty());
    }
}
