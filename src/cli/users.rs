//! `timbr-gateway users add|remove|list|verify`: edits the users file, or checks a password. A running gateway notices
//! the change itself.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, ErrorKind, IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{ArgMatches, Command};
use zeroize::Zeroizing;

use crate::auth::verifier::password_hash::{HashAlgorithm, PasswordHash};
use crate::auth::verifier::users::{Users, edit_users};
use crate::base::input_file;
use crate::base::remedy::with_remedy;
use crate::base::user_name::UserName;
use crate::cli::{CliResult, arguments, options, password, print_line};
use crate::config::options::AUTH;

const USERS_FILE: &str = AUTH.users_file.key;

pub fn command() -> Command {
    let user = || arguments::required("user", "NAME", "User name");
    let bcrypt = arguments::flag("bcrypt", "Use bcrypt, which Apache can read too, instead of Argon2id");
    let add =
        Command::new("add").about("Add a user, or change the password of a user").arg(user()).arg(bcrypt).after_help(
            "The password is read from the terminal unless --password-file or --password-stdin is set.\n\n\
             Example:\n  timbr-gateway users add alice --auth-users-file users",
        );
    let remove = Command::new("remove")
        .about("Remove a user")
        .arg(user())
        .after_help("Example:\n  timbr-gateway users remove alice --auth-users-file users");
    let list = Command::new("list")
        .about("Print user names and hash algorithms")
        .after_help("Example:\n  timbr-gateway users list --auth-users-file users");
    let verify = Command::new("verify").about("Check whether a password is the one of a user").arg(user()).after_help(
        "Exit code 0: right password. 1: wrong password, or unknown user.\n\n\
         Example:\n  timbr-gateway users verify alice --auth-users-file users",
    );
    Command::new("users")
        .about("Edit the users file (auth.verifier=users-file), or check a password")
        .subcommand_required(true)
        .subcommand(options::add_one(add.args(password::arguments()), USERS_FILE))
        .subcommand(options::add_one(remove, USERS_FILE))
        .subcommand(options::add_one(list, USERS_FILE))
        .subcommand(options::add_one(verify.args(password::arguments()), USERS_FILE))
        .after_help(
            "The password is read from the terminal by default. It cannot be an argument, because arguments are \
             visible to other users.\n\
             A running gateway reloads the file automatically. If a user is removed or the password changes, the \
             tokens of that user are revoked.\n\n\
             Example:\n  timbr-gateway users add alice --auth-users-file users",
        )
}

pub fn run(matches: &ArgMatches) -> CliResult {
    match matches.subcommand() {
        Some(("add", matches)) => add(matches)?,
        Some(("remove", matches)) => remove(matches)?,
        Some(("list", matches)) => print_list(matches)?,
        Some(("verify", matches)) => verify(matches)?,
        _ => unreachable!("clap accepts no other subcommand"),
    }
    Ok(ExitCode::SUCCESS)
}

fn add(matches: &ArgMatches) -> anyhow::Result<()> {
    let (file, user) = (users_file_path(matches)?, user_argument(matches)?);
    let text = match input_file::read_text(&file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Zeroizing::default(),
        read => read.with_context(|| format!("cannot read {}", file.display()))?,
    };
    if parse_users(&file, &text)?.hash_of(user).is_some() {
        confirm_replacement(user)?;
    }
    let method = if matches.get_flag("bcrypt") { HashAlgorithm::Bcrypt } else { HashAlgorithm::Argon2id };
    let hash = PasswordHash::hash_password(&password::read(matches)?, method).map_err(anyhow::Error::msg)?;
    let (text, existed) = edit_users(&text, user, Some(&hash));
    replace_file(&file, &Zeroizing::new(text))?;
    let result = if existed { "has a new password" } else { "added" };
    Ok(print_line(format!("{user} {result}: {}", file.display()))?)
}

/// Asks at a terminal. A script has decided already.
fn confirm_replacement(user: &str) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        return Ok(());
    }
    let mut terminal = std::io::stderr();
    write!(terminal, "{user} has a password. Replace it, and revoke the tokens of {user}? [y/N] ")?;
    terminal.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if !answer.trim().eq_ignore_ascii_case("y") {
        bail!("the password of {user} was not changed");
    }
    Ok(())
}

fn verify(matches: &ArgMatches) -> anyhow::Result<()> {
    let (file, user) = (users_file_path(matches)?, user_argument(matches)?);
    let users = parse_users(&file, &read_file(&file)?)?;
    let Some(hash) = users.hash_of(user) else { bail!("{} has no user {user}", file.display()) };
    if !hash.is_hash_of(&password::read(matches)?) {
        bail!("this is not the password of {user} in {}", file.display());
    }
    Ok(print_line(format!("the password of {user} is correct: {}", file.display()))?)
}

fn remove(matches: &ArgMatches) -> anyhow::Result<()> {
    let (file, user) = (users_file_path(matches)?, user_argument(matches)?);
    let (text, existed) = edit_users(&read_file(&file)?, user, None);
    if !existed {
        bail!("{} has no user {user}", file.display());
    }
    replace_file(&file, &Zeroizing::new(text))?;
    Ok(print_line(format!("{user} removed: {}", file.display()))?)
}

fn print_list(matches: &ArgMatches) -> anyhow::Result<()> {
    let file = users_file_path(matches)?;
    for (user, hash) in parse_users(&file, &read_file(&file)?)?.sorted() {
        print_line(format!("{user}\t{}", hash.algorithm_name()))?;
    }
    Ok(())
}

/// The path of the users file, with symbolic links resolved.
fn users_file_path(matches: &ArgMatches) -> anyhow::Result<PathBuf> {
    let name = options::read_one(matches, USERS_FILE)?.context("set the file: --auth-users-file or auth.users_file")?;
    let path = PathBuf::from(name.expose());
    Ok(fs::canonicalize(&path).unwrap_or(path))
}

fn user_argument(matches: &ArgMatches) -> anyhow::Result<&str> {
    let user = arguments::text(matches, "user");
    UserName::parse(user.as_bytes()).with_context(|| format!("{user:?}"))?;
    if user.starts_with('#') {
        bail!("{user:?}: a user name cannot begin with `#`, which starts a comment");
    }
    Ok(user)
}

fn read_file(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    input_file::read_text(file).with_context(|| format!("cannot read {}", file.display()))
}

fn parse_users(file: &Path, text: &str) -> anyhow::Result<Users> {
    let error = |problems: Vec<String>| anyhow::anyhow!("{}: {}", file.display(), problems.join("; "));
    Users::parse(text).map_err(error)
}

/// Replaces the file atomically and keeps owner and mode, so that a gateway never reads a partial file. Contents that
/// the gateway would reject are not written.
fn replace_file(file: &Path, text: &str) -> anyhow::Result<()> {
    parse_users(file, text)?;
    let mut name = file.file_name().context("the users file has no name")?.to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = file.with_file_name(name);
    let written = write_new_file(file, &new, text).and_then(|()| fs::rename(&new, file));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written.map_err(with_remedy).with_context(|| format!("cannot write {}", file.display()))
}

fn write_new_file(file: &Path, new: &Path, text: &str) -> std::io::Result<()> {
    let mut output = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
    if let Ok(old) = fs::metadata(file) {
        let own = output.metadata()?;
        if (own.uid(), own.gid()) != (old.uid(), old.gid()) {
            chown(new, Some(old.uid()), Some(old.gid()))?;
        }
        output.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
    }
    output.write_all(text.as_bytes())?;
    output.sync_all()
}
