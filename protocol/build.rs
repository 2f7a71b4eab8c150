//! Generates the messages and the service of `proto/agent.proto` into `OUT_DIR`.

use std::{env, error::Error, fs, path::PathBuf};
use ttrpc_codegen::{Codegen, Customize};

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?).join("agent");
    fs::create_dir_all(&out)?;
    println!("cargo:rerun-if-changed=proto/agent.proto");
    Codegen::new()
        .out_dir(&out)
        .inputs(["proto/agent.proto"])
        .include("proto")
        .rust_protobuf()
        .customize(Customize { async_all: true, ..Default::default() })
        .run()?;
    // The generated files begin with inner attributes, which `include!` refuses and a module by path takes.
    let module = |name: &str| format!("#[path = {:?}]\npub mod {name};\n", out.join(format!("{name}.rs")));
    fs::write(out.join("modules.rs"), module("agent") + &module("agent_ttrpc"))?;
    Ok(())
}
