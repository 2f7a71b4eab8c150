//! The key broker of this repository, started by `cloister broker serve`, and images encrypted for it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

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

    /// Answers a new challenge with what a guest once answered to another; gives the broker's answer.
    pub fn replay(&self, tee: &str, answer: &Value) -> Result<String> {
        let (cookie, _) = self.challenge(tee)?;
        self.post("/kbs/v0/attest", &cookie, answer)
    }

    /// The same, by somebody who has understood that the nonce is another and puts the new one in its place.
    pub fn replay_with_nonce(&self, tee: &str, answer: &Value) -> Result<String> {
        let (cookie, challenge) = self.challenge(tee)?;
        let mut answer = answer.clone();
        answer["runtime-data"]["nonce"] = challenge["nonce"].clone();
        self.post("/kbs/v0/attest", &cookie, &answer)
    }

    fn challenge(&self, tee: &str) -> Result<(String, Value)> {
        let begun = self.post("/kbs/v0/auth", "", &json!({"version": "0.4.0", "tee": tee, "extra-params": ""}))?;
        let cookie = begun.lines().find_map(|line| line.strip_prefix("set-cookie: ")).context("no cookie")?;
        let challenge = serde_json::from_str(begun.lines().last().context("no challenge")?)?;
        Ok((cookie.split(';').next().unwrap_or_default().to_owned(), challenge))
    }

    /// Status line, headers and body.
    fn post(&self, path: &str, cookie: &str, body: &Value) -> Result<String> {
        let (mut stream, body) = (TcpStream::connect(&self.authority)?, body.to_string());
        let headers = format!("Host: {}\r\nConnection: close\r\nContent-Type: application/json\r\nCookie: {cookie}", self.authority);
        write!(stream, "POST {path} HTTP/1.1\r\n{headers}\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
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
        let guest: Value = serde_json::from_slice(&std::fs::read(place::guest()?.join("guest.json"))?)?;
        let measurement = guest["measurement"].as_str().context("guest.json has no measurement")?;
        let rule = secret.with_extension("rule");
        let text = format!("tee = \"sample\"\nlaunch_measurement = \"{measurement}\"\ninit_data = \"sha256:{}\"\n", initdata.digest());
        std::fs::write(&rule, text)?;
        command::run(self.put_command(key, &rule)?.arg("--secret").arg(secret), ENCRYPT)?.succeeded()?;
        Ok(())
    }

    /// Replaces the release rule of what is stored.
    pub fn release(&self, key: &str, rule: &Path) -> Result<()> {
        command::run(&mut self.put_command(key, rule)?, ENCRYPT)?.succeeded()?;
        Ok(())
    }

    fn put_command(&self, key: &str, rule: &Path) -> Result<Command> {
        let mut command = Command::new(place::ours("cloister")?);
        command.args(["broker", "put", key, "--broker", &self.url()]).arg("--admin-key").arg(&self.admin_key).arg("--rule").arg(rule);
        Ok(command)
    }

    /// Ends it.
    pub fn stop(&mut self) -> Result<()> {
        self.daemon.stop()
    }
}
