//! What the VM of a container or pod is to be: from the bundle, the node's configuration and the owner's initdata.

use super::{Settings, TaskError, image};
use crate::pod::Pod;
use policy::{ImageSettings, image_settings, initdata::Initdata};
use protobuf::{CodedInputStream, well_known_types::any::Any};
use runtime::{config::Config, sandbox::SandboxSpec};
use std::path::PathBuf;

/// What is to be booted, and whom the guest may reach beside its registries.
#[derive(Debug)]
pub struct GuestSpec {
    /// For the runtime.
    pub sandbox: SandboxSpec,
    /// The broker of the initdata, as `host:port`.
    pub broker: Option<String>,
    /// Proxies and mirrors of the initdata, as `host:port`.
    pub destinations: Vec<String>,
}

/// The node's configuration: the file that the runtime options name (CRI-O's `runtime_config_path`), else the usual one.
pub fn config(options: Option<&Any>) -> Result<Config, TaskError> {
    let loaded = match options.and_then(config_path) {
        Some(path) => Config::from_file(&path),
        None => Config::load(),
    };
    loaded.map_err(|error| TaskError::Invalid(error.to_string()))
}

/// The second field of `runtimeoptions.v1.Options`; options of another type, or broken ones, name nothing.
fn config_path(options: &Any) -> Option<PathBuf> {
    if !options.type_url.ends_with("runtimeoptions.v1.Options") {
        return None;
    }
    let mut input = CodedInputStream::from_bytes(&options.value);
    let mut path = None;
    while let Some(tag) = input.read_raw_tag_or_eof().ok()? {
        // Three fields, all of them text: `type_url`, `config_path`, `config_body`.
        let (field, wire_type) = (tag >> 3, tag & 7);
        if wire_type != 2 {
            return None;
        }
        let value = input.read_bytes().ok()?;
        if field == 2 {
            path = String::from_utf8(value).ok();
        }
    }
    path.filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// What the VM of this pod or container is to be.
pub fn build(settings: &Settings, config: &Config, pod: Pod) -> Result<GuestSpec, TaskError> {
    let (vcpus, memory_mib) = (pod.vcpus(config), pod.memory_mib(config));
    let initdata = initdata(config, pod.initdata)?;
    let broker = match &initdata {
        Some((initdata, _)) => initdata.broker().map_err(|error| TaskError::Invalid(error.to_string()))?,
        None => None,
    };
    let settings_of_images = ImageSettings::from_initdata(initdata.as_ref().map(|(initdata, _)| initdata));
    let settings_of_images = settings_of_images.map_err(|error| TaskError::Invalid(error.to_string()))?;
    let destinations = image_settings::destinations(&settings_of_images).iter().filter_map(|url| image::broker(url)).collect();
    let sandbox = SandboxSpec {
        id: settings.group.sandbox_id(),
        hostname: pod.hostname,
        netns: pod.netns,
        configure: None,
        initdata_digest: initdata.as_ref().map(|(initdata, _)| initdata.digest().bytes().to_vec()).unwrap_or_default(),
        initdata: initdata.map(|(_, packed)| packed).unwrap_or_default(),
        sysctls: pod.sysctls,
        dns: pod.dns,
        vcpus,
        memory_mib,
        disks: Vec::new(),
    };
    Ok(GuestSpec { sandbox, broker: broker.and_then(|broker| image::broker(&broker.url)), destinations })
}

/// The owner's initdata, parsed and as it was packed: its digest is over the text, and the guest gets it unchanged. It is read here
/// only so that a typing error is told before a VM is booted; the guest trusts none of this.
fn initdata(config: &Config, annotation: Option<Vec<u8>>) -> Result<Option<(Initdata, Vec<u8>)>, TaskError> {
    let invalid = |error: &dyn std::fmt::Display| TaskError::Invalid(error.to_string());
    if let Some(packed) = annotation {
        let (initdata, _) = Initdata::parse_gzip(&packed).map_err(|error| invalid(&error))?;
        return Ok(Some((initdata, packed)));
    }
    let Some(text) = config.initdata().map_err(|error| invalid(&error))? else { return Ok(None) };
    let (initdata, _) = Initdata::parse_toml(&text).map_err(|error| invalid(&error))?;
    let packed = initdata.to_gzip();
    Ok(Some((initdata, packed)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bundle::Bundle, group::Group};
    use std::fs;

    const INITDATA: &str =
        "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = '''\n[token_configs.kbs]\nurl = \"http://kbs:8080\"\n'''\n";

    fn bundle(json: &str) -> Bundle {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), json).unwrap();
        Bundle::read(dir.path()).unwrap()
    }

    fn spec(config: &Config, json: &str) -> Result<GuestSpec, TaskError> {
        let settings = Settings { namespace: "default".into(), address: String::new(), group: Group::new("", "default", "c") };
        build(&settings, config, bundle(json).pod("c")?)
    }

    #[test]
    fn limits_come_on_top_of_the_configuration() {
        let config = Config::default();
        let plain = spec(&config, "{}").unwrap();
        assert_eq!((plain.sandbox.memory_mib, plain.sandbox.vcpus, plain.broker), (None, None, None));
        assert!(plain.sandbox.id.starts_with("c."));
        let limited = r#"{"linux":{"resources":{"memory":{"limit":1048577},"cpu":{"quota":250000,"period":100000}}}}"#;
        let limited = spec(&config, limited).unwrap().sandbox;
        assert_eq!((limited.memory_mib, limited.vcpus), (Some(512 + 2), Some(3)));
        let absurd = spec(&config, r#"{"linux":{"resources":{"memory":{"limit":9223372036854775807}}}}"#).unwrap();
        assert_eq!(absurd.sandbox.memory_mib, Some(1 << 20));
    }

    #[test]
    fn the_way_to_the_owners_mirrors_and_proxies_is_opened() {
        let text = format!(
            "{INITDATA}\"cdh.toml\" = '''\n[image.image_pull_proxy]\nhttps_proxy = \"http://me:pass@proxy:3128\"\n\
             [[image.registry_config.registry]]\nlocation = \"mirror.example/x\"\n'''\n"
        );
        let (initdata, _) = Initdata::parse_toml(&text).unwrap();
        let json = format!(r#"{{"annotations":{{"dev.cloister.initdata":"{}"}}}}"#, initdata.to_annotation());
        assert_eq!(spec(&Config::default(), &json).unwrap().destinations, ["proxy:3128", "mirror.example:443"]);
    }

    #[test]
    fn the_annotations_initdata_goes_before_the_nodes() {
        let (initdata, _) = Initdata::parse_toml(INITDATA).unwrap();
        let json = format!(r#"{{"annotations":{{"dev.cloister.initdata":"{}"}}}}"#, initdata.to_annotation());
        let with = spec(&Config::default(), &json).unwrap();
        assert_eq!((with.broker.as_deref(), &with.sandbox.initdata), (Some("kbs:8080"), &initdata.to_gzip()));

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("i.toml");
        fs::write(&file, INITDATA).unwrap();
        let config = Config { initdata: Some(file.clone()), ..Config::default() };
        assert_eq!(spec(&config, "{}").unwrap().sandbox.initdata, initdata.to_gzip());
        fs::write(&file, "version = 1").unwrap();
        let error = spec(&config, "{}").unwrap_err().to_string();
        assert!(error.starts_with("initdata: line 1") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn crios_options_name_a_configuration() {
        let options = |value: &[u8]| Any { type_url: "runtimeoptions.v1.Options".into(), value: value.into(), ..Default::default() };
        assert_eq!(config_path(&options(b"\x0a\x01t\x12\x02/x\x1a\x01b")), Some("/x".into()));
        for hostile in
            [&b""[..], b"\x12", b"\x12\xff\xff\xff\xff\x0f/", b"\x10\x01", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x12\x01\xff"]
        {
            assert_eq!(config_path(&options(hostile)), None, "{hostile:?}");
        }
        let other = Any { type_url: "containerd.runc.v1.Options".into(), value: b"\x12\x02/x".to_vec(), ..Default::default() };
        assert_eq!(config_path(&other), None);
        let error = config(Some(&options(b"\x12\x08/nowhere"))).unwrap_err().to_string();
        assert!(error.contains("/nowhere"), "{error}");
    }
}
