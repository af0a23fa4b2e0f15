//! `timbr-gateway healthcheck`: for images without a shell.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::cli::Outcome;
use crate::config::options;

const KEY: &str = "listen.admin";
const PATIENCE: Duration = Duration::from_secs(3);

pub fn command() -> Command {
    let admin = Arg::new("address").long("listen-admin").value_name("ADDRESS:PORT").help(
        "Where the gateway's admin listener is [env: TIMBR_GATEWAY_LISTEN_ADMIN] [default: 127.0.0.1:9180]",
    );
    let ready = Arg::new("ready")
        .long("ready")
        .action(ArgAction::SetTrue)
        .help("Ask /readyz, whether it wants requests, instead of /livez");
    Command::new("healthcheck")
        .about("Ask a running gateway whether it lives; exit code 0 if so")
        .arg(admin)
        .arg(ready)
        .after_help("Example, in a Dockerfile:\n  HEALTHCHECK CMD [\"/timbr-gateway\", \"healthcheck\"]")
}

pub fn run(matches: &ArgMatches) -> Outcome {
    let option = options::find(KEY).expect("it is one of the options");
    let text = matches
        .get_one::<String>("address")
        .cloned()
        .or_else(|| std::env::var(option.variable()).ok().filter(|text| !text.is_empty()))
        .unwrap_or_else(|| option.default.expect("it has one").to_owned());
    let address: SocketAddr =
        text.parse().with_context(|| format!("{KEY} must be address:port to be asked, not {text:?}"))?;
    let path = if matches.get_flag("ready") { "/readyz" } else { "/livez" };
    let answer = ask(reachable(address), path).with_context(|| format!("http://{address}{path}"))?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    let body = answer.rsplit("\r\n").next().unwrap_or_default().trim();
    if status != "200" {
        bail!("http://{address}{path} answered {status}: {body}");
    }
    println!("{body}");
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
