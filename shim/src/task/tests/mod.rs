//! The verbs against a guest without a VM.

mod fake;
mod hooks;
mod lone;
mod pod;
mod sandbox;

use super::TaskError;
use containerd_shim_protos::api::ExecProcessRequest;
use fake::{Bench, PID};
use ttrpc::Code;

fn exec(id: &str, exec_id: &str) -> ExecProcessRequest {
    ExecProcessRequest { id: id.to_owned(), exec_id: exec_id.to_owned(), ..Default::default() }
}

fn code<T>(result: Result<T, TaskError>) -> Code {
    match result {
        Ok(_) => Code::OK,
        Err(error) => error.code(),
    }
}
