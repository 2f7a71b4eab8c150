//! The second pass over a layer, which [`crate::spool`] has accepted: decrypt, decompress, unpack, and compare the digests of what
//! came out. Synchronous: it belongs on a blocking thread.

use crate::{
    ahead::{self, BUFFER},
    digest::{Digest, HashingReader},
    media_type::Compression,
    ocicrypt::{LayerKey, open_reader},
    plan::LayerPlan,
    unpack::{Limits, Stats, UnpackError, Unpacker},
};
use flate2::bufread::MultiGzDecoder;
use std::{
    io::{self, BufRead, BufReader, Read},
    path::Path,
    thread::{self, Scope},
};
use thiserror::Error;
use zstd::zstd_safe::DParameter;

/// log2 of the largest zstd window, in bytes: what `zstd -19` needs, times 16. A frame may ask for more memory than a guest has.
const ZSTD_WINDOW_LOG: u32 = 27;
/// What decompression may always yield, in bytes, whatever the ratio.
const FREE_BYTES: u64 = 64 << 20;

/// Why a layer was not unpacked. Which one, its caller says. What lies in the directory then is of unknown state: remove it.
#[derive(Debug, Error)]
pub enum LayerError {
    /// A plan for an encrypted layer without its key, or the other way round.
    #[error("the key does not go with the plan")]
    Key,
    /// The archive, its packing or the directory.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// Something behind the archive's end.
    #[error("bytes other than zero follow the end of the archive: refused, as readers would disagree on what they are")]
    Trailing,
    /// Other than the config says.
    #[error("unpacks to {actual}, the image config promises diff_id {expected}: the image is damaged, push it anew")]
    DiffId {
        /// By the config.
        expected: Digest,
        /// What came out.
        actual: Digest,
    },
    /// Other than the encryptor said.
    #[error("decrypts to {actual}, its key was made for {expected}: the image is damaged, encrypt it anew")]
    Plain {
        /// By the key packet.
        expected: Digest,
        /// What came out.
        actual: Digest,
    },
}

/// Unpacks the spooled blob `file` of `plan` into the directory `root`, which is empty and this layer's own. On an error the caller
/// removes `root`. Decrypting, decompressing and unpacking are threads of their own where there are processors for them.
pub fn unpack_layer(
    file: impl Read + Send,
    plan: &LayerPlan,
    key: Option<&LayerKey>,
    root: &Path,
    limits: &Limits,
) -> Result<Stats, LayerError> {
    let limits = capped(limits, plan.descriptor.size);
    let unpacker = Unpacker::new(root, &limits)?;
    thread::scope(|scope| match (&plan.envelope, key) {
        (None, None) => unpack(scope, Box::new(BufReader::with_capacity(BUFFER, file)), plan, unpacker, &limits),
        (Some(_), Some(key)) => {
            // The packet names the plaintext that its key was made for: a key moved to another layer's ciphertext ends here at the
            // latest.
            let (plain, sum) = HashingReader::new(open_reader(file, key));
            let stats = unpack(scope, ahead::buffered(scope, plain), plan, unpacker, &limits)?;
            let (actual, _) = sum.get().ok_or(LayerError::Trailing)?;
            let expected = key.plain_digest();
            // skopeo compresses a plain tar before it encrypts it, and still wraps the digest that it found: then it is the diff_id.
            if actual == expected || plan.diff_id == expected { Ok(stats) } else { Err(LayerError::Plain { expected, actual }) }
        }
        _ => Err(LayerError::Key),
    })
}

/// A bomb of a few kilobytes must not fill the disk: beyond [`FREE_BYTES`] the packed size bounds the unpacked one.
fn capped(limits: &Limits, packed: u64) -> Limits {
    let by_ratio = packed.saturating_mul(limits.max_ratio).max(FREE_BYTES);
    Limits { max_bytes: limits.max_bytes.min(by_ratio), ..limits.clone() }
}

fn unpack<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    packed: Box<dyn BufRead + Send + 'scope>,
    plan: &LayerPlan,
    unpacker: Unpacker,
    limits: &Limits,
) -> Result<Stats, LayerError> {
    let tar: Box<dyn BufRead + Send + 'scope> = match plan.compression {
        Compression::None => Box::new(BufReader::new(Bounded::new(packed, limits.max_bytes))),
        _ => {
            let tar = decompressor(packed, plan.compression).map_err(UnpackError::Archive)?;
            ahead::buffered(scope, Bounded::new(tar, limits.max_bytes))
        }
    };
    let (tar, sum) = HashingReader::new(tar);
    let mut archive = BufReader::with_capacity(BUFFER, tar);
    let mut stats = unpacker.unpack(&mut archive)?;
    let zero = drain_zeros(&mut archive).map_err(UnpackError::Archive)?;
    let Some((actual, bytes)) = sum.get().filter(|_| zero) else {
        return Err(LayerError::Trailing);
    };
    stats.bytes = bytes;
    let expected = plan.diff_id;
    if actual == expected { Ok(stats) } else { Err(LayerError::DiffId { expected, actual }) }
}

/// The tar in `packed`. All of `packed` is read; what is neither a member nor a frame of the format is an error.
fn decompressor<'a>(packed: Box<dyn BufRead + Send + 'a>, compression: Compression) -> io::Result<Box<dyn Read + Send + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(packed),
        Compression::Gzip => Box::new(MultiGzDecoder::new(packed)),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(packed)?;
            decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG))?;
            Box::new(decoder)
        }
    })
}

/// Reads to the end; whether only zeros were left. Tools pad archives with them.
fn drain_zeros(reader: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(true);
        }
        if bytes.iter().any(|b| *b != 0) {
            return Ok(false);
        }
        let n = bytes.len();
        reader.consume(n);
    }
}

/// Ends a stream that yields more than it may.
struct Bounded<R> {
    inner: R,
    left: u64,
    max: u64,
}

impl<R> Bounded<R> {
    fn new(inner: R, max: u64) -> Self {
        Self { inner, left: max, max }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            io::Error::other(format!("unpacks to more than {} bytes, the limit for a layer of its packed size", self.max))
        })?;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, TarBuilder, gzip, zstd_bytes};

    fn tar() -> Vec<u8> {
        TarBuilder::new().dir("etc/", 0o755).file("etc/motd", b"hello").finish()
    }

    fn run(blob: &[u8], plan: &LayerPlan, key: Option<&LayerKey>) -> Result<Stats, LayerError> {
        let root = tempfile::tempdir().unwrap();
        let stats = unpack_layer(blob, plan, key, root.path(), &Limits::default())?;
        assert_eq!(std::fs::read(root.path().join("etc/motd")).unwrap(), b"hello");
        Ok(stats)
    }

    fn plan_of(blob: &[u8], tar: &[u8], compression: Compression) -> LayerPlan {
        LayerPlan { compression, diff_id: Digest::of(tar), ..testing::plain_plan(blob) }
    }

    #[test]
    fn every_packing_is_unpacked() {
        let tar = tar();
        let stats = run(&tar, &plan_of(&tar, &tar, Compression::None), None).unwrap();
        assert_eq!((stats.entries, stats.bytes), (2, tar.len() as u64));
        let members = [gzip(&tar[..700]), gzip(&tar[700..])].concat();
        for blob in [gzip(&tar), members] {
            run(&blob, &plan_of(&blob, &tar, Compression::Gzip), None).unwrap();
        }
        let frames = [zstd_bytes(&tar[..700]), zstd_bytes(&tar[700..])].concat();
        for blob in [zstd_bytes(&tar), frames] {
            run(&blob, &plan_of(&blob, &tar, Compression::Zstd), None).unwrap();
        }
    }

    #[test]
    fn an_encrypted_layer_is_opened_and_compared_with_its_packet() {
        let tar = tar();
        let packed = gzip(&tar);
        let (cipher, mut plan, key) = testing::sealed_plan(&packed);
        (plan.compression, plan.diff_id) = (Compression::Gzip, Digest::of(&tar));
        run(&cipher, &plan, Some(&key)).unwrap();
        assert!(matches!(run(&cipher, &plan, None), Err(LayerError::Key)));
        // The right tar in another gzip is not what the key was made for.
        let (_, _, other) = testing::sealed_plan(b"other");
        assert!(run(&cipher, &plan, Some(&other)).is_err());
    }

    #[test]
    fn a_damaged_or_lying_layer_is_refused() {
        let tar = tar();
        let packed = gzip(&tar);
        let plan = plan_of(&packed, &tar, Compression::Gzip);
        let error = |blob: &[u8]| run(blob, &plan, None).unwrap_err().to_string();
        assert!(error(&packed[..packed.len() - 4]).contains("reading the archive: "), "a cut trailer");
        let mut size = packed.clone();
        let at = size.len() - 1;
        size[at] ^= 1;
        error(&size);
        let trailing = [packed.as_slice(), b"garbage"].concat();
        error(&trailing);
        let longer = gzip(&[tar.as_slice(), &[0; 10_240]].concat());
        assert!(error(&longer).contains("promises"));
        let hidden = gzip(&[tar.as_slice(), &[0; 512], &[1; 512]].concat());
        assert!(error(&hidden).contains("follow the end"));
        assert!(run(&packed, &LayerPlan { compression: Compression::Zstd, ..plan.clone() }, None).is_err());
    }

    #[test]
    fn a_bomb_ends_at_its_limit() {
        let bomb = TarBuilder::new().file("zeros", &vec![0; 4 << 20]).finish();
        let packed = gzip(&bomb);
        let plan = plan_of(&packed, &bomb, Compression::Gzip);
        let root = tempfile::tempdir().unwrap();
        let limits = Limits { max_bytes: 1 << 20, ..Limits::default() };
        let error = unpack_layer(packed.as_slice(), &plan, None, root.path(), &limits).unwrap_err().to_string();
        assert!(error.contains("more than 1048576 bytes"), "{error}");
        assert_eq!(capped(&Limits::default(), 10).max_bytes, FREE_BYTES);
        assert_eq!(capped(&Limits { max_bytes: 5, ..Limits::default() }, u64::MAX).max_bytes, 5);
    }
}
