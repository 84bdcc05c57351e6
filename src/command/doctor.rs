//! `sifon doctor`: what works on this machine.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;
use sifon_mount::image::open::identify;

use crate::container::in_one_line;
use crate::doctor::{self, Finding, State};
use crate::output::{plain, short};
use crate::setting::{Context, Error, parsed};

/// Say what works on this machine, and what to do about what does not
///
/// Tries what the other commands need: the kernel, namespaces, /dev/fuse, fusermount3, ranges of user numbers, the store, and
/// with IMAGE its registry. The status is 0 if all commands work, though perhaps not all their options, else 1.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// An image whose registry is to be asked, such as docker://python:3.11
    image: Option<OsString>,
    /// As JSON
    #[arg(short, long)]
    json: bool,
    /// Print the AppArmor profile that lets this program make user namespaces, and nothing else
    #[arg(long, conflicts_with_all = ["image", "json"])]
    apparmor_profile: bool,
}

/// Prints what was found.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    let mut stdout = io::stdout().lock();
    if args.apparmor_profile {
        let program = std::env::current_exe()?;
        stdout.write_all(doctor::apparmor_profile(&program).as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    // The first for a process with a single thread.
    let mut findings = doctor::host();
    findings.push(doctor::store(&context.settings.store.directory));
    if let Some(image) = &args.image {
        findings.push(registry(context, image)?);
    }
    let works = findings.iter().all(|finding| finding.state != State::Fails);
    let text = match args.json {
        true => format!("{:#}\n", json!({"works": works, "checks": findings})),
        false => as_text(&findings),
    };
    stdout.write_all(text.as_bytes())?;
    Ok(ExitCode::from(u8::from(!works)))
}

/// Asks for an image's documents, anew.
fn registry(context: &Context, image: &OsString) -> Result<Finding, Error> {
    const SUBJECT: &str = "registry";
    let reference = parsed(image)?;
    let options = sifon_mount::image::open::Options {
        refresh: true,
        ..context.settings.open.clone()
    };
    let began = Instant::now();
    Ok(match identify(&reference, &options, context.store()) {
        Ok((manifest, _)) => {
            let digest = short(manifest);
            let time = began.elapsed().as_millis();
            Finding::works(
                SUBJECT,
                format!("{reference} is {digest}, found in {time} ms"),
            )
        }
        Err(error) => {
            let advice = error.hint().unwrap_or_default();
            let said = in_one_line(&error);
            // The error names what was asked for.
            Finding::fails(SUBJECT, said, advice)
        }
    })
}

fn as_text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.state {
            State::Works => "ok",
            State::Limited => "--",
            State::Fails => "!!",
        };
        let (subject, found) = (finding.subject, plain(&finding.found));
        text.push_str(&format!("{mark}  {subject:<16} {found}\n"));
        if let Some(advice) = finding
            .advice
            .as_deref()
            .filter(|advice| !advice.is_empty())
        {
            text.push_str(&format!("{:21}→ {}\n", "", plain(advice)));
        }
    }
    let failed = findings
        .iter()
        .filter(|finding| finding.state == State::Fails)
        .count();
    text.push_str(match failed {
        0 => "Every command works here.\n",
        _ => "Not every command works here: see the lines with !!.\n",
    });
    text
}
