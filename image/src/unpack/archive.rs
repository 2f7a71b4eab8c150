//! The sequence of a tar's entries: extension headers are joined with the header that they extend, and each entry has one size.
//!
//! The class of faults to prevent is CVE-2025-62518: a reader that skips by one size while another reads by the other sees
//! entries that lie in a file's data. Here a size that is given twice must be the same twice.

use super::{
    UnpackError,
    header::{BLOCK, Fault, Header, Time},
    paths::EntryPath,
    pax::Pax,
    sparse::{self, Map, Piece},
};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
};

/// The largest size that a ustar header holds, in bytes: eleven octal digits.
const USTAR_MAX: u64 = 0o777_7777_7777;

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Directory,
    Fifo,
}

/// One entry, its extensions applied.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    /// Major and minor number.
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where a file's data belong, if it has holes.
    pub(super) sparse: Option<Map>,
}

/// What extension headers say about the next entry.
#[derive(Default)]
struct Pending {
    pax: Option<Pax>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_path.is_none() && self.long_link.is_none()
    }
}

/// Reads a tar.
pub(super) struct Archive<R> {
    reader: R,
    max_header: usize,
    number: u64,
    /// Data of the current entry that was not read yet, and the zeros that fill its last block.
    data: u64,
    padding: u64,
}

impl<R: Read> Archive<R> {
    /// `max_header` bounds each extension header, in bytes.
    pub(super) fn new(reader: R, max_header: usize) -> Self {
        Self { reader, max_header, number: 0, data: 0, padding: 0 }
    }

    /// The next entry, or nothing at the end mark. What the caller left of the last entry's data is skipped.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, UnpackError> {
        self.skip()?;
        let mut pending = Pending::default();
        loop {
            let Some(block) = self.block()? else {
                return if pending.is_empty() { Ok(None) } else { Err(self.fault("the archive ends after an extension header")) };
            };
            self.number += 1;
            let header = Header::parse(block).map_err(|why| self.fault(why))?;
            let size = header.size().map_err(|why| self.fault(why))?;
            match header.kind() {
                b'x' | b'g' | b'L' | b'K' => self.extension(header.kind(), size, &mut pending)?,
                _ => return self.entry(&header, size, pending).map(Some),
            }
        }
    }

    /// Takes one extension header. An `x` header does not apply to a GNU one that follows it, only to the entry behind both.
    fn extension(&mut self, kind: u8, size: u64, pending: &mut Pending) -> Result<(), UnpackError> {
        let data = self.extension_data(size)?;
        let twice = match kind {
            b'g' => return Pax::check_global(&data).map_err(|why| self.fault(why)),
            b'x' => pending.pax.replace(Pax::parse(&data).map_err(|why| self.fault(why))?).is_some(),
            b'L' => pending.long_path.replace(self.long_name(data)?).is_some(),
            _ => pending.long_link.replace(self.long_name(data)?).is_some(),
        };
        if twice { Err(self.fault("two extension headers of one kind before one entry")) } else { Ok(()) }
    }

    /// GNU's long names end with a NUL byte.
    fn long_name(&self, mut data: Vec<u8>) -> Result<Vec<u8>, UnpackError> {
        while data.last() == Some(&0) {
            data.pop();
        }
        if data.contains(&0) { Err(self.fault("a long name holds a NUL byte")) } else { Ok(data) }
    }

    fn extension_data(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        let length = usize::try_from(size).ok().filter(|n| *n <= self.max_header);
        let length = length.ok_or_else(|| self.fault(format!("an extension header of {size} bytes; at most {}", self.max_header)))?;
        let mut data = vec![0; length];
        self.reader.read_exact(&mut data).map_err(truncated)?;
        (self.data, self.padding) = (0, padding(size));
        self.skip()?;
        Ok(data)
    }

    fn entry(&mut self, header: &Header, header_size: u64, pending: Pending) -> Result<Entry, UnpackError> {
        let mut pax = pending.pax.unwrap_or_default();
        let number = self.number;
        let fault = |why: Fault| UnpackError::Header { number, why };
        let path = one(pax.path, pending.long_path, "path").map_err(fault)?;
        let path = pax.sparse.as_mut().and_then(|records| records.name.take()).or(path).unwrap_or_else(|| header.path());
        let link = one(pax.link, pending.long_link, "link target").map_err(fault)?.unwrap_or_else(|| header.link().to_vec());
        let kind = match header.kind() {
            // The oldest tar marks directories by their name alone.
            0 if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(fault(format!("of type {:?}, which is not supported", char::from(other)))),
        };
        let size = one_size(header_size, pax.size).map_err(fault)?;
        if kind != Kind::File && (size != 0 || pax.sparse.is_some()) {
            // Some readers skip such data and some take it for the next header.
            return Err(fault(format!("{kind:?} with {size} bytes of data: refused, as readers disagree on what they are")));
        }
        (self.data, self.padding) = (size, padding(size));
        let map = match (header.kind(), pax.sparse) {
            (b'S', None) => Some(self.map_behind_header(header)?),
            (b'S', Some(_)) => return Err(fault("a sparse file by both its header and PAX".into())),
            (_, Some(records)) => {
                let (size, pieces) = records.finish().map_err(fault)?;
                Some((size, pieces.map_or_else(|| self.map_before_data(), Ok)?))
            }
            (_, None) => None,
        };
        let sparse = map.map(|(size, pieces)| Map::new(pieces, size, self.data)).transpose().map_err(fault)?;
        let id = |name: &str, value: u64| {
            u32::try_from(value).ok().filter(|id| *id != u32::MAX).ok_or(format!("{name} {value} is out of range"))
        };
        let uid = pax.uid.map_or_else(|| header.uid(), Ok).and_then(|uid| id("uid", uid)).map_err(fault)?;
        let gid = pax.gid.map_or_else(|| header.gid(), Ok).and_then(|gid| id("gid", gid)).map_err(fault)?;
        let device = if matches!(kind, Kind::Char | Kind::Block) { header.device().map_err(fault)? } else { (0, 0) };
        let mtime = pax.mtime.map_or_else(|| header.mtime(), Ok).map_err(fault)?;
        Ok(Entry { kind, path, link, mode: header.mode().map_err(fault)?, uid, gid, mtime, device, xattrs: pax.xattrs, sparse })
    }

    /// Of a sparse file in GNU's own form: its size and pieces, in the header and the blocks behind it, which its data do not count.
    fn map_behind_header(&mut self, header: &Header) -> Result<(u64, Vec<Piece>), UnpackError> {
        let (table, size, mut more) = header.sparse().map_err(|why| self.fault(why))?;
        let mut map = sparse::Old::default();
        map.add(table).map_err(|why| self.fault(why))?;
        while more {
            let block = self.raw_block()?.ok_or_else(|| truncated(io::ErrorKind::UnexpectedEof.into()))?;
            more = map.add_block(&block).map_err(|why| self.fault(why))?;
        }
        Ok((size, map.pieces))
    }

    /// Of a sparse file of version 1.0: its pieces, in the first blocks of its data.
    fn map_before_data(&mut self) -> Result<Vec<Piece>, UnpackError> {
        let mut map = sparse::Lines::default();
        loop {
            self.data = self.data.checked_sub(BLOCK as u64).ok_or_else(|| self.fault("a sparse file whose map is cut off"))?;
            let block = self.raw_block()?.ok_or_else(|| truncated(io::ErrorKind::UnexpectedEof.into()))?;
            if map.add(&block).map_err(|why| self.fault(why))? {
                return Ok(map.pieces);
            }
        }
    }

    /// Writes the current entry's data to `file`, which is new; what lies between the pieces of a sparse file stays a hole.
    pub(super) fn copy_data(
        &mut self,
        mut file: &File,
        sparse: Option<&Map>,
        buffer: &mut [u8],
        path: &EntryPath,
    ) -> Result<(), UnpackError> {
        let Some(map) = sparse else { return self.copy(file, self.data, buffer, path) };
        for (offset, length) in &map.pieces {
            file.seek(SeekFrom::Start(*offset)).map_err(|e| path.system("seek", e))?;
            self.copy(file, *length, buffer, path)?;
        }
        file.set_len(map.size).map_err(|e| path.system("set the size", e))
    }

    fn copy(&mut self, mut file: &File, length: u64, buffer: &mut [u8], path: &EntryPath) -> Result<(), UnpackError> {
        let rest = self.data.saturating_sub(length);
        while self.data > rest {
            let want = usize::try_from(self.data - rest).unwrap_or(usize::MAX).min(buffer.len());
            let n = match self.reader.read(&mut buffer[..want]) {
                Ok(0) => return Err(truncated(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(truncated(e)),
            };
            file.write_all(&buffer[..n]).map_err(|e| path.system("write", e))?;
            self.data -= n as u64;
        }
        Ok(())
    }

    /// Skips what is left of an entry. Its data must be there. The zeros behind the last entry's data need not be: umoci leaves them out
    /// together with the end mark, and Go's reader, which containerd uses, takes that for the end.
    fn skip(&mut self) -> Result<(), UnpackError> {
        let (data, padding) = (std::mem::take(&mut self.data), std::mem::take(&mut self.padding));
        let skipped = self.discard(data)?;
        if skipped < data {
            return Err(truncated(io::ErrorKind::UnexpectedEof.into()));
        }
        self.discard(padding).map(drop)
    }

    fn discard(&mut self, length: u64) -> Result<u64, UnpackError> {
        if length == 0 {
            return Ok(0);
        }
        io::copy(&mut self.reader.by_ref().take(length), &mut io::sink()).map_err(truncated)
    }

    /// The next header block; nothing at the end, which is two blocks of zeros. Tools that leave them out end between entries.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, UnpackError> {
        let Some(block) = self.raw_block()? else { return Ok(None) };
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        match self.raw_block()? {
            Some(second) if second != [0; BLOCK] => Err(self.fault("one block of zeros between entries")),
            _ => Ok(None),
        }
    }

    fn raw_block(&mut self) -> Result<Option<[u8; BLOCK]>, UnpackError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(truncated(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => (),
                Err(e) => return Err(truncated(e)),
            }
        }
        Ok(Some(block))
    }

    fn fault(&self, why: impl Into<Fault>) -> UnpackError {
        UnpackError::Header { number: self.number, why: why.into() }
    }
}

/// A value that PAX and GNU can both give must be given by one of them.
fn one(pax: Option<Vec<u8>>, gnu: Option<Vec<u8>>, what: &str) -> Result<Option<Vec<u8>>, Fault> {
    match (pax, gnu) {
        (Some(_), Some(_)) => Err(format!("its {what} is given by both a PAX and a GNU header")),
        (pax, gnu) => Ok(pax.or(gnu)),
    }
}

/// PAX replaces a size only where the header cannot hold it; then writers put zero or the field's maximum there.
fn one_size(header: u64, pax: Option<u64>) -> Result<u64, Fault> {
    match pax {
        Some(pax) if pax != header && (pax <= USTAR_MAX || !matches!(header, 0 | USTAR_MAX)) => {
            Err(format!("its size is {header} in the header and {pax} in PAX: refused, as readers would see different archives"))
        }
        Some(pax) => Ok(pax),
        None => Ok(header),
    }
}

/// The zeros behind data of `size` bytes.
fn padding(size: u64) -> u64 {
    let block = BLOCK as u64;
    (block - size % block) % block
}

fn truncated(source: io::Error) -> UnpackError {
    if source.kind() == io::ErrorKind::UnexpectedEof && source.get_ref().is_none() {
        return UnpackError::Archive(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends in the middle of an entry"));
    }
    UnpackError::Archive(source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TarBuilder, pax_record};
    use tar::EntryType;

    fn read(bytes: &[u8]) -> Result<Vec<Entry>, UnpackError> {
        let mut archive = Archive::new(bytes, 64 << 10);
        let mut entries = Vec::new();
        while let Some(entry) = archive.next_entry()? {
            entries.push(entry);
        }
        Ok(entries)
    }

    fn refusal(builder: TarBuilder) -> String {
        read(&builder.finish()).unwrap_err().to_string()
    }

    #[test]
    fn entries_and_extensions_are_joined() {
        let long = "n".repeat(300);
        let comment = pax_record("comment", b"x");
        let bytes = TarBuilder::new()
            .raw(EntryType::XGlobalHeader, "g", "", comment.len() as u64, &comment)
            .pax(&[("path", b"pax/name"), ("uid", b"3000000"), ("mtime", b"5.5")])
            .file("short", b"data")
            .raw(EntryType::GNULongName, "././@LongLink", "", 301, &[long.as_bytes(), b"\0"].concat())
            .file("cut", &[1; 513])
            .symlink("l", "target")
            .finish();
        let entries = read(&bytes).unwrap();
        assert_eq!(entries.iter().map(|e| e.kind).collect::<Vec<_>>(), [Kind::File, Kind::File, Kind::Symlink]);
        assert_eq!((entries[0].path.as_slice(), entries[0].uid, entries[0].mtime), (&b"pax/name"[..], 3_000_000, (5, 500_000_000)));
        assert!(entries[1].path == long.as_bytes() && entries[1].uid != 3_000_000, "PAX holds for one entry");
        assert_eq!(entries[2].link, b"target");
    }

    /// CVE-2025-62518: an inner archive lies in a file's data; a reader that believes the header's zero sees its entries.
    #[test]
    fn sizes_that_disagree_are_refused() {
        let inner = TarBuilder::new().file("smuggled", b"evil").cut();
        let size = inner.len().to_string();
        let desync = |header_size| {
            let builder = TarBuilder::new().pax(&[("size", size.as_bytes())]);
            builder.raw(EntryType::Regular, "outer.tar", "", header_size, &inner)
        };
        for header_size in [0, 512, inner.len() as u64 * 2] {
            assert!(refusal(desync(header_size)).contains("readers would see different archives"));
        }
        let entries = read(&desync(inner.len() as u64).finish()).unwrap();
        assert_eq!(entries.len(), 1, "the same size twice is one size");
        // The other half of it: a size that leaks from an `x` header into the GNU header behind it.
        let builder = TarBuilder::new().pax(&[("size", b"4")]).raw(EntryType::GNULongName, "x", "", 2, b"n\0").file("f", b"1234");
        assert_eq!(read(&builder.finish()).unwrap()[0].path, b"n");
    }

    #[test]
    fn only_a_size_past_the_field_may_stand_in_pax_alone() {
        assert_eq!(one_size(0, Some(USTAR_MAX + 1)), Ok(USTAR_MAX + 1));
        assert_eq!(one_size(USTAR_MAX, Some(USTAR_MAX + 1)), Ok(USTAR_MAX + 1));
        assert!(one_size(0, Some(USTAR_MAX)).is_err());
        assert!(one_size(1, Some(0)).is_err());
        assert!(one_size(512, Some(USTAR_MAX + 1)).is_err());
    }

    #[test]
    fn data_behind_what_has_none_is_refused() {
        for kind in [EntryType::Link, EntryType::Symlink, EntryType::Directory, EntryType::Fifo, EntryType::Char] {
            let error = refusal(TarBuilder::new().raw(kind, "x", "y", 512, &[0; 512]));
            assert!(error.contains("512 bytes of data"), "{error}");
        }
    }

    #[test]
    fn ambiguous_extensions_are_refused() {
        let pax = |b: TarBuilder| b.pax(&[("path", b"a")]);
        let gnu = |b: TarBuilder| b.raw(EntryType::GNULongName, "x", "", 2, b"b\0");
        assert!(refusal(gnu(pax(TarBuilder::new())).file("f", b"")).contains("both a PAX and a GNU"));
        assert!(refusal(pax(pax(TarBuilder::new())).file("f", b"")).contains("two extension headers"));
        assert!(refusal(gnu(gnu(TarBuilder::new())).file("f", b"")).contains("two extension headers"));
        assert!(refusal(pax(TarBuilder::new())).contains("ends after an extension"));
        assert!(refusal(TarBuilder::new().raw(EntryType::GNULongName, "x", "", 4, b"a\0b\0").file("f", b"")).contains("NUL"));
        assert!(refusal(TarBuilder::new().raw(EntryType::XHeader, "x", "", 1 << 40, b"")).contains("at most"));
        assert!(refusal(TarBuilder::new().raw(EntryType::GNUSparse, "x", "", 0, b"")).contains("header is not GNU's"));
        assert!(refusal(TarBuilder::new().raw(EntryType::new(b'V'), "x", "", 0, b"")).contains("type 'V'"));
    }

    #[test]
    fn a_cut_archive_is_refused_and_a_missing_end_is_not() {
        let whole = TarBuilder::new().file("a", &[7; 600]).file("b", b"x").cut();
        assert_eq!(read(&whole).unwrap().len(), 2);
        for cut in [1, 511, 512, 512 + 599, 1536 + 1, 1536 + 511, 1536 + 512] {
            assert!(read(&whole[..cut]).is_err(), "cut at {cut}");
        }
        for (cut, entries) in [(512 + 600, 1), (512 + 1023, 1), (1536, 1), (1536 + 513, 2), (whole.len() - 1, 2)] {
            assert_eq!(read(&whole[..cut]).unwrap().len(), entries, "cut at {cut}");
        }
        let hole = [&whole[..], &[0; 512], &whole[..]].concat();
        assert!(read(&hole).unwrap_err().to_string().contains("one block of zeros"));
    }

    #[test]
    fn owners_fit_the_kernels_type() {
        for id in ["4294967295", "4294967296"] {
            assert!(refusal(TarBuilder::new().pax(&[("uid", id.as_bytes())]).file("f", b"")).contains("out of range"));
        }
    }
}
