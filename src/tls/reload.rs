//! Reloads certificates, keys and client authorities while the gateway runs. It does not decide how they are used.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::base::watched_files::{FileStamps, FileWatch};
use crate::config::TlsOptions;
use crate::tls::certificates::{CertificateFault, CertificateStatus};
use crate::tls::client_auth::fingerprint;
use crate::tls::server::{Resumption, ServerTls, TlsMaterial, TlsSnapshot};
use crate::tls::{SelfSigned, TlsError};

/// How often warnings about certificates are repeated.
const WARNING_INTERVAL: Duration = Duration::from_secs(12 * 60 * 60);

/// The names and faults of each certificate in the files.
pub fn certificate_statuses(options: &TlsOptions) -> Result<Vec<CertificateStatus>, TlsError> {
    Ok(TlsReloader::start(options.clone(), None)?.0.statuses())
}

/// A validated configuration that is not active yet.
pub struct PreparedTls {
    options: TlsOptions,
    self_signed: Option<SelfSigned>,
    snapshot: Arc<TlsSnapshot>,
}

/// Keeps the snapshot behind [`ServerTls`] up to date.
pub struct TlsReloader {
    options: TlsOptions,
    self_signed: Option<SelfSigned>,
    current: watch::Sender<Arc<TlsSnapshot>>,
    watch: FileWatch,
    last_warning: Instant,
}

impl TlsReloader {
    /// Reads all files for the first time. Without configured certificates, uses `self_signed`.
    pub fn start(options: TlsOptions, self_signed: Option<SelfSigned>) -> Result<(TlsReloader, ServerTls), TlsError> {
        let material = TlsMaterial::load(&options, self_signed.as_ref())?;
        let (current, receiver) = watch::channel(Arc::new(material.build(&options, Resumption::new()?)?));
        let reloader = TlsReloader {
            options,
            self_signed,
            current,
            // The files may have changed since they were read, so the first check reads them again.
            watch: FileWatch::default(),
            last_warning: Instant::now(),
        };
        Ok((reloader, ServerTls(receiver)))
    }

    /// Whether the certificate is self-signed, because no files are configured.
    pub fn is_self_signed(&self) -> bool {
        self.self_signed.is_some()
    }

    /// Reads and validates the files of new options, without activating them. Without configured certificates, uses
    /// `self_signed`, or else the previous self-signed certificate.
    pub fn prepare(&self, options: TlsOptions, self_signed: Option<SelfSigned>) -> Result<PreparedTls, TlsError> {
        let material = TlsMaterial::load(&options, self_signed.as_ref().or(self.self_signed.as_ref()))?;
        material.keep_valid_certificates(&options, &self.current.borrow(), SystemTime::now())?;
        let snapshot = self.build(material, &options)?;
        Ok(PreparedTls { options, self_signed, snapshot })
    }

    fn build(&self, material: TlsMaterial, options: &TlsOptions) -> Result<Arc<TlsSnapshot>, TlsError> {
        let current = self.current.borrow();
        // SECURITY: a resumed session is not verified again. When the authorities change, no session may be resumed
        // whose client certificate a removed authority had signed.
        let has_same_authorities =
            material.authorities == current.authorities && options.client_auth == self.options.client_auth;
        let resumption = if has_same_authorities { current.resumption.clone() } else { Resumption::new()? };
        material.build(options, resumption).map(Arc::new)
    }

    /// Activates the validated configuration.
    pub fn apply(&mut self, PreparedTls { options, self_signed, snapshot }: PreparedTls) {
        let has_new_options = options != self.options;
        self.self_signed = self_signed.or(self.self_signed.take());
        self.options = options;
        self.watch.reset();
        // Files may have changed since `reload_if_changed` has read them.
        if !self.activate(&snapshot) && has_new_options {
            self.log_certificates();
        }
    }

    /// Returns whether certificates, authorities or ticket keys differ from the active ones; then they are logged.
    fn activate(&mut self, snapshot: &Arc<TlsSnapshot>) -> bool {
        let previous = self.current.send_replace(Arc::clone(snapshot));
        let client_authorities = snapshot.authorities != previous.authorities;
        let is_changed = client_authorities || !snapshot.has_same_certificates(&previous);
        if is_changed {
            info!(client_authorities, "reloaded changed certificate files");
            self.log_certificates();
        }
        is_changed
    }

    /// Whether the last attempt to use the files failed.
    pub fn is_failing(&self) -> bool {
        self.watch.is_failing()
    }

    /// The names and faults of each active certificate.
    pub fn statuses(&self) -> Vec<CertificateStatus> {
        self.current.borrow().statuses(SystemTime::now())
    }

    /// The names, the start and the end of the validity of each certificate, in seconds of Unix time.
    pub fn validities(&self) -> Vec<(String, [i64; 2])> {
        self.current.borrow().validities()
    }

    /// Logs the active certificates, and warns about those that clients reject or will reject soon.
    pub fn log_certificates(&mut self) {
        for certificate in self.current.borrow().certificates() {
            info!(
                names = %certificate.names,
                not_after = %humantime::format_rfc3339_seconds(system_time(certificate.not_after)),
                sha256 = fingerprint(&certificate.chain()[0]),
                "active certificate"
            );
        }
        self.log_warnings();
    }

    fn log_warnings(&mut self) {
        self.last_warning = Instant::now();
        for CertificateStatus { names, not_after, fault } in self.statuses() {
            let not_after = humantime::format_rfc3339_seconds(system_time(not_after));
            match fault {
                None => {}
                Some(fault @ CertificateFault::Expired) => error!(names, %not_after, "the certificate {fault}"),
                Some(fault) => warn!(names, %not_after, "the certificate {fault}"),
            }
        }
    }

    /// Reads the files if they have changed or could not be used before. Blocks on the file system.
    pub fn reload_if_changed(&mut self) {
        if self.last_warning.elapsed() >= WARNING_INTERVAL {
            self.log_warnings();
        }
        let pairs = self.options.certificates.iter().flat_map(|files| [&files.chain, &files.key]);
        let authorities = self.options.client_auth.iter().map(|auth| &auth.ca_file);
        let files = pairs.chain(authorities).chain(&self.options.ticket_keys_file);
        if let Some(stamps) = self.watch.changed(files.map(|path| &**path)) {
            self.read_files(stamps);
        }
    }

    /// Reads the files even if they appear unchanged, because an operator requested it.
    pub fn reload(&mut self) {
        info!("reloading certificates");
        self.watch.reset();
        self.reload_if_changed();
    }

    /// SECURITY: a file that cannot be used changes nothing. While only one file of a pair has been replaced, the pair is
    /// retried until the other has been replaced too.
    fn read_files(&mut self, stamps: FileStamps) {
        let (material, mut errors) = TlsMaterial::reload(&self.options, &self.current.borrow(), SystemTime::now());
        let changed = self.apply_material(material).unwrap_or_else(|error| {
            errors.push(error);
            false
        });
        if errors.is_empty() {
            if self.watch.record_success(stamps) && !changed {
                info!("the certificate files can be used again and are unchanged");
            }
            return;
        }
        let messages: Vec<_> = errors.iter().map(ToString::to_string).collect();
        if self.watch.record_failure(&messages.concat()) {
            for (error, message) in errors.iter().zip(messages) {
                error!(
                    option = error.option(),
                    error = message,
                    "cannot use a certificate file; what it would replace stays active"
                );
            }
        }
    }

    /// Activates `material`, unless it is active already. Returns whether it changed anything.
    fn apply_material(&mut self, material: TlsMaterial) -> Result<bool, TlsError> {
        let snapshot = self.build(material, &self.options)?;
        let is_changed = self.activate(&snapshot);
        if !is_changed {
            debug!("the certificate files were reloaded without changes");
        }
        Ok(is_changed)
    }
}

fn system_time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CertificateFiles, ClientAuth};

    fn write_pair(files: &CertificateFiles, name: &str) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("valid");
        std::fs::write(&files.chain, params.self_signed(&key).expect("signed").pem()).expect("written");
        std::fs::write(&files.key, key.serialize_pem()).expect("written");
    }

    struct ReloadSetup {
        _folder: tempfile::TempDir,
        files: CertificateFiles,
        ca: CertificateFiles,
        reloader: TlsReloader,
        tls: ServerTls,
    }

    impl ReloadSetup {
        fn new() -> ReloadSetup {
            let folder = tempfile::tempdir().expect("a folder");
            let options = ["tls.cert_file", "tls.key_file"];
            let at = |name: &str| CertificateFiles {
                chain: folder.path().join(format!("{name}.crt")),
                key: folder.path().join(format!("{name}.key")),
                options,
            };
            let (files, ca) = (at("tls"), at("ca"));
            write_pair(&files, "one.test");
            write_pair(&ca, "authority.test");
            let client_auth = Some(ClientAuth { ca_file: ca.chain.clone(), required: true });
            let options = TlsOptions { certificates: vec![files.clone()], client_auth, ..TlsOptions::default() };
            let (reloader, tls) = TlsReloader::start(options, None).expect("valid");
            ReloadSetup { _folder: folder, files, ca, reloader, tls }
        }

        fn name(&self) -> String {
            self.tls.current().certificates()[0].names.to_string()
        }
    }

    #[test]
    fn a_new_pair_is_loaded_and_tickets_stay_valid() {
        let mut setup = ReloadSetup::new();
        let before = setup.tls.current().resumption.ticketer();
        setup.reloader.reload_if_changed();
        assert_eq!(setup.name(), "one.test");
        write_pair(&setup.files, "two.test");
        setup.reloader.reload_if_changed();
        assert_eq!(setup.name(), "two.test");
        assert!(Arc::ptr_eq(&before, &setup.tls.current().resumption.ticketer()));
    }

    #[test]
    fn changes_are_recognized_whoever_has_read_the_files() {
        let mut setup = ReloadSetup::new();
        let prepare =
            |setup: &ReloadSetup| setup.reloader.prepare(setup.reloader.options.clone(), None).expect("valid");
        let unchanged = prepare(&setup);
        write_pair(&setup.files, "two.test");
        let changed = prepare(&setup);
        assert!(!setup.reloader.activate(&unchanged.snapshot));
        assert!(setup.reloader.activate(&changed.snapshot), "so it is logged");
        assert_eq!(setup.name(), "two.test");
    }

    #[test]
    fn an_issued_certificate_is_not_an_authority() {
        let setup = ReloadSetup::new();
        let key = rcgen::KeyPair::generate().expect("a key");
        let issuer = rcgen::Issuer::new(rcgen::CertificateParams::default(), &key);
        let mut params = rcgen::CertificateParams::new(vec!["client.test".to_owned()]).expect("valid");
        params.distinguished_name.push(rcgen::DnType::CommonName, "client");
        std::fs::write(&setup.ca.chain, params.signed_by(&key, &issuer).expect("signed").pem()).expect("written");
        let error = setup.reloader.prepare(setup.reloader.options.clone(), None).err().expect("a leaf");
        assert!(error.to_string().contains("ca.crt contains the certificate of CN=client"), "{error}");
        assert_eq!(error.option(), "tls.client_ca_file");
    }

    #[test]
    fn a_new_authority_ends_resumption() {
        let mut setup = ReloadSetup::new();
        let before = setup.tls.current().resumption.ticketer();
        write_pair(&setup.ca, "another.test");
        setup.reloader.reload_if_changed();
        assert!(!Arc::ptr_eq(&before, &setup.tls.current().resumption.ticketer()));
    }

    #[test]
    fn unusable_files_change_nothing_and_are_retried() {
        let mut setup = ReloadSetup::new();
        let (chain, key) = (setup.files.chain.clone(), setup.files.key.clone());
        let good = (std::fs::read(&chain).expect("read"), std::fs::read(&key).expect("read"));
        for (path, content) in [(&chain, &b""[..]), (&key, b"-----BEGIN"), (&chain, &good.1)] {
            std::fs::write(path, content).expect("written");
            setup.reloader.reload_if_changed();
            assert!(setup.reloader.is_failing());
            assert_eq!(setup.name(), "one.test");
        }
        std::fs::remove_file(&key).expect("removed");
        setup.reloader.reload_if_changed();
        assert!(setup.reloader.is_failing());
        write_pair(&setup.files, "two.test");
        setup.reloader.reload_if_changed();
        assert!(!setup.reloader.is_failing());
        assert_eq!(setup.name(), "two.test");
    }

    #[test]
    fn an_unusable_file_does_not_prevent_the_renewal_of_others() {
        let mut setup = ReloadSetup::new();
        let keys = setup.files.chain.with_file_name("tickets");
        std::fs::write(&keys, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").expect("written");
        let options = TlsOptions {
            certificates: vec![setup.files.clone(), setup.ca.clone()],
            ticket_keys_file: Some(keys.clone()),
            ..setup.reloader.options.clone()
        };
        let prepared = setup.reloader.prepare(options.clone(), None).expect("valid");
        setup.reloader.apply(prepared);
        write_pair(&setup.files, "two.test");
        std::fs::write(&setup.ca.key, "").expect("written");
        std::fs::write(&keys, "").expect("written");
        setup.reloader.reload_if_changed();
        let names: Vec<_> = setup.tls.current().statuses(SystemTime::now()).into_iter().map(|one| one.names).collect();
        assert_eq!((names.join(" ").as_str(), setup.reloader.is_failing()), ("two.test authority.test", true));
        // A configuration is accepted as a whole or not at all.
        assert!(setup.reloader.prepare(options, None).is_err());
    }

    #[test]
    fn an_expired_certificate_replaces_only_an_expired_one() {
        let mut setup = ReloadSetup::new();
        let write = |name: &str, end: i32| {
            let key = rcgen::KeyPair::generate().expect("a key");
            let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("valid");
            params.not_after = rcgen::date_time_ymd(end, 1, 1);
            std::fs::write(&setup.files.chain, params.self_signed(&key).expect("signed").pem()).expect("written");
            std::fs::write(&setup.files.key, key.serialize_pem()).expect("written");
        };
        write("one.test", 2020);
        setup.reloader.reload_if_changed();
        assert!(setup.reloader.is_failing());
        let error = setup.reloader.prepare(setup.reloader.options.clone(), None).err().expect("expired").to_string();
        assert!(error.contains("one.test that has expired") && error.contains("tls.crt"), "{error}");
        write("one.test", 2090);
        setup.reloader.reload_if_changed();
        assert!(!setup.reloader.is_failing());
        // A name that had no certificate before.
        write("two.test", 2020);
        setup.reloader.reload_if_changed();
        assert_eq!((setup.name().as_str(), setup.reloader.is_failing()), ("two.test", false));
        write("two.test", 2021);
        setup.reloader.reload_if_changed();
        assert!(!setup.reloader.is_failing());
    }

    #[test]
    fn an_expired_certificate_may_not_take_a_name_from_a_valid_one() {
        let mut setup = ReloadSetup::new();
        let write_expired = |files: &CertificateFiles, names: &[&str]| {
            let key = rcgen::KeyPair::generate().expect("a key");
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = rcgen::CertificateParams::new(names).expect("valid");
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
            std::fs::write(&files.chain, params.self_signed(&key).expect("signed").pem()).expect("written");
            std::fs::write(&files.key, key.serialize_pem()).expect("written");
        };
        let (valid, expired) = (setup.ca.clone(), setup.files.clone());
        write_pair(&valid, "two.test");
        write_expired(&expired, &["two.test"]);
        let options = |certificates: [&CertificateFiles; 2]| {
            let certificates = certificates.map(CertificateFiles::clone).to_vec();
            TlsOptions { certificates, client_auth: None, ..TlsOptions::default() }
        };
        setup.reloader = TlsReloader::start(options([&valid, &expired]), None).expect("valid").0;
        let is_accepted = |setup: &ReloadSetup, options: TlsOptions| setup.reloader.prepare(options, None).is_ok();
        assert!(is_accepted(&setup, options([&valid, &expired])), "as it is");
        assert!(!is_accepted(&setup, options([&expired, &valid])), "in a different order");
        let alone = TlsOptions { certificates: vec![expired.clone()], ..options([&valid, &expired]) };
        assert!(!is_accepted(&setup, alone), "without the valid one");
        write_expired(&expired, &["two.test", "three.test"]);
        assert!(is_accepted(&setup, options([&valid, &expired])), "a name without a valid certificate");
        for name in ["*.two.test", "127.0.0.1"] {
            write_pair(&valid, name);
            write_expired(&expired, &["two.test", name]);
            setup.reloader = TlsReloader::start(options([&valid, &expired]), None).expect("valid").0;
            assert!(is_accepted(&setup, options([&valid, &expired])), "{name}");
            assert!(!is_accepted(&setup, options([&expired, &valid])), "{name}");
        }
        std::fs::copy(&expired.chain, &valid.chain).expect("copied");
        std::fs::copy(&expired.key, &valid.key).expect("copied");
        assert!(!is_accepted(&setup, options([&valid, &expired])), "in the files of the valid one");
        // An expired one that serves the name already does not prevent a reload.
        write_pair(&valid, "two.test");
        setup.reloader = TlsReloader::start(options([&expired, &valid]), None).expect("valid").0;
        assert!(is_accepted(&setup, options([&expired, &valid])), "it served the name before");
    }
}
