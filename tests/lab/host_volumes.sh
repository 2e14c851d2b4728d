#!/bin/bash
# SPDX-License-Identifier: MIT
#
# host_volumes.sh classic|thin - in a host: `pagurus disk` on volumes of a group that is made for it and goes again. Says VOLUMES ok, or where it went
# wrong.

set -Eeuo pipefail
# There is no udev that would make the nodes.
export DM_DISABLE_UDEV=1
readonly MIB=1048576 SIZE=16

trap 'echo "VOLUMES wrong in line $LINENO: $BASH_COMMAND"' ERR

content()
{
	sha256sum <"$1" | cut -d ' ' -f 1
}

# Random bytes all over the disk, around the page cache of the device.
write()
{
	dd if=/dev/urandom of="$1" bs=1M count="${2:-$SIZE}" oflag=direct conv=notrunc status=none
}

is()
{
	echo 3 >/proc/sys/vm/drop_caches
	[ "$(content "$1")" = "$2" ]
}

# refused WORDS COMMAND...
refused()
{
	local words=$1 said
	shift

	if said=$("$@" 2>&1) || [[ $said != *"$words"* ]]; then
		echo "$*: $said"
		return 1
	fi
}

names()
{
	pagurus disk list --json "$1" | sed -n 's/.*"type":"snapshot","name":"\([^"]*\)".*/\1/p' | paste -sd ' '
}

only_zeros()
{
	cmp -n "$2" "$1" /dev/zero
}

# Twice a snapshot, there and back in both orders; nothing else is left in the group.
there_and_back()
{
	local disk=$1 device=/dev/$1 one two three
	shift

	write "$device"
	one=$(content "$device")
	pagurus disk snapshot "$@" "$disk" monday
	refused already pagurus disk snapshot "$disk" monday
	write "$device" 8
	two=$(content "$device")
	pagurus disk snapshot "$@" "$device" tuesday
	write "$device" 3
	three=$(content "$device")
	[ "$one" != "$two" ]
	[ "$two" != "$three" ]
	[ "$(names "$disk")" = "monday tuesday" ]
	[ "$(names "/dev/mapper/${disk/\//-}")" = "monday tuesday" ]
	[ "$(names "$(realpath "$device")")" = "monday tuesday" ]
	is "$device.monday" "$one"
	is "$device.tuesday" "$two"
	exec 7<"$device"
	refused "is in use" pagurus disk revert "$disk" monday
	exec 7<&-
	is "$device" "$three"
	pagurus disk revert "$disk" monday
	is "$device" "$one"
	is "$device.monday" "$one"
	is "$device.tuesday" "$two"
	[ "$(names "$disk")" = "monday tuesday" ]
	pagurus disk revert "$disk" tuesday
	is "$device" "$two"
	is "$device.monday" "$one"
	write "$device" 2
	is "$device.tuesday" "$two"
	[ "$(names "$disk")" = "monday tuesday" ]
	# The snapshot can be read like a disk.
	pagurus disk convert "$device.monday" /root/monday.raw
	is /root/monday.raw "$one"
	rm /root/monday.raw
	pagurus disk delete "$disk" monday
	pagurus disk delete "$disk" "${disk#*/}.tuesday"
	[ -z "$(names "$disk")" ]
	[ "$(lvs --noheadings -o lv_name vols | grep -c -F "${disk#*/}")" = 1 ]
}

# A pagurus that is killed before the n-th renaming.
killed_before()
{
	cat >/root/lvm-killer <<END
#!/bin/bash
[ "\$1" != lvrename ] || echo x >>/root/renamings
[ "\$1" != lvrename ] || [ \$(wc -l </root/renamings) != $1 ] || { kill -9 \$PPID; exit 1; }
exec /usr/sbin/lvm "\$@"
END
	chmod 755 /root/lvm-killer
	rm -f /root/renamings
	if PAGURUS_LVM=/root/lvm-killer pagurus disk revert vols/thin monday; then
		return 1
	fi
}

classic()
{
	echo "- a new volume has nothing of an older one"
	pagurus disk create vols/old ${SIZE}M
	write /dev/vols/old
	lvremove -q -y vols/old
	pagurus disk create vols/web ${SIZE}M
	only_zeros /dev/vols/web $((SIZE * MIB))
	refused "is there already" pagurus disk create /dev/vols/web 8M
	[ "$(pagurus disk info vols/web | sed -n 's/^size *\([0-9]*\).*/\1/p')" = $SIZE ]

	echo "- classic snapshots"
	there_and_back vols/web

	echo "- one that was full"
	pagurus disk snapshot --room 4M vols/web small
	write /dev/vols/web
	pagurus disk list vols/web
	pagurus disk list vols/web | grep -q "void"
	refused "is void" pagurus disk revert vols/web small
	pagurus disk delete vols/web small

	echo "- another size"
	pagurus disk create vols/behind 8M
	write /dev/vols/behind 8
	lvremove -q -y vols/behind
	pagurus disk resize vols/web +8M
	[ "$(blockdev --getsize64 /dev/vols/web)" = $(((SIZE + 8) * MIB)) ]
	dd if=/dev/vols/web bs=1M skip=$SIZE iflag=direct status=none | cmp -n $((8 * MIB)) - /dev/zero
	refused "--shrink" pagurus disk resize vols/web ${SIZE}M
	pagurus disk resize --shrink /dev/vols/web ${SIZE}M
	[ "$(blockdev --getsize64 /dev/vols/web)" = $((SIZE * MIB)) ]

	echo "- a copy onto one"
	truncate -s ${SIZE}M /root/from.raw
	write /root/from.raw
	refused "--overwrite" pagurus disk convert /root/from.raw vols/web
	pagurus disk convert --overwrite /root/from.raw vols/web
	is /dev/vols/web "$(content /root/from.raw)"
	refused "insufficient free space" pagurus disk create vols/huge 4G
}

thin()
{
	echo "- thin snapshots"
	lvcreate -q -y -L 200M --thinpool pool vols
	pagurus disk create --pool pool vols/thin ${SIZE}M
	only_zeros /dev/vols/thin $((SIZE * MIB))
	there_and_back vols/thin

	echo "- killed before each renaming"
	write /dev/vols/thin
	one=$(content /dev/vols/thin)
	pagurus disk snapshot vols/thin monday
	write /dev/vols/thin 5
	two=$(content /dev/vols/thin)
	killed_before 1
	is /dev/vols/thin "$two"
	killed_before 2
	[ ! -e /dev/vols/thin ]
	refused "was stopped" pagurus disk list vols/thin
	pagurus disk revert vols/thin monday
	is /dev/vols/thin "$one"
	[ -z "$(lvs --noheadings -o lv_name vols | sed -n '/+/p')" ]
}

modprobe -a dm-mod dm-snapshot dm-thin-pool
# The programs that check pools are no part of this host.
printf 'global {\n thin_check_executable = ""\n thin_repair_executable = ""\n}\n' >/etc/lvm/lvmlocal.conf
truncate -s 500M /root/volumes.img
loop=$(losetup -f --show /root/volumes.img)
vgcreate -q vols "$loop"

"$1"
vgremove -q -y vols
losetup -d "$loop"
rm -f /root/volumes.img /root/from.raw /root/lvm-killer /root/renamings /etc/lvm/lvmlocal.conf
echo "VOLUMES ok"
