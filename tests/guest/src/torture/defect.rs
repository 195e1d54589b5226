// SPDX-License-Identifier: MIT OR Apache-2.0
//! A defect of stock kernels that would be taken for one of the module.

use crate::cgroup::Cgroup;
use crate::mem::{Arena, Shape};
use crate::rng::Rng;
use crate::sys;
use crate::verdict::TestResult;

/// Whether MADV_FREE in a child can discard its parent's pages, without any help of ours. It can where a page was swapped
/// in from a synchronous device such as zram by a load, which leaves it clean with no copy in swap: madvise_free_pte_range()
/// marks such a page as discardable without looking who else has it mapped. Seen on 6.1 and 6.12, not on 7.2.
pub fn free_in_a_child_frees_for_the_parent() -> TestResult<bool> {
    let group = Cgroup::top()?.child("defect")?;
    // SAFETY: the process is single-threaded; the child ends here.
    let pid = sys::cvt(unsafe { libc::fork() })?;
    if pid == 0 {
        let lost = probe(&group);
        sys::exit_now(match lost {
            Ok(lost) => i32::from(lost),
            Err(_) => 2,
        });
    }
    let exit = sys::wait(pid)?;
    group.remove()?;
    match exit {
        sys::Exit::Code(lost @ 0..=1) => Ok(lost == 1),
        other => Err(crate::verdict::Verdict::Broken(format!(
            "the probe for a defect of the kernel ended with {other:?}"
        ))),
    }
}

fn probe(group: &Cgroup) -> TestResult<bool> {
    group.enter()?;
    crate::mem::probe::install()?;
    let arena = Arena::shaped(&mut Rng::new(0, "defect"), Shape::Whole(2))?;
    for _ in 0..5 {
        arena.span().advise(libc::MADV_PAGEOUT)?;
    }
    // Swaps all of it in.
    arena.verify()?;
    // SAFETY: as above.
    let pid = sys::cvt(unsafe { libc::fork() })?;
    if pid == 0 {
        let freed = arena.span().advise(libc::MADV_FREE);
        for _ in 0..8 {
            // So much is not to be had.
            let _ = group.set("memory.reclaim", "64M");
        }
        sys::exit_now(i32::from(freed.is_err()));
    }
    sys::wait(pid)?;
    Ok(arena.verify().is_err())
}
