# Runs in a guest root (scripts/in-root): builds the kernel's selftests of mm/ in
# /build/kselftests-VERSION, of the sources only what they are made from. Arguments:
# VERSION and programs; without programs, all. Standard input: the sources of Debian's
# package. Some programs want headers that the package lacks, so make goes on, but
# those named last have to be there.
version=$1 && shift
rm -rf --one-file-system "/build/kselftests-$version"
mkdir "/build/kselftests-$version"
cd "/build/kselftests-$version"
tree=linux-source-$version
tar -xJ --strip-components=1 "$tree/Makefile" "$tree/arch/x86" \
	"$tree/include" "$tree/scripts" "$tree/usr/include" "$tree/mm/gup_test.h" \
	"$tree/tools/arch" "$tree/tools/include" "$tree/tools/scripts" "$tree/tools/testing/selftests"
make ARCH=x86 headers
cd tools/testing/selftests
cd mm 2>/dev/null || cd vm
targets=
for program; do targets="$targets $PWD/$program"; done
# In some versions khugepaged.c forgets an include.
make -k -j2 ARCH=x86_64 EXTRA_CFLAGS=-DKSFT_SKIP=4 $targets || true
[ $# -gt 0 ] || set mremap_test khugepaged madv_populate
for program; do
	[ -x $program ] || { echo "suites: $program was not built" >&2; exit 1; }
done
: >"/build/kselftests-$version/.made"
