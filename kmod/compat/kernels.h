/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernels: the one list of them. The module loads by it; the scripts and
 * the VM runner, which reads this text (tests/vm/src/kernels.rs), build and boot
 * by it. The first is the one that they take if none is named. Included with
 * another AF_KERNEL each time: no include guard.
 *
 * AF_KERNEL(name, build, major, minor, flavour, suite, root, releases...)
 *
 * name: what --kernel takes; a series, or one and a word: "6.1-cloud". Those
 *	with a word are flavours of the others.
 * build: STOCK, as Debian has it. Or built by scripts/debug-kernel, of the stock
 *	kernel of that series and root: DEBUG (KASAN, lockdep and more), KCSAN.
 * major, minor: the series, which has been audited and which compat.h knows
 * flavour: how the release ends, after a dash. The packages of a stock kernel
 *	are linux-image- and linux-headers- with it.
 * suite: the Debian that it comes from, or the backports of it
 * root: the guest root that has it (scripts/root), named after that Debian
 * releases: on those the module loads, by glob_match(); the whole test suite has
 *	passed on some of them. On others only with allow_untested=1. A stock
 *	kernel without any is on trial: scripts take it where it is named.
 */
AF_KERNEL("6.1", STOCK, 6, 1, "amd64", "bookworm", "debian12",
	  "6.1.0-[0-9][0-9]-amd64")
AF_KERNEL("6.1-cloud", STOCK, 6, 1, "cloud-amd64", "bookworm", "debian12",
	  "6.1.0-[0-9][0-9]-cloud-amd64")
AF_KERNEL("6.12-deb12", STOCK, 6, 12, "amd64", "bookworm", "debian12",
	  "6.12.[0-9]*[0-9]+deb12-amd64",
	  "6.12.[0-9]*[0-9]+deb12[.+][0-9]-amd64")
AF_KERNEL("6.12-deb12-cloud", STOCK, 6, 12, "cloud-amd64", "bookworm", "debian12",
	  "6.12.[0-9]*[0-9]+deb12-cloud-amd64",
	  "6.12.[0-9]*[0-9]+deb12[.+][0-9]-cloud-amd64")
AF_KERNEL("6.12", STOCK, 6, 12, "amd64", "trixie", "debian13",
	  "6.12.[0-9]*[0-9]+deb13-amd64",
	  "6.12.[0-9]*[0-9]+deb13[.+][0-9]-amd64")
AF_KERNEL("6.12-cloud", STOCK, 6, 12, "cloud-amd64", "trixie", "debian13",
	  "6.12.[0-9]*[0-9]+deb13-cloud-amd64",
	  "6.12.[0-9]*[0-9]+deb13[.+][0-9]-cloud-amd64")
AF_KERNEL("7.2", STOCK, 7, 2, "amd64", "trixie-backports", "debian13",
	  "7.2.[0-9]*[0-9]+deb1[34]-amd64",
	  "7.2.[0-9]*[0-9]+deb1[34]+[0-9]-amd64")
AF_KERNEL("7.2-cloud", STOCK, 7, 2, "cloud-amd64", "trixie-backports", "debian13",
	  "7.2.[0-9]*[0-9]+deb1[34]-cloud-amd64",
	  "7.2.[0-9]*[0-9]+deb1[34]+[0-9]-cloud-amd64")
AF_KERNEL("7.3", STOCK, 7, 3, "amd64", "trixie-backports", "debian13",
	  "7.3.[0-9]+deb1[34]-amd64",
	  "7.3.[0-9]+deb1[34]+[0-9]-amd64",
	  "7.3.[0-9]*[0-9]+deb1[34]-amd64",
	  "7.3.[0-9]*[0-9]+deb1[34]+[0-9]-amd64")
AF_KERNEL("7.3-cloud", STOCK, 7, 3, "cloud-amd64", "trixie-backports", "debian13",
	  "7.3.[0-9]+deb1[34]-cloud-amd64",
	  "7.3.[0-9]+deb1[34]+[0-9]-cloud-amd64",
	  "7.3.[0-9]*[0-9]+deb1[34]-cloud-amd64",
	  "7.3.[0-9]*[0-9]+deb1[34]+[0-9]-cloud-amd64")
AF_KERNEL("debug", DEBUG, 6, 12, "asyncfork-debug", "trixie", "debian13")
AF_KERNEL("kcsan", KCSAN, 6, 12, "asyncfork-kcsan", "trixie", "debian13")
