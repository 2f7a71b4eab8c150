//! The key broker of this repository, started by `cloister broker serve`, and images encrypted for it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command;
use crate::configuration::Initdata;
use crate::daemon::Daemon;
use crate::oci::Layout;
use crate::place;
use crate::registry::free_port;

const START: Duration = Duration::from_secs(60);
const ENCRYPT: Duration = Duration::from_secs(120);

/// A running broker that accepts evidence of type `sample`, because it was told to.
#[derive(Debug)]
pub struct Broker {
    daemon: Daemon,
    /// `127.0.0.1:PORT`.
    pub authority: String,
    admin_key: PathBuf,
}

/// To which guest a key is released.
#[derive(Clone, Debug)]
pub struct Release<'a> {
    /// `kbs:///repository/type/tag` of the key.
    pub key: &'a str,
    /// The file of initdata whose digest the evidence has to carry.
    pub initdata: &'a Path,
    /// The TEE, as rules name it.
    pub tee: &'a str,
    /// The launch measurement, in hexadecimal; None for that of `make guest`.
    pub launch_measurement: Option<&'a str>,
}

impl Broker {
    /// Starts one with its store and its log in `directory`.
    pub fn start(directory: &Path, name: &str) -> Result<Self> {
        let authority = format!("127.0.0.1:{}", free_port()?);
        let admin_key = directory.join(format!("{name}.admin"));
        let mut command = Command::new(place::ours("cloister")?);
        command.args(["broker", "serve", "--development", "--listen", &authority]);
        command.arg("--store").arg(directory.join(format!("{name}.redb"))).arg("--admin-key").arg(&admin_key);
        let mut daemon = Daemon::start(name, directory, command)?;
        daemon.wait_until(START, "listening", || TcpStream::connect(&authority).is_ok())?;
        Ok(Self { daemon, authority, admin_key })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.authority)
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        self.daemon.log()
    }

    /// One of its counters, by its name without `cloister_broker_`.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let mut stream = TcpStream::connect(&self.authority)?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.authority)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("cloister_broker_{name} ")));
        Ok(line.with_context(|| format!("the broker has no counter {name}"))?.trim().parse()?)
    }

    /// Encrypts the image `tag` of `layout` into a new layout beside it, with its key in this broker.
    pub fn encrypt(&self, layout: &Layout, tag: &str, release: &Release<'_>) -> Result<Layout> {
        let name = layout.directory.file_name().context("a layout without a name")?.to_string_lossy();
        let encrypted = Layout { directory: layout.directory.with_file_name(format!("{name}.enc")) };
        command::run(&mut self.encrypt_command(layout, &encrypted, tag, release)?, ENCRYPT)?.succeeded()?;
        Ok(encrypted)
    }

    /// The command line of [`Self::encrypt`].
    pub fn encrypt_command(&self, from: &Layout, to: &Layout, tag: &str, release: &Release<'_>) -> Result<Command> {
        let measurement = match release.launch_measurement {
            Some(hexadecimal) => hexadecimal.to_owned(),
            None => format!("@{}", place::guest()?.join("guest.json").display()),
        };
        let mut command = Command::new(place::ours("cloister")?);
        command.args(["image", "encrypt"]);
        command.args([from, to].map(|layout| format!("oci:{}:{tag}", layout.directory.display())));
        command.args(["--broker", &self.url(), "--key", release.key, "--launch-measurement", &measurement]);
        command.args(["--tee", release.tee]).arg("--admin-key").arg(&self.admin_key).arg("--init-data").arg(release.initdata);
        Ok(command)
    }

    /// Stores a secret, to be released to the working guest with this initdata.
    pub fn put(&self, key: &str, secret: &Path, initdata: &Initdata) -> Result<()> {
        let guest: serde_json::Value = serde_json::from_slice(&std::fs::read(place::guest()?.join("guest.json"))?)?;
        let measurement = guest["measurement"].as_str().context("guest.json has no measurement")?;
        let rule = secret.with_extension("rule");
        let text = format!("tee = \"sample\"\nlaunch_measurement = \"{measurement}\"\ninit_data = \"sha256:{}\"\n", initdata.digest());
        std::fs::write(&rule, text)?;
        let mut command = Command::new(place::ours("cloister")?);
        command.args(["broker", "put", key, "--broker", &self.url()]).arg("--admin-key").arg(&self.admin_key);
        command.arg("--secret").arg(secret).arg("--rule").arg(&rule);
        command::run(&mut command, ENCRYPT)?.succeeded()?;
        Ok(())
    }

    /// Ends it.
    pub fn stop(&mut self) -> Result<()> {
        self.daemon.stop()
    }
}
