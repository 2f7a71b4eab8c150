//! The image config (OCI image-spec 1.1, `config.md`): what the guest derives a container's process from.

use crate::{
    digest::Digest,
    manifest::{MAX_LAYERS, PLATFORM, clip, null_is_default},
    strict_json,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use thiserror::Error;

/// Why an image config is not taken.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Not the JSON that it should be.
    #[error("image config: {0}")]
    Json(#[from] serde_json::Error),
    /// For another machine.
    #[error("the image is built for {os}/{architecture}; this guest runs {}/{}", PLATFORM.0, PLATFORM.1)]
    Platform {
        /// As it says.
        os: String,
        /// As it says.
        architecture: String,
    },
    /// A rule broken.
    #[error("image config: {field}: {rule}")]
    Field {
        /// Which field.
        field: &'static str,
        /// The rule.
        rule: String,
    },
}

/// An image config, its numbers bounded and its strings free of NUL bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `linux`.
    pub os: String,
    /// `amd64`.
    pub architecture: String,
    /// How to run it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: RunConfig,
    /// What it consists of.
    pub rootfs: RootFs,
}

/// The `config` member: defaults for a container of this image. Absent lists are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// First part of the arguments.
    #[serde(deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    /// Second part of the arguments, which a user may replace.
    #[serde(deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
    /// `NAME=value`, in order.
    #[serde(deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    /// Where the process starts; empty is `/`.
    #[serde(deserialize_with = "null_is_default")]
    pub working_dir: String,
    /// `user[:group]`, names or numbers; empty is root.
    #[serde(deserialize_with = "null_is_default")]
    pub user: String,
    /// Such as `SIGTERM`; empty is the default.
    #[serde(deserialize_with = "null_is_default")]
    pub stop_signal: String,
    /// Directories to be volumes; the values are empty objects.
    #[serde(deserialize_with = "null_is_default")]
    pub volumes: BTreeMap<String, Value>,
    /// Free text.
    #[serde(deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
}

/// The `rootfs` member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digest of each layer's tar, lowest first.
    #[serde(deserialize_with = "null_is_default")]
    pub diff_ids: Vec<Digest>,
}

impl ImageConfig {
    /// Parses a config for our platform. The caller has compared `bytes` with their digest.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let config: Self = strict_json::parse(bytes)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        // A manifest under our platform's name in an index may still hold another's image (GHSA-8v99-48m9-c8pm).
        if (self.os.as_str(), self.architecture.as_str()) != PLATFORM {
            return Err(ConfigError::Platform { os: clip(&self.os), architecture: clip(&self.architecture) });
        }
        let field = |field, rule: String| Err(ConfigError::Field { field, rule });
        if self.rootfs.kind != "layers" {
            return field("rootfs.type", format!("want \"layers\", got {:?}", clip(&self.rootfs.kind)));
        }
        if self.rootfs.diff_ids.len() > MAX_LAYERS {
            return field("rootfs.diff_ids", format!("{} are more than {MAX_LAYERS}", self.rootfs.diff_ids.len()));
        }
        let run = &self.config;
        let strings: [(&'static str, Vec<&String>); 5] = [
            ("Entrypoint", run.entrypoint.iter().collect()),
            ("Cmd", run.cmd.iter().collect()),
            ("Env", run.env.iter().collect()),
            ("Volumes", run.volumes.keys().collect()),
            ("WorkingDir, User or StopSignal", vec![&run.working_dir, &run.user, &run.stop_signal]),
        ];
        for (name, values) in strings {
            // The kernel ends arguments and paths at a NUL byte: what is checked would not be what is run.
            if values.iter().any(|text| text.contains('\0')) {
                return field(name, "holds a NUL byte".into());
            }
        }
        if let Some(bad) = run.env.iter().find(|e| e.split_once('=').is_none_or(|(name, _)| name.is_empty())) {
            return field("Env", format!("want NAME=value, got {:?}", clip(bad)));
        }
        Ok(())
    }

    /// Entrypoint and command: the arguments of the container's process.
    pub fn arguments(&self) -> Vec<String> {
        self.config.entrypoint.iter().chain(&self.config.cmd).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Value {
        json!({"created": "2026-01-01T00:00:00Z", "os": "linux", "architecture": "amd64",
            "config": {"Entrypoint": ["/bin/app"], "Cmd": ["--serve"], "Env": ["PATH=/bin", "A=b=c"], "User": "10:20", "WorkingDir": "/srv",
                       "Volumes": {"/data": {}}, "StopSignal": "SIGINT", "ExposedPorts": {"80/tcp": {}}, "Labels": null},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"a").to_string()]}, "history": []})
    }

    #[test]
    fn a_config_is_read() {
        let config = ImageConfig::parse(sample().to_string().as_bytes()).unwrap();
        assert_eq!(config.arguments(), ["/bin/app", "--serve"]);
        assert_eq!((config.config.user.as_str(), config.config.stop_signal.as_str()), ("10:20", "SIGINT"));
        assert_eq!(config.config.volumes.keys().collect::<Vec<_>>(), ["/data"]);
        let mut bare = sample();
        bare["config"] = Value::Null;
        assert_eq!(ImageConfig::parse(bare.to_string().as_bytes()).unwrap().config, RunConfig::default());
    }

    #[test]
    fn hostile_configs_are_refused() {
        let cases = [
            ("/architecture", json!("arm64"), "built for linux/arm64"),
            ("/os", json!("windows"), "built for windows/amd64"),
            ("/config/Env/0", json!("PATH"), "want NAME=value"),
            ("/config/Env/0", json!("=x"), "want NAME=value"),
            ("/config/Entrypoint/0", json!("/bin/app\u{0}x"), "NUL"),
            ("/config/User", json!("0\u{0}"), "NUL"),
            ("/rootfs/type", json!("foo"), "rootfs.type"),
            ("/rootfs/diff_ids/0", json!("sha256:xyz"), "sha256"),
            ("/rootfs/diff_ids", json!(vec![Digest::of(b"a").to_string(); 128]), "more than 127"),
        ];
        for (pointer, value, expected) in cases {
            let mut config = sample();
            *config.pointer_mut(pointer).unwrap() = value;
            let error = ImageConfig::parse(config.to_string().as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{pointer}: {error}");
        }
    }
}
