//! `timbr-gateway man [DIR]`

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command, value_parser};
use clap_mangen::Man;

use crate::cli::{CliResult, command as whole, print_line};

pub fn command() -> Command {
    let folder = Arg::new("dir")
        .value_name("DIR")
        .value_parser(value_parser!(PathBuf))
        .help("Write a page for each command into this folder, instead of the first one to standard output");
    Command::new("man").about("Print the manual page, or write all of them").arg(folder).after_help(
        "Examples:\n  \
         timbr-gateway man | man -l -\n  \
         timbr-gateway man /usr/local/share/man/man1",
    )
}

pub fn run(matches: &ArgMatches) -> CliResult {
    let mut command = whole();
    // Gives subcommands their whole names.
    command.build();
    match matches.get_one::<PathBuf>("dir") {
        None => io::stdout().write_all(&render_page(&command)?)?,
        Some(folder) => {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            let count = write_pages(&command, folder)?;
            print_line(format_args!("{count} pages are in {}.", folder.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the page of a command and those of its subcommands; tells how many.
fn write_pages(command: &Command, folder: &Path) -> anyhow::Result<usize> {
    let path = folder.join(format!("{}.1", page_name(command)));
    fs::write(&path, render_page(command)?).with_context(|| format!("cannot write {}", path.display()))?;
    let mut count = 1;
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        count += write_pages(below, folder)?;
    }
    Ok(count)
}

/// `timbr-gateway-config-print`
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
    // What stands below a command's help: examples, mostly.
    Ok(String::from_utf8(page).expect("a page is text").replace(".SH EXTRA", ".SH NOTES").into_bytes())
}
