// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest roots: small Debians below `target/roots`, each with its kernels, their headers,
//! a compiler, and the servers of the demo. Modules are built in them (`scripts/kmod`), and
//! VMs boot them.
//!
//! A root's name says what it is made from, by a checksum: a running VM keeps its root when
//! another is made.

mod recipe;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};

use crate::checkout::repository_root;
use crate::kernels::{self, Kernel};
use crate::{debug_kernel, tools};

pub use recipe::has_valkey;
use recipe::Recipe;

/// Make the guest root of a kernel, if it is not there yet, and print its directory
///
/// Packages come from the Debian mirror that this machine's apt is configured with. To get
/// newer ones, delete target/roots. Needs mmdebstrap and root or sudo.
#[derive(Debug, clap::Args)]
#[command(override_usage = "scripts/root [OPTIONS] NAME")]
pub struct RootOptions {
    /// Do not make the root: fail if it is missing
    #[arg(long)]
    made: bool,
    /// The root with more: the kernel's and the servers' sources, what building them takes,
    /// stress-ng (for scripts/suites and scripts/debug-kernel)
    #[arg(long)]
    suites: bool,
    /// Print the kernel's release instead
    #[arg(long)]
    release: bool,
    #[arg(value_name = "NAME", help = name_help(), long_help = name_help())]
    name: String,
}

fn name_help() -> String {
    let mut text = "What it is for:".to_owned();
    for kernel in kernels::all() {
        text += &format!("\n  {kernel:<9} {}", kernel.description());
    }
    text + &format!("\n  {DEBIAN11:<9} Debian 11 without a kernel (for scripts/libcs)")
}

/// The root without a kernel, of which tests of the library want the C libraries: glibc 2.31
/// and musl.
const DEBIAN11: &str = "debian11";

/// Prints where the root is, or its kernel's release, and makes it if need be.
///
/// # Errors
/// Another current directory than the repository root; no such kernel; the root is missing
/// and cannot be made, or is not to be.
pub fn run(options: &RootOptions) -> Result<()> {
    let checkout = repository_root()?;
    if options.name == DEBIAN11 {
        ensure!(
            !options.suites && !options.release,
            "{DEBIAN11} has no kernel and no suites"
        );
        let root = Root::debian11(&checkout)?;
        root.ensure(options.made)?;
        println!("{}", root.dir.display());
        return Ok(());
    }
    let Some(kernel) = kernels::find(&options.name) else {
        bail!(
            "no root has {}: kernels {} are known, and {DEBIAN11}",
            options.name,
            kernels::in_words(kernels::all().iter().filter(|k| k.is_stock()))
        );
    };
    let root = Root::of(&checkout, kernel, options.suites)?;
    root.ensure(options.made)?;
    if options.release {
        println!("{}", root.release(kernel)?);
    } else {
        root.release(kernel.stock())?;
        println!("{}", root.dir.display());
    }
    Ok(())
}

/// A guest root, there or not.
#[derive(Debug, Clone)]
pub struct Root {
    checkout: PathBuf,
    /// Where it is, or will be.
    pub dir: PathBuf,
    recipe: Recipe,
    /// What `scripts/root` calls it.
    called: String,
}

impl Root {
    /// The root of a kernel; with `suites`, and for a kernel that is built here, the larger
    /// one of `scripts/suites`.
    ///
    /// # Errors
    /// `sha256sum` does not work.
    pub fn of(checkout: &Path, kernel: &'static Kernel, suites: bool) -> Result<Self> {
        let stock = kernel.stock();
        let suites = suites || !kernel.is_stock();
        let option = if suites { "--suites " } else { "" };
        Self::new(
            checkout,
            Recipe::of(stock, suites),
            format!("{option}{stock}"),
        )
    }

    /// The root that has older C libraries, and no kernel.
    ///
    /// # Errors
    /// `sha256sum` does not work.
    pub fn debian11(checkout: &Path) -> Result<Self> {
        Self::new(checkout, Recipe::debian11(), DEBIAN11.into())
    }

    fn new(checkout: &Path, recipe: Recipe, called: String) -> Result<Self> {
        let sum = tools::sha256(&recipe.text(checkout), 8)?;
        Ok(Root {
            checkout: checkout.to_owned(),
            dir: checkout.join(format!("target/roots/{}-{sum}", recipe.name)),
            recipe,
            called,
        })
    }

    /// Makes it if it is missing; with `made`, that is an error.
    ///
    /// # Errors
    /// It is missing and cannot be made, or is not to be.
    pub fn ensure(&self, made: bool) -> Result<()> {
        if self.dir.exists() {
            return Ok(());
        }
        ensure!(
            !made,
            "{} is missing: scripts/root {} makes it",
            self.dir.display(),
            self.called
        );
        let name = &self.recipe.name;
        let _lock = tools::lock(&self.checkout.join(format!("target/roots/.{name}.lock")))?;
        // Somebody else may have made it meanwhile.
        if !self.dir.exists() {
            eprintln!("root: making {name} with mmdebstrap, which takes a minute or two");
            self.recipe
                .make(&self.checkout, &self.dir)
                .with_context(|| format!("{name} was not made"))?;
        }
        Ok(())
    }

    /// The release of a kernel in it. A kernel of `scripts/debug-kernel` is built if need be.
    ///
    /// # Errors
    /// It has no such kernel with headers; or it cannot be built.
    pub fn release(&self, kernel: &'static Kernel) -> Result<String> {
        let stock = kernel.stock();
        let release = self.releases(stock)?.pop().filter(|release| {
            let modules = self.dir.join("lib/modules").join(release);
            // The link to the headers may be an absolute one: it leads somewhere in the root
            // only.
            modules.join("modules.dep").exists() && modules.join("build").is_symlink()
        });
        let release = release.with_context(|| {
            let dir = self.dir.display();
            format!("no kernel {stock} with headers in {dir}: delete that directory and try again")
        })?;
        match kernel.is_stock() {
            true => Ok(release),
            false => debug_kernel::ensure(&self.checkout, &self.dir, kernel),
        }
    }

    /// The releases of a kernel that it can boot, the newest last.
    fn releases(&self, kernel: &Kernel) -> Result<Vec<String>> {
        let boot = self.dir.join("boot");
        let mut releases = Vec::new();
        for entry in
            fs::read_dir(&boot).with_context(|| format!("cannot read {}", boot.display()))?
        {
            let name = entry?.file_name();
            let release = name.to_str().and_then(|n| n.strip_prefix("vmlinuz-"));
            releases.extend(release.filter(|r| kernel.has_release(r)).map(str::to_owned));
        }
        releases.sort_by_cached_key(|release| numbers(release));
        Ok(releases)
    }
}

/// What orders releases of a kernel: 9 comes before 10.
fn numbers(release: &str) -> Vec<u64> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("asyncfork-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn kernel(name: &str) -> &'static Kernel {
        kernels::find(name).unwrap()
    }

    /// A root that has these kernels, with headers.
    fn root(kernel: &'static Kernel, releases: &[&str]) -> Root {
        let root = Root::of(&scratch("roots"), kernel, false).unwrap();
        fs::create_dir_all(root.dir.join("boot")).unwrap();
        for release in releases {
            let modules = root.dir.join("lib/modules").join(release);
            fs::create_dir_all(&modules).unwrap();
            fs::write(root.dir.join(format!("boot/vmlinuz-{release}")), "").unwrap();
            fs::write(modules.join("modules.dep"), "").unwrap();
            std::os::unix::fs::symlink("/usr/src/gone", modules.join("build")).unwrap();
        }
        root
    }

    #[test]
    fn a_roots_kernel_is_the_newest_build_of_its_flavour() {
        let stock = kernels::first();
        let name = |n: &str| format!("{}.0-{n}{}", stock.series, stock.flavour);
        let releases = [name("9-"), name("56-"), name("57-cloud-"), name("58-rt-")];
        let root = root(stock, &releases.each_ref().map(|r| &**r));
        assert_eq!(root.release(stock).unwrap(), name("56-"));
        // Without headers no module can be built.
        let build = root.dir.join("lib/modules").join(name("56-")).join("build");
        fs::remove_file(build).unwrap();
        let error = root.release(stock).unwrap_err().to_string();
        assert!(error.contains("delete that directory"), "{error}");
        fs::remove_dir_all(&root.checkout).unwrap();
    }

    #[test]
    fn another_recipe_or_place_is_another_root() {
        let recipe = Recipe::of(kernels::first(), false);
        let name = |recipe: &Recipe, place: &str| {
            Root::new(Path::new(place), recipe.clone(), String::new())
                .unwrap()
                .dir
        };
        let usual = name(&recipe, "/repo");
        assert_eq!(usual, name(&recipe, "/repo"));
        let mut more = recipe.clone();
        more.packages.push("gdb");
        for other in [name(&more, "/repo"), name(&recipe, "/elsewhere")] {
            assert_ne!(usual.file_name(), other.file_name());
        }
        let text = recipe.text(Path::new("/repo"));
        assert!(
            text.contains("\nmake_root() {\n") && text.ends_with("\n}\n"),
            "{text}"
        );
    }

    #[test]
    fn a_kernel_that_is_built_here_has_the_larger_root() {
        let root = |name, suites| Root::of(Path::new("/repo"), kernel(name), suites).unwrap();
        let larger = root("6.12", true);
        for (name, suites) in [("debug", false), ("kcsan", true)] {
            let root = root(name, suites);
            assert_eq!(
                (root.dir, root.called),
                (larger.dir.clone(), larger.called.clone())
            );
        }
        assert_ne!(larger.dir, root("6.12", false).dir);
    }
}
