//! Reloads of certificates.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::gateway::Gateway;
use crate::support::pki::Pki;
use crate::support::tls_client::{TlsClient, leaf};
use crate::support::upstream::Upstream;
use crate::support::wait_until;

fn start(upstream: &Upstream, chain: &Path, key: &Path, more: &[(&str, &str)]) -> Gateway {
    let mut options =
        vec![("TLS_CERT_FILE", chain.to_str().expect("text")), ("TLS_KEY_FILE", key.to_str().expect("text"))];
    options.extend(more);
    Gateway::start(upstream.address(), &options)
}

fn shown(gateway: &Gateway, client: &TlsClient) -> Vec<u8> {
    client.connect(gateway.https(), "localhost").expect("connected").certificate()
}

/// As the kubelet does: a new folder, and a link that is atomically replaced.
#[test]
fn a_replaced_kubernetes_secret_is_used_without_failed_handshakes() {
    let (pki, upstream) = (Pki::new(), Upstream::start());
    let mount = pki.folder().join("mount");
    let publish = |version: &str| {
        let data = mount.join(format!("..{version}"));
        std::fs::create_dir_all(&data).expect("made");
        let (chain, key) = pki.issue("localhost");
        std::fs::rename(&chain, data.join("tls.crt")).expect("moved");
        std::fs::rename(&key, data.join("tls.key")).expect("moved");
        let (link, new) = (mount.join("..data"), mount.join("..data_tmp"));
        symlink(format!("..{version}"), &new).expect("linked");
        std::fs::rename(&new, &link).expect("turned");
        leaf(&data.join("tls.crt"))
    };
    let first = publish("1");
    for file in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(file), mount.join(file)).expect("linked");
    }
    let gateway = start(&upstream, &mount.join("tls.crt"), &mount.join("tls.key"), &[]);
    let client = TlsClient::new(&pki.ca_pem(), None);
    assert_eq!(shown(&gateway, &client), first);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let handshakes = scope.spawn(|| {
            let mut count = 0;
            while !over.load(Ordering::Relaxed) {
                let fresh = TlsClient::new(&pki.ca_pem(), None);
                fresh.connect(gateway.https(), "localhost").expect("every handshake succeeds");
                count += 1;
            }
            count
        });
        let mut before = first;
        for version in ["2", "3", "4"] {
            let next = publish(version);
            let start = std::time::Instant::now();
            wait_until("the new certificate is sent", || shown(&gateway, &TlsClient::new(&pki.ca_pem(), None)) == next);
            println!("after {:?}", start.elapsed());
            assert_ne!(before, next);
            before = next;
        }
        over.store(true, Ordering::Relaxed);
        println!("{} handshakes meanwhile", handshakes.join().expect("no handshake failed"));
    });
}

#[test]
fn invalid_certificates_change_nothing_and_are_logged() {
    let (pki, upstream) = (Pki::new(), Upstream::start());
    let (chain, key) = pki.issue("localhost");
    let first = leaf(&chain);
    let gateway = start(&upstream, &chain, &key, &[]);
    let client = TlsClient::new(&pki.ca_pem(), None);
    let other = pki.issue_as("other", &["localhost"]);
    let unusable = || gateway.metric("timbr_gateway_certificates_unusable");
    // A certificate without its key, then invalid content.
    std::fs::copy(&other.0, &chain).expect("written");
    wait_until("the failure is reported", || unusable() == 1.0);
    assert_eq!(shown(&gateway, &client), first);
    std::fs::write(&chain, "nonsense").expect("written");
    gateway.reload();
    thread::sleep(Duration::from_millis(200));
    assert_eq!((shown(&gateway, &client), unusable()), (first, 1.0));
    // The matching key.
    std::fs::copy(&other.0, &chain).expect("written");
    std::fs::copy(&other.1, &key).expect("written");
    wait_until("the files are valid", || unusable() == 0.0);
    let fresh = TlsClient::new(&pki.ca_pem(), None);
    assert_eq!(shown(&gateway, &fresh), leaf(&other.0));
}

#[test]
fn sessions_survive_a_new_certificate_but_not_a_new_client_authority() {
    let (pki, others, upstream) = (Pki::new(), Pki::new(), Upstream::start());
    let (chain, key) = pki.issue("localhost");
    let mine = pki.issue("etl-job");
    let ca = pki.folder().join("clients.pem");
    std::fs::copy(pki.ca_file(), &ca).expect("written");
    let more = [("TLS_CLIENT_CA_FILE", ca.to_str().expect("text")), ("TLS_CLIENT_AUTH", "required")];
    let gateway = start(&upstream, &chain, &key, &more);
    let client = TlsClient::new(&pki.ca_pem(), Some(&mine));
    let mut open = client.connect(gateway.https(), "localhost").expect("connected");
    let get = |connection: &mut crate::support::tls_client::TlsConnection| {
        connection.get("/nowhere", "Host: localhost\r\n").map(|(status, _)| status)
    };
    assert_eq!(get(&mut open), Some(404));
    let renewed = pki.issue_as("renewed", &["localhost"]);
    std::fs::copy(&renewed.0, &chain).expect("written");
    std::fs::copy(&renewed.1, &key).expect("written");
    let anew = || TlsClient::new(&pki.ca_pem(), Some(&mine)).connect(gateway.https(), "localhost");
    wait_until("the new certificate is sent", || {
        anew().is_ok_and(|connection| connection.certificate() == leaf(&renewed.0))
    });
    assert_eq!(get(&mut open), Some(404), "an open connection continues");
    let mut resumed = client.connect(gateway.https(), "localhost").expect("connected");
    assert!(resumed.is_resumed());
    assert_eq!(get(&mut resumed), Some(404));
    // The authority of the client certificate is not trusted any more.
    std::fs::copy(others.ca_file(), &ca).expect("written");
    wait_until("the old authority is not trusted", || {
        !anew().is_ok_and(|mut connection| get(&mut connection).is_some())
    });
    let late = client.connect(gateway.https(), "localhost");
    assert!(!late.is_ok_and(|mut connection| get(&mut connection).is_some()), "nor with a resumed session");
}
