//! `timbr-gateway demo`: a gateway with an embedded backend, and a sequence of requests that shows what it does.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, bail};
use clap::{ArgMatches, Command, value_parser};
use fernet::Fernet;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::control;
use crate::app::{self, Bound, StartError};
use crate::auth::bearer::make_bearer;
use crate::base::clock::Clock;
use crate::base::secret::Secret;
use crate::cli::demo::backend::{DemoBackend, PLATFORM_KEY};
use crate::cli::serve::{SignalHandlers, exit_code};
use crate::cli::{CliResult, arguments, print_line};
use crate::config::sources::format_problems;
use crate::config::{Sources, load};
use crate::observability::log;

mod backend;
mod client;

use client::{DemoClient, DemoRequest};

const USER: &str = "alice";
const PASSWORD: &str = "wonderland";

pub fn command() -> Command {
    let once = arguments::flag("once", "Exit after the example requests");
    let help = "HTTPS address of the gateway; a free port is used if this port is taken";
    let https = arguments::value("listen-https", "ADDRESS:PORT", help).default_value("127.0.0.1:8443");
    let help = "Run only the demo backend, for a separate gateway; it trusts the x-forwarded-user header of any client";
    let backend_only = arguments::value("backend-only", "ADDRESS:PORT", help)
        .value_parser(value_parser!(SocketAddr))
        .conflicts_with_all(["once", "listen-https"]);
    Command::new("demo")
        .about("Try the gateway with an embedded backend and a generated salt and certificate")
        .arg(once)
        .arg(https)
        .arg(backend_only)
        .after_help("Example:\n  timbr-gateway demo --once")
}

pub fn run(matches: &ArgMatches) -> CliResult {
    if let Some(address) = matches.get_one::<SocketAddr>("backend-only") {
        return run_backend(*address);
    }
    let (sender, received) = mpsc::channel();
    let on_request = move |line: &str| {
        let _ = sender.send(line.to_owned()); // The receiver is dropped after the example requests.
    };
    let backend = DemoBackend::start(SocketAddr::from(([127, 0, 0, 1], 0)), on_request)
        .context("cannot start the demo backend")?;
    let salt = Secret::new(Fernet::generate_key());
    let bound = bind(&salt, arguments::text(matches, "listen-https"), backend.address())?;
    let folder = TempFolder::new()?;
    let ca = folder.0.join("ca.pem");
    let pem = bound.certificate_pem().context("the demo has no self-signed certificate")?;
    std::fs::write(&ca, pem).with_context(|| format!("cannot write {}", ca.display()))?;
    let address = bound.addresses().https.context("the demo has no HTTPS listener")?;

    let (control, commands) = control::channel();
    SignalHandlers::install()?.handle_in_thread(control.clone())?.store(true, Ordering::Release);
    let gateway = thread::spawn(move || bound.run(commands));
    let client = DemoClient::new(address, &ca)?;
    let result = round_trip(&client, &salt, &ca, backend.address(), received);
    if result.is_err() || matches.get_flag("once") {
        control.drain();
    } else {
        print_line(format_args!("\nThe gateway keeps running; try the commands above. Press Ctrl-C to stop it."))?;
    }
    let outcome = gateway.join().map_err(|_| anyhow::anyhow!("the gateway panicked"))??;
    result?;
    Ok(exit_code(outcome))
}

/// Runs the backend until SIGTERM or SIGINT. The handlers are needed as process 1, for which the kernel ignores signals
/// without a handler.
fn run_backend(address: SocketAddr) -> CliResult {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut terminate, mut interrupt) = {
        let _entered = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    let on_request = |line: &str| {
        let _ = print_line(line); // The backend keeps serving if standard output is closed.
    };
    let backend = DemoBackend::start(address, on_request).with_context(|| format!("cannot listen on {address}"))?;
    print_line(format_args!("Demo backend on http://{}.", backend.address()))?;
    runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    Ok(ExitCode::SUCCESS)
}

/// Binds a gateway with minimal settings.
fn bind(salt: &Secret, https: &str, backend: SocketAddr) -> anyhow::Result<Bound> {
    let attempt = |https: &str| {
        let settings = [
            ("API_AUTH_SALT", salt.expose()),
            ("TIMBR_GATEWAY_UPSTREAM_URL", &format!("http://{backend}")),
            ("TIMBR_GATEWAY_LISTEN_HTTPS", https),
            ("TIMBR_GATEWAY_LISTEN_ADMIN", "off"),
            ("TIMBR_GATEWAY_LOG_LEVEL", "error"),
            ("TIMBR_GATEWAY_LOG_ACCESS", "false"),
        ];
        let environment = settings.map(|(name, value)| (name.into(), value.into())).to_vec();
        let sources = Sources { environment, ..Sources::default() };
        let config = load(&sources)
            .map_err(|problems| anyhow::anyhow!("invalid demo settings:{}", format_problems(&problems)))?
            .0;
        let log = config.log;
        Ok::<_, anyhow::Error>((app::bind(config, &Clock::system()), log))
    };
    let (bound, log) = match attempt(https)? {
        (Err(StartError::Bind { address, source, .. }), _) if source.kind() == ErrorKind::AddrInUse => {
            print_line(format_args!("{address} is in use; using a free port instead."))?;
            attempt(&SocketAddr::new(address.parse::<SocketAddr>()?.ip(), 0).to_string())?
        }
        other => other,
    };
    // The log lives as long as the process; the demo logs errors only.
    std::mem::forget(log::init(log)?);
    Ok(bound?)
}

/// A directory for the certificate, removed on drop.
struct TempFolder(PathBuf);

impl TempFolder {
    fn new() -> anyhow::Result<TempFolder> {
        let path = std::env::temp_dir().join(format!("timbr-gateway-demo-{:08x}", fastrand::u32(..)));
        std::fs::create_dir(&path)
            .with_context(|| format!("cannot create {}; set TMPDIR to a writable directory", path.display()))?;
        Ok(TempFolder(path))
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Sends the example requests, and prints for each the equivalent `curl` command and the response.
#[allow(clippy::needless_pass_by_value, reason = "dropping the receiver ends the recording of requests")]
fn round_trip(
    client: &DemoClient,
    salt: &Secret,
    ca: &Path,
    backend: SocketAddr,
    received: mpsc::Receiver<String>,
) -> anyhow::Result<()> {
    let base = client.base_url();
    print_line(format_args!(
        "A gateway on {base}, in front of a demo backend on http://{backend}.\n\
         Salt and certificate have just been generated.\n"
    ))?;
    print_line(format_args!("export CURL_CA_BUNDLE={}", ca.display()))?;
    print_line(format_args!("export API_AUTH_SALT={}\n", salt.expose()))?;

    print_line(format_args!("# 1. A request without a key is rejected:"))?;
    let ontologies = DemoRequest::get("/timbr/api/get_ontologies/").header("Content-Type", "application/json");
    send_and_print(client, &ontologies, 401)?;

    print_line(format_args!("# 2. {USER} creates a bearer from user name and password, and requests a token:"))?;
    let bearer = make_bearer(salt, USER, &Secret::new(PASSWORD.to_owned())).context("the salt is valid")?;
    let program = std::env::args().next().unwrap_or_else(|| "timbr-gateway".to_owned());
    print_line(format_args!("BEARER=$(printf {PASSWORD} | {program} bearer --user {USER} --password-stdin)"))?;
    let get_token = DemoRequest::post("/timbr/api/get_token", "")
        .header("Content-Type", "application/json")
        .header_with_placeholder("Authorization", &format!("Bearer {}", bearer.expose()), "Bearer $BEARER");
    let body = send_and_print(client, &get_token, 200)?;
    let token = serde_json::from_str::<Value>(&body)?["data"][0].as_str().unwrap_or_default().to_owned();
    print_line(format_args!("TOKEN={token}\n"))?;

    print_line(format_args!("# 3. The token authenticates a query:"))?;
    let query = DemoRequest::post("/timbr/openapi/ontology/sales/query", "SELECT name, country FROM customer LIMIT 2")
        .header("Content-Type", "application/text")
        .header_with_placeholder("x-api-key", &token, "$TOKEN");
    send_and_print(client, &query, 200)?;

    print_line(format_args!(
        "# 4. A token issued by the backend works too; the gateway verifies it once with the backend:"
    ))?;
    let platform = ontologies.header("x-api-key", PLATFORM_KEY);
    send_and_print(client, &platform, 200)?;

    print_line(format_args!("# Requests received by the backend (the rejected one is not among them):"))?;
    for line in received.try_iter() {
        print_line(format_args!("{line}"))?;
    }
    Ok(())
}

fn send_and_print(client: &DemoClient, exchange: &DemoRequest, expected: u16) -> anyhow::Result<String> {
    print_line(format_args!("{}", exchange.as_curl(client.base_url())))?;
    let (status, body) = client.send(exchange)?;
    print_line(format_args!("{status}  {body}\n"))?;
    if status != expected {
        bail!("the demo expected {expected} here");
    }
    Ok(body)
}
