//! What a kernel module needs, out of the module itself.
//!
//! A package that was not installed has no `modules.dep` (depmod makes that), so we read what depmod reads: the `.modinfo`
//! section of the ELF file, NUL-separated `key=value` texts (`include/linux/module.h`, `MODULE_INFO`).

use crate::elf;
use thiserror::Error;

/// Why a module could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ModinfoError {
    /// Not an ELF object for x86-64, or cut off.
    #[error("not an x86-64 ELF object, or cut off")]
    NotElf,
    /// No `.modinfo`.
    #[error("no .modinfo section: not a kernel module")]
    NotModule,
}

/// The part of `.modinfo` that decides on loading.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Modinfo {
    /// The module's name as the kernel knows it, with `_` for `-`.
    pub name: String,
    /// Names of the modules whose symbols it uses.
    pub depends: Vec<String>,
    /// Kernel that it was built for, and more: `6.12.1-cloud SMP preempt …`.
    pub vermagic: String,
}

/// Reads `module`, an uncompressed `.ko` file.
pub fn parse(module: &[u8]) -> Result<Modinfo, ModinfoError> {
    let section = find_modinfo(module)?;
    let mut info = Modinfo::default();
    for field in section.split(|&b| b == 0) {
        let Some((key, value)) = std::str::from_utf8(field).ok().and_then(|f| f.split_once('=')) else { continue };
        match key {
            "name" => value.clone_into(&mut info.name),
            "vermagic" => value.clone_into(&mut info.vermagic),
            "depends" => info.depends = value.split(',').filter(|d| !d.is_empty()).map(str::to_owned).collect(),
            _ => {}
        }
    }
    Ok(info)
}

fn find_modinfo(module: &[u8]) -> Result<&[u8], ModinfoError> {
    let sections = elf::sections(module).ok_or(ModinfoError::NotElf)?;
    let section = sections.iter().find(|section| section.name == b".modinfo").ok_or(ModinfoError::NotModule)?;
    section.contents(module).ok_or(ModinfoError::NotElf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn name_and_dependencies_are_read() {
        let info = parse(&fixture::module("dm_crypt", &["dm_mod", "xts"])).unwrap();
        assert_eq!((info.name.as_str(), info.depends), ("dm_crypt", vec!["dm_mod".to_owned(), "xts".to_owned()]));
        assert!(info.vermagic.starts_with(fixture::VERSION));
        assert!(parse(&fixture::module("alone", &[])).unwrap().depends.is_empty());
    }

    #[test]
    fn no_truncation_and_no_flipped_bit_of_the_headers_panics() {
        let module = fixture::module("x", &["y"]);
        for length in 0..module.len() {
            let _ = parse(&module[..length]).is_err();
        }
        for at in 0..64 {
            for bit in 0..8 {
                let mut bad = module.clone();
                bad[at] ^= 1 << bit;
                let _ = parse(&bad);
            }
        }
        assert_eq!(parse(b""), Err(ModinfoError::NotElf));
        assert_eq!(parse(&fixture::executable(false)), Err(ModinfoError::NotElf));
    }
}
