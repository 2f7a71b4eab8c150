//! Generates the messages of `proto/containerd.proto` into `OUT_DIR`.

use protobuf_codegen::Codegen;
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?).join("containerd_pb");
    fs::create_dir_all(&out)?;
    println!("cargo:rerun-if-changed=proto/containerd.proto");
    Codegen::new().pure().out_dir(&out).include("proto").input("proto/containerd.proto").run()?;
    // The generated file begins with inner attributes, which `include!` refuses and a module by path takes.
    let module = format!("#[path = {:?}]\npub mod containerd;\n", out.join("containerd.rs"));
    fs::write(out.join("modules.rs"), module)?;
    Ok(())
}
