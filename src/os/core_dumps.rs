//! Protects the memory of the process, which contains credentials, from core dumps and debuggers.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Disables what exposes this process's memory: core dumps; and `ptrace`, `/proc/PID/mem` and `/proc/PID/environ` for
/// processes of the same user.
///
/// SECURITY: memory contains salts, service keys and client credentials. Call this before any of them is read. Only the
/// soft limit is lowered, so that [`enable`] can undo it; [`disable_permanently`] lowers the hard limit too.
pub fn disable() -> io::Result<()> {
    let maximum = getrlimit(Resource::Core).maximum;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Lowers the hard limit: no thread or child process can raise it again.
pub fn disable_permanently() -> io::Result<()> {
    Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?)
}

/// Undoes [`disable`], for debugging.
pub fn enable() -> io::Result<()> {
    let maximum = getrlimit(Resource::Core).maximum;
    setrlimit(Resource::Core, Rlimit { current: maximum, maximum })?;
    Ok(set_dumpable_behavior(DumpableBehavior::Dumpable)?)
}
