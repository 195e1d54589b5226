# What the steps of cases/service.rs begin with. From the environment: server, redis or
# valkey, whose unit is Debian's; SHIM, the library; COMMAND, the command.
set -eu
unit=$server-server
units=/etc/systemd/system

# A server of its own, with little in it.
set_up() {
	# Only the user of the unit may read what is in these, and who boots the guest may be another.
	for dir in "/etc/$server" "/var/lib/$server" "/var/log/$server"; do
		mount -t tmpfs tmpfs "$dir"
		chown "$server:$server" "$dir"
	done
	printf '%s\n' 'port 0' "unixsocket /run/$server/socket" "dir /var/lib/$server" \
		'enable-debug-command local' 'save ""' >"/etc/$server/$server.conf"
	install "$COMMAND" /usr/bin/asyncfork
	systemctl start "$unit"
}

tear_down() {
	systemctl stop "$unit" || true
	rm -rf "$units/$unit.service.d" /usr/bin/asyncfork /usr/local/lib/libasyncfork.so
	systemctl daemon-reload
	systemctl reset-failed "$unit" || true
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
	"$server-cli" -s "/run/$server/socket" "$@"
}

populate() {
	until cli ping 2>/dev/null | grep -q PONG; do sleep 0.2; done
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
