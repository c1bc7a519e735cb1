//! The format of the output spool: a sequence of frames, appended by the supervisor, read by the driver.
//!
//! A frame is `length u32 | crc32 u32 | stream u8 | offset u64 | time_ms i64 | payload`, little endian. The checksum
//! covers everything after itself. A frame whose bytes are not all there yet is a frame that is being written (or was
//! when its writer died); a frame whose checksum is wrong is damage.

use serde::{Deserialize, Serialize};

/// Bytes before the payload.
pub const HEADER: usize = 25;
/// Longest payload; longer input is split. 64 KiB is what one read of a pipe gives.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// An output stream of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The word for people and reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One frame, borrowed from the buffer that it was decoded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Which stream.
    pub stream: Stream,
    /// Position of the payload in that stream.
    pub offset: u64,
    /// When it was read from the program (milliseconds since the epoch).
    pub time_ms: i64,
    /// The program's bytes.
    pub payload: &'a [u8],
}

/// A frame that can never become valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The length field is impossible.
    #[error("frame length {length} is out of range")]
    Length {
        /// The field's value.
        length: u32,
    },
    /// The checksum does not match.
    #[error("frame checksum does not match")]
    Checksum,
    /// The stream field is impossible.
    #[error("frame has unknown stream {stream}")]
    Stream {
        /// The field's value.
        stream: u8,
    },
}

impl Frame<'_> {
    /// Appends the encoded frame to `buffer`. The payload must not exceed [`MAX_PAYLOAD`].
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        debug_assert!(self.payload.len() <= MAX_PAYLOAD, "callers split their input");
        let start = buffer.len();
        let length = u32::try_from(self.payload.len()).expect("a payload is at most MAX_PAYLOAD");
        buffer.extend_from_slice(&length.to_le_bytes());
        buffer.extend_from_slice(&[0; 4]);
        buffer.push(match self.stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        });
        buffer.extend_from_slice(&self.offset.to_le_bytes());
        buffer.extend_from_slice(&self.time_ms.to_le_bytes());
        buffer.extend_from_slice(self.payload);
        let checksum = crc32fast::hash(&buffer[start + 8..]);
        buffer[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// Decodes the first frame of `bytes`; gives it and its whole length, or `None` if it is not complete yet.
///
/// # Errors
/// [`Error`] if the bytes can never become a frame.
pub fn decode(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Error> {
    let Some((header, rest)) = bytes.split_at_checked(HEADER) else { return Ok(None) };
    let length = u32::from_le_bytes(header[0..4].try_into().expect("four bytes"));
    let payload_len = usize::try_from(length).map_err(|_| Error::Length { length })?;
    if payload_len == 0 || payload_len > MAX_PAYLOAD {
        return Err(Error::Length { length });
    }
    let Some(payload) = rest.get(..payload_len) else { return Ok(None) };
    let checksum = u32::from_le_bytes(header[4..8].try_into().expect("four bytes"));
    if crc32fast::hash(&bytes[8..HEADER + payload_len]) != checksum {
        return Err(Error::Checksum);
    }
    let stream = match header[8] {
        1 => Stream::Stdout,
        2 => Stream::Stderr,
        stream => return Err(Error::Stream { stream }),
    };
    let offset = u64::from_le_bytes(header[9..17].try_into().expect("eight bytes"));
    let time_ms = i64::from_le_bytes(header[17..25].try_into().expect("eight bytes"));
    Ok(Some((Frame { stream, offset, time_ms, payload }, HEADER + payload_len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(payload: &[u8]) -> Vec<u8> {
        let mut buffer = Vec::new();
        Frame { stream: Stream::Stderr, offset: 7, time_ms: -3, payload }.encode(&mut buffer);
        buffer
    }

    #[test]
    fn a_frame_survives_the_round_trip_with_any_bytes() {
        let payload = [0, 255, b'a', 0xC3];
        let bytes = encoded(&payload);
        let (frame, length) = decode(&bytes).unwrap().unwrap();
        assert_eq!(length, bytes.len());
        assert_eq!(frame, Frame { stream: Stream::Stderr, offset: 7, time_ms: -3, payload: &payload });
    }

    #[test]
    fn every_prefix_of_a_frame_is_incomplete_and_every_flipped_payload_bit_is_damage() {
        let bytes = encoded(b"hello");
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end]), Ok(None), "prefix of {end} bytes");
        }
        for index in 8..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1;
            assert_eq!(decode(&damaged), Err(Error::Checksum), "byte {index}");
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_damage_and_not_an_endless_wait() {
        let mut bytes = encoded(b"x");
        bytes[0..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(decode(&bytes), Err(Error::Length { length: u32::MAX }));
    }
}
