// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the build demands of the library, and that it does.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// A library that could be ours.
const GOOD: &str = "
    typedef int f(void);
    __attribute__((weak)) extern f dlsym, __libc_fork, getauxval, getenv, __errno_location;
    int fork(void) { return dlsym && __libc_fork && getauxval && getenv && __errno_location; }
    int __fork(void) { return -1; }
    int _Fork(void) { return -1; }
    static int number, *volatile pointer = &number;
    __attribute__((constructor)) static void load(void) { *pointer = 1; }
";
const FLAGS: &[&str] = &[
    "-nostdlib",
    "-fno-plt",
    "-Wl,-z,now,-soname,libasyncfork.so,-Bsymbolic-functions,--hash-style=gnu",
];

fn script(args: &[&Path]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/library");
    Command::new(script).args(args).output().unwrap()
}

fn check(code: &str, flags: &[&str]) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let (source, library) = (dir.path().join("a.c"), dir.path().join("a.so"));
    fs::write(&source, code).unwrap();
    let cc = Command::new("cc")
        .args(["-shared", "-fPIC", "-fno-builtin", "-w", "-o"])
        .args([&library, &source])
        .args(FLAGS)
        .args(flags)
        .output()
        .unwrap();
    assert!(
        cc.status.success(),
        "{}",
        String::from_utf8_lossy(&cc.stderr)
    );
    let checked = script(&["--check".as_ref(), &library]);
    if checked.status.success() {
        return Ok(());
    }
    Err(String::from_utf8(checked.stderr).unwrap())
}

#[test]
fn the_library_passes_its_check() {
    let built = script(&[]);
    assert!(built.status.success(), "{built:?}");
    let library = String::from_utf8(built.stdout).unwrap();
    let library = Path::new(library.trim_end());
    assert!(library.ends_with("release/libasyncfork.so"), "{library:?}");
    let checked = script(&["--check".as_ref(), library]);
    assert!(checked.status.success(), "{checked:?}");
    assert!(!script(&["--check".as_ref(), "/no/such/file".as_ref()])
        .status
        .success());
}

#[test]
fn what_keeps_a_program_from_starting_is_refused() {
    assert_eq!(check(GOOD, &[]), Ok(()));
    let returns = |what: &str| GOOD.replacen("return -1;", what, 1);
    for (code, flags, complaint) in [
        (
            returns("f getpid; return getpid();"),
            &[][..],
            "imports: GLOBAL getpid",
        ),
        (
            returns("f memcpy; return memcpy();"),
            &[],
            "imports: GLOBAL memcpy",
        ),
        (
            returns("f asyncfork_can_panic; return asyncfork_can_panic();"),
            &[],
            "imports: GLOBAL asyncfork_can_panic",
        ),
        (
            GOOD.replace("(weak)) extern f dlsym,", "(weak)) extern f")
                .replace("return dlsym &&", "f dlsym; return dlsym() &&"),
            &[],
            "imports: GLOBAL dlsym",
        ),
        (GOOD.replace("getenv && ", ""), &[], "imports: "),
        (GOOD.to_owned() + "int other;", &[], "exports: "),
        (
            GOOD.replace("int __fork", "static int __fork"),
            &[],
            "exports: ",
        ),
        (
            GOOD.replace("int _Fork(void) { return -1; }", "int _Fork;"),
            &[],
            "exports: ",
        ),
        (
            GOOD.to_owned(),
            &["-Wl,--no-as-needed", "-lc"],
            "dynamic tags: ",
        ),
        (GOOD.to_owned(), &["-Wl,-z,lazy"], "dynamic tags: "),
        (
            GOOD.to_owned(),
            &["-Wl,-z,nodelete"],
            "flags, constructors: ",
        ),
        (
            GOOD.to_owned(),
            &["-Wl,-z,pack-relative-relocs"],
            "dynamic tags: ",
        ),
        (
            GOOD.replace("__attribute__((constructor))", "__attribute__((used))"),
            &[],
            "dynamic tags: ",
        ),
        (GOOD.to_owned(), &["-z", "execstack"], "segments: "),
        (
            format!("static __thread int mine; {GOOD}").replacen("return -1;", "return mine++;", 1),
            &["-ftls-model=initial-exec"],
            "segments: ",
        ),
        (
            GOOD.to_owned() + "__attribute__((used)) static char large[200000] = {1};",
            &[],
            "more than 100000",
        ),
    ] {
        let refused = check(&code, flags);
        let text = refused.as_ref().err().map_or("", String::as_str);
        assert!(
            text.contains(complaint),
            "{complaint}: {refused:?} {flags:?}"
        );
    }
}
