//! A Unix socket that only some users of this machine may open, and the users who do. It does not know what is served on
//! it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::process::geteuid;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::TcpStream;

use crate::base::remedy::with_remedy;
use crate::os::disk::folder_of;

/// Length of the accept queue. When it is full, clients get an error instead of a timeout.
const BACKLOG: i32 = 4096;

/// Write permission of the group and of others, and the sticky bit, which limits renaming and deleting to owners.
const WRITABLE_BY_OTHERS: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// The file of a listening socket. It is removed when this is dropped.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Keeps the number of the inode from being used for the file of a different gateway.
    file: File,
}

impl SocketFile {
    /// Listens at `path` with this file mode. When all copies of the listener are closed, clients are refused. Creates
    /// the folder of the socket if it does not exist, and replaces the file of a gateway that has crashed.
    ///
    /// SECURITY: fails if any other user could open the socket beyond `mode`, or could replace it by a socket of their
    /// own. It has never more permissions than at the end: the kernel applies the mode of the unbound socket to the file
    /// when it creates it.
    pub fn bind(path: &Path, mode: u32) -> io::Result<(SocketFile, UnixListener)> {
        let folder = folder_of(path);
        create_folder(folder)?;
        check_folder(folder)?;
        remove_stale(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        let socket = File::from(OwnedFd::from(socket));
        socket.set_permissions(Permissions::from_mode(0o600))?;
        let socket = Socket::from(OwnedFd::from(socket));
        socket.bind(&SockAddr::unix(path)?)?;
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
        let file = opened.metadata()?;
        if !file.file_type().is_socket() || file.mode() & 0o7777 != mode || file.uid() != geteuid().as_raw() {
            return Err(denied(format!("{} does not have the mode {mode:04o} after binding", path.display())));
        }
        socket.listen(BACKLOG)?;
        Ok((SocketFile { path: path.to_owned(), file: opened }, socket.into()))
    }
}

impl Drop for SocketFile {
    /// Leaves the file of a gateway that has replaced this one.
    fn drop(&mut self) {
        let is_ours = |file: fs::Metadata| self.file.metadata().is_ok_and(|own| own.ino() == file.ino());
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Connects to a socket.
///
/// SECURITY: the client sends secrets, so the socket must be in a folder in which only its owner can have created it: the
/// gateway's user, root, or the client itself.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    check_writers(folder_of(path))?;
    UnixStream::connect(path)
}

/// Connects to the socket of a server, which may belong to any user.
pub async fn connect_stream(path: &Path) -> io::Result<TcpStream> {
    let stream = tokio::net::UnixStream::connect(path).await?;
    as_tcp_stream(stream.into_std()?)
}

/// The same socket in the type of a TCP stream, so that one type serves both: reads, writes, peeks, shutdown and
/// splice(2) are the same system calls. Only the options of TCP and the addresses do not exist.
pub fn as_tcp_stream(stream: UnixStream) -> io::Result<TcpStream> {
    TcpStream::from_std(std::net::TcpStream::from(OwnedFd::from(stream)))
}

/// The name of a user of this machine, if the user database is a file.
pub fn user_name(uid: u32) -> Option<String> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new().mode(0o700).create(folder).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "; create the folder above it",
            io::ErrorKind::AlreadyExists => ", and it is not a folder",
            _ => "",
        };
        let error = with_remedy(error);
        io::Error::new(error.kind(), format!("cannot create the folder {}: {error}{hint}", folder.display()))
    })?;
    // The mode of the socket decides who may open it, whatever the umask is.
    fs::set_permissions(folder, Permissions::from_mode(0o755))
}

/// SECURITY: a user who can write to the folder could replace the socket, and its owner can always write to it.
fn check_folder(folder: &Path) -> io::Result<()> {
    let owner = fs::metadata(folder)?.uid();
    if owner != 0 && owner != geteuid().as_raw() {
        return Err(denied(format!("{} belongs to a different user; use a folder of its own", folder.display())));
    }
    check_writers(folder)
}

fn check_writers(folder: &Path) -> io::Result<()> {
    let mode = fs::metadata(folder)?.mode();
    if mode & WRITABLE_BY_OTHERS != 0 && mode & STICKY == 0 {
        return Err(denied(format!("{} is writable by other users; use a folder of its own", folder.display())));
    }
    Ok(())
}

/// Removes a socket on which no process listens.
fn remove_stale(path: &Path) -> io::Result<()> {
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !file.file_type().is_socket() {
        let message = format!("{} exists and is not a socket; remove it, or name a different file", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Ok(_) => {
            let message = "Address already in use; `ss -lxp` shows the process: stop it, or name a different file";
            Err(io::Error::new(io::ErrorKind::AddrInUse, message))
        }
        Err(error) => Err(error),
    }
}

fn denied(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("it exists").mode() & 0o7777
    }

    #[test]
    fn the_socket_has_its_mode_and_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("admin/socket");
        for wanted in [0o600, 0o660] {
            let socket = SocketFile::bind(&path, wanted).expect("bound");
            assert_eq!((mode(&path), mode(path.parent().expect("a folder"))), (wanted, 0o755));
            connect(&path).expect("connected");
            let error = SocketFile::bind(&path, wanted).expect_err("in use");
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            drop(socket);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).expect("bound"));
        let (first, _) = SocketFile::bind(&path, 0o600).expect("the stale socket is replaced");
        let (second, _listener) = SocketFile::bind(&path, 0o600).expect("bound");
        drop(first);
        connect(&path).expect("the file of the second socket is left");
        drop(second);
        fs::write(&path, "data").expect("written");
        assert!(SocketFile::bind(&path, 0o600).is_err());
        assert_eq!(fs::read(&path).expect("read"), b"data");
    }

    #[test]
    fn a_folder_that_other_users_can_write_to_is_rejected() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        for (bits, is_accepted) in [(0o777, false), (0o770, false), (0o757, false), (0o1777, true), (0o755, true)] {
            fs::set_permissions(folder.path(), Permissions::from_mode(bits)).expect("set");
            let bound = SocketFile::bind(&path, 0o600);
            assert_eq!(bound.is_ok(), is_accepted, "{bits:o}: {bound:?}");
            fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("set");
            if let Ok(socket) = bound {
                fs::set_permissions(folder.path(), Permissions::from_mode(bits)).expect("set");
                assert!(connect(&path).is_ok());
                drop(socket);
            }
        }
    }

    #[test]
    fn users_are_named_by_the_user_database() {
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!(user_name(u32::MAX - 7), None);
    }
}
