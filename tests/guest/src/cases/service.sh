# What the steps of cases/service.rs begin with. From the environment: server, redis or
# valkey; units, its services, Debian's, the plain one or instances; SHIM, the library;
# COMMAND, the command.
set -eu
unit=${units%% *}
etc=/etc/systemd/system

# What the files of a service are called after.
name_of() {
	case $1 in
	*@*) echo "$server-${1#*@}" ;;
	*) echo "$server" ;;
	esac
}

# Servers of their own, with nothing in them.
set_up() {
	# Only the user of the unit may read what is in these, and who boots the guest may be another.
	for dir in "/etc/$server" "/var/lib/$server" "/var/log/$server"; do
		mount -t tmpfs tmpfs "$dir"
		chown "$server:$server" "$dir"
	done
	for u in $units; do
		name=$(name_of "$u")
		printf '%s\n' 'port 0' "unixsocket /run/$name/socket" "dir /var/lib/$server" \
			"dbfilename $name.rdb" 'enable-debug-command local' 'save ""' >"/etc/$server/$name.conf"
	done
	install "$COMMAND" /usr/bin/asyncfork
	systemctl start $units
}

tear_down() {
	systemctl stop "$server-*" || true
	rm -rf "$etc/$server"-*.service.d /usr/bin/asyncfork /usr/local/lib/libasyncfork.so \
		/etc/udev/rules.d/60-asyncfork.rules
	udevadm control --reload
	! getent group asyncfork >/dev/null || groupdel asyncfork
	systemctl daemon-reload
	systemctl reset-failed "$server-*" || true
	for dir in "/etc/$server" "/var/lib/$server" "/var/log/$server"; do
		umount "$dir"
	done
}

# As docs/operating.md has it, for who goes by the library.
install_library() {
	getent group asyncfork >/dev/null || groupadd --system asyncfork
	cp packaging/60-asyncfork.rules /etc/udev/rules.d/
	udevadm control --reload
	install "$SHIM" /usr/local/lib/
}

cli() {
	service=$1
	shift
	"$server-cli" -s "/run/$(name_of "$service")/socket" "$@"
}

# A restart loads it again from the last snapshot.
populate() {
	for u in $units; do
		cli "$u" debug populate 10000 key 600
	done
}

# All at once.
snapshot() {
	for u in $units; do
		cli "$u" bgsave
	done
	for u in $units; do
		until cli "$u" info persistence | grep -q rdb_bgsave_in_progress:0; do sleep 0.2; done
		cli "$u" info persistence | grep rdb_last_bgsave_status
	done
}

# The command for each.
each() {
	for u in $units; do
		asyncfork "$@" "$u"
	done
}

# Process, who it is, the moment it was started at, and number of the cgroup of each.
running() {
	for pid in $(systemctl show -P MainPID $units); do
		echo "$pid" "$(stat -c %U "/proc/$pid")" "$(cut -d ' ' -f 22 "/proc/$pid/stat")" \
			"$(stat -c %i "/sys/fs/cgroup$(cut -d : -f 3- "/proc/$pid/cgroup")")"
	done
}

# What systemd makes of what the first may do: the lower, the less.
exposure() {
	systemd-analyze security --no-pager "$unit" | sed -n 's/.*Overall exposure level for .*: \([0-9.]*\).*/\1/p'
}

# Where the command has written.
drop_ins() {
	find "$etc" /run/systemd/system -name asyncfork.conf
}

# Another module takes the number that the device would get again.
take_number() {
	modprobe vsock
}

give_number_back() {
	modprobe -r vsock
}
