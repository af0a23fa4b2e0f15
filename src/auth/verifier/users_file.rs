//! Users and hashes of their passwords, in a file that is read again when it changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{error, info};
use zeroize::Zeroizing;

use crate::auth::bearer::Credentials;
use crate::auth::failure_limiter::Attempt;
use crate::auth::verifier::VerifyError;
use crate::auth::verifier::users::Users;
use crate::base::watched_files::FileWatch;
use crate::config::options::AUTH;

/// So long a login waits for its turn; a hash takes some 50 ms of a core, and they are checked one a core at a time.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// The users of a file.
pub struct UsersFile {
    path: PathBuf,
    users: RwLock<Arc<Users>>,
    watch: Mutex<FileWatch>,
    hash_permits: Arc<Semaphore>,
}

/// What can be wrong with the file. Names lines, never shows hashes.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {}", .problems.join("; "))]
pub struct UsersFileError {
    file: String,
    problems: Vec<String>,
}

impl UsersFile {
    /// Reads the file; all its wrong lines are told at once.
    pub fn read(path: &Path) -> Result<UsersFile, UsersFileError> {
        let users = read_users(path)?;
        let turns = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(UsersFile {
            path: path.to_owned(),
            users: RwLock::new(Arc::new(users)),
            watch: Mutex::default(),
            hash_permits: Arc::new(Semaphore::new(turns)),
        })
    }

    /// Reads the file again if it has changed, or if somebody has `asked` for it. Blocks on the file system. Whom the file
    /// does not know any more, or knows by another hash, is told.
    ///
    /// SECURITY: a file that cannot be used changes nothing; that nobody could log in is no reason to let anybody in.
    pub fn reload(&self, asked: bool) -> Vec<String> {
        let mut watch = self.watch.lock();
        if asked {
            watch.reset();
        }
        let Some(stamps) = watch.changed([&*self.path].into_iter()) else { return Vec::new() };
        match read_users(&self.path) {
            Ok(users) => {
                let before = self.users();
                let ended = changed_users(&before, &users);
                if watch.record_success(stamps)
                    || !ended.is_empty()
                    || users.sorted().len() != before.sorted().len()
                {
                    info!(users = users.sorted().len(), ended = ended.len(), "the users file was read again");
                }
                *self.users.write() = Arc::new(users);
                ended
            }
            Err(problem) => {
                let message = problem.to_string();
                if watch.record_failure(&message) {
                    error!(
                        option = AUTH.users_file.key,
                        error = message,
                        "the users file cannot be used; what was read before stays in use"
                    );
                }
                Vec::new()
            }
        }
    }

    /// Whether the file cannot be used as it is.
    pub fn is_failing(&self) -> bool {
        self.watch.lock().is_failing()
    }

    /// Users of another file whose password may not be what it was there.
    pub fn changed_users_since(&self, before: &UsersFile) -> Vec<String> {
        changed_users(&before.users(), &self.users())
    }

    fn users(&self) -> Arc<Users> {
        Arc::clone(&self.users.read())
    }

    /// Checks a password on a thread of its own, so that requests go on meanwhile.
    pub(super) async fn verify(
        &self,
        credentials: &Credentials,
        attempt: Attempt,
    ) -> Result<(), VerifyError> {
        // SECURITY: who was wrong too often costs us no hash, nor a place among those who wait for theirs.
        attempt.check_limits().map_err(VerifyError::TooManyFailures)?;
        let turn = timeout(QUEUE_TIMEOUT, Arc::clone(&self.hash_permits).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Err(VerifyError::Busy) };
        // SECURITY: once more, as others of the same client may have waited with this one: they are wrong one by one now,
        // so hardly one of them gets an answer that is too many.
        attempt.check_limits().map_err(VerifyError::TooManyFailures)?;
        let users = self.users();
        let hash = users.hash_of(credentials.user.as_str()).cloned();
        let password = credentials.password.clone();
        let checked = tokio::task::spawn_blocking(move || {
            let right = hash.as_ref().is_some_and(|hash| hash.is_hash_of(&password));
            if !right {
                // SECURITY: an unknown user costs as much as a known one, whatever the hash, so that neither can be found
                // by the clock.
                users.rejection_cost.spend_remaining(hash.as_deref());
                // Here, so that it is noted although the client may have gone away, and before the next one's turn.
                attempt.record_failure();
            }
            drop(turn);
            right
        });
        match checked.await {
            Ok(true) => Ok(()),
            _ => Err(VerifyError::WrongCredentials),
        }
    }
}

fn read_users(path: &Path) -> Result<Users, UsersFileError> {
    let problems = match std::fs::read_to_string(path).map(Zeroizing::new) {
        Ok(text) => match Users::parse(&text) {
            Ok(users) if users.is_empty() => vec!["holds no user, so nobody could log in".to_owned()],
            Ok(users) => return Ok(users),
            Err(problems) => problems,
        },
        Err(error) => vec![format!("cannot be read: {error}")],
    };
    Err(UsersFileError { file: path.display().to_string(), problems })
}

/// Users of `before` whose password may not be what it was.
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
    use crate::base::user_name::UserName;
    use crate::config::FailureLimits;

    fn attempt() -> Attempt {
        attempt_within(0)
    }

    fn attempt_within(per_user: u32) -> Attempt {
        let limits = FailureLimits { per_address: 0, per_user };
        let user = UserName::parse(b"alice").expect("valid");
        Arc::new(FailureLimiter::new(limits, Clock::manual(0)))
            .begin_attempt([192, 0, 2, 1].into())
            .for_user(&user)
    }

    fn credentials(user: &str, password: &str) -> Credentials {
        let user = UserName::parse(user.as_bytes()).expect("valid");
        Credentials { user, password: Secret::new(password.into()) }
    }

    fn of(text: &str) -> UsersFile {
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
        argon2
            .hash_password_with_salt(password.as_bytes(), b"some salt or another")
            .expect("hashed")
            .to_string()
    }

    #[tokio::test]
    async fn the_right_password_and_no_other() {
        let text = format!(
            "# users\nalice:{}\nbob:{}\ncarol:{}\n",
            hash("wonder", "$2y$"),
            hash("builder", "$2b$"),
            argon2id("c:\u{e4}", 64)
        );
        let users = of(&text);
        for (user, password, expected) in [
            ("alice", "wonder", Ok(())),
            ("bob", "builder", Ok(())),
            ("carol", "c:\u{e4}", Ok(())),
            ("carol", "builder", Err(VerifyError::WrongCredentials)),
            ("alice", "builder", Err(VerifyError::WrongCredentials)),
            ("alice", "wonder ", Err(VerifyError::WrongCredentials)),
            ("Alice", "wonder", Err(VerifyError::WrongCredentials)),
            ("eve", "wonder", Err(VerifyError::WrongCredentials)),
        ] {
            assert_eq!(
                users.verify(&credentials(user, password), attempt()).await,
                expected,
                "{user} {password}"
            );
        }
    }

    #[tokio::test]
    async fn beyond_the_limit_no_hash_is_computed() {
        // Each would take seconds.
        let slow = bcrypt::hash("builder", 4).expect("hashed").replacen("$04$", "$16$", 1);
        let users = of(&format!("alice:{slow}\n"));
        let attempt = attempt_within(1);
        attempt.record_failure();
        let begun = std::time::Instant::now();
        for _ in 0..100 {
            let verified = users.verify(&credentials("alice", "wrong"), attempt.clone()).await;
            assert!(matches!(verified, Err(VerifyError::TooManyFailures(_))), "{verified:?}");
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn tries_at_once_are_no_more_than_tries_one_by_one() {
        let users = of(&format!("alice:{}\n", hash("x", "$2y$")));
        let (users, attempt) = (Arc::new(users), attempt_within(10));
        let tries: Vec<_> = (0..100)
            .map(|_| {
                let (users, attempt) = (Arc::clone(&users), attempt.clone());
                tokio::spawn(async move { users.verify(&credentials("alice", "wrong"), attempt).await })
            })
            .collect();
        let mut wrong = 0;
        for attempt in tries {
            wrong += usize::from(attempt.await.expect("no panic") == Err(VerifyError::WrongCredentials));
        }
        let at_once = std::thread::available_parallelism().map_or(1, usize::from);
        assert!((10..10 + at_once).contains(&wrong), "{wrong}");
    }

    #[tokio::test]
    async fn what_bcrypt_does_not_look_at_is_wrong() {
        let longest = "x".repeat(72);
        let text = format!("alice:{}\nbob:{}\n", hash(&longest, "$2y$"), hash("builder", "$2y$"));
        let users = of(&text);
        for (user, password, expected) in [
            ("alice", longest.as_str(), Ok(())),
            ("alice", &format!("{longest}x"), Err(VerifyError::WrongCredentials)),
            ("alice", &format!("{longest}\0"), Err(VerifyError::WrongCredentials)),
            ("bob", "builder\0", Err(VerifyError::WrongCredentials)),
            ("bob", "builder\0x", Err(VerifyError::WrongCredentials)),
        ] {
            assert_eq!(
                users.verify(&credentials(user, password), attempt()).await,
                expected,
                "{user} {password:?}"
            );
        }
    }

    /// Neither the name, nor the password's length, nor the cost of a user's hash may be read off the clock.
    #[tokio::test]
    async fn every_no_takes_as_long() {
        let costly = bcrypt::hash("builder", 8).expect("hashed");
        let cheap = bcrypt::hash("wonder", 6).expect("hashed");
        let (small, large) = (argon2id("carol's", 2048), argon2id("dave's", 8192));
        let users = of(&format!("alice:{cheap}\nbob:{costly}\ncarol:{small}\ndave:{large}\n"));
        // What else the machine does may spoil a measurement; a difference that is there spoils all of them.
        let mut spoiled = Vec::new();
        while spoiled.len() < 8 {
            match compare(&users).await {
                Ok(()) => return,
                Err(found) => spoiled.push(found),
            }
        }
        panic!("{spoiled:#?}");
    }

    /// Compares the median spans of refusals with that of an unknown user.
    async fn compare(users: &UsersFile) -> Result<(), String> {
        const ROUNDS: usize = 15;
        let long = "x".repeat(100);
        let tries = [
            ("eve", "wrong"),
            ("bob", "wrong"),
            ("alice", "wrong"),
            ("bob", &long),
            ("bob", "w\0"),
            ("carol", "wrong"),
            ("dave", &long),
        ];
        let mut spans = [const { Vec::new() }; 7];
        // In turns, so that whatever else the machine does meets all of them alike.
        for _ in 0..ROUNDS {
            for ((user, password), spans) in tries.iter().zip(&mut spans) {
                let begun = std::time::Instant::now();
                assert_eq!(
                    users.verify(&credentials(user, password), attempt()).await,
                    Err(VerifyError::WrongCredentials)
                );
                spans.push(begun.elapsed().as_secs_f64());
            }
        }
        let medians = spans.map(|mut spans| {
            spans.sort_by(f64::total_cmp);
            spans[ROUNDS / 2]
        });
        let alike = |median: &f64| (0.8..=1.25).contains(&(median / medians[0]));
        if medians.iter().all(alike) { Ok(()) } else { Err(format!("{tries:?}: {medians:?}")) }
    }

    #[test]
    fn a_changed_file_comes_into_force_and_tells_whose_password_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("users");
        let (a, b, c) = (hash("a", "$2y$"), hash("b", "$2y$"), hash("c", "$2y$"));
        std::fs::write(&path, format!("alice:{a}\nbob:{b}\n")).expect("written");
        let file = UsersFile::read(&path).expect("valid");
        assert_eq!(file.reload(false), [""; 0]);
        std::fs::write(&path, format!("alice:{a}\nbob:{c}\neve:{c}\n")).expect("written");
        assert_eq!(file.reload(false), ["bob"]);
        for broken in ["", "alice:nonsense\n"] {
            std::fs::write(&path, broken).expect("written");
            assert_eq!(file.reload(false), [""; 0]);
            assert!(file.is_failing() && file.users().hash_of("eve").is_some());
        }
        std::fs::write(&path, format!("eve:{c}\n")).expect("written");
        assert_eq!(file.reload(false), ["alice", "bob"]);
        assert!(!file.is_failing());
    }
}
