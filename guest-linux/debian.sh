# SPDX-License-Identifier: MIT
# shellcheck shell=bash
#
# debian.sh - what image builders need from Debian, through the machine's own apt configuration.
# To be sourced. Functions return 1 after a message on standard error.

debian_lib=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# The machine's sources for Debian 12, one line each, for mmdebstrap.
debian_sources()
{
	# shellcheck disable=SC2016 # apt expands these, not the shell
	apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' \
		'Created-By: Packages' |
		awk '$3 ~ /^bookworm(-updates|-security)?$/ && $4 == "main"' | sort -u
}

# The kernel package behind the metapackage $1 ("name" or "name/suite"): name and version.
debian_kernel_package()
{
	local name version

	name=$(apt-cache show --no-all-versions "$1" 2>/dev/null |
		sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p' | head -n 1)
	if [ -n "$name" ]; then
		version=$(apt-cache policy "$name" | sed -n 's/^  Candidate: //p')
	fi
	if [ -z "${version:-}" ] || [ "$version" = '(none)' ]; then
		printf '%s\n' "apt does not know the kernel package $1 on this machine." \
			"What to do: run 'tools/setup lab', which enables what is missing." >&2
		return 1
	fi
	printf '%s %s\n' "$name" "$version"
}

# Downloads package $1 and unpacks it into directory $2, which it makes.
debian_unpack()
{
	local download=$2.download

	mkdir -p "$2" "$download"
	# apt's own user must be able to write here, or apt warns.
	chown _apt "$download" 2>/dev/null || true
	if ! (cd "$download" && apt-get -q download "$1" >apt.log 2>&1); then
		printf '%s\n' "apt-get download $1 failed:" >&2
		tail -n 5 "$download/apt.log" >&2
		printf '%s\n' "What to do: check the network and run 'apt-get update', then again." >&2
		return 1
	fi
	dpkg-deb -x "$download"/*.deb "$2"
	rm -r "$download"
}

# Copies kernel module $3 of release $2 under directory $1, and what it needs, unpacked, to directory
# $4; appends their file names to $4/order in loading order. Built-in modules are none.
debian_modules()
{
	local path name

	modprobe -d "$1" -S "$2" --show-depends "$3" | awk '$1 == "insmod" { print $2 }' |
		while read -r path; do
			name=$(basename "$path" .xz)
			grep -qsxF "$name" "$4/order" && continue
			case $path in
			*.xz)
				xz -dc "$path" >"$4/$name"
				;;
			*)
				cp "$path" "$4/$name"
				;;
			esac
			printf '%s\n' "$name" >>"$4/order"
		done
}

# Unpacks the bzImage $1 to the ELF image $2.
debian_unpack_kernel()
{
	"$debian_lib/unpack-kernel" "$1" "$2"
}
