//! Generates the messages of `proto/cri.proto` into `OUT_DIR`.

use protobuf_codegen::Codegen;
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?).join("cri_pb");
    fs::create_dir_all(&out)?;
    println!("cargo:rerun-if-changed=proto/cri.proto");
    Codegen::new().pure().out_dir(&out).include("proto").input("proto/cri.proto").run()?;
    // The generated file begins with inner attributes, which `include!` refuses and a module by path takes.
    let module = format!("#[path = {:?}]\npub mod cri;\n", out.join("cri.rs"));
    fs::write(out.join("modules.rs"), module)?;
    Ok(())
}
