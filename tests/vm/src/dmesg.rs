// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds the kernel's complaints in its log.

use asyncfork_watch::TEST_MARKER;
use std::collections::HashSet;
use std::fmt;

/// A line with one of these is a complaint. Case matters: "not a bug" and
/// "report a bug" are harmless.
const COMPLAINTS: &[&str] = &[
    // Generic reports. "WARNING:" and "BUG:" also head lockdep's and RCU's.
    "WARNING:",
    "BUG:",
    "kernel BUG at",
    "Oops:",
    "Kernel panic",
    "Internal error:",
    "unable to handle",
    "Unable to handle",
    "general protection fault",
    "stack-protector:",
    // Page tables, RSS, swap: what a mistake of ours shows up as.
    "Bad rss-counter",
    "Bad page",
    ": bad pmd ",
    ": bad pud ",
    ": bad p4d ",
    ": bad pgd ",
    "non-zero pgtables_bytes",
    "Bad swap",
    "Unused swap",
    "page allocation failure",
    // Locks, RCU, scheduling.
    "possible circular locking",
    "possible recursive locking",
    "inconsistent lock state",
    "suspicious RCU",
    "trying to register non-static key",
    "turning off the locking correctness validator",
    "sleeping function called",
    "scheduling while atomic",
    "soft lockup",
    "hard LOCKUP",
    "detected stall",
    "self-detected stall",
    "detected expedited stall",
    // Memory and reference counts.
    "KASAN:",
    "UBSAN:",
    "KCSAN:",
    "KFENCE:",
    "refcount_t:",
    "use-after-free",
    "double free",
    "list_add corruption",
    "list_del corruption",
    "Objects remaining in",
    "Poison overwritten",
    "pagealloc: memory corruption",
    "pagealloc: single bit error",
    "ftrace bug",
    "page dumped because: VM_",
    // Indirect calls that IBT or FineIBT caught.
    "Missing ENDBR",
    "CFI failure at",
];

/// Words that make a complaint only together, in this order.
const COMPLAINT_PAIRS: &[(&str, &str)] = &[
    ("INFO: task ", " for more than "),
    ("asyncfork: ", "switched off"),
];

/// A stack trace is a complaint unless it belongs to a report found already.
const STACK_TRACE: &str = "Call Trace:";

/// Reports that mean no harm: (heading, why). Each excuses one stack trace, its own.
const ALLOWED_REPORTS: &[(&str, &str)] = &[
    (
        " invoked oom-killer: gfp_mask=",
        "tests hit memory limits on purpose; the kernel explains its choice of a victim",
    ),
    (
        "FAULT_INJECTION: forcing a failure",
        "a test has allocations fail, and the kernel says which",
    ),
];

/// A module that is built for fault injection, and that a test has switch itself off. Excuses a stack trace as well.
const SWITCHED_OFF_BY_A_TEST: &str = "asyncfork: a test asked for it (at 0); switched off";

/// The guest's init, which names the program that it could not run. Not all that begins with its name
/// is its own: of an allocation that fails under it the kernel says "virtme-ng-init: page allocation failure".
const INIT_WARNS: &str = "virtme-ng-init: WARNING: failed to run: ";

/// Lines that mean no harm: (the whole line, why).
const ALLOWED_LINES: &[(&str, &str)] = &[
    (
        "rcu: \tRCU callback double-/use-after-free debug is enabled.",
        "a kernel of scripts/debug-kernel says at boot what it looks for",
    ),
    (
        "WARNING: workqueue cpumask: online intersect > possible intersect",
        "tests keep kernel workers off a CPU; 6.1 remarks on it if the nodes are numa=fake",
    ),
    (
        "BUG: KCSAN: data-race in flush_memcg_stats_dwork / tick_do_update_jiffies64",
        "Linux 6.12 reads jiffies_64 there without a mark, module or not",
    ),
    (
        "BUG: KCSAN: data-race in __tmigr_cpu_activate / tmigr_handle_remote_up",
        "Linux 6.12 sets tmigr_cpu.cpuevt.ignore there without a mark, module or not",
    ),
];

/// No report of the kernel is longer than this many lines.
const REPORT_LINES: usize = 80;

/// A complaint of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The line, with its time stamp.
    pub line: String,
    /// The test whose marker precedes the line.
    pub test: Option<String>,
    /// How many lines of this kind the test has caused.
    pub times: usize,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)?;
        if self.times > 1 {
            write!(f, " ({} times)", self.times)?;
        }
        if let Some(test) = &self.test {
            write!(f, " (during {test})")?;
        }
        Ok(())
    }
}

/// The complaints in a kernel log, in order. Lines that differ in numbers only
/// are one finding per test.
pub fn scan(log: &str) -> Vec<Finding> {
    let mut findings: Vec<(String, Finding)> = Vec::new();
    let mut test: Option<&str> = None;
    // Before this line, traces belong to a complaint found already.
    let mut report_end = 0;
    // Before this one, so many belong to allowed reports, of which two CPUs may mix theirs.
    let mut excuse_end = 0;
    let mut excused = 0;

    for (number, raw) in log.lines().enumerate() {
        let line = raw.trim_end();
        let text = message(line);
        if let Some(name) = marked(text) {
            test = Some(name);
            report_end = number;
            excuse_end = number;
        } else if is_allowed(text) {
            continue;
        } else if text.starts_with("---[ end trace") {
            report_end = number;
        } else if text.contains(STACK_TRACE) && number < excuse_end && excused > 0 {
            excused -= 1;
        } else if is_excused(text) {
            if number >= excuse_end {
                excused = 0;
            }
            excused += 1;
            excuse_end = number + REPORT_LINES;
        } else if is_complaint(text) || (text.contains(STACK_TRACE) && number >= report_end) {
            report_end = number + REPORT_LINES;
            let kind = without_numbers(text);
            match findings
                .iter_mut()
                .find(|(k, f)| *k == kind && f.test.as_deref() == test)
            {
                Some((_, finding)) => finding.times += 1,
                None => findings.push((
                    kind,
                    Finding {
                        line: line.to_owned(),
                        test: test.map(str::to_owned),
                        times: 1,
                    },
                )),
            }
        }
    }
    findings.into_iter().map(|(_, finding)| finding).collect()
}

/// The test that was under way when the log ends.
pub fn last_test(log: &str) -> Option<&str> {
    log.lines()
        .rev()
        .find_map(|line| marked(message(line.trim_end())))
}

/// The test whose marker this is. A complaint is none, whatever it begins with.
fn marked(text: &str) -> Option<&str> {
    text.strip_prefix(TEST_MARKER)
        .filter(|_| !is_complaint(text))
}

/// Whether this heads a report that means no harm.
fn is_excused(text: &str) -> bool {
    text == SWITCHED_OFF_BY_A_TEST
        || (ALLOWED_REPORTS.iter().any(|(head, _)| text.contains(head)) && !is_complaint(text))
}

fn is_allowed(text: &str) -> bool {
    text.starts_with(INIT_WARNS) || ALLOWED_LINES.iter().any(|(line, _)| text == *line)
}

/// Whether the line is the kernel's: it has a time stamp.
pub fn is_stamped(line: &str) -> bool {
    message(line) != line
}

/// `dmesg`'s output, then what only the console has: all of it when the guest
/// died, otherwise what was said after `dmesg` ran. Only a line with a time stamp can be
/// told from another one that reads the same.
pub fn merge(dmesg: &str, console: &str) -> String {
    let known: HashSet<&str> = dmesg.lines().map(str::trim_end).collect();
    let mut log = dmesg.to_owned();
    if !log.is_empty() && !log.ends_with('\n') {
        log.push('\n');
    }
    for line in console.lines().map(str::trim_end) {
        if !(is_stamped(line) && known.contains(line)) {
            log.push_str(line);
            log.push('\n');
        }
    }
    log
}

/// What `/proc/lockdep_stats` says against a run: nothing if lockdep is still at it.
pub fn lockdep_off(stats: &str) -> Option<String> {
    let on = stats
        .lines()
        .filter_map(|line| line.trim().strip_prefix("debug_locks:"))
        .any(|value| value.trim() == "1");
    (!on).then(|| "lockdep has switched itself off: what it did not say proves nothing".to_owned())
}

/// The leaks in `/sys/kernel/debug/kmemleak` that are ours: a frame of the
/// allocation is in the module, or in one that is no longer loaded.
pub fn leaks(report: &str) -> Vec<String> {
    const OBJECT: &str = "unreferenced object ";
    let ours = |line: &&str| line.contains("[asyncfork]") || line.trim().starts_with("0xffff");
    if !report.trim().is_empty() && !report.contains(OBJECT) {
        return vec![format!("no leak check: {}", report.trim())];
    }
    report
        .split(OBJECT)
        .skip(1)
        .filter_map(|object| {
            let (head, rest) = object.split_once('\n')?;
            let frame = rest.lines().find(ours)?.trim();
            Some(format!("kmemleak: {OBJECT}{head} {frame}"))
        })
        .collect()
}

fn is_complaint(text: &str) -> bool {
    COMPLAINTS.iter().any(|c| text.contains(c))
        // SLUB: "BUG kmalloc-64 (Tainted: G ...): Redzone overwritten"
        || text.starts_with("BUG ")
        || COMPLAINT_PAIRS.iter().any(|(first, second)| {
            text.split_once(first)
                .is_some_and(|(_, rest)| rest.contains(second))
        })
}

/// The line without `[   12.345678] `.
fn message(line: &str) -> &str {
    line.strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
        .filter(|(stamp, _)| {
            let stamp = stamp.trim_start();
            stamp.contains('.') && stamp.chars().all(|c| c.is_ascii_digit() || c == '.')
        })
        .map_or(line, |(_, text)| text)
}

/// The line with every word that has a digit in it replaced, so that two
/// reports of the same kind compare equal.
fn without_numbers(text: &str) -> String {
    text.split_whitespace()
        .map(|word| {
            if word.contains(|c: char| c.is_ascii_digit()) {
                "#"
            } else {
                word
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The notable lines of a stock 6.1 boot in QEMU, and of loading a module.
    const CLEAN: &str = "\
[    0.000000] rcu: \tRCU callback double-/use-after-free debug is enabled.
[    0.000000] Linux version 6.1.0-56-amd64 (debian-kernel@lists.debian.org) (gcc-12)
[    0.026167] calibrate_delay_direct() failed to get a good estimate for loops_per_jiffy.
[    0.026167] Probably due to long platform interrupts. Consider using \"lpj=\" boot option.
[    1.552996] mtrr: your CPUs had inconsistent fixed MTRR settings
[    1.701399] PCI: Using host bridge windows from ACPI; if necessary, use \"pci=nocrs\" and report a bug
[    2.583224] AMD-Vi: AMD IOMMUv2 functionality not available on this system - This is not a bug.
[    3.412540] Unstable clock detected, switching default tracing clock to \"global\"
[    4.090206] virtme-ng-init: WARNING: failed to run: \"systemd-tmpfiles\" --create
[   20.454977] WARNING: workqueue cpumask: online intersect > possible intersect
[   20.900000] page dumped because: migration failure
[   21.010101] asyncfork: loading out-of-tree module taints kernel.
[   21.010203] asyncfork: module verification failed: signature and/or required key missing - tainting kernel
[   22.000000] asyncfork-test: munmap_of_parked_memory
[   22.500000] a.out[301]: segfault at 7f00 ip 000055 sp 00007f error 4 in a.out[5000+1000]
";

    fn complaint(line: &str) -> Finding {
        let found = scan(&format!("{CLEAN}[   23.0] {line}\n"));
        assert_eq!(found.len(), 1, "{line}: {found:?}");
        found[0].clone()
    }

    #[test]
    fn a_clean_boot_has_no_findings() {
        assert_eq!(scan(CLEAN), []);
    }

    #[test]
    fn every_kind_of_complaint_is_found() {
        for line in [
            "WARNING: CPU: 1 PID: 412 at mm/memory.c:1293 copy_page_range+0x12/0x30",
            "WARNING: mm/memory.c:1293 at copy_page_range+0x12/0x30, CPU#1: redis-server/412",
            "WARNING: possible circular locking dependency detected",
            "WARNING: suspicious RCU usage",
            "WARNING: inconsistent lock state",
            "BUG: kernel NULL pointer dereference, address: 0000000000000008",
            "BUG: unable to handle page fault for address: ffffffffc0a1b2c3",
            "BUG: Bad rss-counter state mm:00000000c1b2a3d4 type:MM_ANONPAGES val:512",
            "BUG: non-zero pgtables_bytes on freeing mm: 4096",
            "BUG: Bad page state in process redis-server  pfn:12345",
            "BUG: Bad page map in process redis-server  pte:80000001 pmd:1234067",
            "BUG: scheduling while atomic: redis-server/312/0x00000002",
            "BUG: sleeping function called from invalid context at mm/page_alloc.c:5151",
            "BUG: KASAN: use-after-free in af_session_put+0x10/0x80",
            "BUG af_session (Tainted: G           OE     ): Objects remaining in af_session on __kmem_cache_shutdown()",
            "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [redis-server:312]",
            "mm/pgtable-generic.c:50: bad pmd ffff8881(000000007a5f8065)",
            "kernel BUG at mm/rmap.c:1234!",
            "Oops: 0002 [#1] PREEMPT SMP NOPTI",
            "Oops: invalid opcode: 0000 [#1] SMP NOPTI",
            "traps: Missing ENDBR: unmap_page_range+0x0/0x10",
            "general protection fault, probably for non-canonical address 0xdead000000000122: 0000 [#1]",
            "INFO: task redis-server:312 blocked for more than 120 seconds.",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "refcount_t: underflow; use-after-free.",
            "list_add corruption. prev->next should be next (ffff), but was dead.",
            "UBSAN: shift-out-of-bounds in kernel/x.c:3:5",
            "get_swap_device: Bad swap file entry 3ffffffffffff",
            "kworker/0:1: page allocation failure: order:0, mode:0x800(GFP_NOWAIT)",
            "asyncfork: unexpected slot (at 7f0000000000); switched off",
            "BUG kmalloc-64 (Tainted: G           OE     ): Poison overwritten",
            "INFO: trying to register non-static key.",
            "turning off the locking correctness validator.",
            "page dumped because: VM_BUG_ON_FOLIO(!folio_test_anon(folio))",
            "pagealloc: memory corruption",
            "Kernel panic - not syncing: Fatal exception",
            "Call Trace:",
        ] {
            assert!(complaint(line).line.ends_with(line));
        }
    }

    #[test]
    fn a_finding_names_the_test_that_ran() {
        let found = complaint("WARNING: fake");
        assert_eq!(found.test.as_deref(), Some("munmap_of_parked_memory"));
        assert_eq!(scan("[ 1.0] WARNING: fake\n")[0].test, None);
    }

    #[test]
    fn one_report_is_one_finding() {
        let log = "\
[   60.000001] ------------[ cut here ]------------
[   60.000002] WARNING: CPU: 0 PID: 300 at kernel/x.c:10 f+0x1/0x2 [asyncfork]
[   60.000003] Modules linked in: asyncfork(OE)
[   60.000004] Call Trace:
[   60.000005]  <TASK>
[   60.000006] ---[ end trace 0000000000000000 ]---
";
        assert_eq!(scan(log).len(), 1);
        // After its end, a trace is news again.
        assert_eq!(scan(&format!("{log}[   61.0] Call Trace:\n")).len(), 2);
    }

    #[test]
    fn a_module_that_switches_itself_off_is_one_finding_with_its_stack() {
        let log = "\
[   60.000001] asyncfork: page table slot of a parked chunk was not empty (at 7f0000000000); switched off
[   60.000002] CPU: 0 PID: 300 Comm: redis-server Tainted: G           OE      6.1.0-56-amd64 #1  Debian 6.1.180-1
[   60.000003] Call Trace:
[   60.000004]  <TASK>
[   60.000005]  dump_stack_lvl+0x44/0x5c
[   60.000006]  af_switch_off.cold+0x1b/0x20 [asyncfork]
";
        let found = scan(log);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].line.ends_with("switched off"));
        // A test's own wish is none, with its stack; a second stack is.
        let asked = log.replace(
            "page table slot of a parked chunk was not empty (at 7f0000000000)",
            "a test asked for it (at 0)",
        );
        assert_eq!(scan(&asked), []);
        assert_eq!(scan(&format!("{asked}[   61.0] Call Trace:\n")).len(), 1);
        // What the module says of its parameter on a healthy machine is none.
        assert_eq!(scan("[ 60.1] asyncfork: loaded, ABI version 3\n"), []);
    }

    #[test]
    fn repeated_complaints_are_counted_per_test() {
        let log = "\
[ 1.0] asyncfork-test: a
[ 1.1] BUG: Bad rss-counter state mm:00000000c1b2a3d4 type:MM_ANONPAGES val:512
[ 1.2] BUG: Bad rss-counter state mm:00000000deadbeef1 type:MM_ANONPAGES val:-3
[ 1.3] BUG: Bad rss-counter state mm:00000000c1b2a3d4 type:MM_SWAPENTS val:512
[ 1.4] asyncfork-test: b
[ 1.5] BUG: Bad rss-counter state mm:00000000c1b2a3d4 type:MM_ANONPAGES val:512
";
        let found: Vec<_> = scan(log)
            .into_iter()
            .map(|f| (f.test.unwrap_or_default(), f.times))
            .collect();
        assert_eq!(found, [("a".into(), 2), ("a".into(), 1), ("b".into(), 1)]);
    }

    #[test]
    fn an_oom_kill_is_allowed_but_not_what_comes_with_it() {
        let oom = "\
[ 1.0] python3 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
[ 1.1] Call Trace:
[ 1.2]  dump_stack_lvl+0x44/0x5c
[ 1.3] Memory cgroup out of memory: Killed process 312 (python3) total-vm:1000kB
";
        assert_eq!(scan(oom), []);
        let found = scan(&format!("{oom}[ 1.4] BUG: Bad page state in process x\n"));
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn an_allowed_report_excuses_one_trace_and_nothing_else() {
        for head in [
            "python3 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0",
            "FAULT_INJECTION: forcing a failure.",
        ] {
            let report = format!("[ 1.0] {head}\n[ 1.1] Call Trace:\n[ 1.2]  <TASK>\n");
            assert_eq!(scan(&report), [], "{head}");
            assert_eq!(scan(&report.repeat(2)), [], "{head}");
            let mixed = format!("[ 1.0] {head}\n{report}[ 1.3] Call Trace:\n");
            assert_eq!(scan(&mixed), [], "{head}");
            let late = format!(
                "[ 1.0] {head}\n{}{report}",
                "[ 1.0] x\n".repeat(REPORT_LINES)
            );
            let found = scan(&format!("{late}[ 1.3] Call Trace:\n"));
            assert_eq!(found.len(), 1, "{head}");
            // Somebody else's, in the midst of it or soon after.
            let found = scan(&format!("{report}[ 1.3] Call Trace:\n"));
            assert_eq!(found.len(), 1, "{head}");
            // Not the next test's, either.
            let found = scan(&format!(
                "[ 1.0] {head}\n[ 1.1] asyncfork-test: b\n[ 1.2] Call Trace:\n"
            ));
            assert_eq!(found.len(), 1, "{head}");
            // The heading hides no complaint on its own line.
            assert_eq!(scan(&format!("[ 1.0] WARNING: {head}\n")).len(), 1);
        }
    }

    #[test]
    fn what_only_begins_like_a_harmless_line_is_a_complaint() {
        for line in [
            "virtme-ng-init: page allocation failure: order:0, mode:0x800(GFP_NOWAIT)",
            "virtme-ng-init: WARNING: mm/memory.c:1293",
            "rcu: \tRCU callback double-/use-after-free debug is enabled. BUG: x",
            "WARNING: workqueue cpumask: online intersect > possible intersect, WARNING: x",
            "BUG: KCSAN: data-race in flush_memcg_stats_dwork / tick_do_update_jiffies64 [asyncfork]",
        ] {
            assert!(complaint(line).line.ends_with(line));
        }
        for (line, _) in ALLOWED_LINES {
            assert_eq!(scan(&format!("[ 1.0] {line}\n")), [], "{line}");
        }
    }

    #[test]
    fn a_complaint_is_no_marker() {
        let line = "asyncfork-test: page allocation failure: order:0, mode:0x800";
        let found = complaint(line);
        assert_eq!(found.test.as_deref(), Some("munmap_of_parked_memory"));
        assert_eq!(last_test(&format!("[ 1.0] {line}\n")), None);
    }

    #[test]
    fn a_data_race_is_a_complaint_unless_it_is_known() {
        let race = "BUG: KCSAN: data-race in flush_memcg_stats_dwork / tick_do_update_jiffies64";
        assert_eq!(scan(&format!("[ 1.0] {race}\n")), []);
        let race = "BUG: KCSAN: data-race in af_sync_range [asyncfork] / tick_do_update_jiffies64";
        assert_eq!(scan(&format!("[ 1.0] {race}\n")).len(), 1);
    }

    #[test]
    fn the_log_goes_on_on_the_console_when_the_guest_dies() {
        let dmesg = "[ 1.0] one\n[ 2.0] two";
        let console =
            "SeaBIOS\r\n[ 1.0] one\r\n[ 2.0] two\r\n[ 3.0] Kernel panic - not syncing\r\n";
        assert_eq!(
            merge(dmesg, console),
            "[ 1.0] one\n[ 2.0] two\nSeaBIOS\n[ 3.0] Kernel panic - not syncing\n"
        );
        assert_eq!(merge("", "[ 1.0] one\r\n"), "[ 1.0] one\n");
    }

    #[test]
    fn only_a_stamped_line_is_known_from_dmesg() {
        let dmesg = "[ 1.0] one\nCall Trace:\n[ 2.0] asyncfork-test: a\n";
        let console = "[ 1.0] one\nCall Trace:\n";
        assert_eq!(merge(dmesg, console), format!("{dmesg}Call Trace:\n"));
    }

    #[test]
    fn the_last_marker_is_the_test_under_way() {
        let log = "[ 1.0] asyncfork-test: a\r\n[ 2.0] asyncfork-test: b\r\n[ 3.0] end\n";
        assert_eq!(last_test(log), Some("b"));
        assert_eq!(last_test(CLEAN), Some("munmap_of_parked_memory"));
        assert_eq!(last_test("[ 3.0] end\n"), None);
    }

    #[test]
    fn lockdep_has_to_be_on_at_the_end() {
        let stats =
            " lock-classes:  1731 [max: 8192]\n debug_locks:                             1\n";
        assert_eq!(lockdep_off(stats), None);
        assert!(lockdep_off(&stats.replace(" 1\n", " 0\n")).is_some());
        assert!(lockdep_off("").is_some());
    }

    #[test]
    fn a_leak_of_the_module_is_found_after_it_is_gone() {
        let object = |frame: &str| {
            format!(
                "unreferenced object 0xffff888012345678 (size 64):
  comm \"insmod\", pid 312, jiffies 4294937296
  hex dump (first 32 bytes):
    00 00 00 00 00 00 00 00 ff ff ff ff ff ff ff ff  ................
  backtrace (crc 0):
    __kmalloc_cache_noprof+0x1c3/0x230
    {frame}
    do_syscall_64+0x5b/0x120
"
            )
        };
        let foreign = object("acpi_init+0x10/0x20");
        let ours = object("af_session_create+0x10/0x20 [asyncfork]");
        let unloaded = object("0xffffffffc0a01234");
        assert!(leaks("").is_empty());
        assert!(leaks(&foreign).is_empty());
        assert_eq!(leaks(&format!("{foreign}{ours}{unloaded}")).len(), 2);
        assert_eq!(leaks("kmemleak is off\n").len(), 1);
    }
}
