//! The sections of an ELF object for x86-64 (elf(5)), as far as a kernel module needs it.

use crate::vmlinux::{read_u16, read_u32, read_u64};
use std::ops::Range;

/// Most sections of a module that we look at; the largest of Debian's have some hundred.
const MAX_SECTIONS: usize = 4096;
/// Offset of the field `e_shoff` in a file, and of `sh_offset` in a section's header.
const TABLE: usize = 40;
const OFFSET: usize = 24;
/// Length of a section's header.
const HEADER: usize = 64;
/// `sh_type` of a section that takes no room in the file.
const NOBITS: u32 = 8;
/// What a module has and no guest needs. Type information is for tracing programs (Documentation/bpf/btf.rst); the kernel would read it, and
/// its own with it, at every boot. Unwinding tables are for stack traces of a kernel that has gone wrong (Documentation/arch/x86/
/// orc-unwinder.rst), which without them are guessed; the kernel would sort them when it loads the module, and relocate them before.
const NOT_NEEDED: [&[u8]; 4] = [b".BTF", b".orc_unwind", b".orc_unwind_ip", b".rela.orc_unwind_ip"];
/// No section of a module wants more of its place in the file.
const ALIGNMENT: usize = 64;

/// A section.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Section<'a> {
    pub(crate) name: &'a [u8],
    /// Where its header is.
    header: usize,
    /// Where its contents are, and their length; zero where it has none.
    offset: usize,
    size: usize,
}

impl Section<'_> {
    pub(crate) fn contents<'a>(&self, object: &'a [u8]) -> Option<&'a [u8]> {
        object.get(self.range()?)
    }

    fn range(&self) -> Option<Range<usize>> {
        Some(self.offset..self.offset.checked_add(self.size)?)
    }
}

/// The sections of `object`; none where it is no such object, or cut off.
pub(crate) fn sections(object: &[u8]) -> Option<Vec<Section<'_>>> {
    if !object.starts_with(b"\x7fELF\x02\x01\x01") || read_u16(object, 18)? != 62 {
        return None;
    }
    let table = read_u64(object, TABLE)?;
    let (size, count, names) = (read_u16(object, 58)?, read_u16(object, 60)?, read_u16(object, 62)?);
    if usize::from(count) > MAX_SECTIONS || names >= count {
        return None;
    }
    let section = |index: u16| {
        let header = table.checked_add(usize::from(index) * usize::from(size))?;
        object.get(header..header.checked_add(HEADER)?)?;
        let length = read_u64(object, header + 32)?;
        let size = if read_u32(object, header + 4)? == NOBITS { 0 } else { length };
        Some(Section { name: b"", header, offset: read_u64(object, header + OFFSET)?, size })
    };
    let names = section(names)?.contents(object)?;
    let named = |index: u16| {
        let section = section(index)?;
        let name = names.get(read_u32(object, section.header)? as usize..)?;
        Some(Section { name: name.split(|byte| *byte == 0).next()?, ..section })
    };
    (0..count).map(named).collect()
}

/// `module` without what no guest needs. What is not as expected stays as it is.
pub(crate) fn stripped(module: Vec<u8>) -> Vec<u8> {
    NOT_NEEDED.iter().fold(module, |module, name| without(module, name))
}

fn without(mut module: Vec<u8>, name: &[u8]) -> Vec<u8> {
    let Some((header, cut, moved)) = plan(&module, name) else { return module };
    for field in moved {
        let offset = read_u64(&module, field).map_or(0, |offset| offset - cut.len()) as u64;
        module[field..field + 8].copy_from_slice(&offset.to_le_bytes());
    }
    // An entry of type SHT_NULL and without a name: indices of the others remain.
    module[header].fill(0);
    module.drain(cut);
    module
}

/// The header of a section, what of the file is cut out with it, and where the offsets stand that lie behind it.
fn plan(module: &[u8], name: &[u8]) -> Option<(Range<usize>, Range<usize>, Vec<usize>)> {
    let sections = sections(module)?;
    let unwanted = sections.iter().find(|section| section.name == name)?;
    let contents = unwanted.range()?;
    let cut = contents.start..contents.start + unwanted.size / ALIGNMENT * ALIGNMENT;
    let header = unwanted.header..unwanted.header + HEADER;
    let table = read_u64(module, TABLE)?;
    let overlap = sections.iter().any(|other| {
        other.header != unwanted.header && other.size > 0 && other.range().is_none_or(|r| r.start < contents.end && r.end > contents.start)
    });
    // The table lies behind everything else, as every linker has it.
    if overlap || table < contents.end {
        return None;
    }
    let behind = sections.iter().filter(|section| section.offset >= contents.end).map(|section| section.header + OFFSET);
    Some((header, cut, behind.chain([TABLE]).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fixture, modinfo};

    #[test]
    fn a_module_loses_what_no_guest_needs_and_nothing_else() {
        let module = fixture::module("dm_crypt", &["dm_mod"]);
        let less = stripped(module.clone());
        let whole = fixture::NOT_NEEDED.map(|(_, size)| size / ALIGNMENT * ALIGNMENT);
        assert_eq!((module.len() - less.len(), whole), (whole.iter().sum(), [128, 64, 0, 192]));
        assert_eq!(modinfo::parse(&less), modinfo::parse(&module));
        let names = |module: &[u8]| sections(module).unwrap().iter().map(|section| section.name.to_vec()).collect::<Vec<_>>();
        assert_eq!(names(&module), [&[&b".shstrtab"[..]][..], &NOT_NEEDED, &[b".modinfo"]].concat());
        // An entry that is none any more has the first name of the table.
        let none = &b".shstrtab"[..];
        assert_eq!(names(&less), [none, none, none, none, none, b".modinfo"]);
        assert_eq!(stripped(less.clone()), less);
    }

    #[test]
    fn whatever_a_byte_is_changed_to_there_is_no_panic() {
        let module = fixture::module("x", &[]);
        for at in 0..module.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = module.clone();
                changed[at] = value;
                let _ = modinfo::parse(&stripped(changed));
            }
        }
        for length in 0..module.len() {
            assert_eq!(stripped(module[..length].to_vec()), module[..length]);
        }
    }
}
