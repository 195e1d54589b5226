// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which VM tests may be skipped where. Any other skip is a failure: a test that never runs
//! has shown nothing, whatever its reason.

use anyhow::{ensure, Result};

use crate::kernels::Kernel;
use crate::verdict::{TestResult, Verdict};

/// Where a test is skipped by right.
#[derive(Debug, Clone, Copy)]
enum Where {
    /// In guests that KVM runs: those of this host may have no virtual machines inside.
    Kvm,
    /// On kernels before this one, which lack what it is about.
    Before(u8, u8),
    /// On kernels since this one, which do it otherwise.
    Since(u8, u8),
    /// In guests with one memory node.
    OneNode,
    /// In guests without memory that can be taken offline.
    NothingMovable,
    /// In guests of this Debian.
    Debian(&'static str),
    /// On this kernel, which is configured without it.
    Kernel(&'static str),
}

use Where::*;

const ALLOWED: &[(Where, &[&str])] = &[
    (Kvm, &["process_with_a_virtual_machine_uses_a_stock_fork"]),
    (
        Before(6, 4),
        // Faults take no lock of the mapping alone there.
        &["gib_first_touched_while_fork_is_on_its_way_to_it_is_pulled_too"],
    ),
    (
        Before(6, 5),
        &["page_pinned_while_the_fork_copies_the_rest_is_found_in_the_child"],
    ),
    (
        Before(6, 8),
        &[
            "folios_of_64_kib_reach_both_sides_and_count_their_mappings",
            "huge_page_moved_into_a_parked_slot_waits_for_the_slots_table",
            "uffd_move_of_parked_memory_is_refused_as_after_a_stock_fork",
            "uffd_moves_racing_forks_lose_nothing",
        ],
    ),
    (
        Before(6, 13),
        &[
            "guard_pages_beside_a_copying_child_disturb_nobody",
            "guard_pages_on_parked_memory_fault_and_leave_the_child_its_image",
            "guard_pages_removed_from_parked_memory_are_zero_and_stay_in_the_child",
        ],
    ),
    (
        Before(6, 14),
        &["page_tables_emptied_by_madv_dontneed_while_parked_are_freed"],
    ),
    (
        Before(7, 3),
        &[
            "memory_registered_with_uffd_rwp_before_the_fork_is_copied_at_once",
            "uffd_rwp_fork_events_give_the_child_a_protection_of_its_own",
            "uffd_rwp_ioctls_from_before_the_fork_find_what_is_parked",
            "uffd_rwp_ioctls_racing_forks_disturb_nobody",
            "uffd_rwp_mode_switches_on_a_parked_process_lose_nothing",
            "uffd_rwp_protection_of_parked_memory_holds",
        ],
    ),
    (
        Since(6, 18),
        &["parent_meets_a_copy_whose_child_is_throttled_inside_it"],
    ),
    (
        OneNode,
        &[
            "migrate_pages_of_a_parked_process_loses_nothing",
            "move_pages_between_nodes_while_forking_loses_nothing",
        ],
    ),
    (
        NothingMovable,
        &["memory_offlined_while_forking_loses_nothing"],
    ),
    (
        Debian("debian12"),
        &[
            "valkey_forks_async_from_enable_by_cgroup_until_disable",
            "valkey_forks_async_from_enable_by_preload_until_disable",
        ],
    ),
    (
        // No CONFIG_MEMORY_FAILURE.
        Kernel("6.1-cloud"),
        &[
            "fork_between_a_memory_failures_first_look_and_its_unmapping_is_stock",
            "page_reported_bad_while_parked_is_gone_from_both_sides",
            "page_taken_out_of_use_while_parked_is_moved",
        ],
    ),
];

/// A guest in which tests are skipped or not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guest<'a> {
    pub(super) kernel: &'a Kernel,
    /// Words of the kernel's command line.
    pub(super) words: &'a str,
    /// Memory nodes.
    pub(super) nodes: u32,
    pub(super) emulated: bool,
    /// Tests that its module was not built for.
    pub(super) without: &'a [String],
}

impl Guest<'_> {
    /// Makes failures of the skips that are none by right.
    pub(super) fn judge_skips(&self, results: &mut [TestResult]) {
        for result in results {
            if result.verdict == Verdict::Skip && !self.lets_skip(&result.name) {
                result.verdict = Verdict::Failed;
                result.detail = format!(
                    "skipped, but tests/vm/src/gate/skips.rs does not expect that on {}: {}",
                    self.kernel, result.detail
                );
            }
        }
    }

    fn lets_skip(&self, test: &str) -> bool {
        let mut allowed = ALLOWED.iter();
        self.without.iter().any(|name| name == test)
            || allowed.any(|(place, tests)| self.is(*place) && tests.contains(&test))
    }

    fn is(&self, place: Where) -> bool {
        match place {
            Kvm => !self.emulated,
            Before(major, minor) => self.kernel.version() < (major, minor),
            Since(major, minor) => self.kernel.version() >= (major, minor),
            OneNode => self.nodes == 1,
            NothingMovable => !self.words.contains("movablecore="),
            Debian(root) => self.kernel.root == root,
            Kernel(name) => self.kernel.name == name,
        }
    }
}

/// Refuses names that no test has any more.
pub(super) fn check(tests: &[String]) -> Result<()> {
    for name in ALLOWED.iter().flat_map(|(_, tests)| *tests) {
        ensure!(
            tests.iter().any(|test| test == name),
            "tests/vm/src/gate/skips.rs: there is no test {name}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;
    use crate::verdict::parse_results;

    fn verdicts(kernel: &str, nodes: u32, results: &str) -> Vec<Verdict> {
        let guest = Guest {
            kernel: kernels::find(kernel).unwrap(),
            words: "",
            nodes,
            emulated: true,
            without: &["failed_allocations_lose_nothing".to_owned()],
        };
        let mut results = parse_results(results);
        guest.judge_skips(&mut results);
        results.iter().map(|result| result.verdict).collect()
    }

    #[test]
    fn a_test_is_skipped_only_where_it_may_be() {
        use Verdict::{Failed, Ok, Skip};
        const RESULTS: &str = "ok\tmunmap\t\nskip\tmremap\tno time\n\
            skip\tuffd_moves_racing_forks_lose_nothing\tnot here\n\
            skip\tmigrate_pages_of_a_parked_process_loses_nothing\tone node\n\
            skip\tfailed_allocations_lose_nothing\tanother module\n";
        for (kernel, nodes, want) in [
            ("6.1", 2, [Ok, Failed, Skip, Failed, Skip]),
            ("6.1", 1, [Ok, Failed, Skip, Skip, Skip]),
            ("6.1-cloud", 2, [Ok, Failed, Skip, Failed, Skip]),
            ("6.12", 1, [Ok, Failed, Failed, Skip, Skip]),
        ] {
            assert_eq!(verdicts(kernel, nodes, RESULTS), want, "{kernel} {nodes}");
        }
    }

    #[test]
    fn a_failure_says_why_the_test_was_skipped() {
        let mut results = parse_results("skip\tmremap\tno time\n");
        let guest = Guest {
            kernel: kernels::first(),
            words: "",
            nodes: 2,
            emulated: false,
            without: &[],
        };
        guest.judge_skips(&mut results);
        let detail = &results[0].detail;
        assert!(
            detail.ends_with("on 6.1: no time") && detail.contains("skips.rs"),
            "{detail}"
        );
    }

    #[test]
    fn a_name_that_is_no_tests_is_refused() {
        let names = ALLOWED.iter().flat_map(|(_, tests)| *tests);
        let mut names: Vec<String> = names.map(|&name| name.to_owned()).collect();
        assert!(check(&names).is_ok());
        names.retain(|name| name != ALLOWED[0].1[0]);
        let error = check(&names).unwrap_err().to_string();
        assert!(error.ends_with(ALLOWED[0].1[0]), "{error}");
    }
}
