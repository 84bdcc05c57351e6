//! The Docker daemon on this machine, by its HTTP over a Unix socket (Docker Engine API, "Export an image").

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use reqwest::Url;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::answer::Answer;
use super::failure::Failure;
use super::network::Network;
use super::settings::Settings;
use crate::blob::BlobError;

/// Where Docker's daemon listens, and where it does so for one user.
const USUAL_SOCKETS: [&str; 2] = ["/var/run/docker.sock", "docker.sock"];

/// How long the daemon may think before the first byte: it looks up every layer first.
const PREPARATION: Duration = Duration::from_secs(300);

/// Writes the image `name` of the daemon to `archive`, as `docker save` does. Blocks for as long as bytes come.
pub fn engine_image(name: &str, settings: &Settings, archive: &File) -> Result<(), BlobError> {
    let object = format!("image docker-daemon:{name}");
    let wrong = |problem: String| BlobError::Wrong {
        object: object.clone(),
        problem,
    };
    let socket = socket(settings).map_err(wrong)?;
    let began = Instant::now();
    let network = Network::new(settings)
        .map_err(|error| wrong(format!("no threads to fetch it with: {error}")))?;
    let work = exported(name, &socket, settings, archive);
    let failed = |failure: Failure| failure.into_error(&object, began.elapsed());
    network.wait_for(work).map_err(failed)
}

/// The socket that the user names, or the first of the usual ones that is there.
fn socket(settings: &Settings) -> Result<PathBuf, String> {
    if let Some(host) = &settings.docker_host {
        return match host.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(path.into()),
            _ => Err(format!(
                "DOCKER_HOST is {host:?}, but only a daemon on this machine is asked, as unix:///var/run/docker.sock"
            )),
        };
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let places = USUAL_SOCKETS
        .iter()
        .filter_map(|name| match name.starts_with('/') {
            true => Some(PathBuf::from(name)),
            false => Some(own.as_ref()?.join(name)),
        });
    let places: Vec<PathBuf> = places.collect();
    let found = places.iter().find(|path| path.exists()).or(places.first());
    Ok(found.expect("one place is always looked at").clone())
}

async fn exported(
    name: &str,
    socket: &std::path::Path,
    settings: &Settings,
    archive: &File,
) -> Result<(), Failure> {
    let place = socket.display().to_string();
    let wrong = |problem: String| Failure::wrong(&place, problem);
    let client = reqwest::Client::builder()
        .unix_socket(socket)
        .redirect(reqwest::redirect::Policy::none())
        .http1_only()
        .connect_timeout(settings.connect_timeout)
        .tls_certs_only([])
        .build()
        .map_err(|error| wrong(format!("cannot be asked: {error}")))?;
    let mut url = Url::parse("http://docker/").expect("it is written right");
    url.path_segments_mut()
        .expect("an HTTP address has a path")
        .push("images")
        .extend(name.split('/'))
        .push("get");
    let sent = timeout(PREPARATION, client.get(url).send()).await;
    let response = sent
        .map_err(|_| Failure::connection(&place, format!("no answer for {PREPARATION:?}")))?
        .map_err(|error| Failure::connection(&place, error))?;
    let permit = std::sync::Arc::new(Semaphore::new(1)).acquire_owned().await;
    let permit = permit.expect("this semaphore is never closed");
    let answer = Answer::new(place.clone(), response, settings.timeout, permit);
    let mut answer = answer.success().await?;
    let mut at = 0;
    while let Some(bytes) = answer.next().await? {
        archive.write_all_at(&bytes, at).map_err(|error| {
            wrong(format!(
                "sends more than can be kept in {}: {error}",
                std::env::temp_dir().display()
            ))
        })?;
        at += bytes.len() as u64;
    }
    Ok(())
}
