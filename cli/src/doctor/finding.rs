// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `doctor` can find. The ids are stable: other programs look for them.

use serde::Serialize;

use crate::out::plain;

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Forks are stock forks, or snapshots fail.
    Error,
    /// They may be, or something is not as it should.
    Warning,
    /// Good to know; does not count as a finding in the exit code.
    Note,
}

impl Severity {
    /// As in JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// A kind of finding.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Stable name.
    pub id: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What it means, in one line.
    pub meaning: &'static str,
}

/// One finding.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// Of this kind.
    #[serde(flatten, serialize_with = "kind")]
    pub kind: &'static Kind,
    /// What was seen.
    pub evidence: String,
    /// The line that mends it.
    pub fix: String,
}

fn kind<S: serde::Serializer>(kind: &&'static Kind, serializer: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeMap as _;
    let mut map = serializer.serialize_map(Some(2))?;
    map.serialize_entry("id", kind.id)?;
    map.serialize_entry("severity", kind.severity.label())?;
    map.end()
}

/// Something that could not be found out.
#[derive(Debug, Serialize)]
pub struct Unknown {
    /// What.
    pub what: String,
    /// Why not.
    pub why: String,
}

/// All that was found.
#[derive(Debug, Default, Serialize)]
pub struct Findings {
    /// What is not as it should be.
    pub findings: Vec<Finding>,
    /// What could not be found out.
    pub unknown: Vec<Unknown>,
}

impl Findings {
    /// Adds one, once for each kind and evidence.
    pub fn add(
        &mut self,
        kind: &'static Kind,
        evidence: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let evidence = plain(&evidence.into());
        if self
            .findings
            .iter()
            .any(|f| f.kind == kind && f.evidence == evidence)
        {
            return;
        }
        self.findings.push(Finding {
            kind,
            evidence,
            fix: plain(&fix.into()),
        });
    }

    /// Says that something is not known.
    pub fn unknown(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.unknown.push(Unknown {
            what: plain(&what.into()),
            why: plain(&why.into()),
        });
    }

    /// Whether something counts.
    pub fn count(&self) -> usize {
        self.findings
            .iter()
            .filter(|f| f.kind.severity != Severity::Note)
            .count()
    }

    /// Whether there is one of that kind.
    pub fn has(&self, kind: &Kind) -> bool {
        self.findings.iter().any(|f| f.kind == kind)
    }
}

macro_rules! kinds {
    ($($name:ident $severity:ident $id:literal $meaning:literal)*) => {
        $(
            #[doc = $meaning]
            pub static $name: Kind = Kind { id: $id, severity: Severity::$severity, meaning: $meaning };
        )*
        /// All kinds.
        pub static ALL: &[&Kind] = &[$(&$name,)*];
    };
}

kinds! {
    KERNEL_UNSUPPORTED Error "kernel.unsupported"
        "The module has not been tested on the running kernel, and refuses it."
    KERNEL_WITHOUT_MODULE Note "kernel.without-module"
        "A kernel that is installed and does not run has no module: booted, it has stock forks."
    KERNEL_PANIC_ON_WARN Warning "kernel.panic-on-warn"
        "With panic_on_warn a module before ABI 3 takes the machine down if it has to switch itself off."
    MODULE_MISSING Error "module.missing"
        "There is no module for the running kernel."
    MODULE_NOT_LOADED Error "module.not-loaded"
        "The module is installed and not loaded."
    MODULE_OLD Warning "module.old"
        "The module is older than the package: the package's own was not built."
    MODULE_UNSIGNED Error "module.unsigned"
        "This machine loads only modules that are signed by a key it trusts, and the module is not."
    MODULE_OFF Error "module.off"
        "Switched off: the parameter enabled is N."
    MODULE_SWITCHED_OFF Error "module.switched-off"
        "The module met a state of the kernel that it does not expect, and has switched itself off."
    MODULE_ABI Error "module.abi"
        "The module speaks an ABI that this command does not."
    MODULE_HOOKS Error "module.hooks"
        "The self-test failed: a hook does not fire (only with --selftest)."
    MODULE_POLICY Warning "module.policy"
        "Cgroups are enrolled, and the parameter policy says that this is without effect."
    MODULE_LIMIT Warning "module.limit"
        "Forks were stock because max_sessions ran at the same time."
    MODULE_KILLED Warning "module.killed"
        "Children were killed because there was no memory for their page tables: snapshots failed."
    DEVICE_MISSING Error "device.missing"
        "The module is loaded and its device is not there."
    DEVICE_STALE Error "device.stale"
        "A device node has a number that is not the module's any more: the module was loaded anew."
    DEVICE_HIDDEN Error "device.hidden"
        "The process has the library and does not see the device."
    DEVICE_DENIED Error "device.denied"
        "The process has the library and may not open the device."
    LIBRARY_INCOMPATIBLE Error "library.incompatible"
        "The library cannot be used in this program: static, for another machine, or of another C library."
    LIBRARY_NOT_MAPPED Error "library.not-mapped"
        "LD_PRELOAD names the library and the process does not have it."
    LIBRARY_DELETED Warning "library.deleted"
        "The process has a library that has been replaced or removed since it was started."
    LIBRARY_EVERYWHERE Warning "library.everywhere"
        "/etc/ld.so.preload puts the library into every program of the machine."
    PROCESS_NOT_SERVED Error "process.not-served"
        "The process has no library, its cgroup is not enrolled, and no policy covers it."
    PROCESS_SMALL Note "process.small"
        "The process is smaller than the size from which on forks are asynchronous."
    PROCESS_PINNED Error "process.pinned"
        "The process has pinned memory: each of its forks is a stock fork."
    PROCESS_NOTIFIER Error "process.notifier"
        "The process has memory of KVM or a device: each of its forks is a stock fork."
    PROCESS_UFFD Warning "process.userfaultfd"
        "The process has a userfaultfd: memory that is registered there is not parked, from Linux 6.8 on none."
    PROCESS_ONE_CPU Warning "process.one-cpu"
        "The process may run on one CPU only, and shares it with its child until all is copied."
    PROCESS_LAST_STOCK Warning "process.last-stock"
        "Its last fork was to be asynchronous and was a stock fork."
    SETTINGS_INVALID Warning "settings.invalid"
        "A setting of the library in its environment is wrong; the default holds."
    SETTINGS_OFF Error "settings.off"
        "ASYNCFORK=off, or ASYNCFORK_MATCH leaves this program out."
    SETTINGS_REQUIRE Warning "settings.require"
        "ASYNCFORK=require: whenever forks cannot be asynchronous, every BGSAVE fails, and Redis stops writes by default."
    UNIT_NOT_ENABLED Error "unit.not-enabled"
        "The service has no drop-in of asyncfork."
    UNIT_NOT_RUNNING Note "unit.not-running"
        "The service does not run: there is no process to look at."
    UNIT_RELOAD Warning "unit.reload"
        "systemd has not read the service's files since they were changed."
    UNIT_RESTART Warning "unit.restart"
        "The service was started before its drop-in was written."
    UNIT_DEVICE Warning "unit.device"
        "The service was started before the module's device was made, and its filter of devices may not know that one."
    CGROUP_V1 Note "cgroup.v1"
        "There is no cgroup v2: no cgroup can be enrolled."
    MEMORY_LIMIT Warning "memory.limit"
        "The cgroup's memory limit leaves no room for the child's page tables: the child would be killed."
    MEMORY_OVERCOMMIT Warning "memory.overcommit"
        "vm.overcommit_memory lets fork() of this process, or of any large one, fail."
    MEMORY_THP Warning "memory.thp"
        "Transparent huge pages are always on: each write after a fork copies 2 MiB."
    NEXT_UNSUPPORTED Error "next.unsupported"
        "The module has not been tested on the kernel that boots next."
    NEXT_MISSING Error "next.missing"
        "There is no module for the kernel that boots next."
    NEXT_HEADERS Error "next.headers"
        "The headers of the kernel that boots next are not installed: DKMS cannot build the module."
    NEXT_UNSIGNED Error "next.unsigned"
        "This machine loads only modules that are signed by a key it trusts, and that for the kernel that boots next is not."
    NEXT_NOT_LOADED Warning "next.not-loaded"
        "Nothing loads the module at boot."
    NEXT_OFF Warning "next.off"
        "The module will be switched off when it is loaded."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_plain() {
        for (i, kind) in ALL.iter().enumerate() {
            let (area, name) = kind.id.split_once('.').unwrap();
            assert!([area, name].iter().all(|s| !s.is_empty()
                && s.chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')));
            assert!(kind.meaning.ends_with('.'), "{}", kind.id);
            assert!(
                ALL[..i].iter().all(|other| other.id != kind.id),
                "{}",
                kind.id
            );
        }
    }
}
