# Starts a server as systemd does on Debian, with the drop-in of packaging/: in a
# container whose root is the guest's, overlaid, and whose init is systemd. PID 1 of
# new PID and mount namespaces. What is said of it goes to $OUT.
#
# From the environment: ROOT the guest's root, DROPIN, SHIM, SERVER (redis or valkey),
# OUT an empty directory in a tmpfs.
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
install -m 755 "$SHIM" usr/local/lib/libasyncfork.so
chroot . groupadd --system asyncfork
chgrp "$(chroot . getent group asyncfork | cut -d: -f3)" dev/asyncfork
chmod 0660 dev/asyncfork
mkdir "$dropins"
cp "$DROPIN" "$dropins/asyncfork.conf"
# So that a small server will do.
printf '[Service]\nEnvironment=ASYNCFORK_LOG=info ASYNCFORK_MIN_RSS=1M\n' >"$dropins/test.conf"

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
TimeoutStartSec=120
ExecStart=/bin/sh -e /run/out/snapshot.sh
ExecStopPost=/bin/journalctl --no-pager -o cat -u $service
ExecStopPost=/bin/systemctl --no-block exit
StandardOutput=append:/run/out/result
StandardError=inherit
END
cat >"$OUT/snapshot.sh" <<END
cli="$SERVER-cli -s /run/$SERVER/socket"
\$cli debug populate 40000 key 600
\$cli bgsave
until \$cli info persistence | grep rdb_bgsave_in_progress:0; do sleep 0.2; done
\$cli info persistence | grep rdb_last_bgsave_status
END

mkdir mnt/old
pivot_root . mnt/old
umount -l /mnt/old
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	/lib/systemd/systemd --unit=asyncfork-test.service --log-target=console </dev/null
