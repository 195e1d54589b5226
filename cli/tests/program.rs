// SPDX-License-Identifier: MIT OR Apache-2.0
//! The program as it is run: exit codes, what goes where, and what it does to files.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_asyncfork"));
    command
        .env_remove("ASYNCFORK_DEVICE")
        .env_remove("LD_PRELOAD");
    command
}

fn run(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Its exit code, and one line on standard error at most.
fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

/// A machine of files.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, text: &str) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// Written by a shell: a descriptor of ours could be in another test's child, and
    /// a program that is open for writing cannot be run.
    fn script(&self, path: &str, body: &str) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut shell = Command::new("sh")
            .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        shell
            .stdin
            .take()
            .unwrap()
            .write_all(body.as_bytes())
            .unwrap();
        assert!(shell.wait().unwrap().success());
        self
    }

    fn run(&self, args: &[&str]) -> Output {
        program()
            .arg("--sysroot")
            .arg(self.0.path())
            .args(args)
            .output()
            .unwrap()
    }
}

#[test]
fn usage_errors_are_2_and_those_of_run_125() {
    for args in [
        &["nothing"][..],
        &["enable"],
        &["doctor", "--pid", "x"],
        &["--wrong", "status"],
        &[],
    ] {
        assert_eq!(code(&run(args)), 2, "{args:?}");
    }
    for args in [
        &["run"][..],
        &["run", "--wrong", "x"],
        &["--json", "run"],
        &["run", "--min-rss", "64X", "true"],
    ] {
        assert_eq!(code(&run(args)), 125, "{args:?}");
    }
    for args in [&["--help"][..], &["--version"], &["run", "--help"]] {
        let output = run(args);
        assert_eq!(code(&output), 0);
        assert!(!output.stdout.is_empty() && output.stderr.is_empty());
    }
}

#[test]
fn wrong_usage_is_one_line_and_json_too() {
    let output = run(&["doctor", "--json", "--pid", "x"]);
    assert_eq!(code(&output), 2);
    assert_eq!(text(&output.stderr).lines().count(), 1);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["command"], "doctor");
    assert_eq!(said["error"]["exit"], 2);
}

#[test]
fn without_threads_to_spare_it_works_all_the_same() {
    let limited = format!(
        "ulimit -u 1; exec setpriv --reuid=65534 --clear-groups {} bench --sizes 32M --forks 1",
        "\"$0\""
    );
    let directory = tempfile::tempdir().unwrap();
    // Where nobody may run it.
    let copy = directory.path().join("asyncfork");
    fs::copy(env!("CARGO_BIN_EXE_asyncfork"), &copy).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(directory.path(), open).unwrap();
    let output = Command::new("bash")
        .args(["-c", &limited])
        .arg(&copy)
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn run_passes_the_status_of_the_program_on() {
    assert_eq!(code(&run(&["run", "--", "sh", "-c", "exit 7"])), 7);
    assert_eq!(code(&run(&["run", "/no/such/program"])), 127);
    assert_eq!(code(&run(&["run", "no-such-program-anywhere"])), 127);
    assert_eq!(code(&run(&["run", "/etc/passwd"])), 126);
    assert_eq!(code(&run(&["run", "/"])), 126);
    let killed = run(&["run", "--", "sh", "-c", "kill -TERM $$"]);
    assert_eq!(killed.status.signal(), Some(15));
}

#[test]
fn run_without_a_library_says_so_and_runs_the_program_all_the_same() {
    let output = run(&[
        "run",
        "--library",
        "/none.so",
        "--",
        "sh",
        "-c",
        "echo \"[$LD_PRELOAD]\"",
    ]);
    assert_eq!(code(&output), 0);
    assert_eq!(text(&output.stdout), "[]\n");
    let said = text(&output.stderr);
    assert!(
        said.starts_with("asyncfork: warn: running sh without asyncfork: the library /none.so"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn run_keeps_what_was_preloaded_and_sets_what_options_say() {
    // Any library will do: the C library's own, which is there already.
    let library = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6"];
    let Some(library) = library.into_iter().find(|path| Path::new(path).exists()) else {
        eprintln!("skipped: no libm.so.6 here");
        return;
    };
    let output = program()
        .args([
            "run",
            "--library",
            library,
            "--min-rss",
            "1M",
            "--threads",
            "3",
            "--log",
            "debug",
            "--require",
            "--",
        ])
        .args([
            "sh",
            "-c",
            "echo $LD_PRELOAD $ASYNCFORK $ASYNCFORK_MIN_RSS $ASYNCFORK_THREADS $ASYNCFORK_LOG",
        ])
        .env("LD_PRELOAD", library)
        .output()
        .unwrap();
    assert_eq!(
        text(&output.stdout),
        format!("{library}:{library} require 1048576 3 debug\n")
    );
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = program().arg("man").stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = program().arg("man").stdout(full).output().unwrap();
    assert_eq!(code(&output), 4);
    assert!(!output.stderr.is_empty());
}

#[test]
fn there_is_no_colour_in_a_file() {
    let output = run(&["doctor"]);
    assert!(!output.stdout.contains(&0x1b));
}

#[test]
fn errors_are_json_too() {
    let root = Root::new();
    let output = root.run(&["--json", "explain"]);
    assert_eq!(code(&output), 3);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["schema"], 1);
    assert_eq!(said["command"], "explain");
    assert_eq!(said["error"]["exit"], 3);
    assert!(said["error"]["message"]
        .as_str()
        .unwrap()
        .contains("modprobe asyncfork"));
    assert_eq!(text(&output.stderr).lines().count(), 1);
}

#[test]
fn another_device_is_no_module() {
    let root = Root::new();
    root.write("sys/module/asyncfork/parameters/enabled", "Y\n");
    for (device, words) in [
        ("/dev/null", "not the asyncfork device"),
        ("/dev/zero", "not the asyncfork device"),
        ("/etc/passwd", "not a character device"),
        ("/", "cannot be opened"),
        ("/none", "cannot be opened"),
        ("", ""),
    ] {
        let output = run(&["--device", device, "explain"]);
        assert_eq!(
            code(&output),
            if device.is_empty() { 2 } else { 3 },
            "{device} {output:?}"
        );
        let said = text(&output.stderr);
        // Without a module, that is what is said of a device that is not there.
        assert!(
            said.contains(words) || said.contains("modprobe"),
            "{device}: {said}"
        );
    }
}

#[test]
fn verbose_says_what_is_read() {
    let root = Root::new();
    let output = root.run(&["--verbose", "status"]);
    assert!(
        text(&output.stderr).contains("asyncfork: debug: reading /sys/module/asyncfork/"),
        "{output:?}"
    );
}

#[test]
fn a_switch_persists_and_other_lines_stay() {
    let root = Root::new();
    root.write(
        "etc/modprobe.d/asyncfork.conf",
        "# mine\noptions asyncfork max_sessions=9\n",
    );
    let off = root.run(&["--json", "off", "--persist"]);
    let said: Value = serde_json::from_slice(&off.stdout).unwrap();
    assert_eq!(said["changed"], true);
    let file = root.path("etc/modprobe.d/asyncfork.conf");
    let now = fs::read_to_string(&file).unwrap();
    assert_eq!(
        now,
        "# mine\noptions asyncfork max_sessions=9\noptions asyncfork enabled=0\n"
    );
    // There is no module to switch on; what is to hold for the next load is written.
    let on = root.run(&["on", "--persist"]);
    assert_eq!(code(&on), 3);
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        "# mine\noptions asyncfork max_sessions=9\n"
    );
}

/// systemctl for one unit that runs.
const SYSTEMCTL: &str = r#"#!/bin/sh
root=$(dirname "$(dirname "$(dirname "$0")")")
echo "$@" >> "$root/calls"
case $1 in
show)
    echo Id=redis-server.service
    echo LoadState=loaded
    echo ActiveState=inactive
    file=/etc/systemd/system/redis-server.service.d/asyncfork.conf
    [ ! -e "$root$file" ] || echo "DropInPaths=$file"
    ;;
cat) printf '# /lib/systemd/system/redis-server.service\n[Service]\nExecStart=/x\n' ;;
esac
"#;

#[test]
fn a_unit_is_enabled_and_disabled_through_systemctl() {
    let root = Root::new();
    root.script("usr/bin/systemctl", SYSTEMCTL);
    root.script("usr/bin/asyncfork", "");
    root.write("sys/fs/cgroup/cgroup.controllers", "");
    let drop_in = root.path("etc/systemd/system/redis-server.service.d/asyncfork.conf");
    for (args, changed) in [
        (
            &["enable", "redis-server", "--dry-run"][..],
            "would change: true",
        ),
        (
            &["enable", "redis-server", "--min-rss", "1G"],
            "changed: true",
        ),
        (
            &["enable", "redis-server", "--min-rss", "1G"],
            "changed: false",
        ),
        (&["disable", "redis-server"], "changed: true"),
        (&["disable", "redis-server"], "changed: false"),
    ] {
        let output = root.run(args);
        assert_eq!(code(&output), 0, "{output:?}");
        assert!(
            text(&output.stdout).starts_with(changed),
            "{args:?} {output:?}"
        );
        if args[0] == "enable" && !args.contains(&"--dry-run") {
            let text = fs::read_to_string(&drop_in).unwrap();
            assert!(
                text.contains(
                    "ExecStartPre=-+/usr/bin/asyncfork enroll --self --min-rss 1073741824\n"
                ),
                "{text}"
            );
        } else {
            assert!(!drop_in.exists());
        }
    }
    let calls = fs::read_to_string(root.path("calls")).unwrap();
    assert_eq!(calls.matches("daemon-reload").count(), 2, "{calls}");
    assert!(!calls.contains("restart"), "{calls}");
}

#[test]
fn wrong_input_changes_nothing() {
    let root = Root::new();
    root.script("usr/bin/systemctl", "#!/bin/sh\necho LoadState=not-found\n");
    for args in [
        &["enable", "../../etc/passwd"][..],
        &["enable", "none"],
        &["enable", "none", "--via", "magic"],
        &["enable", "none", "--min-rss", "-1"],
        &["enable", ""],
        &["disable", "none"],
        &["enroll", "--pid", "999999999"],
        &["enroll", "--unit", "none"],
        &["enroll", "--self", "--min-rss", "1e9"],
        &["unenroll", "--id", "-1"],
        &["metrics", "--textfile", "/none/x.prom"],
        &["metrics", "--textfile", "/x.txt"],
        &["man", "--directory", "/none"],
        &["man", "nothing"],
        &["doctor", "--pid", "999999999"],
        &["explain", "0"],
        &["bench", "--sizes", "999T"],
    ] {
        let output = root.run(args);
        assert_eq!(code(&output), 2, "{args:?} {output:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        let said = text(&output.stderr);
        assert!(
            said.starts_with("asyncfork: ") && said.lines().count() == 1,
            "{args:?} {said}"
        );
    }
    let names: Vec<_> = fs::read_dir(root.path(""))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["usr"]);
}

#[test]
fn fork_is_measured_in_a_process_of_its_own() {
    let output = run(&["--json", "bench", "--sizes", "32M", "--forks", "2"]);
    let said: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let size = &said["sizes"][0];
    let stock = size["stock_ns"].as_array().unwrap();
    assert_eq!(stock.len(), 2);
    assert!(stock.iter().all(|ns| ns.as_u64().unwrap() > 1000), "{said}");
    assert_eq!(
        code(&output),
        i32::from(size["async_ns"].is_null()),
        "{said}"
    );
}

#[test]
fn a_process_is_looked_at_without_a_module() {
    let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
    let output = run(&["--json", "doctor", "--pid", &sleeper.id().to_string()]);
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    let said: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    assert_eq!(said["pid"], sleeper.id());
    assert!(said["pause"]["tables"].as_u64().unwrap() > 0, "{said}");
}

#[test]
fn a_zombie_has_no_memory() {
    let mut zombie = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
    // Ended, and not waited for.
    zombie
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut Vec::new())
        .unwrap();
    let pid = zombie.id().to_string();
    while !fs::read_to_string(format!("/proc/{pid}/status"))
        .unwrap()
        .contains("zombie")
    {
        std::thread::yield_now();
    }
    let output = run(&["doctor", "--pid", &pid]);
    zombie.wait().unwrap();
    assert_eq!(code(&output), 2, "{output:?}");
}

#[test]
fn man_pages_and_completions_are_well_formed() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(&["man", "--directory", directory.path().to_str().unwrap()]);
    assert_eq!(code(&output), 0, "{output:?}");
    assert!(directory.path().join("asyncfork-run.1").exists());
    let script = run(&["completions", "bash"]);
    let path = directory.path().join("asyncfork.bash");
    fs::write(&path, &script.stdout).unwrap();
    let checked = Command::new("bash").arg("-n").arg(&path).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
}
