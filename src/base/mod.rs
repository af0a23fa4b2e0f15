//! Small types and functions that every folder may use. Nothing here knows what a gateway is.

pub mod byte_class;
pub mod client_address;
pub mod clock;
pub mod counter;
pub mod current;
pub mod glob;
pub mod groups;
pub mod hex;
pub mod identity_hasher;
pub mod input_file;
pub mod join_within;
pub mod label_values;
pub mod pem;
pub mod percent;
pub mod rate;
pub mod remedy;
pub mod secret;
pub mod shutdown_phase;
pub mod single_flight;
pub mod truncate;
pub mod user_name;
pub mod watched_files;
