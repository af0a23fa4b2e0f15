//! Parses and edits the text of a users file: a line `user:hash` per user, the format of Apache's `htpasswd`. Reads no
//! files.

use std::collections::HashMap;
use std::sync::Arc;

use crate::auth::credential_file::{self, entry};
use crate::auth::verifier::password_hash::{PasswordHash, RejectionCost};

/// Each rejection computes a hash of every kind, so their number is limited.
const MAX_ARGON2ID_KINDS: usize = 4;

/// The users of a file.
pub struct Users {
    hashes: HashMap<String, Arc<PasswordHash>>,
    /// The computation that each rejection has to spend.
    pub rejection_cost: RejectionCost,
}

impl Users {
    /// Parses the text. The error reports all invalid lines by number, without their content.
    pub fn parse(text: &str) -> Result<Users, Vec<String>> {
        let mut users = Users { hashes: HashMap::new(), rejection_cost: RejectionCost::default() };
        let mut problems = credential_file::parse_lines(text, |entry| users.add(entry));
        if users.rejection_cost.argon2id_kind_count() > MAX_ARGON2ID_KINDS {
            let message =
                format!("has Argon2id hashes with more than {MAX_ARGON2ID_KINDS} different parameter sets (m, t, p)");
            problems.push(message);
        }
        if problems.is_empty() { Ok(users) } else { Err(problems) }
    }

    fn add(&mut self, entry: &str) -> Result<(), String> {
        let (user, hash) = entry.split_once(':').ok_or("must be user:hash")?;
        if user.is_empty() {
            return Err("has no user name before the `:`".to_owned());
        }
        let hash = PasswordHash::parse(hash)?;
        self.rejection_cost.include(&hash);
        if self.hashes.insert(user.to_owned(), Arc::new(hash)).is_some() {
            return Err(format!("duplicate user {user}"));
        }
        Ok(())
    }

    /// Returns whether the file has no users, so that all logins fail.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// The hash of a user, if the file has this user.
    pub fn hash_of(&self, user: &str) -> Option<&Arc<PasswordHash>> {
        self.hashes.get(user)
    }

    /// All users with their hashes, sorted by name.
    pub fn sorted(&self) -> Vec<(&str, &PasswordHash)> {
        let mut all: Vec<_> = self.hashes.iter().map(|(user, hash)| (user.as_str(), &**hash)).collect();
        all.sort_by_key(|(user, _)| *user);
        all
    }
}

/// Sets the hash of a user, or removes the user if `hash` is `None`. Other lines are unchanged. Returns the new text,
/// and whether the user was in the old one.
pub fn edit_users(text: &str, user: &str, hash: Option<&str>) -> (String, bool) {
    let is_of_user =
        |line: &str| entry(line).and_then(|entry| entry.split_once(':')).is_some_and(|(other, _)| other == user);
    let was_there = text.lines().any(is_of_user);
    let mut new = hash.map(|hash| format!("{user}:{hash}\n"));
    let mut edited = String::with_capacity(text.len() + 200);
    for line in text.lines() {
        if is_of_user(line) {
            edited.extend(new.take());
        } else {
            edited.extend([line, "\n"]);
        }
    }
    edited.extend(new);
    (edited, was_there)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash() -> String {
        bcrypt::hash("x", 4).expect("hashed")
    }

    #[test]
    fn invalid_lines_are_reported_by_number_only() {
        let good = hash();
        let slow = good.replacen("$04$", "$17$", 1);
        let text = format!("alice\nbob:$apr1$abc$def\n:{good}\neve:{good}\neve:{good}\nmallory:{slow}\n");
        let problems = Users::parse(&text).err().expect("wrong").join("\n");
        for expected in [
            "line 1: must be user:hash",
            "line 2: is neither a bcrypt nor",
            "line 3: has no user name",
            "line 5: duplicate user eve",
            "line 6: has a cost above 16",
        ] {
            assert!(problems.contains(expected), "{expected}: {problems}");
        }
        assert!(!problems.contains("apr1") && !problems.contains(&good), "{problems}");
        assert!(Users::parse("# no users\n").is_ok_and(|users| users.is_empty()));
    }

    #[test]
    fn a_byte_order_mark_is_not_part_of_the_first_name() {
        let text = ["\u{feff}alice:", &hash(), "\nbob:", &hash(), "\n"].concat();
        let users = Users::parse(&text).expect("valid");
        assert_eq!(users.sorted().iter().map(|(user, _)| *user).collect::<Vec<_>>(), ["alice", "bob"]);
        assert_eq!(edit_users("\u{feff}alice:1\n", "alice", Some("2")), ("alice:2\n".to_owned(), true));
    }

    #[test]
    fn an_edit_changes_one_line() {
        let text = "# users\nalice:1\n\nbob:2";
        assert_eq!(edit_users(text, "alice", Some("3")), ("# users\nalice:3\n\nbob:2\n".to_owned(), true));
        assert_eq!(edit_users(text, "bob", None), ("# users\nalice:1\n\n".to_owned(), true));
        assert_eq!(edit_users(text, "al", Some("3")), ("# users\nalice:1\n\nbob:2\nal:3\n".to_owned(), false));
        assert_eq!(edit_users("", "eve", None), (String::new(), false));
    }
}
