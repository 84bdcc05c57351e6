//! A long line on a short machine: forwards TCP connections with a delay, at a rate that they share.
//!
//! ```text
//! proxy LISTEN TARGET ROUND_TRIP_MS MBIT_PER_SECOND
//! proxy 127.0.0.1:0 127.0.0.1:5000 40 200          prints the address it listens on
//! ```
//!
//! Each direction is one line of the given rate, first come, first served, in segments of a millisecond; every
//! byte arrives half a round trip after it left, and nothing leaves before the connection is set up, one round trip
//! after it was asked for. Loss and slow start are not played. Two threads serve a direction of a connection: one
//! reads when the line has room, the other writes what has arrived.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What one read takes at most, as the time that the line needs for it: short against every delay that
/// is played, long enough that a fast line costs few wake-ups.
const SEGMENT: Duration = Duration::from_millis(1);

/// Segments of a connection that may be under way: a quarter of a second, more than half of any round
/// trip that is played. They end the reading when the other side does not take what arrives.
const SEGMENTS_UNDER_WAY: usize = 256;

/// How far the line may be booked ahead, and how much a late thread may catch up: longer than the
/// scheduler lets us wait on a busy machine, shorter than any delay that is played.
const SLACK: Duration = Duration::from_millis(2);

/// The stacks of our threads hold no buffers.
const STACK_BYTES: usize = 128 << 10;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((listen, target, profile)) = parsed(&arguments) else {
        eprintln!("usage: proxy LISTEN TARGET ROUND_TRIP_MS MBIT_PER_SECOND");
        std::process::exit(1);
    };
    let listener = TcpListener::bind(listen)?;
    println!("{}", listener.local_addr()?);
    io::stdout().flush()?;
    serve(&listener, target, profile)
}

fn parsed(arguments: &[String]) -> Option<(&str, &str, Profile)> {
    let [listen, target, round_trip_ms, mbit_per_second] = arguments else {
        return None;
    };
    let round_trip = Duration::from_millis(round_trip_ms.parse().ok()?);
    let mbit: u64 = mbit_per_second.parse().ok()?;
    let bytes_per_second = mbit.checked_mul(125_000).filter(|rate| *rate > 0)?;
    Some((
        listen,
        target,
        Profile {
            round_trip,
            bytes_per_second,
        },
    ))
}

/// What is played.
#[derive(Clone, Copy, Debug)]
struct Profile {
    round_trip: Duration,
    /// In each direction, over all connections.
    bytes_per_second: u64,
}

/// One direction of the line.
struct Line {
    bytes_per_second: u64,
    /// When the last byte that was booked will have left.
    booked_until: Mutex<Instant>,
}

impl Line {
    fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            booked_until: Mutex::new(Instant::now()),
        }
    }

    /// At least one.
    fn bytes_in(&self, time: Duration) -> usize {
        let bytes = u128::from(self.bytes_per_second) * time.as_micros() / 1_000_000;
        usize::try_from(bytes.max(1)).expect("a rate in Mbit/s times a millisecond fits")
    }

    /// When the last of `len` bytes leaves, if they are ready at `ready`. Books that time.
    fn book(&self, len: usize, ready: Instant) -> Instant {
        let nanos = len as u64 * 1_000_000_000 / self.bytes_per_second;
        let mut booked_until = self
            .booked_until
            .lock()
            .expect("nothing panics while it is held");
        *booked_until = (*booked_until).max(ready) + Duration::from_nanos(nanos);
        *booked_until
    }
}

/// Bytes on their way.
struct Segment {
    arrives: Instant,
    bytes: Vec<u8>,
}

/// Forwards every connection until accepting fails.
fn serve(listener: &TcpListener, target: &str, profile: Profile) -> io::Result<()> {
    let up = Arc::new(Line::new(profile.bytes_per_second));
    let down = Arc::new(Line::new(profile.bytes_per_second));
    loop {
        let (client, _) = listener.accept()?;
        let set_up = Instant::now() + profile.round_trip;
        match TcpStream::connect(target) {
            Ok(server) => {
                let delay = profile.round_trip / 2;
                client.set_nodelay(true)?;
                server.set_nodelay(true)?;
                let (client_too, server_too) = (client.try_clone()?, server.try_clone()?);
                forward(
                    client,
                    server,
                    Direction {
                        line: up.clone(),
                        delay,
                        opens: set_up,
                    },
                )?;
                forward(
                    server_too,
                    client_too,
                    Direction {
                        line: down.clone(),
                        delay,
                        opens: set_up,
                    },
                )?;
            }
            // Dropping the client's connection tells it.
            Err(err) => eprintln!("proxy: {target}: {err}"),
        }
    }
}

/// One direction of one connection.
struct Direction {
    line: Arc<Line>,
    delay: Duration,
    /// Nothing leaves before.
    opens: Instant,
}

fn forward(from: TcpStream, to: TcpStream, direction: Direction) -> io::Result<()> {
    let (departures, arrivals) = sync_channel(SEGMENTS_UNDER_WAY);
    named("departures").spawn(move || depart(from, &direction, &departures))?;
    named("arrivals").spawn(move || arrive(to, &arrivals))?;
    Ok(())
}

fn named(name: &str) -> thread::Builder {
    thread::Builder::new()
        .name(name.into())
        .stack_size(STACK_BYTES)
}

/// Reads as fast as the line takes it. Ends, and so closes the channel, when either side ends.
fn depart(mut from: TcpStream, direction: &Direction, departures: &SyncSender<Segment>) {
    let segment_bytes = direction.line.bytes_in(SEGMENT);
    loop {
        let mut bytes = vec![0; segment_bytes];
        let len = match from.read(&mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(len) => len,
        };
        bytes.truncate(len);
        let now = Instant::now();
        let ready = direction.opens.max(now.checked_sub(SLACK).unwrap_or(now));
        let left = direction.line.book(len, ready);
        if departures
            .send(Segment {
                arrives: left + direction.delay,
                bytes,
            })
            .is_err()
        {
            // The other side takes no more: let the sender know instead of swallowing its bytes.
            let _ = from.shutdown(Shutdown::Read);
            break;
        }
        sleep_until(left.checked_sub(SLACK).unwrap_or(left));
    }
}

/// Writes what has arrived, in order; then passes the end on.
fn arrive(mut to: TcpStream, arrivals: &Receiver<Segment>) {
    for segment in arrivals {
        sleep_until(segment.arrives);
        if to.write_all(&segment.bytes).is_err() {
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn sleep_until(instant: Instant) {
    let left = instant.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        thread::sleep(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Profile = Profile {
        round_trip: Duration::from_millis(40),
        bytes_per_second: 25_000_000,
    };

    /// A server that sends `sent` bytes to whoever has sent it one, behind a proxy; the proxy's address.
    fn behind_proxy(profile: Profile, sent: usize) -> std::net::SocketAddr {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = server.local_addr().unwrap().to_string();
        thread::spawn(move || {
            for connection in server.incoming() {
                thread::spawn(move || {
                    let mut connection = connection.unwrap();
                    connection.read_exact(&mut [0]).unwrap();
                    connection.write_all(&vec![7; sent]).unwrap();
                });
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || serve(&listener, &target, profile));
        address
    }

    /// Asks and reads to the end; how long that took, connecting included.
    fn asked(address: std::net::SocketAddr, expected: usize) -> Duration {
        let started = Instant::now();
        let mut connection = TcpStream::connect(address).unwrap();
        connection.write_all(b"?").unwrap();
        let mut received = Vec::new();
        connection.read_to_end(&mut received).unwrap();
        assert!(received.len() == expected && received.iter().all(|byte| *byte == 7));
        started.elapsed()
    }

    #[test]
    fn an_answer_takes_one_round_trip_to_connect_and_one_to_come() {
        let took = asked(behind_proxy(LONG, 1), 1);
        assert!(took >= Duration::from_millis(70), "{took:?}");
    }

    #[test]
    fn connections_share_the_rate() {
        const SENT: usize = 1_000_000;
        let address = behind_proxy(LONG, SENT);
        let started = Instant::now();
        let readers: Vec<_> = (0..4)
            .map(|_| thread::spawn(move || asked(address, SENT)))
            .collect();
        readers
            .into_iter()
            .for_each(|reader| _ = reader.join().unwrap());
        // 4 MB at 25 MB/s are 160 ms, besides two round trips; less what may be caught up.
        assert!(
            started.elapsed() >= Duration::from_millis(80 + 160 - 2),
            "{:?}",
            started.elapsed()
        );
    }

    #[test]
    fn a_line_is_booked_end_to_end_and_starts_anew_when_it_was_idle() {
        let line = Line::new(1_000_000);
        let now = Instant::now() + Duration::from_secs(1);
        assert_eq!(line.book(1_000, now), now + Duration::from_millis(1));
        assert_eq!(line.book(2_000, now), now + Duration::from_millis(3));
        let later = now + Duration::from_secs(1);
        assert_eq!(line.book(1_000, later), later + Duration::from_millis(1));
    }
}
