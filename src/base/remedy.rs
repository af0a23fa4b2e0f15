//! Adds to an error of the operating system what an operator can do about it.

use std::io;

use rustix::io::Errno;
use rustix::process::geteuid;

/// The error, whose text ends with a remedy if one is known. The kind is the same.
pub fn with_remedy(error: io::Error) -> io::Error {
    let remedy = match Errno::from_io_error(&error) {
        Some(Errno::ACCESS | Errno::PERM) => {
            let user = geteuid().as_raw();
            return join(&error, &format!("give user {user} access to it and to the folders above it"));
        }
        Some(Errno::ISDIR) => "name a file, not a folder",
        Some(Errno::NOTDIR) => "a part of the path is a file, not a folder",
        Some(Errno::LOOP) => "replace the symbolic link on the path that leads back to itself",
        Some(Errno::NOSPC | Errno::DQUOT) => "free some space, or move the file",
        Some(Errno::ROFS) => "name a folder that is not mounted read-only",
        Some(Errno::ADDRNOTAVAIL) => {
            "this machine has no such address: take one that `ip address` shows, or 0.0.0.0 or [::] for all"
        }
        Some(Errno::AFNOSUPPORT) => "IPv6 is disabled on this machine: use an IPv4 address",
        None if error.kind() == io::ErrorKind::InvalidData => "save it as UTF-8",
        _ => return error,
    };
    join(&error, remedy)
}

fn join(error: &io::Error, remedy: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{error}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_errors_have_a_remedy_and_keep_their_kind() {
        for (error, remedy) in [
            (Errno::ACCESS.into(), format!("; give user {} access to it", geteuid().as_raw())),
            (Errno::NOSPC.into(), "(os error 28); free some space".to_owned()),
            (io::Error::new(io::ErrorKind::InvalidData, "not valid UTF-8"), "not valid UTF-8; save it".to_owned()),
        ] {
            let kind = error.kind();
            let error = with_remedy(error);
            assert!(error.to_string().contains(&remedy), "{error}");
            assert_eq!(error.kind(), kind);
        }
        assert_eq!(with_remedy(Errno::NOENT.into()).to_string(), "No such file or directory (os error 2)");
    }
}
