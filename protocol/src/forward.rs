//! Port forwarding: one vsock connection carries one TCP connection to a port of the guest's loopback.
//!
//! The host connects to [`crate::guest_port::FORWARD`] and writes one line, `FORWARD <port>`. The guest answers `OK` or `NO <reason>`; from
//! there on the connection carries the bytes of both directions, and half-closing it half-closes the other.
//!
//! What a hostile host gains by it: it speaks to services of the workload that listen on loopback only. With initdata the owner's policy
//! has to allow that (`allow.port_forward`), and the agent's own ports are never reached.

use crate::line::{self, LineError};
use tokio::io::{AsyncRead, AsyncWrite};

/// Connects to a port of the guest's loopback: greets and waits for the guest's answer.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, port: u16) -> Result<(), LineError> {
    line::write_line(stream, &format!("FORWARD {port}")).await?;
    line::read_answer(stream).await.map(drop)
}

/// The port of a greeting; `None` if it is none.
pub fn parse(greeting: &str) -> Option<u16> {
    let digits = greeting.strip_prefix("FORWARD ")?;
    let canonical = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    digits.parse().ok().filter(|_| canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_port_is_a_port() {
        assert_eq!((parse("FORWARD 1"), parse("FORWARD 65535")), (Some(1), Some(65535)));
        for text in
            ["", "FORWARD", "FORWARD ", "FORWARD 0", "FORWARD 65536", "FORWARD -1", "FORWARD +1", "FORWARD 08", "FORWARD 1 2", "GET 1"]
        {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_refusal_is_told() {
        let (mut host, mut guest) = tokio::io::duplex(64);
        let (refused, ()) = tokio::join!(connect(&mut host, 80), async {
            assert_eq!(parse(&line::read_line(&mut guest).await.unwrap()), Some(80));
            line::refuse(&mut guest, "nobody listens").await.unwrap();
        });
        assert!(matches!(refused, Err(LineError::Refused(reason)) if reason == "nobody listens"));
    }
}
