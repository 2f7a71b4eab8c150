//! Sparse files (GNU tar's manual, "Storing Sparse Files"): the archive has the pieces of a file that are not holes, one after the other,
//! and a map of where each belongs. The map lies in one of four places: in a header of GNU's own and blocks behind it, in PAX records that
//! repeat (0.0), in one PAX record (0.1), or before the data (1.0).
//!
//! A map that does not account for every byte of the entry's data is refused: what such data are depends on the reader.

use super::{
    header::{BLOCK, Fault, unsigned},
    pax::decimal,
};

/// A piece's place in the file and its length, in bytes.
pub(super) type Piece = (u64, u64);

/// Most pieces of one file: a mebibyte of memory.
const MAX_PIECES: usize = 1 << 16;
/// A piece in GNU's own header: two numbers of twelve digits.
const OLD_PIECE: usize = 24;
/// Bytes of pieces in a block behind such a header; then comes the mark that another one follows.
const OLD_TABLE: usize = 21 * OLD_PIECE;

/// Where the data of a sparse file belong.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Map {
    pub(super) pieces: Vec<Piece>,
    /// Of the whole file, in bytes.
    pub(super) size: u64,
}

impl Map {
    /// Pieces in order, apart from each other, within the file, and of `stored` bytes together.
    pub(super) fn new(pieces: Vec<Piece>, size: u64, stored: u64) -> Result<Self, Fault> {
        let (mut end, mut sum) = (0, 0);
        for (offset, length) in &pieces {
            let inside = offset.checked_add(*length).filter(|after| *offset >= end && *after <= size);
            end = inside.ok_or("a sparse file whose pieces overlap, are out of order, or lie beyond its end")?;
            // No more than `end`, so that it cannot overflow.
            sum += length;
        }
        if sum != stored {
            return Err(format!("a sparse file with {stored} bytes of data and a map of {sum}"));
        }
        Ok(Self { pieces, size })
    }
}

/// The pieces of GNU's own header.
#[derive(Debug, Default)]
pub(super) struct Old {
    pub(super) pieces: Vec<Piece>,
}

impl Old {
    /// Takes a header's own table.
    pub(super) fn add(&mut self, table: &[u8]) -> Result<(), Fault> {
        for piece in table.chunks_exact(OLD_PIECE).take_while(|piece| piece[0] != 0) {
            let numbers = unsigned(&piece[..12]).zip(unsigned(&piece[12..]));
            push(&mut self.pieces, numbers.ok_or("a sparse file's map has something else than numbers")?)?;
        }
        Ok(())
    }

    /// Takes a block behind the header; whether another one follows.
    pub(super) fn add_block(&mut self, block: &[u8; BLOCK]) -> Result<bool, Fault> {
        self.add(&block[..OLD_TABLE])?;
        Ok(block[OLD_TABLE] != 0)
    }
}

/// What PAX records say of a sparse file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    version: (Option<u64>, Option<u64>),
    /// In place of the entry's own name, which is there for readers that do not know sparse files.
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    count: Option<u64>,
    pieces: Vec<Piece>,
    /// An offset whose length is still to come.
    offset: Option<u64>,
}

impl Records {
    /// Whether a record may be given again: version 0.0 does so for each piece.
    pub(super) fn repeats(key: &[u8]) -> bool {
        matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes")
    }

    /// Takes the record `GNU.sparse.<key>`.
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let number = || decimal(value).ok_or("a sparse file's PAX record is not a decimal number");
        match key {
            b"major" => self.version.0 = Some(number()?),
            b"minor" => self.version.1 = Some(number()?),
            b"name" if !value.is_empty() && !value.contains(&0) => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => {
                let size = number()?;
                if self.size.replace(size).is_some_and(|other| other != size) {
                    return Err("a sparse file with two sizes".into());
                }
            }
            b"numblocks" => self.count = Some(number()?),
            b"map" if value.is_empty() => (),
            b"map" => {
                let numbers: Option<Vec<u64>> = value.split(|byte| *byte == b',').take(2 * MAX_PIECES + 2).map(decimal).collect();
                let numbers = numbers.filter(|numbers| numbers.len().is_multiple_of(2)).ok_or("a sparse file's map is no list of pairs")?;
                numbers.chunks_exact(2).try_for_each(|pair| push(&mut self.pieces, (pair[0], pair[1])))?;
            }
            b"offset" if self.offset.is_none() => self.offset = Some(number()?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or("a sparse file's map has a length without its offset")?;
                push(&mut self.pieces, (offset, number()?))?;
            }
            _ => return Err("a sparse file with a PAX record that is not known".into()),
        }
        Ok(())
    }

    /// The file's size, and its pieces; no pieces in version 1.0, where they lie before the data.
    pub(super) fn finish(self) -> Result<(u64, Option<Vec<Piece>>), Fault> {
        let size = self.size.ok_or("a sparse file without its size")?;
        let whole = self.offset.is_none() && self.count.is_none_or(|count| count == self.pieces.len() as u64);
        match self.version {
            (None, None) | (Some(0), Some(0 | 1)) if whole => Ok((size, Some(self.pieces))),
            (Some(1), Some(0)) if whole && self.pieces.is_empty() => Ok((size, None)),
            (None | Some(0 | 1), None | Some(0 | 1)) => Err("a sparse file whose PAX records contradict each other".into()),
            _ => Err("a sparse file of a version that is not known: GNU tar writes 0.0, 0.1 and 1.0".into()),
        }
    }
}

/// The map before the data of version 1.0: how many pieces there are, then the two numbers of each, a line each.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    left: Option<u64>,
    offset: Option<u64>,
    pub(super) pieces: Vec<Piece>,
}

impl Lines {
    /// Takes a block; whether the map is whole. What is left of its last block is filling.
    pub(super) fn add(&mut self, block: &[u8; BLOCK]) -> Result<bool, Fault> {
        for byte in block {
            if *byte != b'\n' {
                self.line.push(*byte);
                // The longest number has twenty digits.
                if self.line.len() > 20 {
                    return Err("a sparse file's map has a line that is no number".into());
                }
                continue;
            }
            let number = decimal(&self.line).ok_or("a sparse file's map has a line that is no number")?;
            self.line.clear();
            match (self.left, self.offset.take()) {
                (None, _) => self.left = Some(number),
                (Some(_), None) => self.offset = Some(number),
                (Some(left), Some(offset)) => {
                    push(&mut self.pieces, (offset, number))?;
                    self.left = Some(left - 1);
                }
            }
            if self.left == Some(0) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn push(pieces: &mut Vec<Piece>, piece: Piece) -> Result<(), Fault> {
    if pieces.len() == MAX_PIECES {
        return Err(format!("a sparse file of more than {MAX_PIECES} pieces: write the layer without --sparse"));
    }
    pieces.push(piece);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_accounts_for_every_byte() {
        assert!(Map::new(vec![(0, 5), (5, 5), (100, 0)], 100, 10).is_ok());
        assert!(Map::new(Vec::new(), 1 << 40, 0).is_ok(), "nothing but a hole");
        for (pieces, size, stored) in [
            (vec![(0, 5), (4, 5)], 100, 10),
            (vec![(50, 5), (0, 5)], 100, 10),
            (vec![(96, 5)], 100, 5),
            (vec![(u64::MAX, 5)], u64::MAX, 5),
            (vec![(0, 5)], 100, 6),
            (vec![(0, 5)], 100, 0),
        ] {
            assert!(Map::new(pieces.clone(), size, stored).is_err(), "{pieces:?} in {size} with {stored}");
        }
    }

    fn records(records: &[(&str, &str)]) -> Result<(u64, Option<Vec<Piece>>), Fault> {
        let mut taken = Records::default();
        records.iter().try_for_each(|(key, value)| taken.add(key.as_bytes(), value.as_bytes()))?;
        taken.finish()
    }

    #[test]
    fn records_of_each_version_are_read() {
        let pieces = Some(vec![(0, 5), (7, 2)]);
        let repeated = [("size", "9"), ("numblocks", "2"), ("offset", "0"), ("numbytes", "5"), ("offset", "7"), ("numbytes", "2")];
        assert_eq!(records(&repeated), Ok((9, pieces.clone())));
        assert_eq!(records(&[("major", "0"), ("minor", "1"), ("size", "9"), ("map", "0,5,7,2"), ("name", "n")]), Ok((9, pieces)));
        assert_eq!(records(&[("major", "1"), ("minor", "0"), ("realsize", "9")]), Ok((9, None)));
    }

    #[test]
    fn records_that_contradict_each_other_are_refused() {
        let bad: [&[(&str, &str)]; 12] = [
            &[("map", "0,5")],
            &[("size", "9"), ("realsize", "8"), ("map", "0,5")],
            &[("size", "9"), ("numblocks", "2"), ("map", "0,5")],
            &[("size", "9"), ("offset", "0")],
            &[("size", "9"), ("numbytes", "0")],
            &[("size", "9"), ("offset", "0"), ("offset", "0")],
            &[("size", "9"), ("map", "0,5,7")],
            &[("size", "9"), ("map", "0,-5")],
            &[("size", "9"), ("major", "1"), ("minor", "0"), ("map", "0,5")],
            &[("size", "9"), ("major", "2"), ("minor", "0")],
            &[("size", "9"), ("name", "")],
            &[("size", "9"), ("colour", "blue")],
        ];
        for bad in bad {
            assert!(records(bad).is_err(), "{bad:?}");
        }
    }

    fn lines(text: &str) -> Result<Option<Vec<Piece>>, Fault> {
        let mut lines = Lines::default();
        for chunk in text.as_bytes().chunks(BLOCK) {
            let mut block = [0; BLOCK];
            block[..chunk.len()].copy_from_slice(chunk);
            if lines.add(&block)? {
                return Ok(Some(lines.pieces));
            }
        }
        Ok(None)
    }

    #[test]
    fn the_map_before_the_data_is_read_across_blocks_and_has_an_end() {
        assert_eq!(lines("2\n0\n5\n7\n2\nwhat follows is filling"), Ok(Some(vec![(0, 5), (7, 2)])));
        assert_eq!(lines("0\n"), Ok(Some(Vec::new())));
        let many: String = (0..200).map(|at| format!("{}\n5\n", at * 10)).collect();
        assert_eq!(lines(&format!("200\n{many}")).unwrap().unwrap().len(), 200);
        assert_eq!(lines(&format!("201\n{many}")).ok(), None, "zeros are no numbers");
        for bad in ["x\n", "\n", "1\n-1\n5\n", "111111111111111111111\n"] {
            assert!(lines(bad).is_err(), "{bad:?}");
        }
        let endless = "1\n".repeat(2 * MAX_PIECES + 10);
        assert!(lines(&format!("99999999\n{endless}")).unwrap_err().contains("more than 65536 pieces"));
        let table: Vec<u8> = b"00000000001\0".repeat(2 * 21);
        let (mut old, mut block) = (Old::default(), [1; BLOCK]);
        block[..OLD_TABLE].copy_from_slice(&table);
        let error = (0..=MAX_PIECES).find_map(|_| old.add_block(&block).err());
        assert!(error.unwrap().contains("more than 65536 pieces"));
    }
}
