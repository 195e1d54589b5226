// SPDX-License-Identifier: MIT OR Apache-2.0
//! `completions` and `man`: for packages.

use std::fs;

use anyhow::Result;
use clap::CommandFactory as _;
use clap_mangen::Man;
use serde_json::json;

use crate::cli::{Cli, CompletionsArgs, ManArgs};
use crate::ctx::Ctx;
use crate::exit::{self, Exit};
use crate::host::why;

/// Prints a completion script.
///
/// # Errors
/// Those of writing.
pub fn completions(ctx: &mut Ctx<'_>, args: &CompletionsArgs) -> Result<Exit> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "asyncfork", &mut text);
    ctx.out.raw(&text)?;
    Ok(Exit::Done)
}

/// The pages: file name and text. One for the program, one for each command.
///
/// # Errors
/// None in practice.
pub fn pages() -> Result<Vec<(String, Vec<u8>)>> {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let mut pages = vec![page("asyncfork", root.clone())?];
    for command in root.get_subcommands().filter(|c| !c.is_hide_set()) {
        pages.push(page(
            &format!("asyncfork-{}", command.get_name()),
            command.clone(),
        )?);
    }
    Ok(pages)
}

fn page(name: &str, command: clap::Command) -> Result<(String, Vec<u8>)> {
    // Man takes names that live as long as the program.
    let title: &'static str = Box::leak(name.to_owned().into_boxed_str());
    let command = command.name(title).version(env!("CARGO_PKG_VERSION"));
    let mut text = Vec::new();
    Man::new(command).render(&mut text)?;
    Ok((format!("{name}.1"), text))
}

/// Prints a page, or writes all.
///
/// # Errors
/// There is no such page; the directory cannot be written.
pub fn man(ctx: &mut Ctx<'_>, args: &ManArgs) -> Result<Exit> {
    let pages = pages()?;
    let Some(directory) = &args.directory else {
        let name = args
            .command
            .as_ref()
            .map_or("asyncfork.1".into(), |c| format!("asyncfork-{c}.1"));
        let page = pages.iter().find(|(file, _)| *file == name);
        let (_, text) = page.ok_or_else(|| {
            exit::input(format!(
                "there is no page {name}; asyncfork --help lists the commands"
            ))
        })?;
        ctx.out.raw(text)?;
        return Ok(Exit::Done);
    };
    if !ctx.host.metadata(directory).is_ok_and(|m| m.is_dir()) {
        return Err(exit::input(format!(
            "--directory {}: there is no such directory",
            directory.display()
        )));
    }
    let mut names = Vec::new();
    for (name, text) in pages {
        let path = ctx.host.path(directory).join(&name);
        fs::write(&path, text)
            .map_err(|e| exit::failed(format!("{}: {}", path.display(), why(&e))))?;
        names.push(name);
    }
    if ctx.out.is_json() {
        ctx.out.object(&json!({"pages": names}))?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    #[test]
    fn each_command_has_a_page_and_each_shell_a_script() {
        let names: Vec<_> = pages().unwrap().into_iter().map(|(name, _)| name).collect();
        for name in [
            "asyncfork.1",
            "asyncfork-doctor.1",
            "asyncfork-enable.1",
            "asyncfork-man.1",
        ] {
            assert!(names.iter().any(|n| n == name), "{names:?}");
        }
        assert!(!names.iter().any(|n| n.contains("measure")), "{names:?}");
        let fake = Fake::new();
        for shell in [
            clap_complete::Shell::Bash,
            clap_complete::Shell::Zsh,
            clap_complete::Shell::Fish,
        ] {
            let (result, text) = fake.command("completions", |ctx| {
                completions(ctx, &CompletionsArgs { shell })
            });
            result.unwrap();
            assert!(text.contains("unenroll"), "{shell}");
        }
    }

    #[test]
    fn all_pages_are_written() {
        let fake = Fake::new();
        fake.directory("/man");
        let args = |command: Option<&str>, directory: Option<&str>| ManArgs {
            command: command.map(Into::into),
            directory: directory.map(Into::into),
        };
        fake.command("man", |ctx| man(ctx, &args(None, Some("/man"))))
            .0
            .unwrap();
        assert_eq!(fake.host.list("/man").len(), pages().unwrap().len());
        let (_, text) = fake.command("man", |ctx| man(ctx, &args(None, None)));
        assert!(text.contains("125") && text.contains(".TH"), "{text}");
        for bad in [args(Some("nothing"), None), args(None, Some("/none"))] {
            let error = fake.command("man", |ctx| man(ctx, &bad)).0.unwrap_err();
            assert_eq!(exit::of(&error), Exit::Input);
        }
    }
}
