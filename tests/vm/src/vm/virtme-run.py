#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""virtme-run of virtme-ng, with the virtiofs daemons of who boots the guest.

virtme-ng would start them itself: it gives each three seconds to come up, takes 9p without
a word if one does not, and leaves them to themselves. Here they listen already, where
ASYNCFORK_VIRTIOFS says: a line "DIRECTORY=SOCKET" for each. With 9p there are none.

And with the init that is in ASYNCFORK_TOOLS, if that is set.
"""

import os
import sys

from virtme import architectures, resources
from virtme.commands import run

KNOWN = os.environ.get("ASYNCFORK_VIRTIOFS", "").splitlines()
SOCKETS = [line.split("=") for line in KNOWN]


def start(daemon, directory, *_args, **_kwargs):
    """In the place of VirtioFS.start(). Each daemon serves once."""
    directory = os.path.realpath(directory)
    at = [known for known, _ in SOCKETS].index(directory)
    daemon.sock = SOCKETS.pop(at)[1]
    return True


# Another virtme-ng may have other names.
assert run.VirtioFS.start and run.KERNEL_CMDLINE_MAX
run.VirtioFS.start = start
# What x86 takes, with room to spare. Beyond it, the guest's first script is a file in the
# guest's root, where a virtme-run that is killed leaves it.
run.KERNEL_CMDLINE_MAX = 2000
# The guest's memory is to be shared with the daemons; but it is no memory node that the
# firmware tells of, since with 9p it is none.
architectures.Arch.numa_support = staticmethod(lambda: False)

TOOLS = os.environ.get("ASYNCFORK_TOOLS")
if TOOLS:
    assert resources.find_guest_tools()
    resources.find_guest_tools = lambda: TOOLS

if __name__ == "__main__":
    sys.exit(run.main())
