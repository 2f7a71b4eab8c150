//! containerd's configuration. Two formats have full plugin names and are written: 2 (containerd 1.x, read by 2.x) and 3 (2.x).
//!
//! Where a drop-in is safe, it is one. Before 2.0 an imported file *replaces* all settings of a plugin that it names (the pause image,
//! other runtimes), so that there the section stands in the main file, between two lines that say whose it is.

use super::{ANNOTATIONS, HANDLER};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Where 2.2 and newer look for drop-ins without being told.
const DROP_INS: &str = "etc/containerd/conf.d";
/// A drop-in's name: after a distribution's own, before an administrator's.
const NAME: &str = "50-cloister.toml";
const BEGIN: &str = "# BEGIN cloister: written by `cloister install`, removed by `cloister uninstall`; what is changed in here is lost";
const END: &str = "# END cloister";
/// Where containerd is told to look for its shims by whoever starts it.
const USUAL_PATH: [&str; 4] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];

/// The service by which `ctr` and CRI of 2.1 and newer pull.
const TRANSFER: &str = "io.containerd.transfer.v1.local";
const PLATFORM: &str = "linux/amd64";
/// Where the snapshotter keeps its records: the file system that kubelet is told images are on.
const ROOT: &str = crate::commands::snapshotter::ROOT;

/// A version of containerd, as `major.minor`.
pub(crate) type Version = (u32, u32);

/// A format of its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// 1.x; 2.x reads it.
    V2,
    /// 2.x.
    V3,
}

impl Format {
    fn number(self) -> i64 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }

    /// The plugin that runs pods.
    fn plugin(self) -> &'static str {
        match self {
            Self::V2 => "io.containerd.grpc.v1.cri",
            Self::V3 => "io.containerd.cri.v1.runtime",
        }
    }
}

/// What is to be written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    /// Directory of the shim, as containerd will see it.
    pub(crate) bin: PathBuf,
    /// Socket of the snapshotter, if it is to be used.
    pub(crate) snapshotter: Option<PathBuf>,
}

/// The main file and the drop-in, as they should be; `None` is a file that should not exist.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The main file.
    pub(crate) main: Option<String>,
    /// Path of the drop-in.
    pub(crate) drop_in: PathBuf,
    /// The drop-in.
    pub(crate) drop_in_text: Option<String>,
}

/// How `main` and its drop-in should be for containerd `version`, where that is known. `main_path` is the path as containerd sees it.
pub(crate) fn install(main_path: &Path, main: Option<&str>, version: Option<Version>, settings: &Settings) -> Result<Target, String> {
    let newest = version.is_some_and(|version| version >= (2, 0));
    let Some(text) = main.map(without_ours).filter(|text| !text.trim().is_empty()) else {
        let format = if newest { Format::V3 } else { Format::V2 };
        let alone = format!("version = {}\n\n{}", format.number(), section(format, settings, &usual_unpackers()));
        return Ok(match version {
            // No file at all: these read the folder of drop-ins by default.
            Some(version) if version >= (2, 2) && main.is_none_or(|main| main.contains(BEGIN)) => {
                Target { main: None, drop_in: Path::new("/").join(DROP_INS).join(NAME), drop_in_text: Some(alone) }
            }
            _ => Target { main: Some(marked(&alone)), drop_in: Path::new("/").join(DROP_INS).join(NAME), drop_in_text: None },
        });
    };
    let table: Table = toml::from_str(&text).map_err(|error| problem_of(&text, &error))?;
    let format = format_of(&table)?;
    if runtime(&table, format).is_some() {
        return Err(format!("defines the runtime {HANDLER:?} itself: remove that section, or install without --containerd"));
    }
    let folder = imported_folder(main_path, &table).filter(|_| newest || format == Format::V3);
    let result = match folder {
        Some(folder) => {
            // A list of a drop-in takes the place of the main file's.
            let others = unpackers(&table).unwrap_or_else(usual_unpackers);
            let drop_in_text = Some(format!("version = {}\n\n{}", format.number(), section(format, settings, &others)));
            Target { main: Some(text), drop_in: folder.join(NAME), drop_in_text }
        }
        None => {
            let gap = if text.ends_with('\n') { "\n" } else { "\n\n" };
            let others = if unpackers(&table).is_some() { Vec::new() } else { usual_unpackers() };
            let main = format!("{text}{gap}{}", marked(&section(format, settings, &others)));
            let table: Table = toml::from_str(&main).map_err(|error| problem_of(&main, &error))?;
            if runtime(&table, format).is_none() {
                return Err("the runtime's section cannot be added at its end".to_owned());
            }
            Target { main: Some(main), drop_in: Path::new("/").join(DROP_INS).join(NAME), drop_in_text: None }
        }
    };
    Ok(result)
}

/// How they should be without us.
pub(crate) fn uninstall(main_path: &Path, main: Option<&str>) -> Target {
    let text = main.map(without_ours).filter(|text| !text.trim().is_empty() || main == Some(text));
    let table: Option<Table> = text.as_deref().and_then(|text| toml::from_str(text).ok());
    let folder = table.and_then(|table| imported_folder(main_path, &table)).unwrap_or_else(|| Path::new("/").join(DROP_INS));
    Target { main: text, drop_in: folder.join(NAME), drop_in_text: None }
}

/// Whether CRI is switched off, as Docker's package of containerd does it.
pub(crate) fn is_cri_disabled(main: &str) -> bool {
    let table: Option<Table> = toml::from_str(main).ok();
    let disabled = table.as_ref().and_then(|table| table.get("disabled_plugins")?.as_array());
    disabled.is_some_and(|plugins| plugins.iter().filter_map(Value::as_str).any(|name| matches!(name, "cri" | "io.containerd.grpc.v1.cri")))
}

/// Whether an imported file may hide what stands in the main file: before 2.0 it replaces all settings of a plugin that it names.
pub(crate) fn may_be_hidden(main: &str, version: Option<Version>) -> bool {
    let table: Option<Table> = toml::from_str(main).ok();
    let imports = table.as_ref().and_then(|table| table.get("imports")?.as_array()).is_some_and(|imports| !imports.is_empty());
    let format = table.as_ref().map(format_of);
    imports && format == Some(Ok(Format::V2)) && version.is_none_or(|version| version < (2, 0))
}

/// `others`: what else the transfer service is to unpack with, where our list takes the place of another.
fn section(format: Format, settings: &Settings, others: &[Table]) -> String {
    let plugin = format.plugin();
    let annotations = ANNOTATIONS.map(|name| format!("{name:?}")).join(", ");
    let mut text = format!(
        "[plugins.\"{plugin}\".containerd.runtimes.{HANDLER}]\nruntime_type = \"io.containerd.cloister.v2\"\n\
         pod_annotations = [{annotations}]\ncontainer_annotations = [{annotations}]\n\
         # Privileged is inside the VM only: it has no devices of the host.\nprivileged_without_host_devices = true\n"
    );
    if !USUAL_PATH.iter().any(|dir| Path::new(dir) == settings.bin) {
        text.push_str(&format!("runtime_path = {:?}\n", settings.bin.join(super::node::SHIM)));
    }
    if let Some(socket) = &settings.snapshotter {
        text.push_str(&format!("snapshotter = {HANDLER:?}\n\n{}", snapshotter(socket, others)));
    }
    text
}

/// 2.x looks for a handler's snapshotter in another place when it pulls, and since 2.1 pulls by the transfer service, which unpacks with what
/// is listed and nothing else. Earlier versions leave out what they do not know.
fn snapshotter(socket: &Path, others: &[Table]) -> String {
    let ours = Table::from_iter([("platform", PLATFORM), ("snapshotter", HANDLER)].map(|(key, value)| (key.to_owned(), value.into())));
    let unpackers: String =
        others.iter().chain([&ours]).map(|table| format!("\n[[plugins.\"{TRANSFER}\".unpack_config]]\n{table}")).collect();
    let socket = socket.display().to_string();
    format!(
        "[proxy_plugins.{HANDLER}]\ntype = \"snapshot\"\naddress = {socket:?}\n\n[proxy_plugins.{HANDLER}.exports]\nroot = {ROOT:?}\n\n\
         [plugins.\"io.containerd.cri.v1.images\".runtime_platforms.{HANDLER}]\nsnapshotter = {HANDLER:?}\n{unpackers}"
    )
}

/// What the main file has the transfer service unpack with.
fn unpackers(table: &Table) -> Option<Vec<Table>> {
    let list = table.get("plugins")?.get(TRANSFER)?.get("unpack_config")?.as_array()?;
    Some(list.iter().filter_map(Value::as_table).cloned().collect())
}

/// What it unpacks with where nothing is said.
fn usual_unpackers() -> Vec<Table> {
    vec![Table::from_iter([("platform", PLATFORM), ("snapshotter", "overlayfs")].map(|(key, value)| (key.to_owned(), value.into())))]
}

fn marked(section: &str) -> String {
    format!("{BEGIN}\n{section}{END}\n")
}

/// The text without our section and the empty line before it.
fn without_ours(text: &str) -> String {
    let Some(begin) = text.find(BEGIN) else { return text.to_owned() };
    let end = text[begin..].find(END).map_or(text.len(), |end| begin + end + END.len());
    let before = text[..begin].strip_suffix("\n\n").map_or(&text[..begin], |before| &text[..before.len() + 1]);
    format!("{before}{}", text[end..].strip_prefix('\n').unwrap_or(&text[end..]))
}

fn format_of(table: &Table) -> Result<Format, String> {
    match table.get("version").map(Value::as_integer) {
        Some(Some(2)) => Ok(Format::V2),
        Some(Some(3)) => Ok(Format::V3),
        None => {
            Err("has no `version`, so that containerd reads it as format 1: convert it (`containerd config migrate`), or, if it has no \
                     [plugins] section, put `version = 2` at its beginning"
                .to_owned())
        }
        Some(other) => {
            let found = other.map_or_else(|| "no number".to_owned(), |number| number.to_string());
            Err(format!("version is {found}: formats 2 and 3 are written; convert it with `containerd config migrate`"))
        }
    }
}

/// The runtime of our name.
fn runtime(table: &Table, format: Format) -> Option<&Value> {
    table.get("plugins")?.get(format.plugin())?.get("containerd")?.get("runtimes")?.get(HANDLER)
}

/// The first folder of which all `.toml` files are imported.
fn imported_folder(main: &Path, table: &Table) -> Option<PathBuf> {
    let imports = table.get("imports")?.as_array()?;
    imports.iter().filter_map(Value::as_str).find_map(|pattern| {
        let pattern = main.parent()?.join(pattern);
        let folder = pattern.parent()?;
        let plain = !folder.to_string_lossy().contains(['*', '?', '[', '\\']);
        (plain && pattern.file_name()? == "*.toml").then(|| folder.to_owned())
    })
}

fn problem_of(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    format!("line {line}: {}", error.message().replace('\n', " "))
}
