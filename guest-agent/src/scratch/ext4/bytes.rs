//! Little-endian fields at offsets, and the checksum of group descriptors.

/// Writes a 16-bit field.
pub fn put16(buffer: &mut [u8], at: usize, value: u16) {
    buffer[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// Writes a 32-bit field.
pub fn put32(buffer: &mut [u8], at: usize, value: u32) {
    buffer[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// CRC-16 with the polynomial 0x8005, reflected, as lib/crc16.c has it.
pub fn crc16(seed: u16, data: &[u8]) -> u16 {
    data.iter()
        .fold(seed, |crc, byte| (0..8).fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xa001 } else { crc >> 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_known_one() {
        // The check value of CRC-16/ARC.
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }
}
