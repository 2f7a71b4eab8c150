//! Generates the messages of `proto/pod.proto` into `OUT_DIR`.

use protobuf_codegen::Codegen;
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?).join("pod_pb");
    fs::create_dir_all(&out)?;
    println!("cargo:rerun-if-changed=proto/pod.proto");
    Codegen::new().pure().out_dir(&out).include("proto").input("proto/pod.proto").run()?;
    // The generated file begins with inner attributes, which `include!` refuses and a module by path takes.
    let module = format!("#[path = {:?}]\npub mod pod;\n", out.join("pod.rs"));
    fs::write(out.join("modules.rs"), module)?;
    Ok(())
}
