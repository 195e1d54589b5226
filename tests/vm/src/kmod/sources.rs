// SPDX-License-Identifier: MIT OR Apache-2.0
//! The copy of the module's sources that is built.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{ensure, Result};

/// What was copied the last time: a file of names in the copy.
const LIST: &str = ".sources";

/// Makes the copy `to` the same as `from`. What was deleted in there must not live on in the
/// copy; what did not change keeps its time, by which kbuild goes. The files' names, relative.
///
/// # Errors
/// There are no sources, or files cannot be read or written.
pub fn sync(from: &Path, to: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    find(from, "", &mut names)?;
    names.sort();
    ensure!(!names.is_empty(), "{} has no sources", from.display());
    let before = fs::read_to_string(to.join(LIST)).unwrap_or_default();
    for gone in before.lines() {
        if !names.iter().any(|name| name == gone) {
            match fs::remove_file(to.join(gone)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
    }
    for name in &names {
        let text = fs::read(from.join(name))?;
        let copy = to.join(name);
        if !fs::read(&copy).is_ok_and(|old| old == text) {
            if let Some(dir) = copy.parent() {
                fs::create_dir_all(dir)?;
            }
            fs::write(copy, text)?;
        }
    }
    fs::write(to.join(LIST), names.join("\n") + "\n")?;
    Ok(names)
}

/// Adds the sources below `dir`, whose name is `prefix`.
fn find(dir: &Path, prefix: &str, names: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if entry.file_type()?.is_dir() {
            find(&entry.path(), &format!("{prefix}{name}/"), names)?;
        } else if is_source(&name) {
            names.push(format!("{prefix}{name}"));
        }
    }
    Ok(())
}

/// kbuild writes *.mod.c itself.
fn is_source(name: &str) -> bool {
    let wanted = [".c", ".h", ".S"].iter().any(|end| name.ends_with(end));
    (wanted && !name.ends_with(".mod.c")) || name == "Kbuild"
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    #[test]
    fn the_copy_follows_the_sources_and_keeps_the_times_of_what_is_the_same() {
        let dir = std::env::temp_dir().join(format!("asyncfork-sync-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let (from, to) = (dir.join("from"), dir.join("to"));
        fs::create_dir_all(from.join("compat")).unwrap();
        fs::create_dir_all(&to).unwrap();
        for name in [
            "Kbuild",
            "main.c",
            "tramp.S",
            "compat/hooks.h",
            "a.mod.c",
            "main.o",
        ] {
            fs::write(from.join(name), name).unwrap();
        }
        let names = sync(&from, &to).unwrap();
        assert_eq!(names, ["Kbuild", "compat/hooks.h", "main.c", "tramp.S"]);
        assert!(!to.join("main.o").exists() && !to.join("a.mod.c").exists());

        let old = SystemTime::now() - Duration::from_secs(1000);
        for name in &names {
            let file = fs::File::options()
                .append(true)
                .open(to.join(name))
                .unwrap();
            file.set_modified(old).unwrap();
        }
        fs::write(to.join("main.o"), "built").unwrap();
        fs::write(from.join("main.c"), "changed").unwrap();
        fs::remove_file(from.join("tramp.S")).unwrap();
        let names = sync(&from, &to).unwrap();
        assert_eq!(names, ["Kbuild", "compat/hooks.h", "main.c"]);
        assert_eq!(fs::read_to_string(to.join("main.c")).unwrap(), "changed");
        assert!(!to.join("tramp.S").exists() && to.join("main.o").exists());
        let time = |name: &str| fs::metadata(to.join(name)).unwrap().modified().unwrap();
        assert!(time("main.c") > old + Duration::from_secs(1));
        assert_eq!(time("Kbuild"), old);
        fs::remove_dir_all(&dir).unwrap();
    }
}
