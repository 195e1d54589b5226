// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernels, from the module's own list: `kmod/compat/kernels.h`.

mod glob;
mod parse;

use std::fmt;
use std::sync::LazyLock;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser, ValueParserFactory};

const LIST: &str = include_str!("../../../kmod/compat/kernels.h");

static KERNELS: LazyLock<Vec<Kernel>> = LazyLock::new(|| {
    parse::parse(LIST).unwrap_or_else(|error| panic!("kmod/compat/kernels.h: {error:#}"))
});

/// Who builds a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// Debian.
    Stock,
    /// `scripts/debug-kernel`, with KASAN, lockdep and more.
    Debug,
    /// `scripts/debug-kernel`, with KCSAN.
    Kcsan,
}

/// A kernel of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// As `--kernel` takes it.
    pub name: String,
    pub build: Build,
    /// Major and minor version, such as 6.12.
    pub series: String,
    /// How its release ends, after a dash.
    pub flavour: String,
    /// Code name of its Debian.
    pub debian: String,
    /// Whether it comes from that Debian's backports.
    pub backports: bool,
    /// Name of the guest root that has it.
    pub root: String,
    /// Patterns of the releases that the module loads on.
    pub releases: Vec<String>,
}

/// All kernels, in the list's order.
pub fn all() -> &'static [Kernel] {
    &KERNELS
}

/// The kernel that is taken if none is named.
pub fn first() -> &'static Kernel {
    &all()[0]
}

/// Those on which the module loads: the ones that users have.
pub fn accepted() -> impl Iterator<Item = &'static Kernel> {
    all().iter().filter(|kernel| !kernel.releases.is_empty())
}

/// Of those, one of each series: no flavours.
pub fn whole() -> impl Iterator<Item = &'static Kernel> {
    accepted().filter(|kernel| kernel.is_whole())
}

/// Whether it is of the first or of the newest series.
pub fn is_end(kernel: &Kernel) -> bool {
    let ends = [whole().next(), whole().last()];
    ends.iter().flatten().any(|end| end.series == kernel.series)
}

/// Of those, the first of each Debian and the newest: what a change has to pass all tests on.
/// Those between are updates from backports that a newer one has replaced.
pub fn main() -> impl Iterator<Item = &'static Kernel> {
    let newest = whole().last();
    whole().filter(move |kernel| {
        let first = whole().find(|other| other.root == kernel.root);
        [first, newest].contains(&Some(kernel))
    })
}

/// The kernels between, and the first flavour of the first and of the newest series: what a
/// change has to pass a choice of the tests on.
pub fn samples() -> impl Iterator<Item = &'static Kernel> {
    accepted().filter(|kernel| {
        let flavour = |k: &&Kernel| !k.is_whole() && k.series == kernel.series;
        if kernel.is_whole() {
            main().all(|other| other != *kernel)
        } else {
            is_end(kernel) && accepted().find(flavour) == Some(*kernel)
        }
    })
}

/// The kernel that `--kernel` calls so.
pub fn find(name: &str) -> Option<&'static Kernel> {
    all().iter().find(|kernel| kernel.name == name)
}

/// Their names, as in a sentence: `6.1, 6.12 and 7.2`.
pub fn in_words<'a>(kernels: impl Iterator<Item = &'a Kernel>) -> String {
    let names: Vec<&str> = kernels.map(|kernel| &*kernel.name).collect();
    match names.as_slice() {
        [some @ .., last] if !some.is_empty() => format!("{} and {last}", some.join(", ")),
        names => names.concat(),
    }
}

impl Kernel {
    /// Whether it is Debian's own.
    pub fn is_stock(&self) -> bool {
        self.build == Build::Stock
    }

    /// Major and minor version as numbers.
    pub fn version(&self) -> (u8, u8) {
        let number = |text: &str| text.parse().expect("parse() has read numbers");
        let (major, minor) = self.series.split_once('.').expect("and joined them");
        (number(major), number(minor))
    }

    /// Whether it is the kernel of its series: no flavour of it.
    pub fn is_whole(&self) -> bool {
        self.is_stock() && self.name == self.series
    }

    /// The stock kernel whose sources it is built from; itself if it is Debian's.
    pub fn stock(&self) -> &'static Kernel {
        all()
            .iter()
            .find(|other| self.is_built_from(other))
            .expect("parse() has seen it")
    }

    fn is_built_from(&self, other: &Kernel) -> bool {
        match self.build {
            Build::Stock => other.name == self.name,
            Build::Debug | Build::Kcsan => {
                other.is_whole() && other.series == self.series && other.root == self.root
            }
        }
    }

    /// How many times as long as on a stock kernel everything takes.
    pub fn slowness(&self) -> u32 {
        match self.build {
            Build::Stock => 1,
            Build::Debug | Build::Kcsan => 8,
        }
    }

    /// What it is, for people: `Debian 13, kernel 7.2 from backports`.
    pub fn description(&self) -> String {
        let built = |with| format!("{} with {with} (scripts/debug-kernel)", self.series);
        match self.build {
            Build::Stock => {
                let number = self.root.trim_start_matches("debian");
                let mut text = format!("Debian {number}");
                let cloud = self.flavour.starts_with("cloud-");
                if cloud || !self.is_its_debians() {
                    text += if cloud { ", cloud kernel" } else { ", kernel" };
                }
                if !self.is_its_debians() {
                    text += &format!(" {}", self.series);
                }
                if self.backports {
                    text += " from backports";
                }
                text
            }
            Build::Debug => built("KASAN, lockdep and more"),
            Build::Kcsan => built("KCSAN"),
        }
    }

    /// Whether it is of the series that its Debian was released with.
    fn is_its_debians(&self) -> bool {
        let own = |k: &&Kernel| k.is_whole() && !k.backports && k.root == self.root;
        all()
            .iter()
            .find(own)
            .is_some_and(|own| own.series == self.series)
    }

    /// Whether a kernel of this release, such as `6.1.0-56-amd64`, is a build of it.
    pub fn has_release(&self, release: &str) -> bool {
        let number = release
            .strip_prefix(&self.series)
            .and_then(|rest| rest.strip_prefix('.'))
            .and_then(|rest| rest.strip_suffix(&self.flavour))
            .and_then(|rest| rest.strip_suffix('-'));
        // A word in there belongs to another flavour's name: 6.1.0-56-cloud-amd64.
        number.is_some_and(|number| {
            !number
                .split('-')
                .any(|p| p.starts_with(char::is_alphabetic))
        })
    }

    /// Whether the module loads on this release, without `allow_untested=1`.
    pub fn accepts(&self, release: &str) -> bool {
        self.releases
            .iter()
            .any(|glob| glob::matches(glob, release))
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

impl ValueParserFactory for &'static Kernel {
    type Parser = clap::builder::ValueParser;

    fn value_parser() -> Self::Parser {
        let names = all()
            .iter()
            .map(|kernel| PossibleValue::new(&*kernel.name).help(kernel.description()));
        PossibleValuesParser::new(names)
            .map(|name| find(&name).expect("it is one of these"))
            .into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};

    use super::*;

    fn repository() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    fn read(file: &str) -> String {
        fs::read_to_string(repository().join(file)).expect(file)
    }

    /// What a program prints, given some text.
    fn output(command: &mut Command, input: &str) -> String {
        let mut child = command
            .current_dir(repository())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{command:?}: {}", out.status);
        String::from_utf8(out.stdout).unwrap()
    }

    fn kernel(build: Build, name: &str, flavour: &str, backports: bool) -> Kernel {
        Kernel {
            name: name.into(),
            build,
            series: "6.12".into(),
            flavour: flavour.into(),
            debian: "trixie".into(),
            backports,
            root: "debian13".into(),
            releases: Vec::new(),
        }
    }

    #[test]
    fn a_change_has_to_pass_on_the_first_of_each_debian_the_newest_and_samples() {
        let main: Vec<_> = main().collect();
        let samples: Vec<_> = samples().collect();
        for root in ["debian12", "debian13"] {
            assert!(main.contains(&whole().find(|k| k.root == root).unwrap()));
        }
        assert!(main.contains(&whole().last().unwrap()));
        for series in whole() {
            let flavours = samples.iter().filter(|k| k.series == series.series);
            let ends = [whole().next(), whole().last()];
            let want = ends.contains(&Some(series)) || !main.contains(&series);
            assert_eq!(flavours.count(), usize::from(want), "{series}");
            assert_ne!(main.contains(&series), samples.contains(&series));
        }
    }

    #[test]
    fn a_kernel_is_called_as_on_the_command_line() {
        #[derive(clap::Parser)]
        struct Line {
            #[arg(long, default_value_t = first())]
            kernel: &'static Kernel,
        }
        let parse = |words: &[&str]| <Line as clap::Parser>::try_parse_from(words);
        for kernel in all() {
            let line = parse(&["x", "--kernel", &kernel.name]).unwrap();
            assert_eq!(line.kernel, kernel);
        }
        assert_eq!(parse(&["x"]).unwrap().kernel, first());
        let error = parse(&["x", "--kernel", "6.2"]).err().unwrap().to_string();
        for kernel in all() {
            assert!(error.contains(&kernel.name), "{error}");
        }
    }

    #[test]
    fn the_list_is_read_here_as_the_compiler_reads_it() {
        let program = r#"
            #include <stdio.h>
            struct { const char *words[20]; } kernels[] = {
            #define AF_KERNEL(name, build, major, minor, flavour, suite, root, ...) \
                { { name, #build, #major "." #minor, flavour, suite, root, ##__VA_ARGS__ } },
            #include "kmod/compat/kernels.h"
            };
            int main(void)
            {
                for (int k = 0; k < sizeof(kernels) / sizeof(kernels[0]); k++) {
                    for (const char **w = kernels[k].words; *w; w++)
                        printf("%s ", *w);
                    printf("\n");
                }
            }
        "#;
        let dir = std::env::temp_dir().join(format!("asyncfork-kernels-{}", std::process::id()));
        let mut gcc = Command::new("gcc");
        gcc.args(["-xc", "-I.", "-", "-o"]).arg(&dir);
        output(&mut gcc, program);
        let compiled = output(&mut Command::new(&dir), "");
        fs::remove_file(&dir).unwrap();
        let here: String = all()
            .iter()
            .map(|k| {
                let build = format!("{:?}", k.build).to_uppercase();
                let pocket = if k.backports { "-backports" } else { "" };
                let (name, series, flavour, debian) = (&k.name, &k.series, &k.flavour, &k.debian);
                let releases: String = k.releases.iter().map(|r| format!("{r} ")).collect();
                format!(
                    "{name} {build} {series} {flavour} {debian}{pocket} {} {releases}\n",
                    k.root
                )
            })
            .collect();
        assert_eq!(here, compiled);
    }

    #[test]
    fn the_module_compiles_for_the_series_of_the_list_and_no_others() {
        let compat = read("kmod/compat/compat.h");
        let known: BTreeSet<String> = compat
            .split("AF_THIS_SERIES != AF_SERIES(")
            .skip(1)
            .map(|rest| rest.split(')').next().unwrap().replace(", ", "."))
            .collect();
        let listed: BTreeSet<String> = all().iter().map(|k| k.series.clone()).collect();
        assert_eq!(known, listed);
    }

    #[test]
    fn a_debug_kernel_is_of_one_stock_kernel_that_users_have() {
        for kernel in all().iter().filter(|k| !k.is_stock()) {
            let stock = kernel.stock();
            assert_eq!((&stock.name, stock.build), (&kernel.series, Build::Stock));
            assert!(accepted().any(|k| k == stock));
        }
        assert_eq!(first().stock(), first());
    }

    #[test]
    fn names_are_joined_as_in_a_sentence() {
        let kernels = ["6.1", "6.12", "7.2"].map(|n| kernel(Build::Stock, n, "amd64", false));
        assert_eq!(in_words(kernels[..0].iter()), "");
        assert_eq!(in_words(kernels[..1].iter()), "6.1");
        assert_eq!(in_words(kernels.iter()), "6.1, 6.12 and 7.2");
    }

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        let version = |name| find(name).unwrap().version();
        assert_eq!(version("6.12"), (6, 12));
        assert!(version("6.1") < version("6.12") && version("6.12") < version("7.2"));
    }

    #[test]
    fn a_release_is_of_one_flavour() {
        let amd64 = kernel(Build::Stock, "6.12", "amd64", false);
        let cloud = kernel(Build::Stock, "6.12-cloud", "cloud-amd64", false);
        let debug = kernel(Build::Debug, "debug", "asyncfork-debug", false);
        for (release, of) in [
            ("6.12.118+deb13-amd64", Some("amd64")),
            ("6.12.0-56-amd64", Some("amd64")),
            ("6.12.74+deb13+1-amd64", Some("amd64")),
            ("6.12.118+deb13-cloud-amd64", Some("cloud-amd64")),
            ("6.12.0-56-cloud-amd64", Some("cloud-amd64")),
            ("6.12.118-asyncfork-debug", Some("asyncfork-debug")),
            ("6.12.118+deb13-rt-amd64", None),
            ("6.12.118+deb13-amd64-unsigned", None),
            ("6.120.1+deb13-amd64", None),
            ("6.1.118+deb13-amd64", None),
            ("6.12-amd64", None),
        ] {
            for kernel in [&amd64, &cloud, &debug] {
                let want = of == Some(&*kernel.flavour);
                assert_eq!(kernel.has_release(release), want, "{release} {kernel:?}");
            }
        }
    }

    #[test]
    fn people_are_told_what_a_kernel_is() {
        for (name, series, flavour, backports, want) in [
            ("6.12", "6.12", "amd64", false, "Debian 13"),
            (
                "6.12-cloud",
                "6.12",
                "cloud-amd64",
                false,
                "Debian 13, cloud kernel",
            ),
            (
                "7.9",
                "7.9",
                "amd64",
                true,
                "Debian 13, kernel 7.9 from backports",
            ),
            (
                "7.9-cloud",
                "7.9",
                "cloud-amd64",
                true,
                "Debian 13, cloud kernel 7.9 from backports",
            ),
            ("6.1-deb13", "6.1", "amd64", false, "Debian 13, kernel 6.1"),
        ] {
            let kernel = Kernel {
                series: series.into(),
                ..kernel(Build::Stock, name, flavour, backports)
            };
            assert_eq!(kernel.description(), want);
        }
    }

    /// Names that a kernel next to the one of this name could have: one character less or
    /// twice, another flavour, another series, another Debian.
    fn neighbours(release: &str) -> Vec<String> {
        let (number, _) = release.rsplit_once('-').expect("a dash");
        let mut names = Vec::new();
        for n in 0..release.len() {
            names.push(format!("{}{}", &release[..n], &release[n + 1..]));
            names.push(format!("{}{}", &release[..=n], &release[n..]));
        }
        for end in [
            "-cloud-amd64",
            "-rt-amd64",
            "-arm64",
            "+1-amd64",
            ".10-amd64",
            "",
        ] {
            names.push(format!("{number}{end}"));
        }
        names.extend([format!("{release}-unsigned"), format!("x{release}")]);
        for (from, to) in [
            (".", "x"),
            ("+deb13", "+deb12"),
            ("+deb13", "+deb14"),
            ("+deb13", "+deb15"),
            ("+deb13", ""),
            ("-", "+"),
            ("6.1.0", "6.1.1"),
            ("6.12.", "6.13."),
            ("7.2.", "7.3."),
        ] {
            names.push(release.replacen(from, to, 1));
        }
        names
    }

    #[test]
    fn dkms_builds_for_the_kernels_that_the_module_accepts_and_no_others() {
        let good = [
            "6.1.0-56-amd64",
            "6.12.117+deb13-amd64",
            "6.12.115+deb13.1-amd64",
            "6.12.117+deb12-amd64",
            "6.12.117+deb12-cloud-amd64",
            "6.12.74+deb13+1-amd64",
            "6.12.117+deb13-cloud-amd64",
            "6.1.0-56-cloud-amd64",
            "7.2.12+deb13-amd64",
            "7.2.12+deb14-amd64",
            "7.3.4+deb13-amd64",
            "7.3.14+deb13+1-cloud-amd64",
        ];
        let bad = [
            "6.1.0-9-amd64",
            "7.2.9+deb13-amd64",
            "6.1.0-56-rt-amd64",
            "6.11.10-amd64",
            "6.120.1+deb13-amd64",
            "6.8.0-48-generic",
            "6.12.117+deb12-rt-amd64",
            "7.3.4+deb12-amd64",
            "7.4.10+deb13-amd64",
        ];
        let known = [&good[..], &bad].concat();
        let mut names: BTreeSet<String> = known.iter().map(|&name| name.to_owned()).collect();
        for release in accepted().flat_map(|kernel| &kernel.releases) {
            for sample in glob::samples(release) {
                names.extend(neighbours(&sample));
                names.insert(sample);
            }
        }
        let script = "kernel_source_dir= dkms_tree=
            . packaging/dkms.conf
            while read -r release; do
                [[ ! $release =~ $BUILD_EXCLUSIVE_KERNEL ]] || echo \"$release\"
            done";
        let input: String = names.iter().map(|name| format!("{name}\n")).collect();
        let built = output(Command::new("bash").args(["-euc", script]), &input);
        let built: BTreeSet<&str> = built.lines().collect();
        let accepts = |name: &str| accepted().any(|kernel| kernel.accepts(name));
        for name in &names {
            assert_eq!(
                accepts(name),
                built.contains(&**name),
                "{name}: kmod/compat/kernels.h and packaging/dkms.conf do not agree"
            );
            // Of a series or flavour that is not in the list.
            let stranger = accepted().all(|kernel| !kernel.has_release(name));
            assert!(!(stranger && accepts(name)), "{name}");
        }
        assert!(good.iter().all(|name| accepts(name)) && !bad.iter().any(|name| accepts(name)));
        // Enough of either kind that a pattern which says too much or too little shows.
        assert!(built.len() > 20 && names.len() > 10 * built.len());
    }

    /// The rows of a table of README, by their cells.
    fn table<'a>(readme: &'a str, header: &str) -> Vec<Vec<&'a str>> {
        let rows: Vec<_> = readme
            .lines()
            .skip_while(|line| !line.starts_with(header))
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .map(|line| line.split('|').skip(1).map(str::trim).collect())
            .collect();
        assert!(!rows.is_empty(), "README has no table {header}");
        rows
    }

    #[test]
    fn readme_has_a_row_for_each_kernel_that_users_have_and_no_other() {
        let readme = read("README.md");
        let guests: Vec<String> = accepted()
            .map(|kernel| {
                let default = if kernel == first() { " (default)" } else { "" };
                format!("`{kernel}`{default}: {}", kernel.description())
            })
            .collect();
        let rows = table(&readme, "| `--kernel` |");
        let rows: Vec<String> = rows
            .iter()
            .map(|row| format!("{}: {}", row[0], row[1]))
            .collect();
        assert_eq!(rows, guests, "README's table of what --kernel takes");

        let tested = table(&readme, "| stock kernel |");
        assert_eq!(
            tested.len(),
            accepted().count(),
            "README's table of results"
        );
        for (row, kernel) in tested.iter().zip(accepted()) {
            let (guest, version) = row[0].split_once(": ").expect(row[0]);
            assert_eq!(guest, kernel.description(), "{}", row[0]);
            assert!(
                version.starts_with(&format!("{}.", kernel.series)),
                "{}",
                row[0]
            );
        }
    }
}
