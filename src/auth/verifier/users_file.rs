//! Verifies passwords with a users file, and reloads it when it changes. The format is in `users`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;
use tracing::{error, info, warn};

use crate::auth::bearer::Credentials;
use crate::auth::credential_file::{self, CredentialFileError};
use crate::auth::failure_limiter::Attempt;
use crate::auth::token_binding::{Evidence, next_generation};
use crate::auth::verifier::users::Users;
use crate::auth::verifier::{VerifiedLogin, VerifyError, start_check};
use crate::auth::{FileReload, changed_file};
use crate::base::user_name::UserName;
use crate::base::watched_files::FileWatch;
use crate::config::options::AUTH;

/// How long the previous content of a file that has become invalid is used. Then no password is accepted or rejected.
const MAX_STALE: Duration = Duration::from_secs(60 * 60);

/// A users file and its current content.
pub struct UsersFile {
    path: PathBuf,
    users: RwLock<Arc<Users>>,
    /// Since when the file has been invalid.
    failing_since: Mutex<Option<Instant>>,
    watch: Mutex<FileWatch>,
    hash_permits: Arc<Semaphore>,
    /// The number of the last change of `users`.
    generation: AtomicU32,
}

impl UsersFile {
    /// Reads the file. The error reports all invalid lines.
    pub fn read(path: &Path) -> Result<UsersFile, CredentialFileError> {
        let users = read_users(path)?;
        // A hash takes about 50 ms of a core, so there is one permit per core.
        let permits = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(UsersFile {
            path: path.to_owned(),
            users: RwLock::new(Arc::new(users)),
            failing_since: Mutex::default(),
            watch: Mutex::default(),
            hash_permits: Arc::new(Semaphore::new(permits)),
            generation: AtomicU32::new(next_generation()),
        })
    }

    /// Reloads the file. Returns the users that were removed or have a new hash. Blocks on the file system.
    ///
    /// SECURITY: with an invalid file the previous content stays active, but not for ever: see [`MAX_STALE`]. A file
    /// without users is valid and means that no user exists.
    pub fn reload(&self, reload: FileReload) -> Vec<String> {
        let mut watch = self.watch.lock();
        let Some(stamps) = changed_file(&mut watch, &self.path, reload) else { return Vec::new() };
        match read_users(&self.path) {
            // An editor may have truncated the file, and be about to write it.
            Ok(users) if users.is_empty() && !stamps.is_settled() && reload == FileReload::IfChanged => Vec::new(),
            Ok(users) => {
                *self.failing_since.lock() = None;
                let before = self.users();
                let changed = changed_users(&before, &users);
                if watch.record_success(stamps) || !changed.is_empty() || users.sorted().len() != before.sorted().len()
                {
                    info!(users = users.sorted().len(), ended = changed.len(), "users file reloaded");
                    if users.is_empty() {
                        warn!(option = AUTH.users_file.key, "the users file has no users: no user can log in");
                    }
                }
                *self.users.write() = Arc::new(users);
                // SECURITY: after the users, so that nothing is confirmed by the new generation with the old users.
                self.generation.store(next_generation(), Ordering::Release);
                changed
            }
            Err(problem) => {
                self.failing_since.lock().get_or_insert_with(Instant::now);
                let message = problem.to_string();
                if watch.record_failure(&message) {
                    error!(
                        option = AUTH.users_file.key,
                        error = message,
                        "cannot use the users file; the previous users stay active for at most an hour"
                    );
                }
                Vec::new()
            }
        }
    }

    /// Returns whether the file is invalid, so that its previous content is still active.
    pub fn is_failing(&self) -> bool {
        self.watch.lock().is_failing()
    }

    /// What proves a login of this user: the hash in the file. `None` if the user is not in it.
    pub fn evidence(&self, user: &UserName) -> Option<Evidence> {
        self.users().hash_of(user.as_str()).map(|hash| hash.to_text().into_bytes())
    }

    /// The number of the last change of the file.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns whether no user exists.
    pub fn is_empty(&self) -> bool {
        self.users().is_empty()
    }

    fn users(&self) -> Arc<Users> {
        Arc::clone(&self.users.read())
    }

    fn is_too_stale(&self) -> bool {
        self.failing_since.lock().is_some_and(|since| since.elapsed() >= MAX_STALE)
    }

    /// Verifies a password on a blocking thread, so that the worker can serve other requests.
    pub(super) async fn verify(
        &self,
        credentials: &Credentials,
        attempt: Attempt,
    ) -> Result<VerifiedLogin, VerifyError> {
        if self.is_too_stale() {
            return Err(VerifyError::Unavailable);
        }
        // SECURITY: a client with too many failures must not cause a hash computation.
        let (permit, charge) = start_check(&self.hash_permits, &attempt).await?;
        let users = self.users();
        let hash = users.hash_of(credentials.user.as_str()).cloned();
        let password = credentials.password.clone();
        let checked = tokio::task::spawn_blocking(move || {
            let is_right = hash.as_ref().is_some_and(|hash| hash.is_hash_of(&password));
            // Here, so that the result counts even if the client disconnects.
            if is_right {
                charge.refund();
            } else {
                // SECURITY: an unknown user takes as long as a known one with any hash, so that the duration does not
                // reveal which users exist.
                users.rejection_cost.spend_remaining(hash.as_deref());
                drop(charge);
            }
            drop(permit);
            // SECURITY: of the hash that was checked; the file may have changed in the meantime.
            hash.filter(|_| is_right).map(|hash| hash.to_text().into_bytes())
        });
        match checked.await {
            // SECURITY: the user may have been removed while the password was being checked.
            Ok(Some(evidence)) if self.evidence(&credentials.user).as_ref() == Some(&evidence) => {
                Ok(VerifiedLogin { evidence, ..VerifiedLogin::default() })
            }
            _ => Err(VerifyError::WrongCredentials),
        }
    }
}

fn read_users(path: &Path) -> Result<Users, CredentialFileError> {
    credential_file::read(path, Users::parse)
}

/// Users of `before` that were removed or have a new hash.
fn changed_users(before: &Users, now: &Users) -> Vec<String> {
    let same = |user: &str, hash| now.hash_of(user).is_some_and(|other| other.is_same_as(hash));
    let all = before.sorted();
    all.into_iter().filter(|(user, hash)| !same(user, hash)).map(|(user, _)| user.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::auth::failure_limiter::FailureLimiter;
    use crate::base::clock::Clock;
    use crate::base::secret::Secret;
    use crate::config::LimitOptions;

    fn attempt() -> Attempt {
        attempt_within(0)
    }

    fn attempt_within(per_user: u32) -> Attempt {
        let limits = LimitOptions { failures_per_user: per_user, ..LimitOptions::unlimited() };
        let user = UserName::parse(b"alice").expect("valid");
        Arc::new(FailureLimiter::new(&limits, &[7; 32], Box::new(drop), Clock::manual(0)))
            .begin_attempt([192, 0, 2, 1].into())
            .for_user(&user)
    }

    fn credentials(user: &str, password: &str) -> Credentials {
        let user = UserName::parse(user.as_bytes()).expect("valid");
        Credentials { user, password: Secret::new(password.into()) }
    }

    fn users_file(text: &str) -> UsersFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        UsersFile::read(file.path()).expect("valid")
    }

    fn hash(password: &str, prefix: &str) -> String {
        bcrypt::hash(password, 4).expect("hashed").replacen("$2b$", prefix, 1)
    }

    fn argon2id(password: &str, memory: u32) -> String {
        use argon2::{Algorithm, Argon2, Params, PasswordHasher, Version};
        let params = Params::new(memory, 1, 1, None).expect("valid");
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon2.hash_password_with_salt(password.as_bytes(), b"some salt of 16 b").expect("hashed").to_string()
    }

    #[tokio::test]
    async fn only_the_right_password_is_accepted() {
        let longest = "x".repeat(72);
        let text = format!(
            "# users\nalice:{}\nbob:{}\ncarol:{}\ndave:{}\n",
            hash("wonder", "$2y$"),
            hash("builder", "$2b$"),
            argon2id("c:\u{e4}", 64),
            hash(&longest, "$2y$")
        );
        let users = users_file(&text);
        for (user, password, expected) in [
            ("alice", "wonder", Ok(())),
            ("bob", "builder", Ok(())),
            ("carol", "c:\u{e4}", Ok(())),
            ("carol", "builder", Err(VerifyError::WrongCredentials)),
            ("alice", "builder", Err(VerifyError::WrongCredentials)),
            ("alice", "wonder ", Err(VerifyError::WrongCredentials)),
            ("Alice", "wonder", Err(VerifyError::WrongCredentials)),
            ("eve", "wonder", Err(VerifyError::WrongCredentials)),
            // bcrypt would truncate these.
            ("dave", &longest, Ok(())),
            ("dave", &format!("{longest}x"), Err(VerifyError::WrongCredentials)),
            ("dave", &format!("{longest}\0"), Err(VerifyError::WrongCredentials)),
            ("bob", "builder\0", Err(VerifyError::WrongCredentials)),
            ("bob", "builder\0x", Err(VerifyError::WrongCredentials)),
        ] {
            let verified = users.verify(&credentials(user, password), attempt()).await;
            assert_eq!(verified.map(drop), expected, "{user} {password:?}");
        }
    }

    #[tokio::test]
    async fn above_the_limit_no_hash_is_computed() {
        // Each computation would take seconds, and all of them minutes.
        let slow = bcrypt::hash("builder", 4).expect("hashed").replacen("$04$", "$16$", 1);
        let users = users_file(&format!("alice:{slow}\n"));
        let attempt = attempt_within(1);
        attempt.record_failure().expect("within the limit");
        let begun = std::time::Instant::now();
        for _ in 0..100 {
            let verified = users.verify(&credentials("alice", "wrong"), attempt.clone()).await;
            assert!(matches!(verified, Err(VerifyError::TooManyFailures(_))), "{verified:?}");
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn concurrent_attempts_are_limited_like_sequential_ones() {
        let users = users_file(&format!("alice:{}\n", hash("x", "$2y$")));
        let (users, attempt) = (Arc::new(users), attempt_within(10));
        let attempts: Vec<_> = (0..100)
            .map(|_| {
                let (users, attempt) = (Arc::clone(&users), attempt.clone());
                tokio::spawn(async move { users.verify(&credentials("alice", "wrong"), attempt).await })
            })
            .collect();
        let mut wrong = 0;
        for attempt in attempts {
            let verified = attempt.await.expect("no panic");
            wrong += usize::from(matches!(verified, Err(VerifyError::WrongCredentials)));
        }
        assert_eq!(wrong, 10);
    }

    #[tokio::test]
    async fn concurrent_right_passwords_are_not_limited() {
        let users = Arc::new(users_file(&format!("alice:{}\n", hash("x", "$2y$"))));
        let attempt = attempt_within(3);
        let logins: Vec<_> = (0..50)
            .map(|_| {
                let (users, attempt) = (Arc::clone(&users), attempt.clone());
                tokio::spawn(async move { users.verify(&credentials("alice", "x"), attempt).await })
            })
            .collect();
        for login in logins {
            assert!(login.await.expect("no panic").is_ok());
        }
    }

    /// The duration must not reveal the user, the length of the password or the cost of the hash.
    #[tokio::test]
    async fn all_rejections_take_the_same_time() {
        let costly = bcrypt::hash("builder", 8).expect("hashed");
        let cheap = bcrypt::hash("wonder", 6).expect("hashed");
        let (small, large) = (argon2id("carol's", 2048), argon2id("dave's", 8192));
        let users = users_file(&format!("alice:{cheap}\nbob:{costly}\ncarol:{small}\ndave:{large}\n"));
        // Other load may disturb a measurement; a real difference disturbs all of them.
        let mut disturbed = Vec::new();
        while disturbed.len() < 8 {
            match compare(&users).await {
                Ok(()) => return,
                Err(measured) => disturbed.push(measured),
            }
        }
        panic!("{disturbed:#?}");
    }

    /// Compares the median durations of rejections with that of an unknown user.
    async fn compare(users: &UsersFile) -> Result<(), String> {
        const ROUNDS: usize = 15;
        let long = "x".repeat(100);
        let attempts = [
            ("eve", "wrong"),
            ("bob", "wrong"),
            ("alice", "wrong"),
            ("bob", &long),
            ("bob", "w\0"),
            ("carol", "wrong"),
            ("dave", &long),
        ];
        let mut durations = [const { Vec::new() }; 7];
        // Interleaved, so that other load affects all of them equally.
        for _ in 0..ROUNDS {
            for ((user, password), durations) in attempts.iter().zip(&mut durations) {
                let begun = std::time::Instant::now();
                let verified = users.verify(&credentials(user, password), attempt()).await;
                assert!(matches!(verified, Err(VerifyError::WrongCredentials)), "{verified:?}");
                durations.push(begun.elapsed().as_secs_f64());
            }
        }
        let medians = durations.map(|mut durations| {
            durations.sort_by(f64::total_cmp);
            durations[ROUNDS / 2]
        });
        let is_similar = |median: &f64| (0.8..=1.25).contains(&(median / medians[0]));
        if medians.iter().all(is_similar) { Ok(()) } else { Err(format!("{attempts:?}: {medians:?}")) }
    }

    #[test]
    fn a_changed_file_becomes_active_and_reports_changed_users() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("users");
        let (a, b, c) = (hash("a", "$2y$"), hash("b", "$2y$"), hash("c", "$2y$"));
        std::fs::write(&path, format!("alice:{a}\nbob:{b}\n")).expect("written");
        let file = UsersFile::read(&path).expect("valid");
        assert_eq!(file.reload(FileReload::IfChanged), [""; 0]);
        std::fs::write(&path, format!("alice:{a}\nbob:{c}\neve:{c}\n")).expect("written");
        assert_eq!(file.reload(FileReload::IfChanged), ["bob"]);
        std::fs::write(&path, "alice:nonsense\n").expect("written");
        assert_eq!(file.reload(FileReload::IfChanged), [""; 0]);
        assert!(file.is_failing() && file.users().hash_of("eve").is_some());
        std::fs::write(&path, format!("eve:{c}\n")).expect("written");
        assert_eq!(file.reload(FileReload::IfChanged), ["alice", "bob"]);
        assert!(!file.is_failing());
    }

    #[tokio::test]
    async fn a_file_without_users_means_that_no_user_exists() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("users");
        std::fs::write(&path, format!("alice:{}\n", hash("a", "$2y$"))).expect("written");
        let file = UsersFile::read(&path).expect("valid");
        std::fs::write(&path, "# no users\n").expect("written");
        assert_eq!(file.reload(FileReload::IfChanged), [""; 0], "the rest may be about to be written");
        assert_eq!(file.reload(FileReload::Always), ["alice"]);
        assert!(file.is_empty() && !file.is_failing());
        let verified = file.verify(&credentials("alice", "a"), attempt()).await;
        assert_eq!(verified.map(drop), Err(VerifyError::WrongCredentials));
        assert!(UsersFile::read(&path).is_ok());
    }

    #[tokio::test]
    async fn an_invalid_file_is_replaced_by_its_previous_content_for_a_limited_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("users");
        let valid = format!("alice:{}\n", hash("a", "$2y$"));
        std::fs::write(&path, &valid).expect("written");
        let file = UsersFile::read(&path).expect("valid");
        let login = async || file.verify(&credentials("alice", "a"), attempt()).await.map(drop);
        std::fs::remove_file(&path).expect("removed");
        file.reload(FileReload::IfChanged);
        assert_eq!(login().await, Ok(()));
        let Some(long_ago) = Instant::now().checked_sub(MAX_STALE) else { return };
        *file.failing_since.lock() = Some(long_ago);
        file.reload(FileReload::IfChanged);
        assert_eq!(login().await, Err(VerifyError::Unavailable));
        std::fs::write(&path, &valid).expect("written");
        file.reload(FileReload::IfChanged);
        assert_eq!(login().await, Ok(()));
    }
}
