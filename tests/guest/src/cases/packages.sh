# What the steps of cases/packages.rs begin with. From the environment: DEBS, what
# scripts/package has made; FAULTS, the module with fault injection.
set -euo pipefail
unit=redis-server
release=$(uname -r)
old=/run/asyncfork-test
export DEBIAN_FRONTEND=noninteractive

# README's lines are for people.
sudo() {
	"$@"
}

scripts/package() {
	printf '%s\n' "$DEBS"/asyncfork_*.deb "$DEBS/asyncfork-modules-$release"_*.deb
}

# Says nothing unless something is wrong, a package half done among it.
apt() {
	local said
	said=$(apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 "$@" 2>&1) || { echo "$said" && return 1; }
	said=$(dpkg --audit) && [[ -z $said ]] || { echo "half done: $said" && return 1; }
}

# A server that the packages find there, 80 MiB large.
set_up() {
	# All that is depended on is there, and apt would parse what else the Debian has.
	mount -t tmpfs tmpfs /var/lib/apt/lists
	mkdir /var/lib/apt/lists/partial
	# depmod would read thousands of modules.
	mkdir -p $old
	cp -p /lib/modules/$release/modules.* $old/
	mount -t tmpfs tmpfs /lib/modules/$release/kernel
	depmod
	for dir in /etc/redis /var/lib/redis /var/log/redis; do
		mount -t tmpfs tmpfs $dir
		chown redis:redis $dir
	done
	printf '%s\n' 'unixsocket /run/redis/socket' 'dir /var/lib/redis' 'enable-debug-command local' \
		'save ""' >/etc/redis/redis.conf
	systemctl start $unit
	populate
}

tear_down() {
	systemctl stop $unit || true
	dpkg --purge asyncfork "asyncfork-modules-$release" || true
	umount /var/lib/apt/lists /lib/modules/$release/kernel
	cp -p $old/modules.* /lib/modules/$release/
	rm -rf $old /etc/modprobe.d/test.conf /etc/systemd/system/$unit.service.d
	systemctl daemon-reload
	for dir in /etc/redis /var/lib/redis /var/log/redis; do
		umount $dir
	done
}

populate() {
	until redis-cli ping 2>/dev/null | grep -q PONG; do sleep 0.2; done
	redis-cli debug populate 20 key 4194304
}

main_pid() {
	systemctl show -P MainPID $unit
}

# Its child stands still until end_snapshot, with most of the file to write.
begin_snapshot() {
	redis-cli config set rdb-key-save-delay 100000
	redis-cli bgsave
	until child=$(pgrep -P "$(main_pid)"); do sleep 0.05; done
	kill -STOP "$child"
}

end_snapshot() {
	redis-cli info persistence | grep rdb_bgsave_in_progress:1
	kill -CONT "$child"
	snapshot_ends
	redis-cli config set rdb-key-save-delay 0
}

snapshot() {
	redis-cli bgsave
	snapshot_ends
}

snapshot_ends() {
	until redis-cli info persistence | grep -q rdb_bgsave_in_progress:0; do sleep 0.2; done
	redis-cli info persistence | grep rdb_last_bgsave_status:ok
}

# The steps happen to one and the same process, while a snapshot is under way.
meanwhile() {
	local before
	before=$(main_pid)
	begin_snapshot
	"$@"
	[[ $before == "$(main_pid)" ]]
	end_snapshot
}

# In $old: packages of a release before, whose module is the one with fault injection.
make_old() {
	local deb name
	for deb in $(scripts/package); do
		name=$(dpkg-deb -f "$deb" Package)
		dpkg-deb -R "$deb" "$old/$name"
		sed -i 's/^Version: .*/Version: 0.0.9/' "$old/$name/DEBIAN/control"
		[[ $name == asyncfork ]] || cp "$FAULTS" "$old/$name/usr/lib/modules/$release/extra/"
		dpkg-deb --root-owner-group -Znone -b "$old/$name" "$old/$name.deb"
		rm -rf "${old:?}/$name"
	done
}

# What the module that is loaded is, and that of the next load.
loaded() {
	cat /sys/module/asyncfork/srcversion
}

next() {
	modinfo -F srcversion asyncfork
}
