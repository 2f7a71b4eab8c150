//! The verification of a quote, by `dcap-qvl`: the platform's key up to Intel's root, the quoting enclave, its signature, and what Intel
//! thinks of the versions of all that is below the guest. What the owner demands of a genuine one is for
//! [`crate::tdx::Requirements`]; the library's own opinions on guests bound to others are left to those.

use crate::{
    encoding::one_line,
    event_log::Bank,
    evidence::{Claims, Details, EvidenceError, Preparation, Verifier},
    images::{self, ListError},
    kbs::Tee,
    report_data::{self, ReportData},
    tdx::{
        TcbStatus, TdxClaims, TdxEvidence,
        collateral::{CollateralError, CollateralStore, Platform},
        evidence::MAX_QUOTE,
    },
};
use dcap_qvl::{
    Policy, QuoteClaims, QuoteCollateralV3, TcbStatus as Status, configs::RingConfig, intel, quote::Quote, verify::QuoteVerifier,
};
use serde_json::Value;

/// The header's kind of a TDX quote; an SGX quote has 0.
const TDX: u32 = 0x81;

/// Verifies quotes.
#[derive(Debug)]
pub struct TdxVerifier {
    store: CollateralStore,
    /// Another root than Intel's.
    #[cfg(any(test, feature = "testing"))]
    root: Option<Vec<u8>>,
}

impl TdxVerifier {
    /// A verifier with this collateral.
    pub fn new(store: CollateralStore) -> Self {
        Self {
            store,
            #[cfg(any(test, feature = "testing"))]
            root: None,
        }
    }

    fn library(&self) -> QuoteVerifier<RingConfig> {
        #[cfg(any(test, feature = "testing"))]
        if let Some(root) = &self.root {
            return QuoteVerifier::new(root.clone()).with_config().allow_service_td(true).allow_debug(true);
        }
        // Both are refused by a release rule that does not allow them; a verifier that refused them first could not say what was found.
        QuoteVerifier::new_prod().with_config().allow_service_td(true).allow_debug(true)
    }

    /// What a quote says, if Intel vouches for it at the time `now` (seconds since 1970).
    pub fn verify_quote(&self, quote: &[u8], now: u64) -> Result<TdxQuote, EvidenceError> {
        let parsed = parse(quote)?;
        let platform = platform(&parsed)?;
        let found = self.store.find(&platform).map_err(unavailable)?;
        let missing = || {
            let reason = format!("Intel's collateral for platform {} is not at hand", platform.fmspc);
            EvidenceError::Endorsement { tee: Tee::Tdx, reason }
        };
        let collateral = found.ok_or_else(missing)?;
        self.verify_with(quote, &collateral, now)
    }

    /// What evidence proves, whatever it is bound to: whether it is fresh is then not known.
    pub fn appraise(&self, evidence: &Value, now: u64) -> Result<Claims, EvidenceError> {
        let evidence = TdxEvidence::from_json(evidence)?;
        let TdxQuote { report_data, mr_config_id, mut claims } = self.verify_quote(&evidence.quote, now)?;
        if let Some(list) = &evidence.images {
            images::check(Bank::Sha384, list, &claims.rtmr3).map_err(|e| match e {
                ListError::Malformed(reason) => EvidenceError::Malformed { tee: Tee::Tdx, reason },
                ListError::Unexplained => untrusted("its images give another RTMR3 than the quote has".into()),
            })?;
        }
        claims.images = evidence.images;
        Ok(Claims {
            tee: Tee::Tdx,
            launch_measurement: claims.launch_measurement().to_vec(),
            init_data: mr_config_id.to_vec(),
            report_data: report_data.to_vec(),
            details: Details::Tdx(Box::new(claims)),
        })
    }

    fn verify_with(&self, quote: &[u8], collateral: &QuoteCollateralV3, now: u64) -> Result<TdxQuote, EvidenceError> {
        let claims = self.library().verify_with_policy(quote, collateral, now, &NoPolicy).map_err(|e| {
            // The chain of causes, on one line.
            let reason = e.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ");
            untrusted(one_line(&reason, 512))
        })?;
        TdxQuote::new(claims)
    }
}

/// A verified quote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdxQuote {
    /// What the guest had signed.
    pub report_data: [u8; 64],
    /// What the host gave at launch: here, the digest of the initdata.
    pub mr_config_id: [u8; 48],
    /// The rest.
    pub claims: TdxClaims,
}

/// Everything that is genuine: the release rule decides.
struct NoPolicy;

impl Policy for NoPolicy {
    fn validate(&self, _: &QuoteClaims) -> anyhow::Result<()> {
        Ok(())
    }
}

impl TdxQuote {
    fn new(quote: QuoteClaims) -> Result<Self, EvidenceError> {
        let report = quote.report.as_td10().ok_or_else(|| untrusted("it is a quote of SGX".into()))?;
        let tcb_status = match quote.tcb.status {
            Status::UpToDate => TcbStatus::UpToDate,
            Status::SWHardeningNeeded => TcbStatus::SWHardeningNeeded,
            Status::ConfigurationNeeded => TcbStatus::ConfigurationNeeded,
            Status::ConfigurationAndSWHardeningNeeded => TcbStatus::ConfigurationAndSWHardeningNeeded,
            Status::OutOfDate => TcbStatus::OutOfDate,
            Status::OutOfDateConfigurationNeeded => TcbStatus::OutOfDateConfigurationNeeded,
            Status::TDRelaunchAdvised => TcbStatus::TDRelaunchAdvised,
            Status::TDRelaunchAdvisedConfigurationNeeded => TcbStatus::TDRelaunchAdvisedConfigurationNeeded,
            Status::Revoked => return Err(untrusted("Intel has revoked the platform".into())),
        };
        let newer = quote.report.as_td15();
        let mr_service_td = newer.map_or([0; 48], |report| report.mr_service_td);
        // One digest is claimed: of the service guests at launch. Others that came later would hide behind it.
        if quote.report.as_td15_ex().is_some_and(|report| ![[0; 48], mr_service_td].contains(&report.cur_service_td_hash)) {
            return Err(untrusted("service guests were bound to it after its launch".into()));
        }
        let claims = TdxClaims {
            quote_version: quote.header.version,
            tcb_status,
            advisories: quote.tcb.advisory_ids,
            evaluation: quote.tcb.eval_data_number,
            tcb_date: quote.platform.tcb_date_tag,
            fmspc: quote.platform.pck.fmspc,
            ppid: quote.platform.pck.ppid,
            tee_tcb_svn: report.tee_tcb_svn,
            mr_seam: report.mr_seam,
            mr_signer_seam: report.mr_signer_seam,
            attributes: u64::from_le_bytes(report.td_attributes),
            xfam: u64::from_le_bytes(report.xfam),
            mr_td: report.mr_td,
            mr_owner: report.mr_owner,
            mr_owner_config: report.mr_owner_config,
            mr_service_td,
            rtmr0: report.rt_mr0,
            rtmr1: report.rt_mr1,
            rtmr2: report.rt_mr2,
            rtmr3: report.rt_mr3,
            images: None,
        };
        Ok(Self { report_data: report.report_data, mr_config_id: report.mr_config_id, claims })
    }
}

impl Verifier for TdxVerifier {
    fn tee(&self) -> Tee {
        Tee::Tdx
    }

    fn prepare<'a>(&'a self, evidence: &'a Value, now: u64) -> Preparation<'a> {
        Box::pin(async move {
            let evidence = TdxEvidence::from_json(evidence)?;
            let platform = platform(&parse(&evidence.quote)?)?;
            // Nothing is lost by asking again where the quote itself is bad: there it fails once more.
            let is_good = |collateral: &QuoteCollateralV3| self.verify_with(&evidence.quote, collateral, now).is_ok();
            match self.store.find(&platform).map_err(unavailable)? {
                Some(found) if is_good(&found) => Ok(()),
                found => match (self.store.fetch(&platform, is_good).await, found) {
                    (Ok(()), _) => Ok(()),
                    // Then the verification says what is wrong with what is at hand.
                    (Err(error), Some(_)) => {
                        log::warn!(tee = "tdx"; "no newer collateral: {error}");
                        Ok(())
                    }
                    (Err(error), None) => Err(unavailable(error)),
                },
            }
        })
    }

    fn verify(&self, evidence: &Value, bound: &ReportData, now: u64) -> Result<Claims, EvidenceError> {
        let claims = self.appraise(evidence, now)?;
        if claims.report_data != report_data::padded(bound) {
            let (found, wanted) = (hex::encode(claims.report_data), hex::encode(bound));
            return Err(EvidenceError::Binding { tee: Tee::Tdx, found, wanted });
        }
        Ok(claims)
    }
}

/// Takes a quote apart within its bounds, and refuses one that is not of TDX.
fn parse(quote: &[u8]) -> Result<Quote, EvidenceError> {
    let malformed = |reason: String| EvidenceError::Malformed { tee: Tee::Tdx, reason };
    if quote.len() > MAX_QUOTE {
        return Err(malformed(format!("quote: {} bytes, at most {MAX_QUOTE} are read", quote.len())));
    }
    let parsed = Quote::parse(quote).map_err(|e| malformed(format!("quote: {}", one_line(&e.to_string(), 256))))?;
    let (version, tee) = (parsed.header.version, parsed.header.tee_type);
    if tee != TDX || !(4..=5).contains(&version) {
        return Err(malformed(format!("quote of version {version} for TEE {tee:#x}, only versions 4 and 5 for {TDX:#x} are known")));
    }
    Ok(parsed)
}

/// Which platform made the quote, as its key's certificate says.
fn platform(quote: &Quote) -> Result<Platform, EvidenceError> {
    let failed =
        |e: anyhow::Error| EvidenceError::Malformed { tee: Tee::Tdx, reason: one_line(&format!("certificate of its key: {e:#}"), 256) };
    let fmspc = hex::encode(intel::quote_fmspc(quote).map_err(failed)?);
    let ca = intel::quote_ca(quote).map_err(failed)?.as_id_str();
    Ok(Platform { fmspc, ca })
}

fn untrusted(reason: String) -> EvidenceError {
    EvidenceError::Untrusted { tee: Tee::Tdx, reason }
}

fn unavailable(error: CollateralError) -> EvidenceError {
    EvidenceError::Endorsement { tee: Tee::Tdx, reason: error.to_string() }
}

#[cfg(test)]
mod tests;
