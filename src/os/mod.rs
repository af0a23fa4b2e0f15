//! What the gateway asks of the operating system and of the service manager.

pub mod core_dumps;
pub mod fd_limit;
pub mod sd_notify;
pub mod socket_activation;
pub mod splice;
