//! A registry that speaks TLS, under a name that only a proxy knows.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use crate::layers::file;
use crate::layout::{Layer, Layout, Packing, all};
use crate::openssl::openssl;
use crate::place::{Place, can_mount, complaint};
use crate::support::real::RealRegistry;

/// Nobody's (RFC 6761), so that it is no loopback address, which proxies are not asked for.
const NAME: &str = "registry.test";

/// An authority and a certificate for [`NAME`] that it signed, made by openssl.
struct Authority {
    directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let names = format!("subjectAltName=DNS:{NAME}\n");
        fs::write(directory.path().join("names"), names).unwrap();
        for words in [
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem",
            "req -newkey rsa:2048 -nodes -subj /CN=registry -keyout key.pem -out asked.pem",
            "x509 -req -in asked.pem -CA ca.pem -CAkey ca.key -days 2 -extfile names -out cert.pem",
        ] {
            openssl(directory.path(), words)?;
        }
        Some(Self { directory })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// A proxy (RFC 9110, CONNECT) that brings everybody to one address, whatever name they ask for.
struct Proxy {
    address: String,
    asked_for: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn before(address: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap().to_string(),
            asked_for: Arc::default(),
        };
        let (address, asked_for) = (address.to_owned(), Arc::clone(&proxy.asked_for));
        thread::spawn(move || {
            for client in listener.incoming() {
                let (address, asked_for) = (address.clone(), Arc::clone(&asked_for));
                thread::spawn(move || connected(client?, &address, &asked_for));
            }
        });
        proxy
    }
}

fn connected(client: TcpStream, address: &str, asked_for: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut from_client = BufReader::new(client.try_clone()?);
    let mut first = String::new();
    from_client.read_line(&mut first)?;
    asked_for.lock().unwrap().push(first.trim_end().to_owned());
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        from_client.read_line(&mut line)?;
    }
    let (mut to_client, mut server) = (client, TcpStream::connect(address)?);
    to_client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let mut to_server = server.try_clone()?;
    thread::spawn(move || io::copy(&mut from_client, &mut to_server));
    io::copy(&mut server, &mut to_client)?;
    Ok(())
}

#[test]
fn a_registry_behind_a_proxy_is_read_over_tls_if_its_authority_is_trusted() {
    let Some(mut registry) = RealRegistry::open().filter(|_| can_mount()) else {
        return;
    };
    let Some(authority) = Authority::new() else {
        return;
    };
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    let said = Layer::new(vec![file("said", "over TLS")]);
    layout.add("1", &all(&[said], Packing::Gzip));
    registry.push_layout("image", layout.path());
    registry.restart_with_tls(authority.file("cert.pem"), authority.file("key.pem"));
    let proxy = Proxy::before(registry.address());
    let reference = format!("docker://{NAME}/image:1");
    let through_proxy = |command: &mut Command| {
        command.env("HTTPS_PROXY", format!("http://{}", proxy.address));
    };

    let mut untrusted = place.sifon(["inspect", &reference]);
    through_proxy(&mut untrusted);
    let output = untrusted.output().unwrap();
    assert_eq!(output.status.code(), Some(255));
    let told = complaint(&output);
    assert!(
        told.contains(NAME) && told.contains("certificate"),
        "{told}"
    );

    let mounted = place.mount_with(&reference, |command| {
        through_proxy(command);
        command.arg("--ca-file").arg(authority.file("ca.pem"));
    });
    assert_eq!(mounted.read("said").unwrap(), b"over TLS");
    let asked_for = proxy.asked_for.lock().unwrap();
    let connect = format!("CONNECT {NAME}:443 HTTP/1.1");
    assert!(
        asked_for.iter().all(|first| *first == connect),
        "{asked_for:?}"
    );
}

/// A server program, until it is dropped.
struct Program(std::process::Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_web_server_that_leads_from_tls_to_plain_http_is_not_followed() {
    let Some(authority) = Authority::new() else {
        return;
    };
    let place = Place::new();
    let plain = crate::support::faulty::Faulty::start(|_, _| {
        crate::support::faulty::Reply::ok("hsqs, and whatever somebody on the way puts there")
    });
    // What `openssl s_server -HTTP` answers is what a file says, headers and all.
    let answer = format!(
        "HTTP/1.1 302 Found\r\nLocation: http://{}/x.sif\r\nContent-Length: 0\r\n\r\n",
        plain.address()
    );
    fs::write(place.path("x.sif"), answer).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap().to_string();
    drop(port);
    let server = Command::new("openssl")
        .args(["s_server", "-HTTP", "-accept", &address, "-cert"])
        .arg(authority.file("cert.pem"))
        .arg("-key")
        .arg(authority.file("key.pem"))
        .current_dir(place.path(""))
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut server = Program(server);
    let mut said = BufReader::new(server.0.stdout.take().unwrap());
    let mut line = String::new();
    while line.trim() != "ACCEPT" {
        line.clear();
        assert_ne!(said.read_line(&mut line).unwrap(), 0, "openssl ended");
    }
    // It must never wait for somebody to read what it says.
    thread::spawn(move || io::copy(&mut said, &mut io::sink()));
    let proxy = Proxy::before(&address);
    let mut command = place.sifon(["pull", "--ca-file"]);
    command
        .arg(authority.file("ca.pem"))
        .args(["z.sif", &format!("https://{NAME}/x.sif")])
        .env("HTTPS_PROXY", format!("http://{}", proxy.address));
    let told = place.refusal(&mut command);
    assert!(told.contains("from HTTPS to plain HTTP"), "{told}");
    assert!(plain.seen().is_empty(), "{:?}", plain.seen());
}
