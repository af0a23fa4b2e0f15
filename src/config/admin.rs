//! Reads the options of admin commands: who may use them, the Unix socket and the token.

use std::path::PathBuf;

use crate::base::secret::Secret;
use crate::config::Config;
use crate::config::choices::{AdminCommands, AdminSocketMode};
use crate::config::options::{Key, LISTEN};
use crate::config::reader::Reader;
use crate::config::sources::Problem;
use crate::config::url::check_socket_path;

/// A shorter token could be guessed: requests of operators are not rate limited.
const MIN_TOKEN_LENGTH: usize = 32;

/// Access to admin commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminOptions {
    /// The clients of the TCP listener that may use admin commands. Clients of the socket always may.
    pub commands: AdminCommands,
    /// Path and file mode of the Unix socket.
    pub socket: Option<(PathBuf, u32)>,
    /// The bearer for [`AdminCommands::Token`]. It is set for no other value.
    pub token: Option<Secret>,
}

impl Reader<'_> {
    pub(super) fn admin(&mut self) -> Option<AdminOptions> {
        let commands = self.get(&LISTEN.admin_commands)?;
        let mode = match self.get(&LISTEN.admin_socket_mode)? {
            AdminSocketMode::Owner => 0o600,
            AdminSocketMode::Group => 0o660,
        };
        let socket = self.socket_path(&LISTEN.admin_socket).map(|path| (path, mode));
        if commands == AdminCommands::Socket && socket.is_none() {
            self.problem(LISTEN.admin_commands.key, "requires listen.admin_socket");
        }
        let token = match commands {
            AdminCommands::Token => Some(self.admin_token()?),
            AdminCommands::Loopback | AdminCommands::Socket => {
                let message = "has no effect unless listen.admin_commands is token";
                self.reject_set(&[LISTEN.admin_token.key], message);
                None
            }
        };
        Some(AdminOptions { commands, socket, token })
    }

    /// The path of a Unix socket, if it is not too long for one.
    pub(super) fn socket_path(&mut self, option: &Key<PathBuf>) -> Option<PathBuf> {
        let path = self.get(option)?;
        if let Err(message) = check_socket_path(&path.to_string_lossy()) {
            self.problem(option.key, message);
        }
        Some(path)
    }

    fn admin_token(&mut self) -> Option<Secret> {
        let key = LISTEN.admin_token.key;
        if matches!(self.get(&LISTEN.admin), Some(None)) {
            self.problem(LISTEN.admin_commands.key, "has no effect with listen.admin=off; did you mean socket?");
        }
        let Some(token) = self.get(&LISTEN.admin_token) else {
            return self.missing(key, "is required with listen.admin_commands=token; set listen.admin_token_file");
        };
        let is_printable = token.expose().bytes().all(|byte| byte.is_ascii_graphic());
        if token.expose().len() < MIN_TOKEN_LENGTH || !is_printable {
            let message = format!(
                "must have at least {MIN_TOKEN_LENGTH} printable ASCII characters without spaces, such as the output of \
                 `openssl rand -hex 32`"
            );
            self.problem(key, message);
        }
        Some(token)
    }
}

/// What processes beside the gateway can do through the admin listener, if they need no permission for it.
pub fn admin_exposure(config: &Config) -> Option<Problem> {
    config.listen.admin.filter(|_| config.admin.commands == AdminCommands::Loopback)?;
    Some(Problem::new(
        LISTEN.admin_commands.key,
        "with loopback, every process that shares the loopback address with the gateway, such as a different user of this \
         machine or a neighbour container in the pod, can list and revoke tokens, reload the configuration, change the log \
         level, and drain or stop the gateway. Use socket or token if it shares the address with others",
    ))
}

#[cfg(test)]
mod tests {
    use crate::config::testing::load;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn access_that_would_admit_no_client_or_every_client_is_rejected() {
        for (variables, expected) in [
            (&[("LISTEN_ADMIN_COMMANDS", "socket")][..], "listen.admin_commands: requires listen.admin_socket"),
            (&[("LISTEN_ADMIN_COMMANDS", "token")], "listen.admin_token: is required"),
            (&[("LISTEN_ADMIN_TOKEN", TOKEN)], "listen.admin_token: has no effect"),
            (
                &[("LISTEN_ADMIN_COMMANDS", "token"), ("LISTEN_ADMIN_TOKEN", TOKEN), ("LISTEN_ADMIN", "off")],
                "did you mean socket",
            ),
            (&[("LISTEN_ADMIN_COMMANDS", "token"), ("LISTEN_ADMIN_TOKEN", &TOKEN[1..])], "at least 32"),
            (
                &[("LISTEN_ADMIN_COMMANDS", "token"), ("LISTEN_ADMIN_TOKEN", "0123456789abcdef 0123456789abcdef")],
                "without spaces",
            ),
            (&[("LISTEN_ADMIN_SOCKET_MODE", "0666")], "must be one of 0600, 0660"),
        ] {
            let error = load("", variables).expect_err(expected);
            assert!(error.contains(expected), "{expected} in {error}");
            assert!(!error.contains(&TOKEN[1..]), "{error}");
        }
    }

    #[test]
    fn socket_and_token_are_read() {
        let file = "listen: {admin: 'off', admin_commands: socket, admin_socket: /run/a, admin_socket_mode: '0660'}";
        let admin = load(file, &[]).expect("valid").admin;
        assert_eq!((admin.socket, admin.token), (Some(("/run/a".into(), 0o660)), None));
        let token = [("LISTEN_ADMIN_COMMANDS", "token"), ("LISTEN_ADMIN_TOKEN", TOKEN)];
        let admin = load("", &token).expect("valid").admin;
        assert_eq!(admin.token.expect("set").expose(), TOKEN);
    }
}
