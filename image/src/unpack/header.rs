//! One tar header (POSIX.1-1988 ustar, and GNU's variant of it): fixed fields of 512 bytes.

/// Length of a header and unit of everything else, in bytes.
pub(super) const BLOCK: usize = 512;

/// Seconds since 1970 and nanoseconds.
pub(super) type Time = (i64, u32);

/// A header block whose checksum is right.
pub(super) struct Header([u8; BLOCK]);

/// What is wrong with a header, in words.
pub(super) type Fault = String;

impl Header {
    /// Takes a block that is not all zero.
    pub(super) fn parse(block: [u8; BLOCK]) -> Result<Self, Fault> {
        let header = Self(block);
        let stated = octal(&block[148..156]).ok_or("checksum is not a number")?;
        // The checksum's own field counts as spaces. Old tools summed signed bytes.
        let sum = |value: fn(u8) -> i64| -> i64 {
            block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { value(*byte) }).sum()
        };
        let stated = i64::try_from(stated).map_err(|_| "checksum out of range")?;
        if stated != sum(i64::from) && stated != sum(|byte| i64::from(byte as i8)) {
            return Err("header checksum is wrong: not a tar archive, or damaged".into());
        }
        // star keeps times where ustar keeps the end of the path: readers disagree on the name.
        if header.is_ustar() && &block[508..512] == b"tar\0" {
            return Err("a header of star's own format: write the layer as PAX, ustar or GNU tar".into());
        }
        Ok(header)
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The path: in ustar in two fields, in GNU's form and the oldest one in one.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = if self.is_ustar() { text(&self.0[345..500]) } else { b"" };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> &[u8] {
        text(&self.0[157..257])
    }

    pub(super) fn size(&self) -> Result<u64, Fault> {
        unsigned(&self.0[124..136]).ok_or_else(|| "size is not a number".into())
    }

    pub(super) fn mode(&self) -> Result<u32, Fault> {
        // Some tools add the file type's bits, which the type field says already.
        unsigned(&self.0[100..108]).map(|mode| (mode & 0o7777) as u32).ok_or_else(|| "mode is not a number".into())
    }

    pub(super) fn uid(&self) -> Result<u64, Fault> {
        unsigned(&self.0[108..116]).ok_or_else(|| "uid is not a number".into())
    }

    pub(super) fn gid(&self) -> Result<u64, Fault> {
        unsigned(&self.0[116..124]).ok_or_else(|| "gid is not a number".into())
    }

    pub(super) fn mtime(&self) -> Result<Time, Fault> {
        signed(&self.0[136..148]).map(|seconds| (seconds, 0)).ok_or_else(|| "mtime is not a number".into())
    }

    pub(super) fn device(&self) -> Result<(u32, u32), Fault> {
        let number = |field: &[u8]| unsigned(field).and_then(|n| u32::try_from(n).ok());
        number(&self.0[329..337]).zip(number(&self.0[337..345])).ok_or_else(|| "device numbers are not numbers".into())
    }

    /// Of a sparse file in GNU's own form: the table of its first pieces, its size, and whether blocks with more pieces follow.
    pub(super) fn sparse(&self) -> Result<(&[u8], u64, bool), Fault> {
        if &self.0[257..265] != b"ustar  \0" {
            return Err("a sparse file whose header is not GNU's".into());
        }
        let size = unsigned(&self.0[483..495]).ok_or("a sparse file's size is not a number")?;
        Ok((&self.0[386..482], size, self.0[482] != 0))
    }

    fn is_ustar(&self) -> bool {
        &self.0[257..263] == b"ustar\0"
    }
}

/// Up to the first NUL byte.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits between spaces and NUL bytes; nothing at all is zero, as some writers leave fields out.
fn octal(field: &[u8]) -> Option<u64> {
    let padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|b| !padding(b)).unwrap_or(field.len());
    let end = field.iter().rposition(|b| !padding(b)).map_or(start, |last| last + 1);
    field[start..end].iter().try_fold(0u64, |number, byte| match byte {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// Octal, or GNU's base 256: the first bit set, then a two's-complement number.
fn signed(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 == 0 {
        return octal(field).and_then(|n| i64::try_from(n).ok());
    }
    // The mark's bit is no part of the number; the bit below it is the sign.
    let start = i64::from(first & 0x7f) - if first & 0x40 != 0 { 0x80 } else { 0 };
    field[1..].iter().try_fold(start, |number, byte| number.checked_mul(256)?.checked_add(i64::from(*byte)))
}

/// As [`signed`], not below zero.
pub(super) fn unsigned(field: &[u8]) -> Option<u64> {
    signed(field).and_then(|n| u64::try_from(n).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(signed(b"0000644\0"), Some(0o644));
        assert_eq!(signed(b"   644 \0"), Some(0o644));
        assert_eq!(signed(b"77777777"), Some(0o77777777));
        assert_eq!(signed(&[0; 8]), Some(0));
        assert_eq!(signed(&[0x80, 0, 0, 0, 0, 0, 1, 2]), Some(258));
        assert_eq!(signed(&[0xff; 12]), Some(-1));
        assert_eq!(unsigned(&[0xff; 12]), None);
        for bad in [&b"8"[..], b"-1", b"+1", b"1 1", b"0x1", &[0x80, 255, 255, 255, 255, 255, 255, 255, 255, 255]] {
            assert_eq!(signed(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_changed_byte_breaks_the_checksum() {
        let mut header = tar::Header::new_ustar();
        header.set_path("a").unwrap();
        header.set_size(5);
        header.set_cksum();
        assert_eq!(Header::parse(*header.as_bytes()).map_err(|e| panic!("{e}")).map(|h| h.size()), Ok(Ok(5)));
        for at in [0, 100, 130, 156, 300] {
            let mut bad = *header.as_bytes();
            bad[at] ^= 1;
            assert!(Header::parse(bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn long_paths_are_in_two_fields() {
        let path = format!("{}/{}", "d".repeat(120), "f".repeat(90));
        let mut header = tar::Header::new_ustar();
        header.set_path(&path).unwrap();
        header.set_cksum();
        assert_eq!(Header::parse(*header.as_bytes()).unwrap_or_else(|e| panic!("{e}")).path(), path.as_bytes());
    }
}
