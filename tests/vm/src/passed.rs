// SPDX-License-Identifier: MIT OR Apache-2.0
//! Options that are another program's: they are defined once, by the program that runs in the
//! guest, and checked on the host before anything boots.

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches};

/// The options of a program in the guest, to be flattened into those of a command here.
#[derive(Debug, Clone)]
pub struct Passed<T> {
    /// What they mean.
    pub options: T,
    /// Those that were given, as words of the program's command line; its defaults are its own.
    pub words: Vec<String>,
}

impl<T: Args> FromArgMatches for Passed<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        Ok(Passed {
            words: words::<T>(matches)?,
            options: T::from_arg_matches(matches)?,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.words.extend(words::<T>(matches)?);
        self.options.update_from_arg_matches(matches)
    }
}

impl<T: Args> Args for Passed<T> {
    fn augment_args(command: Command) -> Command {
        T::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        T::augment_args_for_update(command)
    }
}

/// The options of `T` that were given; all of them have long names.
fn words<T: Args>(matches: &ArgMatches) -> Result<Vec<String>, Error> {
    let mut words = Vec::new();
    for arg in T::augment_args(Command::new("")).get_arguments() {
        if matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine) {
            words.extend(given(arg, matches)?);
        }
    }
    Ok(words)
}

fn given(arg: &Arg, matches: &ArgMatches) -> Result<Vec<String>, Error> {
    let name = format!("--{}", arg.get_long().unwrap_or(arg.get_id().as_str()));
    if !arg.get_action().takes_values() {
        return Ok(vec![name]);
    }
    let raw = matches.get_raw(arg.get_id().as_str()).unwrap_or_default();
    raw.map(|value| match value.to_str() {
        Some(value) => Ok(format!("{name}={value}")),
        None => Err(Error::raw(
            ErrorKind::InvalidUtf8,
            format!("{name}: the guest takes text only, not {value:?}\n"),
        )),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::path::PathBuf;

    /// Of a program in the guest.
    #[derive(clap::Args)]
    struct Theirs {
        #[arg(long, value_delimiter = ',', default_value = "1,2")]
        sizes: Vec<u32>,
        #[arg(long, default_value_t = 12000)]
        value_size: u32,
        #[arg(long)]
        stock_only: bool,
        #[arg(long)]
        out: Option<PathBuf>,
    }

    #[derive(Parser)]
    #[command(args_override_self = true)]
    struct Ours {
        #[arg(long, default_value = "6.1")]
        kernel: String,
        #[command(flatten)]
        theirs: Passed<Theirs>,
    }

    fn parse(words: &[&str]) -> Result<Ours, Error> {
        Ours::try_parse_from(["x"].iter().chain(words))
    }

    #[test]
    fn what_was_given_is_passed_on_and_nothing_else() {
        let ours = parse(&[
            "--value-size",
            "500",
            "--kernel=7.2",
            "--sizes=4,8",
            "--stock-only",
        ]);
        let Ours { kernel, theirs } = ours.unwrap();
        assert_eq!(kernel, "7.2");
        let words = ["--sizes=4", "--sizes=8", "--value-size=500", "--stock-only"];
        assert_eq!(theirs.words, words);
        assert_eq!(theirs.options.sizes, [4, 8]);
        assert_eq!(theirs.options.value_size, 500);
        assert!(theirs.options.stock_only && theirs.options.out.is_none());
        assert_eq!(parse(&[]).unwrap().theirs.words, [""; 0]);
    }

    #[test]
    fn words_mean_to_the_program_what_they_meant_here() {
        for words in [
            &["--out", "a b=c", "--sizes", "1", "--sizes", "2,3"][..],
            &["--value-size=1", "--value-size=2"],
        ] {
            let here = parse(words).unwrap().theirs;
            let given: Vec<&str> = here.words.iter().map(String::as_str).collect();
            let there = parse(&given).unwrap().theirs.options;
            assert_eq!(there.sizes, here.options.sizes);
            assert_eq!(there.value_size, here.options.value_size);
            assert_eq!(there.out, here.options.out);
        }
    }

    #[test]
    fn a_mistake_shows_here() {
        for words in [
            &["--value-size", "many"][..],
            &["--sizes=1,x"],
            &["--seize=1"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn a_name_that_is_no_text_is_refused_and_not_changed() {
        use std::ffi::OsString;
        use std::os::unix::ffi::OsStringExt;
        let out = OsString::from_vec(b"--out=\xff".to_vec());
        let error = Ours::try_parse_from([OsString::from("x"), out])
            .err()
            .unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidUtf8);
    }
}
