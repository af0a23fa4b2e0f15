//! Interfaces to the operating system and to the service manager. Nothing here knows about HTTP or the configuration.

pub mod core_dumps;
pub mod disk;
pub mod fd_limit;
pub mod memory;
pub mod sd_notify;
pub mod socket_activation;
pub mod splice;
pub mod unix_socket;
