# PID 1 of a guest with --systemd, in the place of virtme-ng's init: lays memory over the
# read-only root, puts the host's directories where guest.sh looks for them, and becomes
# systemd, which starts that. Before this line are set: transport, what the directories come
# by; checkout, where that belongs; shares, the numbers of the shared directories; command.
set -eu
here=/run/asyncfork
new=$here/new

# From the host: tag, place, options.
host() {
	mkdir -p "$2"
	case $transport in
	9p) mount -t 9p -o "$3,trans=virtio,version=9p2000.L,msize=512000" "$1" "$2" ;;
	virtiofs) mount -t virtiofs -o "${3%,cache=loose}" "$1" "$2" ;;
	esac
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
modprobe overlay
mkdir -p $here/root $here/memory $new
case $transport in
9p) host asyncfork.root $here/root ro,cache=loose ;;
virtiofs) mount --bind / $here/root ;;
esac
mount -t tmpfs -o mode=755 memory $here/memory
mkdir $here/memory/upper $here/memory/work
mount -t overlay -o "lowerdir=$here/root,upperdir=$here/memory/upper,workdir=$here/memory/work" root $new

mount --move /proc $new/proc
mount --move /sys $new/sys
mount -t devtmpfs dev $new/dev
mount -t tmpfs -o mode=755,nosuid,nodev run $new/run
host virtme.initmount0 $new$here/run rw
last=0
for n in $shares; do
	last=$((n + 1))
	host virtme.initmount$last "$new$here/share$n" rw
done
case $transport in
9p) host asyncfork.checkout "$new$checkout" ro,cache=loose ;;
virtiofs) host virtme.initmount$((last + 1)) "$new$checkout" ro ;;
esac
# For who wants to know what has been changed.
mkdir $new$here/lower $new$here/upper
mount --bind $here/root $new$here/lower
mount --bind $here/memory/upper $new$here/upper

# The root's recipe takes it away, so that other guests do without.
ln -s /bin/udevadm $new/usr/lib/systemd/systemd-udevd
# Servers, of which two want one port: who needs one starts it.
rm -f $new/etc/systemd/system/multi-user.target.wants/*.service
cat >$new/etc/systemd/system/asyncfork-guest.service <<END
[Unit]
Description=What this guest is for
[Service]
Type=exec
ExecStart=/bin/sh -c "$command; systemctl poweroff --force --force"
END
mkdir -p $new/etc/systemd/system/multi-user.target.wants
ln -s ../asyncfork-guest.service $new/etc/systemd/system/multi-user.target.wants/

cd $new
mkdir -p mnt
pivot_root . mnt
exec chroot . sh -c 'umount -l /mnt && exec /lib/systemd/systemd --show-status=auto' \
	</dev/console >/dev/console 2>&1
