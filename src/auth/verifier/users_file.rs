//! Users and bcrypt hashes in the format of Apache's `htpasswd -B`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::auth::bearer::Credentials;
use crate::auth::guesses::Attempt;
use crate::auth::verifier::VerifyError;
use crate::secret::Secret;

/// So long a login waits for its turn; a hash takes some 50 ms of a core, and they are checked one a core at a time.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// As many bytes of a password bcrypt looks at.
const LONGEST_PASSWORD: usize = 72;

/// Costs beyond this take seconds for each login; bcrypt's own bound is 31, some hours.
const HIGHEST_COST: u32 = 16;

/// The users of the file.
#[derive(Debug)]
pub struct UsersFile {
    hashes: HashMap<String, Arc<str>>,
    /// What unknown users are checked against, at the same cost.
    decoy: Arc<str>,
    highest_cost: u32,
    turns: Arc<Semaphore>,
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
        let file = path.display().to_string();
        match std::fs::read_to_string(path).map(Zeroizing::new) {
            Ok(text) => UsersFile::parse(&text).map_err(|problems| UsersFileError { file, problems }),
            Err(error) => Err(UsersFileError { file, problems: vec![format!("cannot be read: {error}")] }),
        }
    }

    fn parse(text: &str) -> Result<UsersFile, Vec<String>> {
        let mut hashes = HashMap::new();
        let mut problems = Vec::new();
        let mut highest = 4;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match parse_line(line) {
                Ok((user, hash, cost)) => {
                    highest = highest.max(cost);
                    if hashes.insert(user.to_owned(), Arc::from(hash)).is_some() {
                        problems.push(format!("line {}: {user} stands there twice", number + 1));
                    }
                }
                Err(problem) => problems.push(format!("line {}: {problem}", number + 1)),
            }
        }
        if hashes.is_empty() && problems.is_empty() {
            problems.push("holds no user, so nobody could log in".to_owned());
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let turns = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(UsersFile {
            hashes,
            decoy: decoy(highest),
            highest_cost: highest,
            turns: Arc::new(Semaphore::new(turns)),
        })
    }

    /// What a wrong password is checked against in vain, so that it costs as much as an unknown user where hashes have
    /// different costs: each cost is twice the work of the one below, and 2^c + 2^c + 2^(c+1) + … + 2^(h-1) = 2^h.
    fn padding(&self, known: Option<&str>) -> Vec<Arc<str>> {
        (known.map_or(self.highest_cost, cost_of)..self.highest_cost).map(decoy).collect()
    }

    /// Checks a password on a thread of its own, so that requests go on meanwhile.
    pub(super) async fn verify(
        &self,
        credentials: &Credentials,
        attempt: Attempt,
    ) -> Result<(), VerifyError> {
        // SECURITY: who was wrong too often costs us no hash, nor a place among those who wait for theirs.
        attempt.look().map_err(VerifyError::TooMany)?;
        let turn = timeout(LONGEST_WAIT, Arc::clone(&self.turns).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Err(VerifyError::Busy) };
        // SECURITY: once more, as others of the same client may have waited with this one: they are wrong one by one now,
        // so hardly one of them gets an answer that is too many.
        attempt.look().map_err(VerifyError::TooMany)?;
        // SECURITY: an unknown user costs as much as a known one, so that names cannot be found by the clock.
        let known = self.hashes.get(credentials.user.as_str());
        let hash = Arc::clone(known.unwrap_or(&self.decoy));
        let password = credentials.password.clone();
        let is_decoy = known.is_none();
        let padding = self.padding(known.map(|hash| &**hash));
        let checked = tokio::task::spawn_blocking(move || {
            let right = is_right(&password, &hash) && !is_decoy;
            if !right {
                for decoy in padding {
                    let _ = bcrypt::verify("x", &decoy);
                }
                // Here, so that it is noted although the client may have gone away, and before the next one's turn.
                attempt.failed();
            }
            drop(turn);
            right
        });
        match checked.await {
            Ok(true) => Ok(()),
            _ => Err(VerifyError::Wrong),
        }
    }
}

/// SECURITY: bcrypt looks at 72 bytes and takes a NUL for the end. What lies behind must not be let in unseen, and takes
/// as long as any other wrong password.
fn is_right(password: &Secret, hash: &str) -> bool {
    let password = password.expose();
    let judged_whole = password.len() <= LONGEST_PASSWORD && !password.contains('\0');
    let seen = if judged_whole { password } else { "x" };
    bcrypt::verify(seen, hash).unwrap_or(false) && judged_whole
}

fn cost_of(hash: &str) -> u32 {
    hash.parse().map_or(0, |parts: bcrypt::HashParts| parts.get_cost())
}

fn parse_line(line: &str) -> Result<(&str, &str, u32), String> {
    let (user, hash) = line.split_once(':').ok_or("must be user:hash")?;
    if user.is_empty() {
        return Err("has no user name before the `:`".to_owned());
    }
    let parts: bcrypt::HashParts =
        hash.parse().map_err(|_| "is no bcrypt hash; make it with `htpasswd -B`".to_owned())?;
    if parts.get_cost() > HIGHEST_COST {
        return Err(format!("has a cost above {HIGHEST_COST}: each login would take seconds"));
    }
    Ok((user, hash, parts.get_cost()))
}

/// A well-formed hash that no password is known for.
fn decoy(cost: u32) -> Arc<str> {
    Arc::from(format!("$2b${cost:02}${}{}", "abcdefghijklmnopqrstuu", "abcdefghijklmnopqrstuvwxyzABCDC"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::guesses::Guesses;
    use crate::clock::Clock;
    use crate::config::FailureLimits;
    use crate::user_name::UserName;

    fn attempt() -> Attempt {
        attempt_within(0)
    }

    fn attempt_within(per_user: u32) -> Attempt {
        let limits = FailureLimits { per_address: 0, per_user };
        let user = UserName::parse(b"alice").expect("valid");
        Arc::new(Guesses::new(limits, Clock::manual(0))).attempt([192, 0, 2, 1].into()).of(&user)
    }

    fn credentials(user: &str, password: &str) -> Credentials {
        let user = UserName::parse(user.as_bytes()).expect("valid");
        Credentials { user, password: Secret::new(password.into()) }
    }

    fn hash(password: &str, prefix: &str) -> String {
        bcrypt::hash(password, 4).expect("hashed").replacen("$2b$", prefix, 1)
    }

    #[tokio::test]
    async fn the_right_password_and_no_other() {
        let text = format!("# users\nalice:{}\nbob:{}\n", hash("wonder", "$2y$"), hash("builder", "$2b$"));
        let users = UsersFile::parse(&text).expect("valid");
        for (user, password, expected) in [
            ("alice", "wonder", Ok(())),
            ("bob", "builder", Ok(())),
            ("alice", "builder", Err(VerifyError::Wrong)),
            ("alice", "wonder ", Err(VerifyError::Wrong)),
            ("Alice", "wonder", Err(VerifyError::Wrong)),
            ("eve", "wonder", Err(VerifyError::Wrong)),
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
        let users = UsersFile::parse(&format!("alice:{slow}\n")).expect("valid");
        let attempt = attempt_within(1);
        attempt.failed();
        let begun = std::time::Instant::now();
        for _ in 0..100 {
            let verified = users.verify(&credentials("alice", "wrong"), attempt.clone()).await;
            assert!(matches!(verified, Err(VerifyError::TooMany(_))), "{verified:?}");
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn tries_at_once_are_no_more_than_tries_one_by_one() {
        let users = UsersFile::parse(&format!("alice:{}\n", hash("x", "$2y$"))).expect("valid");
        let (users, attempt) = (Arc::new(users), attempt_within(10));
        let tries: Vec<_> = (0..100)
            .map(|_| {
                let (users, attempt) = (Arc::clone(&users), attempt.clone());
                tokio::spawn(async move { users.verify(&credentials("alice", "wrong"), attempt).await })
            })
            .collect();
        let mut wrong = 0;
        for attempt in tries {
            wrong += usize::from(attempt.await.expect("no panic") == Err(VerifyError::Wrong));
        }
        let at_once = std::thread::available_parallelism().map_or(1, usize::from);
        assert!((10..10 + at_once).contains(&wrong), "{wrong}");
    }

    #[tokio::test]
    async fn what_bcrypt_does_not_look_at_is_wrong() {
        let longest = "x".repeat(72);
        let text = format!("alice:{}\nbob:{}\n", hash(&longest, "$2y$"), hash("builder", "$2y$"));
        let users = UsersFile::parse(&text).expect("valid");
        for (user, password, expected) in [
            ("alice", longest.as_str(), Ok(())),
            ("alice", &format!("{longest}x"), Err(VerifyError::Wrong)),
            ("alice", &format!("{longest}\0"), Err(VerifyError::Wrong)),
            ("bob", "builder\0", Err(VerifyError::Wrong)),
            ("bob", "builder\0x", Err(VerifyError::Wrong)),
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
        let users = UsersFile::parse(&format!("alice:{cheap}\nbob:{costly}\n")).expect("valid");
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
        let tries = [("eve", "wrong"), ("bob", "wrong"), ("alice", "wrong"), ("bob", &long), ("bob", "w\0")];
        let mut spans = [const { Vec::new() }; 5];
        // In turns, so that whatever else the machine does meets all of them alike.
        for _ in 0..ROUNDS {
            for ((user, password), spans) in tries.iter().zip(&mut spans) {
                let begun = std::time::Instant::now();
                assert_eq!(
                    users.verify(&credentials(user, password), attempt()).await,
                    Err(VerifyError::Wrong)
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
    fn the_decoy_is_a_hash_of_the_highest_cost() {
        let users = UsersFile::parse(&format!("alice:{}\n", hash("x", "$2y$"))).expect("valid");
        let parts: bcrypt::HashParts = users.decoy.parse().expect("well formed");
        assert_eq!(parts.get_cost(), 4);
        assert_eq!(bcrypt::verify("x", &users.decoy).ok(), Some(false));
    }

    #[test]
    fn wrong_lines_are_told_by_number_and_not_shown() {
        let good = hash("x", "$2y$");
        let slow = good.replacen("$04$", "$17$", 1);
        let text = format!("alice\nbob:$apr1$abc$def\n:{good}\neve:{good}\neve:{good}\nmallory:{slow}\n");
        let problems = UsersFile::parse(&text).expect_err("wrong").join("\n");
        for expected in [
            "line 1: must be user:hash",
            "line 2: is no bcrypt hash",
            "line 3: has no user name",
            "line 5: eve stands there twice",
            "line 6: has a cost above 16",
        ] {
            assert!(problems.contains(expected), "{expected}: {problems}");
        }
        assert!(!problems.contains("apr1") && !problems.contains(&good), "{problems}");
        assert!(UsersFile::parse("# nobody\n").is_err());
    }
}
