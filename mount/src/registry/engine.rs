//! The Docker daemon on this machine, by its HTTP over a Unix socket (Docker Engine API, "Export an image" and "Inspect an
//! image").

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::{StatusCode, Url};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::answer::Answer;
use super::failure::{Failure, Kind};
use super::network::Network;
use super::settings::Settings;
use crate::blob::BlobError;

/// Where Docker's daemon listens, and where it does so for one user.
const USUAL_SOCKETS: [&str; 2] = ["/var/run/docker.sock", "docker.sock"];

/// How long the daemon may think before the first byte: it looks up every layer first.
const PREPARATION: Duration = Duration::from_secs(300);

/// An answer about an image is never longer.
const ANSWER_BYTES_LIMIT: usize = 16 << 20;

/// The daemon's name for what is its image `name` now, such as `sha256:…`.
pub fn engine_image_id(name: &str, settings: &Settings) -> Result<String, BlobError> {
    asked(name, settings, async |engine| {
        let answer = engine.answer("json", settings.timeout).await?;
        let body = answer.body(ANSWER_BYTES_LIMIT).await?;
        let image: Image = serde_json::from_slice(&body).map_err(|error| {
            engine.wrong(format!(
                "tells of the image in a way that cannot be read: {error}"
            ))
        })?;
        Ok(image.id)
    })
}

/// Writes the image `name` of the daemon to `archive`, as `docker save` does. Blocks for as long as bytes come.
pub fn engine_image(name: &str, settings: &Settings, archive: &File) -> Result<(), BlobError> {
    asked(name, settings, async |engine| {
        let mut answer = engine.answer("get", PREPARATION).await?;
        let mut at = 0;
        while let Some(bytes) = answer.next().await? {
            archive.write_all_at(&bytes, at).map_err(|error| {
                let place = std::env::temp_dir();
                engine.wrong(format!(
                    "sends more than can be kept in {}: {error}",
                    place.display()
                ))
            })?;
            at += bytes.len() as u64;
        }
        Ok(())
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    id: String,
}

/// What `work` gets from the daemon about its image `name`.
fn asked<T>(
    name: &str,
    settings: &Settings,
    work: impl AsyncFnOnce(&Engine<'_>) -> Result<T, Failure>,
) -> Result<T, BlobError> {
    let object = format!("docker-daemon:{name}");
    let wrong = |problem: String| BlobError::Wrong {
        object: object.clone(),
        problem,
    };
    let socket = socket(settings).map_err(wrong)?;
    let began = Instant::now();
    let network = Network::new(settings)
        .map_err(|error| wrong(format!("no threads to fetch it with: {error}")))?;
    let engine = Engine {
        name,
        place: socket.display().to_string(),
        socket,
        settings,
    };
    let failed = |failure: Failure| failure.into_error(&object, began.elapsed());
    network.wait_for(work(&engine)).map_err(failed)
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

/// One image of the daemon.
struct Engine<'a> {
    name: &'a str,
    socket: PathBuf,
    /// The socket's path, for messages.
    place: String,
    settings: &'a Settings,
}

impl Engine<'_> {
    fn wrong(&self, problem: String) -> Failure {
        Failure::wrong(&self.place, problem)
    }

    /// The answer to `GET /images/NAME/WHAT`, which may take as long as `patience` to begin.
    async fn answer(&self, what: &str, patience: Duration) -> Result<Answer, Failure> {
        let client = reqwest::Client::builder()
            .unix_socket(&*self.socket)
            .redirect(reqwest::redirect::Policy::none())
            .http1_only()
            .connect_timeout(self.settings.connect_timeout)
            .tls_certs_only([])
            .build()
            .map_err(|error| self.wrong(format!("cannot be asked: {error}")))?;
        let mut url = Url::parse("http://docker/").expect("it is written right");
        url.path_segments_mut()
            .expect("an HTTP address has a path")
            .push("images")
            .extend(self.name.split('/'))
            .push(what);
        let sent = timeout(patience, client.get(url).send()).await;
        let response = sent
            .map_err(|_| Failure::connection(&self.place, format!("no answer for {patience:?}")))?
            .map_err(|error| Failure::connection(&self.place, error.without_url()))?;
        let permit = Arc::new(Semaphore::new(1)).acquire_owned().await;
        let permit = permit.expect("this semaphore is never closed");
        let place = self.place.clone();
        let answer = Answer::new(place, response, self.settings.timeout, permit);
        answer.success().await.map_err(|mut failure| {
            // The daemon's own words repeat the name.
            if let Kind::Status { status, text, .. } = &mut failure.kind
                && *status == StatusCode::NOT_FOUND
            {
                *text = format!("{status}: no such image");
            }
            failure
        })
    }
}
