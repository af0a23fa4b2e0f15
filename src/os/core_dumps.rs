//! What a process that holds everybody's keys does about its own memory.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Takes away what shows this process's memory to others: core dumps; and `ptrace`, `/proc/PID/mem` and
/// `/proc/PID/environ` for processes of the same user.
///
/// SECURITY: salts, service keys and what clients send stand in memory. Called first of all, before any of it is read.
/// The limit is taken back softly here, so that [`allow`] can undo it; [`seal`] makes it final.
pub fn disable() -> io::Result<()> {
    let maximum = getrlimit(Resource::Core).maximum;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Makes it final: no thread or child can raise the limit again.
pub fn disable_permanently() -> io::Result<()> {
    Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?)
}

/// Undoes [`close`], for who looks for an error with a debugger.
pub fn enable() -> io::Result<()> {
    let maximum = getrlimit(Resource::Core).maximum;
    setrlimit(Resource::Core, Rlimit { current: maximum, maximum })?;
    Ok(set_dumpable_behavior(DumpableBehavior::Dumpable)?)
}
