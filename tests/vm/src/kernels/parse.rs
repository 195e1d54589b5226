// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads the list of kernels, which is also C.

use std::collections::VecDeque;

use anyhow::{bail, ensure, Context, Result};

use super::{glob, Build, Kernel};

/// Reads the list. Errors: anything in it that is not as its comment says.
pub(super) fn parse(text: &str) -> Result<Vec<Kernel>> {
    let code = without_comments(text)?;
    let mut rest = code.trim_start();
    let mut kernels = Vec::new();
    while !rest.is_empty() {
        let entry = rest
            .strip_prefix("AF_KERNEL(")
            .with_context(|| format!("wants AF_KERNEL(, not {}", first_line(rest)))?;
        let place = || format!("in AF_KERNEL({}", first_line(entry));
        let (fields, after) = arguments(entry).with_context(place)?;
        kernels.push(fields.kernel().with_context(place)?);
        rest = after.trim_start();
    }
    check(&kernels)?;
    Ok(kernels)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn without_comments(text: &str) -> Result<String> {
    let mut code = String::new();
    let mut rest = text;
    while let Some((before, comment)) = rest.split_once("/*") {
        code += before;
        rest = comment.split_once("*/").context("a comment has no end")?.1;
    }
    Ok(code + rest)
}

/// An argument of the macro.
#[derive(Debug)]
enum Field {
    Text(String),
    Word(String),
}

/// The arguments that have not been looked at yet.
#[derive(Default)]
struct Fields(VecDeque<Field>);

/// The arguments up to the closing parenthesis, and what follows that.
fn arguments(text: &str) -> Result<(Fields, &str)> {
    let mut fields = Fields::default();
    let mut rest = text.trim_start();
    loop {
        let field;
        (field, rest) = argument(rest)?;
        fields.0.push_back(field);
        rest = rest.trim_start();
        if let Some(rest) = rest.strip_prefix(')') {
            return Ok((fields, rest));
        }
        rest = rest
            .strip_prefix(',')
            .with_context(|| format!("wants a comma or ), not {}", first_line(rest)))?
            .trim_start();
    }
}

fn argument(text: &str) -> Result<(Field, &str)> {
    if let Some(quoted) = text.strip_prefix('"') {
        let (text, rest) = quoted.split_once('"').context("a string has no end")?;
        let plain = !text.is_empty() && !text.contains(['\\', '\n']);
        ensure!(plain, "{text:?}: no escapes, and not empty");
        return Ok((Field::Text(text.to_owned()), rest));
    }
    let end = text.find(|c: char| !c.is_ascii_alphanumeric());
    let (word, rest) = text.split_at(end.unwrap_or(text.len()));
    ensure!(
        !word.is_empty(),
        "wants a word or a string, not {}",
        first_line(text)
    );
    Ok((Field::Word(word.to_owned()), rest))
}

impl Fields {
    fn text(&mut self, what: &str) -> Result<String> {
        match self.0.pop_front() {
            Some(Field::Text(text)) => Ok(text),
            other => bail!("{what}: wants a string, not {other:?}"),
        }
    }

    fn word(&mut self, what: &str) -> Result<String> {
        match self.0.pop_front() {
            Some(Field::Word(word)) => Ok(word),
            other => bail!("{what}: wants a word, not {other:?}"),
        }
    }

    fn number(&mut self, what: &str) -> Result<u8> {
        let word = self.word(what)?;
        word.parse()
            .with_context(|| format!("{what}: {word} is no number of a version"))
    }

    fn kernel(mut self) -> Result<Kernel> {
        let name = self.text("name")?;
        let build = match &*self.word("build")? {
            "STOCK" => Build::Stock,
            "DEBUG" => Build::Debug,
            "KCSAN" => Build::Kcsan,
            other => bail!("build {other}: STOCK, DEBUG and KCSAN are known"),
        };
        let series = format!("{}.{}", self.number("major")?, self.number("minor")?);
        let flavour = self.text("flavour")?;
        let suite = self.text("suite")?;
        let root = self.text("root")?;
        let mut releases = Vec::new();
        while !self.0.is_empty() {
            releases.push(self.text("release")?);
        }
        let debian = suite.strip_suffix("-backports");
        Ok(Kernel {
            name,
            build,
            series,
            flavour,
            backports: debian.is_some(),
            debian: debian.unwrap_or(&suite).to_owned(),
            root,
            releases,
        })
    }
}

/// Refuses kernels that do not go together.
fn check(kernels: &[Kernel]) -> Result<()> {
    let first = kernels.first().context("no kernel is listed")?;
    ensure!(
        first.is_stock(),
        "the first kernel, {first}, is taken if none is named: it must be a stock kernel"
    );
    for (n, kernel) in kernels.iter().enumerate() {
        check_one(kernel).with_context(|| format!("kernel {kernel}"))?;
        for other in &kernels[..n] {
            check_pair(other, kernel).with_context(|| format!("kernels {other} and {kernel}"))?;
        }
    }
    for kernel in kernels {
        let stock = kernels.iter().filter(|other| kernel.is_built_from(other));
        ensure!(
            stock.count() == 1,
            "kernel {kernel} wants one stock kernel {} in {}",
            kernel.series,
            kernel.root
        );
    }
    Ok(())
}

fn check_pair(a: &Kernel, b: &Kernel) -> Result<()> {
    ensure!(a.name != b.name, "they have one name");
    if a.root == b.root {
        ensure!(
            a.debian == b.debian,
            "{} cannot be of {} and of {}",
            a.root,
            a.debian,
            b.debian
        );
    }
    Ok(())
}

fn check_one(kernel: &Kernel) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c);
    for text in [&kernel.name, &kernel.flavour, &kernel.debian, &kernel.root] {
        ensure!(
            text.chars().all(plain),
            "{text:?}: small letters, digits, dots and dashes only"
        );
    }
    let number = kernel.root.strip_prefix("debian");
    ensure!(
        number.is_some_and(|n| n.starts_with(|c: char| c.is_ascii_digit())),
        "root {}: wants the Debian first, such as debian13",
        kernel.root
    );
    if !kernel.is_stock() {
        ensure!(
            !kernel.backports && kernel.releases.is_empty(),
            "it is not Debian's: no backports, no releases"
        );
        return Ok(());
    }
    let word = kernel.name.strip_prefix(&kernel.series);
    ensure!(
        word.is_some_and(|word| word.is_empty() || word.starts_with('-')),
        "its name is neither {} nor that, a dash and a word",
        kernel.series
    );
    for release in &kernel.releases {
        let (head, tail) = (
            format!("{}.", kernel.series),
            format!("-{}", kernel.flavour),
        );
        ensure!(
            release.starts_with(&head) && release.ends_with(&tail),
            "release {release}: wants {head}...{tail}"
        );
        glob::check(release).with_context(|| format!("release {release}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list that is good, of which a test spoils something.
    const GOOD: &str = r#"/* SPDX */
AF_KERNEL("6.1", STOCK, 6, 1, "amd64", "bookworm", "debian12",
	  "6.1.0-[0-9]-amd64") /* so */
AF_KERNEL("7.2-cloud", STOCK, 7, 2, "amd64", "trixie-backports", "debian13")
AF_KERNEL("6.12", STOCK, 6, 12, "amd64", "trixie", "debian13", "6.12.1-amd64", "6.12.2-amd64")
AF_KERNEL("debug", DEBUG, 6, 12, "asyncfork-debug", "trixie", "debian13")
"#;

    #[test]
    fn a_kernel_is_read_with_all_that_is_said_of_it() {
        let kernels = parse(GOOD).unwrap();
        let names: Vec<&str> = kernels.iter().map(|k| &*k.name).collect();
        assert_eq!(names, ["6.1", "7.2-cloud", "6.12", "debug"]);
        assert_eq!(kernels[0].releases, ["6.1.0-[0-9]-amd64"]);
        assert_eq!(kernels[3].build, Build::Debug);
        assert_eq!(
            kernels[1],
            Kernel {
                name: "7.2-cloud".into(),
                build: Build::Stock,
                series: "7.2".into(),
                flavour: "amd64".into(),
                debian: "trixie".into(),
                backports: true,
                root: "debian13".into(),
                releases: Vec::new(),
            }
        );
    }

    #[test]
    fn what_is_malformed_is_refused_with_its_line() {
        for (good, bad, why) in [
            ("/* so */", "/* so", "a comment has no end"),
            ("/* so */", "x", "wants AF_KERNEL(, not x"),
            ("/* so */", ";", "wants AF_KERNEL("),
            (
                "AF_KERNEL(\"6.1\"",
                "AF_KERNAL(\"6.1\"",
                "AF_KERNAL(\"6.1\"",
            ),
            (
                "\"6.12.2-amd64\"",
                "\"6.12.2-amd64\",",
                "wants a word or a string",
            ),
            (
                "\"6.12.2-amd64\")",
                "\"6.12.2-amd64\"",
                "wants a comma or )",
            ),
            (
                "\"6.12.1-amd64\",",
                "\"6.12.1-amd64\"",
                "wants a comma or )",
            ),
            ("\"debug\",", "\"debug,", "wants a comma or )"),
            ("\"debian13\")\n", "\"debian13\n", "no escapes"),
            ("\"bookworm\"", "\"\"", "not empty"),
            (
                "\"bookworm\"",
                "bookworm",
                "in AF_KERNEL(\"6.1\", STOCK, 6, 1, \"amd64\", bookworm",
            ),
            (
                "\"asyncfork-debug\", \"trixie\", \"debian13\"",
                "\"asyncfork-debug\", \"trixie\"",
                "root: wants a string",
            ),
            ("STOCK, 6, 1,", "\"STOCK\", 6, 1,", "build: wants a word"),
            ("STOCK, 6, 1,", "STOCKED, 6, 1,", "build STOCKED"),
            ("6, 1,", "6, x,", "minor: x is no number"),
            ("6, 1,", "6, 1000,", "minor: 1000 is no number"),
            ("6, 1,", "\"6\", 1,", "major: wants a word"),
        ] {
            assert!(GOOD.contains(good), "{good}");
            let list = GOOD.replacen(good, bad, 1);
            let error = format!("{:#}", parse(&list).expect_err(bad));
            assert!(error.contains(why), "{bad}: {error}");
        }
        for empty in ["", "/* nothing */"] {
            assert!(parse(empty).is_err());
        }
    }

    #[test]
    fn kernels_that_do_not_go_together_are_refused() {
        for (good, bad, why) in [
            ("\"6.1\"", "\"6.12\"", "its name is neither 6.1"),
            ("\"6.1\"", "\"6.1cloud\"", "its name is neither 6.1"),
            ("\"6.1\"", "\"6.1-Cloud\"", "small letters"),
            ("\"debug\"", "\"6.12\"", "they have one name"),
            (
                "\"6.12\", STOCK",
                "\"6.12-b\", STOCK",
                "wants one stock kernel 6.12",
            ),
            (
                "DEBUG, 6, 12",
                "DEBUG, 6, 13",
                "wants one stock kernel 6.13",
            ),
            (
                "\"trixie\", \"debian13\")",
                "\"trixie\", \"debian14\")",
                "one stock kernel 6.12 in debian14",
            ),
            (
                "\"trixie\", \"debian13\", \"6",
                "\"sid\", \"debian13\", \"6",
                "cannot be of trixie and of sid",
            ),
            ("\"debian12\"", "\"bookworm12\"", "wants the Debian first"),
            (
                "\"debian13\")\n",
                "\"debian13\", \"7.2.1-rt\")\n",
                "wants 7.2....-amd64",
            ),
            (
                "\"6.1.0-[0-9]-amd64\"",
                "\"6.12.0-amd64\"",
                "wants 6.1....-amd64",
            ),
            ("\"6.1.0-[0-9]-amd64\"", "\"6.1.0-?-amd64\"", "wildcards"),
            (
                "\"asyncfork-debug\", \"trixie\", \"debian13\"",
                "\"x\", \"trixie\", \"debian13\", \"6.12.1-x\"",
                "it is not Debian's",
            ),
            (
                "AF_KERNEL(\"6.1\", STOCK",
                "AF_KERNEL(\"6.1\", DEBUG",
                "it must be a stock kernel",
            ),
        ] {
            assert!(GOOD.contains(good), "{good}");
            let list = GOOD.replacen(good, bad, 1);
            let error = format!("{:#}", parse(&list).expect_err(bad));
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
