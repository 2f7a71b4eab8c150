//! Bounded text lines: the greeting of each raw vsock connection.

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest line of any greeting, in bytes, without its newline.
pub const MAX_LINE: usize = 4096;

/// Why a greeting was refused.
#[derive(Debug, Error)]
pub enum LineError {
    /// The peer went away before the newline.
    #[error("connection ended within a line")]
    Ended,
    /// The line is longer than the bound.
    #[error("line longer than {0} bytes")]
    TooLong(usize),
    /// Not printable ASCII.
    #[error("line holds a byte that is not printable ASCII")]
    NotText,
    /// Reading or writing failed.
    #[error("vsock connection: {0}")]
    Io(#[from] std::io::Error),
    /// The peer said no, in its words.
    #[error("{0}")]
    Refused(String),
    /// A line that is none of the protocol's.
    #[error("unexpected line {0:?}")]
    Unexpected(String),
}

/// Reads up to a newline and not one byte further, so that what follows belongs to the stream.
pub async fn read_line<R: AsyncRead + Unpin>(reader: &mut R) -> Result<String, LineError> {
    let mut line = Vec::with_capacity(80);
    loop {
        let byte = match reader.read_u8().await {
            Ok(byte) => byte,
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Err(LineError::Ended),
            Err(e) => return Err(e.into()),
        };
        match byte {
            b'\n' => break,
            b' '..=b'~' if line.len() < MAX_LINE => line.push(byte),
            b' '..=b'~' => return Err(LineError::TooLong(MAX_LINE)),
            _ => return Err(LineError::NotText),
        }
    }
    Ok(line.into_iter().map(char::from).collect())
}

/// Writes `line` and a newline. What is not printable ASCII is replaced by `?`, what is too long is cut.
pub async fn write_line<W: AsyncWrite + Unpin>(writer: &mut W, line: &str) -> Result<(), LineError> {
    let mut bytes: Vec<u8> = line.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c as u8 } else { b'?' }).take(MAX_LINE).collect();
    bytes.push(b'\n');
    writer.write_all(&bytes).await?;
    Ok(writer.flush().await?)
}

/// Answers a greeting with success.
pub async fn accept<W: AsyncWrite + Unpin>(writer: &mut W) -> Result<(), LineError> {
    write_line(writer, "OK").await
}

/// Answers a greeting with the reason of its refusal.
pub async fn refuse<W: AsyncWrite + Unpin>(writer: &mut W, reason: &str) -> Result<(), LineError> {
    write_line(writer, &format!("NO {reason}")).await
}

/// Waits for the answer to a greeting; gives what follows `OK`.
pub async fn read_answer<R: AsyncRead + Unpin>(reader: &mut R) -> Result<String, LineError> {
    let line = read_line(reader).await?;
    if line == "OK" {
        Ok(String::new())
    } else if let Some(rest) = line.strip_prefix("OK ") {
        Ok(rest.to_owned())
    } else if let Some(reason) = line.strip_prefix("NO ") {
        Err(LineError::Refused(reason.to_owned()))
    } else {
        Err(LineError::Unexpected(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stops_at_the_newline() {
        let mut input: &[u8] = b"GET sha256:00\nrest";
        assert_eq!(read_line(&mut input).await.unwrap(), "GET sha256:00");
        assert_eq!(input, b"rest");
    }

    #[tokio::test]
    async fn an_endless_line_is_cut_off() {
        let endless = vec![b'a'; MAX_LINE + 1];
        assert!(matches!(read_line(&mut &endless[..]).await, Err(LineError::TooLong(_))));
    }

    #[tokio::test]
    async fn control_bytes_are_refused() {
        assert!(matches!(read_line(&mut &b"a\x1b[2J\n"[..]).await, Err(LineError::NotText)));
        assert!(matches!(read_line(&mut &b"abc"[..]).await, Err(LineError::Ended)));
    }

    #[tokio::test]
    async fn a_refusal_carries_its_reason() {
        let mut wire = Vec::new();
        refuse(&mut wire, "no such blob\nOK").await.unwrap();
        assert!(matches!(read_answer(&mut &wire[..]).await, Err(LineError::Refused(r)) if r == "no such blob?OK"));
    }
}
