#!/bin/sh
# Runs in the guest as root: the command in ./command, its output and exit
# status and the kernel's log go to this script's directory, which the host
# shares. Arguments: what the directories come by, or "systemd" after init.sh; seconds the
# command may take; the checkout, which it is run in; and where the shared directories
# belong that the host calls ../share0 and so on.
run=${0%/*}
transport=$1
limit=$2
checkout=$3
shift 3

own_root() {
	for dir in etc usr; do
		mount --bind "/run/asyncfork/root/$dir" "/$dir" || return
	done
}
case $transport in
9p)
	# With the page cache, which the mounts that virtme-ng made do without: a read
	# from one of those pins the reader's memory.
	cached() {
		mkdir -p "$2" && mount -t 9p -o "ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose" "$1" "$2"
	}
	cached asyncfork.root /run/asyncfork/root && cached asyncfork.checkout "$checkout" && own_root
	;;
virtiofs)
	# All with the page cache already, the checkout in its place. The root is below overlays.
	mkdir -p /run/asyncfork/root && mount --bind / /run/asyncfork/root && own_root
	;;
systemd) ;;
esac || exit
cd "$checkout" || exit
n=0
for dir; do
	mkdir -p "$dir" && mount --bind "${run%/*}/share$n" "$dir" || exit
	n=$((n + 1))
done
# Without udev there is nobody else to do it.
if [ -e "$run/disk" ]; then modprobe virtio_blk; fi

# On a kernel of scripts/debug-kernel. No scans while the command runs, they take long.
leaks=''
if grep -qw kmemleak=on /proc/cmdline; then
	leaks=/sys/kernel/debug/kmemleak
	mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
	echo scan=off >$leaks
fi

if grep -qw la57 /proc/cpuinfo; then echo on; else echo off; fi >"$run/la57"
: >"$run/started"

seconds() { cut -d. -f1 /proc/uptime; }
begin=$(seconds)
timeout -k 10 "$limit" sh "$run/command" \
	</dev/null >"$run/stdout" 2>"$run/stderr"
status=$?
end=exited
if [ $(($(seconds) - begin)) -ge "$limit" ]; then
	case $status in 124 | 137) end=timeout ;; esac
fi

# Lockdep that has switched itself off, perhaps for want of room, has proved nothing.
if [ -e /proc/lockdep_stats ]; then cp /proc/lockdep_stats "$run/lockdep"; fi
if [ -n "$leaks" ] && [ $end = exited ]; then
	# Twice: what a CPU or a grace period still held the first time is no leak.
	if sleep 6 && echo scan >$leaks && sleep 6 && echo scan >$leaks; then
		cat $leaks
	else
		echo "kmemleak is off"
	fi >"$run/kmemleak"
fi
dmesg >"$run/dmesg"
cat /proc/sys/kernel/tainted >"$run/tainted"
if [ $end = timeout ]; then
	# Where everybody hangs. Below the console's log level, so no complaint.
	echo w >/proc/sysrq-trigger
	dmesg >"$run/dmesg-blocked"
fi
# The host waits for this name: it appears when all the rest is complete.
echo "$end $status" >"$run/status.new"
mv "$run/status.new" "$run/status"
