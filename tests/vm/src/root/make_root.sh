# Makes a guest root in "$dir": run by recipe.rs, in the checkout, with what describes
# the root in the environment. The text of make_root is part of what the root's name
# is made from: another text, another root.
set -euo pipefail
export -n dir name suite suites
read -ra kernels <<<"$ROOT_KERNELS"
read -ra packages <<<"$ROOT_PACKAGES"
read -ra source_packages <<<"$ROOT_SOURCE_PACKAGES"

die() {
	echo "root: $*" >&2
	exit 1
}

sources() {
	echo "$ROOT_SOURCES_LIST"
}

as_root() {
	if [[ $EUID == 0 ]]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "making a guest root needs root or sudo"
	fi
}

make_root() {
	local new=$dir.new list option options=() kernel series flavour pocket
	command -v mmdebstrap >/dev/null || die "mmdebstrap is missing: run scripts/setup"
	list=$(sources)
	# A proxy, if this machine needs one.
	while read -r option; do
		options+=("--aptopt=$option")
	done < <(apt-config dump | sed -nE '/^Acquire::https?::Proxy/s/;$//p')
	# Of each kernel the newest; linux-base has to come from backports with those there.
	for kernel in "${kernels[@]}"; do
		IFS=/ read -r series flavour pocket <<<"$kernel"
		options+=("--customize-hook=chroot \"\$1\" sh -euc '
			release=\$(apt-cache search --names-only \"^linux-image-${series//./[.]}[.][0-9][0-9.+-]*(deb[0-9.+]+-)?$flavour\\\$\" |
				cut -d\" \" -f1 | sed s/linux-image-// | sort -V | tail -n1)
			[ -n \"\$release\" ] || { echo \"E: $suite has no kernel $series $flavour\" >&2; exit 1; }
			DEBIAN_FRONTEND=noninteractive apt-get install -y ${pocket:+-t $suite-$pocket} \
				\"linux-image-\$release\" \"linux-headers-\$release\" ${suites:+linux-source-$series}'")
	done
	if [[ ${#source_packages[@]} != 0 ]]; then
		# Archives; who needs them unpacks them. A mirror may lack the sources of what it
		# serves: then those suites cannot run, and the rest can.
		options+=("--customize-hook=chroot \"\$1\" sh -euc '
			cd /usr/src
			for package in ${source_packages[*]}; do
				apt-get source -q --download-only \$package ||
					echo \"root: no sources of \$package to be had: its suite will not run\" >&2
			done'")
	fi
	as_root rm -rf --one-file-system "$new"
	# In a mount namespace, so that no /dev or /sys stays mounted there if it is killed.
	# The Release files of a frozen mirror may have expired.
	as_root unshare --mount mmdebstrap --quiet --mode=root --variant=apt --components=main --format=directory \
		--aptopt='Acquire::Check-Valid-Until "false"' --aptopt='APT::Install-Recommends "false"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--customize-hook='echo "127.0.0.1 localhost" >"$1/etc/hosts"' \
		--include="$(IFS=, && echo "${packages[*]}")" "${options[@]}" "$suite" "$new" - <<<"$list" ||
		die "mmdebstrap failed: does the mirror have $suite and its kernels?"$'\n'"$list"
	# virtme-ng's init would start it in every guest. There the nodes in /dev are the kernel's,
	# tests load what modules they need, and in emulation the probing of all devices takes
	# longer than the rest of the boot.
	as_root rm -f "$new/usr/lib/systemd/systemd-udevd"
	# virtme-ng leaves a script in the root directory, modules are built in
	# /build, and the checkout is mounted where it is.
	as_root mkdir -p "$new/build" "$new$PWD"
	as_root chown "$(id -u):$(id -g)" "$new" "$new/build"
	mv "$new" "$dir"
	# Of earlier recipes, not booted today.
	find target/roots -mindepth 1 -maxdepth 1 -name "$name-????????" ! -path "*${dir##*/}" -mtime +0 -print0 |
		as_root xargs -0r rm -rf --one-file-system
}

make_root
