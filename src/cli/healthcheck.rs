//! `timbr-gateway healthcheck`: for images without a shell.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::cli::{Outcome, options, say};

const KEY: &str = "listen.admin";
const PATIENCE: Duration = Duration::from_secs(3);

pub fn command() -> Command {
    let ready = Arg::new("ready")
        .long("ready")
        .action(ArgAction::SetTrue)
        .help("Ask /readyz, whether it wants requests, instead of /livez");
    let command = Command::new("healthcheck")
        .about("Ask a running gateway whether it lives; exit code 0 if so")
        .arg(ready)
        .after_help("Example, in a Dockerfile:\n  HEALTHCHECK CMD [\"/timbr-gateway\", \"healthcheck\"]");
    options::add_one_to(command, KEY)
}

pub fn run(matches: &ArgMatches) -> Outcome {
    let text = options::one(matches, KEY)?.expect("the option has a default");
    let text = text.expose();
    if text == "off" {
        bail!("{KEY} is off, so there is nobody to ask");
    }
    let address: SocketAddr =
        text.parse().with_context(|| format!("{KEY} must be address:port, not {text:?}"))?;
    let path = if matches.get_flag("ready") { "/readyz" } else { "/livez" };
    let answer = ask(reachable(address), path).with_context(|| format!("http://{address}{path}"))?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    let body = answer.rsplit("\r\n").next().unwrap_or_default().trim();
    if status != "200" {
        bail!("http://{address}{path} answered {status}: {body}");
    }
    say(body)?;
    Ok(ExitCode::SUCCESS)
}

/// Who listens on all addresses is asked on the loopback one.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer)?;
    Ok(answer)
}
