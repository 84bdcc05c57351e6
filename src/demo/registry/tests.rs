use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};

use super::*;

fn repository() -> Repository {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"0123456789").unwrap();
    file.seek(SeekFrom::Start(4)).unwrap();
    let manifest = b"{\"manifest\":1}".to_vec();
    let digest = Digest::of(&manifest);
    Repository {
        name: "demo/image".into(),
        manifests: BTreeMap::from([(digest, ("application/vnd.test", manifest))]),
        tags: BTreeMap::from([("latest".into(), digest)]),
        blobs: BTreeMap::from([
            (Digest::of(b"bytes"), Body::Bytes(b"bytes".to_vec())),
            (Digest::of(b"0123456789"), Body::File(file, 10)),
        ]),
    }
}

/// One connection, over which requests go and answers come.
struct Client(BufReader<TcpStream>);

impl Client {
    fn of(registry: &Registry) -> Self {
        Self(BufReader::new(
            TcpStream::connect(registry.address()).unwrap(),
        ))
    }

    fn ask(&mut self, request: &str) -> (String, String) {
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.0.read_line(&mut head).unwrap(), 0, "{head}");
        }
        let len = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .unwrap();
        let len = if request.starts_with("HEAD") {
            0
        } else {
            len.parse().unwrap()
        };
        let mut body = vec![0; len];
        self.0.read_exact(&mut body).unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    fn get(&mut self, path: &str) -> (String, String) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
    }

    fn ends(mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0) | Err(_))
    }
}

fn status(answer: &(String, String)) -> &str {
    answer.0.split(' ').nth(1).unwrap()
}

#[test]
fn manifests_are_found_by_tag_and_by_digest() {
    let registry = Registry::serve(repository()).unwrap();
    let mut client = Client::of(&registry);
    assert_eq!(client.get("/v2/").1, "{}");
    let digest = Digest::of(b"{\"manifest\":1}");
    for reference in ["latest", &digest.to_string()] {
        let (head, body) = client.get(&format!("/v2/demo/image/manifests/{reference}"));
        assert_eq!(body, "{\"manifest\":1}");
        assert!(head.contains(&format!("Docker-Content-Digest: {digest}\r\n")));
        assert!(head.contains("Content-Type: application/vnd.test\r\n"));
    }
    let (head, _) = client.ask("HEAD /v2/demo/image/manifests/latest HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("Content-Length: 14\r\n"));
    let served = registry.served();
    assert_eq!((served.requests, served.bytes), (4, 28));
}

#[test]
fn blobs_come_whole_or_in_ranges_from_memory_and_from_files() {
    let registry = Registry::serve(repository()).unwrap();
    let mut client = Client::of(&registry);
    for plain in ["bytes", "0123456789"] {
        let path = format!("/v2/demo/image/blobs/{}", Digest::of(plain.as_bytes()));
        assert_eq!(client.get(&path).1, plain);
        let mut part =
            |range| client.ask(&format!("GET {path} HTTP/1.1\r\nRange: {range}\r\n\r\n"));
        let answer = part("bytes=1-3");
        assert_eq!((status(&answer), &*answer.1), ("206", &plain[1..4]));
        let range = format!("Content-Range: bytes 1-3/{}\r\n", plain.len());
        assert!(answer.0.contains(&range), "{}", answer.0);
        assert_eq!(part("bytes=-2").1, plain[plain.len() - 2..]);
        assert_eq!(part("nonsense").1, plain);
        let answer = part("bytes=10-");
        assert_eq!((status(&answer), &*answer.1), ("416", ""));
        assert!(
            answer
                .0
                .contains(&format!("Content-Range: bytes */{}", plain.len()))
        );
    }
}

#[test]
fn what_it_does_not_have_or_do_is_said() {
    let registry = Registry::serve(repository()).unwrap();
    let mut client = Client::of(&registry);
    let other = Digest::of(b"other");
    for path in [
        "/",
        "/v1/",
        "/v2/other/manifests/latest",
        "/v2/demo/image/manifests/other",
        "/v2/demo/image/manifests/../../x",
        "/v2/demo/image/blobs/latest",
        "/v2/demo/image/tags/list",
        &format!("/v2/demo/image/blobs/{other}"),
    ] {
        let answer = client.get(path);
        assert_eq!(status(&answer), "404", "{path}");
        assert!(answer.1.contains("errors"));
    }
    let answer = client.ask("DELETE /v2/demo/image/manifests/latest HTTP/1.1\r\n\r\n");
    assert_eq!(status(&answer), "405");
    assert_eq!(status(&client.get("/v2/")), "200", "the connection goes on");
    assert_eq!(registry.served().bytes, 0);
}

#[test]
fn nonsense_is_refused_and_ends_the_connection() {
    let registry = Registry::serve(repository()).unwrap();
    // No longer than what is read: closing before all has been read would reset the connection.
    let long = format!("GET / HTTP/1.1\r\na: {:x>1$}", "", (32 << 10) - 19);
    assert_eq!(long.len(), 32 << 10);
    for (request, expected) in [("nonsense\r\n\r\n", "400"), (&long, "431")] {
        let mut client = Client::of(&registry);
        assert_eq!(status(&client.ask(request)), expected);
        assert!(client.ends());
    }
}

#[test]
fn when_it_is_dropped_its_connections_end_and_its_port_is_free() {
    let registry = Registry::serve(repository()).unwrap();
    let (mut busy, idle) = (Client::of(&registry), Client::of(&registry));
    busy.get("/v2/");
    let address = registry.address();
    drop(registry);
    assert!(busy.ends() && idle.ends());
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn many_clients_are_served_at_once() {
    let registry = Registry::serve(repository()).unwrap();
    let path = format!("/v2/demo/image/blobs/{}", Digest::of(b"0123456789"));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = Client::of(&registry);
                for _ in 0..20 {
                    assert_eq!(client.get(&path).1, "0123456789");
                }
            });
        }
    });
    assert_eq!(registry.served().bytes, 8 * 20 * 10);
}
