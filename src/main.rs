//! The command `timbr-gateway`.

use std::process::ExitCode;

fn main() -> ExitCode {
    timbr_gateway::cli::run()
}
