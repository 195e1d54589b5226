# Starts a server as systemd does on Debian: in a container whose root is the guest's,
# overlaid, and whose init is systemd. PID 1 of new PID and mount namespaces. Then runs
# $OUT/steps.sh; what that says goes to $OUT/result, and then the server's journal.
#
# From the environment: ROOT the guest's root, SERVER (redis or valkey), OUT a directory
# in a tmpfs; for the library SHIM, and DROPIN, the drop-in of packaging/; for the
# command COMMAND.
set -eu
service=$SERVER-server
units=etc/systemd/system
dropins=$units/$service.service.d

mkdir "$OUT/upper" "$OUT/work" "$OUT/new"
mount -t overlay -o "lowerdir=$ROOT,upperdir=$OUT/upper,workdir=$OUT/work" overlay "$OUT/new"
cd "$OUT/new"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mkdir run/out
mount --bind "$OUT" run/out

# As docs/operating.md has it. The rule is udev's to follow, and there is none here.
if [ -n "${DROPIN-}" ]; then
	install -m 755 "$SHIM" usr/local/lib/libasyncfork.so
	chroot . groupadd --system asyncfork
	chgrp "$(chroot . getent group asyncfork | cut -d: -f3)" dev/asyncfork
	chmod 0660 dev/asyncfork
	mkdir "$dropins"
	cp "$DROPIN" "$dropins/asyncfork.conf"
	# So that a small server will do.
	printf '[Service]\nEnvironment=ASYNCFORK_LOG=info ASYNCFORK_MIN_RSS=1M\n' >"$dropins/test.conf"
fi
if [ -n "${COMMAND-}" ]; then
	install -m 755 "$COMMAND" usr/bin/asyncfork
fi

# Only the user of the unit may read what is in these.
for dir in "etc/$SERVER" "var/lib/$SERVER" "var/log/$SERVER"; do
	mount -t tmpfs tmpfs "$dir"
	chroot . chown "$SERVER:$SERVER" "/$dir"
done
printf '%s\n' 'port 0' "unixsocket /run/$SERVER/socket" "dir /var/lib/$SERVER" \
	'enable-debug-command local' 'save ""' >"etc/$SERVER/$SERVER.conf"

cat >"$units/asyncfork-test.service" <<END
[Unit]
Wants=$service.service
After=$service.service
[Service]
Type=oneshot
TimeoutStartSec=300
Environment=unit=$service server=$SERVER
ExecStart=/bin/sh -e /run/out/run.sh
ExecStopPost=/bin/journalctl --no-pager -o cat -u $service
ExecStopPost=/bin/systemctl --no-block exit
StandardOutput=append:/run/out/result
StandardError=inherit
END
cat >"$OUT/run.sh" <<'END'
cli() {
	"$server-cli" -s "/run/$server/socket" "$@"
}
populate() {
	cli debug populate 40000 key 600
}
snapshot() {
	cli bgsave
	until cli info persistence | grep -q rdb_bgsave_in_progress:0; do sleep 0.2; done
	cli info persistence | grep rdb_last_bgsave_status
}
# The server's process, and the moment it was started at.
process() {
	pid=$(systemctl show -P MainPID "$unit")
	echo "$pid since $(cut -d ' ' -f 22 "/proc/$pid/stat")"
}
. /run/out/steps.sh
echo end of steps
END

mkdir mnt/old
pivot_root . mnt/old
umount -l /mnt/old
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	/lib/systemd/systemd --unit=asyncfork-test.service --log-target=console </dev/null
