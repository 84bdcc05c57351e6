//! `sifon ps`: which images are mounted for programs, and which programs those are.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use crate::container::client::Server;
use crate::container::meeting;
use crate::container::wire::Status;
use crate::output::{bytes, plain};
use crate::setting::Error;

/// List the images that are mounted for programs, and who uses them
///
/// `exec`, `run` and `shell` leave a process behind that keeps images mounted for the next program of the same job: one for each
/// user, job and node. It goes by itself when nobody has used it for a minute (`--linger`), or with `sifon stop`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As JSON
    #[arg(long, short = 'j')]
    json: bool,
}

/// What every server of this user says of itself.
fn statuses() -> Result<Vec<Status>, Error> {
    let mut found = Vec::new();
    for stream in meeting::servers()? {
        // One that leaves at this moment, or lives in a container, says nothing.
        if let Ok(Some(server)) = Server::at(stream)
            && let Ok(Some(status)) = server.status()
        {
            found.push(status);
        }
    }
    found.sort_by_key(|status| status.pid);
    Ok(found)
}

/// Prints the servers.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let statuses = statuses()?;
    let text = match args.json {
        true => format!("{:#}\n", as_json(&statuses)),
        false => as_text(&statuses),
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn as_json(statuses: &[Status]) -> serde_json::Value {
    let servers: Vec<_> = statuses
        .iter()
        .map(|status| {
            let images: Vec<_> = status
                .images
                .iter()
                .map(|image| {
                    json!({
                        "image": image.image,
                        "digest": image.digest,
                        "clients": image.clients,
                        "idle_seconds": image.idle.map(|idle| idle.as_secs_f64()),
                    })
                })
                .collect();
            json!({
                "pid": status.pid,
                "job": status.job,
                "age_seconds": status.age.as_secs_f64(),
                "memory_bytes": status.memory_bytes,
                "log": status.log,
                "images": images,
            })
        })
        .collect();
    json!({ "servers": servers })
}

fn as_text(statuses: &[Status]) -> String {
    let mut text = String::new();
    for status in statuses {
        text.push_str(&format!(
            "server {} ({}), {} of memory, for {}\n",
            status.pid,
            plain(&status.job),
            bytes(status.memory_bytes),
            duration(status.age),
        ));
        for image in &status.images {
            let clients: Vec<String> = image.clients.iter().map(u32::to_string).collect();
            let users = match (clients.is_empty(), image.idle) {
                (false, _) => format!("used by {}", clients.join(", ")),
                (true, Some(idle)) => format!("unused for {}", duration(idle)),
                (true, None) => "unused".into(),
            };
            text.push_str(&format!("  {}  {users}\n", plain(&image.image)));
        }
        if let Some(log) = status.log.as_ref().filter(|log| log.exists()) {
            text.push_str(&format!("  warnings: {}\n", plain(&log.to_string_lossy())));
        }
    }
    text
}

fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}
