//! `timbr-gateway man [DIR]`: manual pages, generated from the command line definition.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command, value_parser};
use clap_mangen::Man;

use crate::cli::{CliResult, command as root_command, print_line};

pub fn command() -> Command {
    let folder = Arg::new("dir")
        .value_name("DIR")
        .value_parser(value_parser!(PathBuf))
        .help("Directory for the pages of all commands; by default the main page is printed");
    Command::new("man").about("Print the manual page, or write all manual pages").arg(folder).after_help(
        "Examples:\n  \
         timbr-gateway man | man -l -\n  \
         timbr-gateway man /usr/local/share/man/man1",
    )
}

pub fn run(matches: &ArgMatches) -> CliResult {
    let mut command = root_command();
    // Sets the full names of subcommands.
    command.build();
    match matches.get_one::<PathBuf>("dir") {
        None => io::stdout().write_all(&render_page(&command)?)?,
        Some(folder) => {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
            let count = write_pages(&command, folder)?;
            print_line(format_args!("{count} pages written to {}.", folder.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the page of a command and those of its subcommands. Returns the number of pages.
fn write_pages(command: &Command, folder: &Path) -> anyhow::Result<usize> {
    let path = folder.join(format!("{}.1", page_name(command)));
    fs::write(&path, render_page(command)?).with_context(|| format!("cannot write {}", path.display()))?;
    let mut count = 1;
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        count += write_pages(subcommand, folder)?;
    }
    Ok(count)
}

/// Name with dashes: `timbr-gateway-config-print`.
fn page_name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn render_page(command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command.clone())
        .title(page_name(command))
        .source(concat!("timbr-gateway ", env!("CARGO_PKG_VERSION")))
        .manual("timbr-gateway")
        .render(&mut page)?;
    // The section of the text after the help, mostly examples.
    Ok(String::from_utf8(page).expect("a page is text").replace(".SH EXTRA", ".SH NOTES").into_bytes())
}
