//! Numbers for a Prometheus server on the same machine, on request: one page over HTTP, on a loopback port.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::control::Answers;

/// The question whose answer is the page.
pub const METRICS: &str = "metrics";

/// A request's lines at most; only that it ended counts.
const REQUEST_BYTES_LIMIT: usize = 8 << 10;

/// How long one connection may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Serves what `answers` says to [`METRICS`] on `port` of this machine's loopback address (0: on a free one), as long as this
/// process lives. Gives the address.
pub fn serve_metrics(port: u16, answers: Answers) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let address = listener.local_addr()?;
    thread::Builder::new()
        .name("metrics".into())
        .spawn(move || {
            for connection in listener.incoming().flatten() {
                // One after the other: whoever is slow is cut off.
                if let Err(err) = answer(connection, &answers) {
                    tracing::debug!(error = %err, "metrics not sent");
                }
            }
        })?;
    Ok(address)
}

fn answer(mut connection: TcpStream, answers: &Answers) -> io::Result<()> {
    connection.set_read_timeout(Some(TIMEOUT))?;
    connection.set_write_timeout(Some(TIMEOUT))?;
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let len = connection.read(&mut buffer)?;
        if len == 0 || request.len() + len > REQUEST_BYTES_LIMIT {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..len]);
    }
    let page = (answers.0)(METRICS).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        page.len()
    );
    connection.write_all(head.as_bytes())?;
    connection.write_all(&page)
}
