//! Generates the messages of `proto/snapshots.proto` into `OUT_DIR`.

use protobuf_codegen::Codegen;
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?).join("snapshots_pb");
    fs::create_dir_all(&out)?;
    println!("cargo:rerun-if-changed=proto/snapshots.proto");
    Codegen::new().pure().out_dir(&out).include("proto").input("proto/snapshots.proto").run()?;
    // The generated file begins with inner attributes, which `include!` refuses and a module by path takes.
    fs::write(out.join("modules.rs"), format!("#[path = {:?}]\npub mod snapshots;\n", out.join("snapshots.rs")))?;
    Ok(())
}
