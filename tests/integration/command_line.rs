//! The command line of the program.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use crate::support::bearer::SALT;
use crate::support::program::run;
use crate::support::upstream::{Upstream, respond};

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[test]
fn the_demo_shows_the_round_trip_on_a_free_port() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = taken.local_addr().expect("an address").to_string();
    let output = run(&["demo", "--once", "--listen-https", &address], &[], "");
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for expected in [
        &*format!("{address} is in use; using a free port instead."),
        "401  {\"status\":\"error\"",
        "200  {\"data\":[\"tk_",
        "200  [{\"country\":\"United Kingdom\"",
        "query as alice",
    ] {
        assert!(shown.contains(expected), "{expected} in\n{shown}");
    }
    let arrived = shown.split("# Requests received").nth(1).expect("the backend's log");
    assert_eq!(arrived.lines().filter(|line| line.contains(" as ")).count(), 3, "{shown}");
}

#[test]
fn the_demo_backend_runs_alone_until_sigterm() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_timbr-gateway"))
        .args(["demo", "--backend-only", "127.0.0.1:0"])
        .env_clear()
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut told = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = || told.next().expect("a line").expect("text");
    let first = next();
    let address = first.split("http://").nth(1).expect("where it listens").trim_end_matches('.').to_owned();
    for (field, expected) in [("", "HTTP/1.1 401 "), ("x-forwarded-user: alice\r\n", "HTTP/1.1 200 ")] {
        let mut stream = TcpStream::connect(&address).expect("connected");
        write!(
            stream,
            "GET /timbr/api/get_ontologies HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-api-key: k\r\n{field}\r\n"
        )
        .expect("sent");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("answered");
        assert!(response.starts_with(expected), "{response}");
    }
    assert_eq!(next(), "GET /timbr/api/get_ontologies as alice");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
    assert!(child.wait().expect("ended").success());
}

#[test]
fn a_new_salt_can_be_used() {
    let salt = run(&["salt"], &[], "");
    let salt = text(&salt.stdout).trim();
    assert_eq!(salt.len(), 44);
    let output = run(&["bearer", "--user", "alice", "--password-stdin"], &[("API_AUTH_SALT", salt)], "secret\n");
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).starts_with("gAAAA"), "{output:?}");
}

#[test]
fn a_bearer_is_decoded_without_its_password() {
    let make = |salt: &str| {
        let arguments = ["bearer", "--user", "alice", "--password-stdin"];
        text(&run(&arguments, &[("API_AUTH_SALT", salt)], "wonderland").stdout).trim().to_owned()
    };
    let other = text(&run(&["salt"], &[], "").stdout).trim().to_owned();
    let both = format!("{other},{SALT}");
    for (salts, bearer, number) in [(SALT, make(SALT), "1 of 1"), (&both, format!("Bearer {}\n", make(SALT)), "2 of 2")]
    {
        let output = run(&["bearer", "--decode"], &[("API_AUTH_SALT", salts)], &bearer);
        let shown = text(&output.stdout);
        assert!(shown.starts_with("user     alice\ncreated  20"), "{output:?}");
        assert!(shown.ends_with(&format!("salt     {number}\n")) && !shown.contains("wonderland"), "{output:?}");
    }
    let foreign = run(&["bearer", "--decode"], &[("API_AUTH_SALT", &other)], &make(SALT));
    assert_eq!(foreign.status.code(), Some(1));
    assert!(text(&foreign.stderr).contains("not a Fernet token made with this API_AUTH_SALT"), "{foreign:?}");
}

#[test]
fn a_password_of_the_users_file_is_verified() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("users");
    let users = |command: &str, user: &str, password: &str| {
        let file = file.to_str().expect("text");
        run(&["users", command, user, "--auth-users-file", file, "--password-stdin"], &[], password)
    };
    assert!(users("add", "alice", "wonderland").status.success());
    assert!(users("verify", "alice", "wonderland").status.success());
    for (user, password, expected) in
        [("alice", "queenofhearts", "not the password of alice"), ("eve", "wonderland", "has no user eve")]
    {
        let output = users("verify", user, password);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(expected), "{output:?}");
    }
    assert!(users("add", "alice", "queenofhearts").status.success(), "a script is not asked");
    assert!(users("verify", "alice", "queenofhearts").status.success());
}

#[test]
fn errors_of_the_bearer_command_are_explained() {
    for (arguments, environment, input, expected) in [
        (&["bearer", "--user", "alice"][..], &[][..], "x", "set API_AUTH_SALT"),
        (&["bearer", "--user", "alice"], &[("API_AUTH_SALT", "nonsense")], "x", "not a Fernet key"),
        (
            &["bearer", "--user", "alice"],
            &[("API_AUTH_SALT", SALT), ("API_AUTH_SALT_FILE", "/x")],
            "x",
            "both set it; keep one",
        ),
        (&["bearer", "--user", "alice"], &[("API_AUTH_SALT", SALT)], "", "the password is empty"),
        (&["bearer", "--user", "a:b"], &[("API_AUTH_SALT", SALT)], "x", "a user name is"),
    ] {
        let output = run(arguments, environment, input);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text(&output.stderr).contains(expected), "{output:?}");
    }
    let wrong = run(&["bearer", "--password", "x"], &[], "");
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn all_errors_of_an_invalid_configuration_are_reported() {
    let environment = [("API_AUTH_SALT", "hunter2"), ("TIMBR_GATEWAY_LISTEN_HTTPS", "8443"), ("TIMBR_GATEWAY_NO", "x")];
    for command in [&["serve"][..], &["config", "check"], &["config", "print"]] {
        let output = run(command, &environment, "");
        let shown = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{shown}");
        for expected in [
            "api_auth_salt: value 1 is not a Fernet key",
            "listen.https: must be address:port",
            "upstream.url: is required",
            "TIMBR_GATEWAY_NO: unknown variable",
        ] {
            assert!(shown.contains(expected), "{expected} in\n{shown}");
        }
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn config_check_reads_the_files_that_serve_reads() {
    let good = [("API_AUTH_SALT", SALT), ("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1")];
    assert!(run(&["config", "check"], &good, "").status.success());
    let missing = run(&["config", "check", "--tokens-keys-file", "/nonexistent/keys"], &good, "");
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("tokens.keys_file: /nonexistent/keys: cannot be read"), "{missing:?}");
    let traced = [&good[..], &[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318")]].concat();
    let wrong = run(&["config", "check"], &traced, "");
    assert_eq!(wrong.status.code(), Some(1));
    assert!(text(&wrong.stderr).contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{wrong:?}");
}

#[test]
fn the_help_of_reload_explains_an_invalid_configuration() {
    let help = run(&["reload", "--help"], &[], "");
    for expected in ["invalid configuration changes nothing", "exit code is 1", "listen.admin", "timbr-gateway reload"]
    {
        assert!(text(&help.stdout).contains(expected), "{expected} in {help:?}");
    }
}

#[test]
fn config_print_shows_origins_and_hides_secrets() {
    let environment = [("API_AUTH_SALT", SALT), ("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1")];
    let output = run(&["config", "print", "--origins", "--tokens-ttl", "2h"], &environment, "");
    let shown = text(&output.stdout);
    assert!(shown.contains("ttl: \"2h\"  # flag --tokens-ttl"), "{shown}");
    assert!(shown.contains("url: \"http://127.0.0.1:1\"  # variable TIMBR_GATEWAY_UPSTREAM_URL"), "{shown}");
    assert!(!shown.contains(SALT), "{shown}");
}

#[test]
fn an_address_in_use_is_reported() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = taken.local_addr().expect("an address").to_string();
    let environment = [("API_AUTH_SALT", SALT), ("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1")];
    let output = run(&["serve", "--listen-https", &address, "--listen-admin", "off"], &environment, "");
    assert_eq!(output.status.code(), Some(1));
    let port = taken.local_addr().expect("an address").port();
    let expected = format!(
        "error: listen.https: cannot listen on {address}: Address already in use; `ss -ltnp 'sport = :{port}'` shows the \
         process: stop it, or set listen.https to a different address\n"
    );
    let (log, error) = text(&output.stderr).split_at(text(&output.stderr).find("error: ").expect("an error"));
    assert_eq!(error, expected);
    let audit = log.lines().filter(|line| line.contains(" audit: "));
    assert_eq!(audit.count(), 2, "a start that failed: {log}");
}

#[test]
fn healthcheck_reports_the_address_that_does_not_respond() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("an address");
    let output = run(&["healthcheck", "--listen-admin", &nobody.to_string()], &[], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&format!("http://{nobody}/livez")), "{output:?}");
}

#[test]
fn healthcheck_checks_a_running_gateway() {
    let upstream = crate::support::upstream::Upstream::start();
    let gateway = crate::support::gateway::Gateway::start(upstream.address(), &[]);
    let admin = gateway.admin().to_string();
    let output = run(&["healthcheck"], &[("TIMBR_GATEWAY_LISTEN_ADMIN", &admin)], "");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stdout), "ok\n");
}

#[test]
fn wait_ends_when_the_gateway_is_ready_or_after_the_timeout() {
    let upstream = crate::support::upstream::Upstream::start();
    let gateway = crate::support::gateway::Gateway::start(upstream.address(), &[]);
    let admin = gateway.admin().to_string();
    for state in ["ready", "live"] {
        let output = run(&["wait", "--for", state, "--listen-admin", &admin], &[], "");
        assert!(output.status.success() && text(&output.stdout) == "ok\n", "{output:?}");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("an address");
    let output = run(&["wait", "--timeout", "300ms", "--listen-admin", &nobody.to_string()], &[], "");
    assert_eq!(output.status.code(), Some(1));
    let problem = text(&output.stderr);
    assert!(problem.contains("is not ready after 300ms") && problem.contains("is the gateway running"), "{problem}");
}

#[test]
fn healthcheck_uses_the_configuration_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gateway.yaml");
    let upstream = crate::support::upstream::Upstream::start();
    let gateway = crate::support::gateway::Gateway::start(upstream.address(), &[]);
    std::fs::write(&file, format!("listen: {{admin: '{}'}}\n", gateway.admin())).expect("written");
    let file = file.to_str().expect("text");
    assert!(run(&["healthcheck"], &[("TIMBR_GATEWAY_CONFIG", file)], "").status.success());
    assert!(run(&["healthcheck", "--ready", "--config", file], &[], "").status.success());
    let off = run(&["healthcheck", "--listen-admin", "off"], &[], "");
    assert_eq!(text(&off.stderr), "error: listen.admin is off: there is no admin listener to connect to\n");
}

#[test]
fn a_closed_output_pipe_is_not_an_error() {
    let environment = [("API_AUTH_SALT", SALT), ("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1")];
    let mut child = Command::new(env!("CARGO_BIN_EXE_timbr-gateway"))
        .args(["config", "print"])
        .env_clear()
        .envs(environment)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ended");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn completions_exist_for_each_shell() {
    for (shell, expected) in [
        ("bash", "complete -F _timbr__gateway"),
        ("zsh", "#compdef timbr-gateway"),
        ("fish", "complete -c timbr-gateway"),
        ("elvish", "edit:completion:arg-completer[timbr-gateway]"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let output = run(&["completions", shell], &[], "");
        let script = text(&output.stdout);
        assert!(output.status.success() && script.contains(expected), "{shell}: {script:.300}");
        assert!(script.contains("upstream-url") && script.contains("revoke"), "{shell}");
    }
    assert_eq!(run(&["completions", "csh"], &[], "").status.code(), Some(2));
}

#[test]
fn bash_completes_subcommands() {
    let script = run(&["completions", "bash"], &[], "");
    let asked = format!(
        "{}\nCOMP_WORDS=(timbr-gateway config pr) COMP_CWORD=2; _timbr__gateway timbr-gateway pr config; echo \"${{COMPREPLY[@]}}\"",
        text(&script.stdout)
    );
    // As a file, because the script is longer than an argument may be.
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), asked).expect("written");
    let output = Command::new("bash").arg("--norc").arg(file.path()).output().expect("bash");
    assert_eq!(text(&output.stdout).trim(), "print", "{output:?}");
    let words = text(&script.stdout).lines().any(|line| line.contains("memory") && line.contains("redis"));
    assert!(words, "the values of --store-kind are suggested");
}

#[test]
fn each_command_has_a_manual_page() {
    let one = run(&["man"], &[], "");
    assert!(text(&one.stdout).contains(".TH timbr-gateway 1"), "{one:?}");
    let folder = tempfile::tempdir().expect("a folder");
    let all = run(&["man", folder.path().join("man1").to_str().expect("text")], &[], "");
    assert!(all.status.success(), "{all:?}");
    let read = |name: &str| std::fs::read_to_string(folder.path().join("man1").join(name)).expect(name);
    assert!(read("timbr-gateway-serve.1").contains("upstream\\-url"));
    let print = read("timbr-gateway-config-print.1");
    assert!(print.contains(".TH timbr-gateway-config-print 1") && print.contains("origins"), "{print}");
    assert!(print.contains("\\fBtimbr\\-gateway config print\\fR"), "as it is typed: {print}");
}

#[test]
fn the_version_contains_the_build() {
    let short = run(&["-V"], &[], "");
    assert_eq!(text(&short.stdout), concat!("timbr-gateway ", env!("CARGO_PKG_VERSION"), "\n"));
    let long = run(&["--version"], &[], "");
    let long = text(&long.stdout);
    assert!(long.contains("\ncommit: ") && long.contains(&format!("\ntarget: {}-linux-", std::env::consts::ARCH)));
}

#[test]
fn output_to_a_pipe_has_no_colours() {
    for arguments in [&["--help"][..], &["doctor"], &["nonsense"], &["config", "check", "--tokens-ttl"]] {
        let output = run(arguments, &[], "");
        assert!(!output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b), "{output:?}");
    }
}

#[test]
fn config_print_supports_json() {
    let environment = [("API_AUTH_SALT", SALT), ("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1")];
    let output = run(&["config", "print", "--format", "json"], &environment, "");
    let shown = text(&output.stdout);
    let told: serde_json::Value = serde_json::from_str(shown).expect("JSON");
    assert!(told["options"].as_array().is_some_and(|options| options.len() > 50));
    assert!(!shown.contains(SALT), "{shown}");
}

#[test]
fn config_check_reports_files_that_are_useless() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let certificate = |name: &str, end: i32| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec!["gateway.example".to_owned()]).expect("valid");
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(end, 1, 1));
        let files = (at(&format!("{name}.crt")), at(&format!("{name}.key")));
        std::fs::write(&files.0, params.self_signed(&key).expect("signed").pem()).expect("written");
        std::fs::write(&files.1, key.serialize_pem()).expect("written");
        files
    };
    let check = |options: &[(&str, &str)]| {
        let all = [&[("API_AUTH_SALT", SALT), ("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1")], options].concat();
        let output = run(&["config", "check"], &all, "");
        (output.status.success(), text(&output.stderr).to_owned())
    };
    for (name, end, is_reported) in [("old", 2021, true), ("new", 2100, false)] {
        let (chain, key) = certificate(name, end);
        let (valid, printed) = check(&[("TIMBR_GATEWAY_TLS_CERT_FILE", &chain), ("TIMBR_GATEWAY_TLS_KEY_FILE", &key)]);
        let expected = "warning: tls: the certificate for gateway.example has expired; replace its files";
        assert_eq!((valid, printed.contains(expected)), (true, is_reported), "{printed}");
    }
    std::fs::write(at("users"), "# no users\n").expect("written");
    let users = [("TIMBR_GATEWAY_AUTH_VERIFIER", "users-file"), ("TIMBR_GATEWAY_AUTH_USERS_FILE", &at("users"))];
    let (valid, printed) = check(&users);
    assert!(valid && printed.contains("warning: auth.users_file: has no users"), "{printed}");
    for (path, is_valid) in [("tokens", true), ("missing/tokens", false)] {
        let path = at(path);
        let (valid, printed) = check(&[("TIMBR_GATEWAY_STORE_KIND", "file"), ("TIMBR_GATEWAY_STORE_PATH", &path)]);
        assert_eq!((valid, printed.contains("store.path: is in the folder")), (is_valid, !is_valid), "{printed}");
    }
}

#[test]
fn rules_without_password_checks_cause_a_warning() {
    let environment = [
        ("API_AUTH_SALT", SALT),
        ("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1"),
        ("TIMBR_GATEWAY_AUTHORIZATION_MODE", "enforce"),
        ("TIMBR_GATEWAY_AUTHORIZATION_RULES", "[{users: admin}]"),
    ];
    let output = run(&["config", "check"], &environment, "");
    assert!(output.status.success(), "{output:?}");
    let keys = ["tls.cert_file", "auth.verifier", "authorization.rules"];
    let warnings: Vec<_> = text(&output.stderr).lines().filter_map(|line| line.strip_prefix("warning: ")).collect();
    assert!(keys.iter().zip(&warnings).all(|(key, warning)| warning.starts_with(key)), "{output:?}");
    let doctor = run(&["doctor", "--json"], &environment, "");
    let told: serde_json::Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    for (step, key) in keys.iter().enumerate() {
        assert_eq!(
            (&told["steps"][step + 1]["outcome"], &told["steps"][step + 1]["fix"]),
            (&"warning".into(), &(*key).into()),
            "{told}"
        );
    }
}

/// A backend that accepts an unknown key accepts any key, which `verify` cannot use and `forward` would let through.
#[test]
fn doctor_tries_an_unknown_foreign_key() {
    const ERROR: &str = r#"{"status":"error","data":"no"}"#;
    for (policy, status, body, outcome) in [
        ("verify", 200, "{}", "failed"),
        ("verify", 404, "{}", "failed"),
        ("verify", 401, "{}", "ok"),
        ("forward", 200, "{}", "failed"),
        ("forward", 200, ERROR, "ok"),
        ("forward", 302, "{}", "ok"),
        ("forward", 403, "{}", "ok"),
        ("reject", 200, "{}", "ok"),
    ] {
        let upstream = Upstream::with_behaviour(move |request, stream| match request.header("x-api-key") {
            "tk_unknown" => respond(stream, status, body),
            _ => respond(stream, 401, ERROR),
        });
        let url = format!("http://{}", upstream.address());
        let environment = [
            ("API_AUTH_SALT", SALT),
            ("TIMBR_GATEWAY_UPSTREAM_URL", url.as_str()),
            ("TIMBR_GATEWAY_TOKENS_FOREIGN", policy),
        ];
        let output = run(&["doctor", "--json"], &environment, "");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let steps = report["steps"].as_array().expect("steps");
        let step = steps.iter().find(|step| step["step"] == "foreign keys").expect("the step");
        assert_eq!(step["outcome"], outcome, "{policy}, {status} {body}: {step}");
        let fix = step["fix"].as_str().unwrap_or_default();
        let expected = match (outcome, status) {
            ("failed", 404) => "upstream.url: is it the API service?",
            ("failed", _) => "tokens.foreign: reject; `forward` only if",
            _ => "",
        };
        assert!(fix.starts_with(expected) && fix.is_empty() == expected.is_empty(), "{step}");
    }
}

/// `forward` sends an unknown key to the upstream of the route, and `verify` only to the default one.
#[test]
fn doctor_tries_an_unknown_foreign_key_at_each_upstream_that_gets_it() {
    let backend = |unknown_key| {
        Upstream::with_behaviour(move |request, stream| {
            let status = if request.header("x-api-key") == "tk_unknown" { unknown_key } else { 200 };
            respond(stream, status, r#"{"data":[]}"#)
        })
    };
    let (default, accepting) = (backend(401), backend(200));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("gateway.yaml");
    let file = format!(
        "upstream: {{url: 'http://{}'}}\nupstreams: [{{name: timbr-server, url: 'http://{}'}}]\nroutes:\n  \
         - {{name: reports, prefix: /reports/, content_types: [application/json], upstream: timbr-server}}\n",
        default.address(),
        accepting.address()
    );
    std::fs::write(&path, file).expect("written");
    for (policy, expected) in [("forward", &["ok", "failed"][..]), ("verify", &["ok"]), ("reject", &["ok"])] {
        let config = ["doctor", "--json", "--config", path.to_str().expect("text")];
        let output = run(&config, &[("API_AUTH_SALT", SALT), ("TIMBR_GATEWAY_TOKENS_FOREIGN", policy)], "");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let steps = report["steps"].as_array().expect("steps");
        let steps: Vec<_> = steps.iter().filter(|step| step["step"] == "foreign keys").collect();
        let outcomes: Vec<_> = steps.iter().map(|step| step["outcome"].as_str().expect("text")).collect();
        assert_eq!(outcomes, expected, "{policy}: {report}");
        let names = |step: &serde_json::Value| step["detail"].as_str().expect("text").contains("(timbr-server)");
        assert!(!names(steps[0]) && steps[1..].iter().all(|step| names(step)), "{report}");
        assert_eq!((&report["healthy"], output.status.success()), (&(policy != "forward").into(), policy != "forward"));
    }
}

/// Without the capability, as for a container that is not root. The port is privileged in a network namespace of its own.
#[test]
fn a_privileged_port_without_the_capability_has_its_own_error() {
    let script = r#"export PATH=/usr/sbin:/usr/bin:/sbin:/bin; map=-rn; [ "$(id -u)" != 0 ] || map=-n
        exec unshare $map /bin/sh -c 'exec setpriv --bounding-set -net_bind_service --inh-caps -net_bind_service \
        -- "$0" serve' "$0""#;
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_timbr-gateway")])
        .env_clear()
        .env("API_AUTH_SALT", crate::support::bearer::SALT)
        .env("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1")
        .env("TIMBR_GATEWAY_LISTEN_HTTP", "127.0.0.1:80")
        .output()
        .expect("it runs");
    let error = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("listen.http") && error.contains("CAP_NET_BIND_SERVICE"), "{error}");
}

/// Otherwise a list that is cut off would be an empty one: nothing is stopped.
#[test]
fn a_response_of_the_admin_listener_that_is_cut_off_is_an_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address").to_string();
    let admin = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().expect("a connection");
            let _ = stream.read(&mut [0; 4096]).expect("a request");
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"stops\":[").expect("written");
        }
    });
    for arguments in [&["stopped", "--json"][..], &["resume", "user", "alice"]] {
        let output = run(&[arguments, &["--listen-admin", &address]].concat(), &[], "");
        let shown = text(&output.stderr);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), ""), "{shown}");
        assert!(shown.contains("is not JSON, or was cut off"), "{shown}");
    }
    admin.join().expect("no panic");
}
