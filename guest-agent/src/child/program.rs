//! Finding and becoming the program of a process, with the words that people know from other runtimes.

use nix::unistd::{AccessFlags, eaccess};
use oci_spec::runtime::Process;
use std::{
    convert::Infallible,
    ffi::CString,
    fs,
    path::{Path, PathBuf},
};

/// What execve(2) takes.
pub struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Finds the program in the process's own PATH. Asked by the process itself: as its user, in its root and directory.
    pub fn find(process: &Process) -> Result<Self, String> {
        let path = find(process)?.into_os_string().into_encoded_bytes();
        Ok(Self { path: c_string(path)?, args: c_strings(process.args())?, env: c_strings(process.env())? })
    }

    /// Becomes it; comes back only with the reason why not.
    pub fn exec(&self) -> String {
        let never: Result<Infallible, _> = nix::unistd::execve(&self.path, &self.args, &self.env);
        match never {
            Ok(never) => match never {},
            Err(e) => format!("exec {}: {}", self.path.to_string_lossy(), e.desc()),
        }
    }
}

fn find(process: &Process) -> Result<PathBuf, String> {
    let name = process.args().as_ref().and_then(|args| args.first()).ok_or("exec: no command")?;
    if name.contains('/') {
        return match runs(Path::new(name)) {
            Ok(()) => Ok(name.into()),
            Err(reason) => Err(format!("exec: {name:?}: {reason}")),
        };
    }
    let path = process.env().iter().flatten().find_map(|e| e.strip_prefix("PATH=")).unwrap_or_default();
    let mut reason = "executable file not found in $PATH";
    for directory in path.split(':') {
        let file = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        match runs(&file) {
            Ok(()) => return Ok(file),
            // A later directory may have one that may be run.
            Err(other) if other != NOT_THERE => reason = other,
            Err(_) => {}
        }
    }
    Err(format!("exec: {name:?}: {reason}"))
}

const NOT_THERE: &str = "no such file or directory";

fn runs(file: &Path) -> Result<(), &'static str> {
    match fs::metadata(file) {
        Err(_) => Err(NOT_THERE),
        Ok(found) if !found.is_file() => Err("is not a file"),
        Ok(_) if eaccess(file, AccessFlags::X_OK).is_err() => Err("permission denied"),
        Ok(_) => Ok(()),
    }
}

fn c_strings(list: &Option<Vec<String>>) -> Result<Vec<CString>, String> {
    list.iter().flatten().map(|text| c_string(text.as_bytes())).collect()
}

fn c_string(bytes: impl Into<Vec<u8>>) -> Result<CString, String> {
    CString::new(bytes).map_err(|_| "exec: a string holds a NUL".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    fn process(args: &[&str], path: &str) -> Process {
        let env = [format!("PATH={path}")];
        serde_json::from_value(json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": args, "env": env})).unwrap()
    }

    #[test]
    fn programs_are_found_in_the_processs_path() {
        assert_eq!(find(&process(&["sh"], "/none:/bin")).unwrap(), Path::new("/bin/sh"));
        assert_eq!(find(&process(&["/bin/sh"], "")).unwrap(), Path::new("/bin/sh"));
        let error = find(&process(&["no-such-program"], "/bin")).unwrap_err();
        assert_eq!(error, "exec: \"no-such-program\": executable file not found in $PATH");
        assert_eq!(find(&process(&["/no/such"], "/bin")).unwrap_err(), "exec: \"/no/such\": no such file or directory");
        assert_eq!(find(&process(&["/bin"], "/bin")).unwrap_err(), "exec: \"/bin\": is not a file");
        assert!(find(&process(&[], "/bin")).is_err());
    }

    #[test]
    fn a_file_without_the_right_to_run_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tool");
        fs::write(&file, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let path = dir.path().to_str().unwrap();
        assert_eq!(find(&process(&["tool"], path)).unwrap_err(), "exec: \"tool\": permission denied");
        // For its owner only: enough, where its owner runs it.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(find(&process(&["tool"], path)).unwrap(), file);
    }
}
