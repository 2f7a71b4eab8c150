//! `cloister check --launch`: a throw-away guest, launched as the shim would, that attests to a broker of this process. What it shows on
//! a machine: that the enclave launches, that its evidence verifies, that it carries the initdata, and that `cloister measure` foretells its
//! measurement.

use super::Finding;
use crate::{
    commands::measure::{self, Assumptions},
    endorsements::Endorsements,
    output,
};
use anyhow::{Context, Result};
use attestation::{Claims, Details, EvidenceError, Tee, Verifier, evidence::Preparation, report_data::ReportData, sample::SampleVerifier};
use key_broker::{Broker, BrokerConfig};
use policy::Initdata;
use runtime::{
    config::Config,
    sandbox::{Sandbox, SandboxSpec},
};
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::timeout,
};

/// How long a guest that runs may take to attest.
const ATTEST: Duration = Duration::from_secs(120);

/// What a verifier said of one attempt.
type Verdict = Result<Claims, EvidenceError>;

/// Passes on what another verifier says, and keeps a copy.
struct Recorder {
    inner: Box<dyn Verifier>,
    verdicts: mpsc::UnboundedSender<Verdict>,
}

impl Verifier for Recorder {
    fn tee(&self) -> Tee {
        self.inner.tee()
    }

    fn prepare<'a>(&'a self, evidence: &'a Value, now: u64) -> Preparation<'a> {
        self.inner.prepare(evidence, now)
    }

    fn verify(&self, evidence: &Value, report_data: &ReportData, now: u64) -> Verdict {
        let verdict = self.inner.verify(evidence, report_data, now);
        // Nobody listens once the check has what it wants.
        let _ = self.verdicts.send(verdict.clone());
        verdict
    }
}

/// Launches, and says how far it came.
pub(super) async fn launch(config: &Config) -> Vec<Finding> {
    output::note("launching a throw-away guest …");
    match attempt(config).await {
        Ok(findings) => findings,
        Err(error) => {
            vec![Finding::failed("launch", format!("{error:#}"), "the line names the cause; the checks above say what is missing")]
        }
    }
}

async fn attempt(config: &Config) -> Result<Vec<Finding>> {
    let directory = tempdir()?;
    let (sender, mut verdicts) = mpsc::unbounded_channel();
    let record = |inner: Box<dyn Verifier>| -> Box<dyn Verifier> { Box::new(Recorder { inner, verdicts: sender.clone() }) };
    let mut verifiers = vec![record(Box::new(SampleVerifier))];
    verifiers.extend(Endorsements::default().verifiers()?.into_iter().map(record));
    let broker = Broker::open(BrokerConfig { verifiers, ..BrokerConfig::new(&directory.path.join("store")) })?;
    let listener = TcpListener::bind("127.0.0.1:0").await.context("listen on loopback")?;
    let authority = listener.local_addr().context("address of the listener")?.to_string();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(async move { broker.serve(listener, async { drop(stopped.await) }).await });

    let document = format!(
        "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = '''\n[token_configs.kbs]\nurl = \"http://{authority}\"\n'''\n"
    );
    let (initdata, digest) = Initdata::parse_toml(&document)?;
    let mut config = config.clone();
    config.courier.allow.push(authority);
    let spec = SandboxSpec {
        id: format!("check-{}", std::process::id()),
        hostname: "check".into(),
        initdata: initdata.to_gzip(),
        initdata_digest: digest.bytes().to_vec(),
        ..SandboxSpec::default()
    };
    let began = Instant::now();
    let sandbox = Sandbox::boot(&config, spec).await?;
    let mut findings = vec![Finding::ok("launch", format!("a guest was up after {:.1} s", began.elapsed().as_secs_f32()))];
    let verdict = timeout(ATTEST, verdicts.recv()).await;
    sandbox.stop().await?;
    let _ = stop.send(());
    let _ = server.await;
    match verdict {
        Ok(Some(Ok(claims))) => findings.extend(judge(&config, &claims, digest.bytes())),
        Ok(Some(Err(error))) => {
            findings.push(Finding::failed("evidence", error.to_string(), "the guest runs, but nobody would believe it"))
        }
        Ok(None) | Err(_) => findings.push(Finding::failed(
            "evidence",
            format!("none within {} s", ATTEST.as_secs()),
            "the guest's log, in containerd's, says why",
        )),
    }
    Ok(findings)
}

/// Holds what was proved against what was meant.
fn judge(config: &Config, claims: &Claims, initdata: &[u8]) -> Vec<Finding> {
    let mut findings = vec![match claims.tee {
        Tee::Sample => {
            Finding::warning("evidence", "of type sample, which proves nothing", "for development only; set tee in the configuration")
        }
        tee => Finding::ok("evidence", format!("of type {tee}, verified")),
    }];
    findings.push(match claims.has_init_data(initdata) {
        true => Finding::ok("initdata", "is in the evidence"),
        false => Finding::failed(
            "initdata",
            "is not in the evidence",
            "do not use this machine: its launches do not carry the owner's configuration",
        ),
    });
    findings.push(measurement(config, claims));
    match &claims.details {
        Details::Tpm(tpm) => {
            findings.push(Finding::ok("TPM", format!("attestation key {} (tpm.ak of a release rule)", hex::encode(&tpm.ak))));
        }
        // Not computed: it has what this machine and its QEMU gave the firmware, ACPI tables among it.
        Details::Tdx(tdx) => {
            findings
                .push(Finding::ok("RTMR0", format!("{} (tdx.rtmr0 of a release rule, for guests of this shape)", hex::encode(tdx.rtmr0))));
        }
        Details::Snp(_) | Details::None => {}
    }
    findings
}

/// Looks for what `cloister measure` has to assume on this machine to say what was measured.
fn measurement(config: &Config, claims: &Claims) -> Finding {
    let found = hex::encode(&claims.launch_measurement);
    let sizes = (config.guest.vcpus, config.guest.memory_mib);
    let assumed = [(false, false), (true, false), (false, true), (true, true)];
    let assumed = assumed.map(|(old_firmware, old_qemu)| Assumptions { pcr0: None, old_firmware, old_qemu });
    // What a firmware that nobody knows says of itself is taken for the rest of the measurement only.
    let pcr0 = pcr0(claims).and_then(|pcr0| hex::decode(pcr0).ok()?.try_into().ok());
    let unknown = [false, true].map(|old_firmware| Assumptions { pcr0, old_firmware, old_qemu: false });
    let says = |assumptions: &&Assumptions| {
        measure::measure(config, sizes, assumptions).is_ok_and(|predicted| predicted.launch_measurement == found)
    };
    if let Some(assumptions) = assumed.iter().find(says) {
        return Finding::ok("measurement", format!("{found}, as `{}` says", assumptions.command()));
    }
    match measure::measure(config, sizes, &Assumptions::default()) {
        Ok(predicted) => Finding::failed(
            "measurement",
            format!("{found}, but `cloister measure` says {}{}", predicted.launch_measurement, difference(&predicted.pcrs, claims)),
            "the files changed since the launch, or this QEMU or firmware is one whose measurement is computed wrongly: please report it",
        ),
        Err(error) => match unknown.iter().filter(|_| pcr0.is_some()).find(says) {
            Some(assumptions) => Finding::warning(
                "measurement",
                format!("{found}, as foretold but for the firmware, which is not known"),
                format!("if you trust this firmware: {}", assumptions.command()),
            ),
            None => Finding::failed("measurement", format!("{found}, not foretold: {error:#}"), "see the line"),
        },
    }
}

/// The registers that are not as predicted, for whoever looks for the reason.
fn difference(predicted: &std::collections::BTreeMap<usize, String>, claims: &Claims) -> String {
    let Details::Tpm(tpm) = &claims.details else { return String::new() };
    let other = |pcr: &&String| {
        pcr.split_once(':').is_some_and(|(index, hex)| index.parse().ok().and_then(|i: usize| predicted.get(&i)).is_some_and(|p| p != hex))
    };
    let list: Vec<&str> = tpm.pcrs.iter().filter(other).filter_map(|pcr| Some(pcr.split_once(':')?.0)).collect();
    format!(" (PCR {} differ)", list.join(", "))
}

fn pcr0(claims: &Claims) -> Option<&str> {
    let Details::Tpm(tpm) = &claims.details else { return None };
    tpm.pcrs.iter().find_map(|pcr| pcr.strip_prefix("0:"))
}

/// A folder for the broker's store, gone when dropped.
struct Directory {
    path: std::path::PathBuf,
}

fn tempdir() -> Result<Directory> {
    use std::os::unix::fs::DirBuilderExt;
    let path = std::env::temp_dir().join(format!("cloister-check-{}", std::process::id()));
    std::fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| path.display().to_string())?;
    Ok(Directory { path })
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use attestation::tpm::TpmClaims;

    fn claims(tee: Tee, details: Details) -> Claims {
        Claims { tee, launch_measurement: vec![1; 32], init_data: vec![2; 32], report_data: Vec::new(), details }
    }

    #[test]
    fn what_does_not_agree_is_said() {
        let config = Config::default();
        let status = |findings: &[Finding], what: &str| findings.iter().find(|f| f.what == what).map(|f| f.status);
        let findings = judge(&config, &claims(Tee::Sample, Details::None), &[2; 32]);
        assert_eq!(status(&findings, "evidence"), Some(Status::Warning));
        assert_eq!(status(&findings, "initdata"), Some(Status::Ok));
        assert_eq!(status(&findings, "measurement"), Some(Status::Failed), "no guest is installed to compare with");
        let tpm = Details::Tpm(TpmClaims { ak: vec![3; 32], pcrs: vec!["0:ab".into(), "4:cd".into()], images: None });
        let findings = judge(&config, &claims(Tee::Tpm, tpm.clone()), &[9; 32]);
        assert_eq!(status(&findings, "initdata"), Some(Status::Failed));
        assert_eq!(pcr0(&claims(Tee::Tpm, tpm.clone())), Some("ab"));
        let predicted = [(0, "ab".to_owned()), (4, "00".to_owned())].into();
        assert_eq!(difference(&predicted, &claims(Tee::Tpm, tpm)), " (PCR 4 differ)");
    }
}
