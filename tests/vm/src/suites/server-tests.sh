# Runs in a guest root (scripts/in-root): unpacks Debian's sources of a server in
# /build/SERVER-tests and builds its test modules. The servers are Debian's.
# Argument: redis or valkey.
cd /build
rm -rf --one-file-system "$1-tests"
dpkg-source --no-check --no-copy -x /usr/src/"$1"_*.dsc "$1-tests"
make -C "$1-tests/tests/modules" -j2
: >"$1-tests/.made"
