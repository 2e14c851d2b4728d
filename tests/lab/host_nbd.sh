#!/bin/bash
# SPDX-License-Identifier: MIT
#
# host_nbd.sh FOLDER - in a host: the kernel's NBD client at `pagurus disk serve`, with a raw disk and with a qcow2 image, over a Unix socket and over TCP, by several
# connections: a file system is made, filled, trimmed, checked and read again; the disk grows; its server dies. FOLDER has nbd-client and what it needs
# of libraries. Says NBD ok, or where it went wrong.

set -Eeuo pipefail
readonly FOLDER=$1 DEVICE=/dev/nbd0 QUEUE=/sys/block/nbd0/queue CONNECTIONS=4 SOCKET=/run/host-nbd MIB=1048576 PORT=10809
server=0 device_connected=''

end()
{
	umount -q /mnt/nbd || true
	[ -z "$device_connected" ] || client -d $DEVICE >/dev/null || true
	[ "$server" = 0 ] || kill "$server" || true
}
trap 'echo "NBD wrong in line $LINENO: $BASH_COMMAND"; tail -n 20 served.log' ERR
trap end EXIT

client()
{
	LD_LIBRARY_PATH=$FOLDER "$FOLDER/nbd-client" "$@" 2>&1
}

# until_true WHAT COMMAND...
until_true()
{
	local what=$1 tries
	shift

	for ((tries = 0; tries < 3000; tries++)); do
		! "$@" || return 0
		sleep 0.1
	done
	echo "waited in vain for $what"
	return 1
}

# serve OPTIONS... DISK: goes on behind it.
serve()
{
	pagurus disk serve "$@" >served.log 2>&1 &
	server=$!
	until_true "the server to listen" grep -q '^nbd' served.log
}

served()
{
	kill "$server"
	wait "$server"
	server=0
}

has_size()
{
	[ "$(cat /sys/block/nbd0/size)" = $(($1 * MIB / 512)) ]
}

# connect NAME MIB WORDS...: where the server is.
connect()
{
	local name=$1 size=$2
	shift 2

	client "$@" -N "$name" -C $CONNECTIONS -b 4096 $DEVICE >client.log || { cat client.log; return 1; }
	device_connected=yes
	until_true "the size of the device" has_size "$size"
}

disconnect()
{
	client -d $DEVICE >/dev/null
	device_connected=''
	until_true "the device to be empty" has_size 0
}

# Bytes that the server's file takes.
allocated()
{
	echo $(($(stat -c %b "$1") * 512))
}

fill()
{
	mkfs.ext4 -q -E nodiscard $DEVICE
	mount $DEVICE /mnt/nbd
	dd if=/dev/urandom of=/mnt/nbd/data bs=1M count=40 status=none
	dd if=/dev/urandom of=/mnt/nbd/small bs=4k count=256 oflag=dsync status=none
	sync
	(cd /mnt/nbd && sha256sum data small) >sums
}

is_whole()
{
	umount /mnt/nbd
	e2fsck -fn $DEVICE >fsck.log 2>&1 || { cat fsck.log; return 1; }
	echo 3 >/proc/sys/vm/drop_caches
	mount $DEVICE /mnt/nbd
	(cd /mnt/nbd && sha256sum -c --quiet) <sums
}

# work DISK: with the device connected to it.
work()
{
	local before

	[ "$(cat $QUEUE/write_cache)" = 'write back' ]
	[ "$(cat $QUEUE/fua)" = 1 ]
	[ "$(cat $QUEUE/discard_max_bytes)" -gt 0 ]
	fill
	is_whole
	# What is trimmed takes no room any more, and the rest stays.
	before=$(allocated "$1")
	rm /mnt/nbd/data
	sed -i '/ data$/d' sums
	sync
	fstrim /mnt/nbd
	sync
	[ $((before - $(allocated "$1"))) -ge $((38 * MIB)) ]
	is_whole
	umount /mnt/nbd
}

raw()
{
	truncate -s 96M disk.raw
	serve --unix $SOCKET disk.raw
	connect disk.raw 96 -u $SOCKET
	[ "$(ss -xH state established src $SOCKET | wc -l)" = $CONNECTIONS ]
	work disk.raw
	disconnect
	served
	# Without any of it.
	mount -o loop,ro disk.raw /mnt/nbd
	(cd /mnt/nbd && sha256sum -c --quiet) <sums
	umount /mnt/nbd
}

# Where a client sees it: when it connects.
grown()
{
	pagurus disk resize disk.raw +32M
	serve --listen 127.0.0.1:$PORT disk.raw
	connect disk.raw 128 127.0.0.1 $PORT
	[ "$(ss -tnH state established sport = :$PORT | wc -l)" = $CONNECTIONS ]
	e2fsck -fp $DEVICE >/dev/null
	resize2fs $DEVICE >/dev/null 2>&1
	mount $DEVICE /mnt/nbd
	dd if=/dev/urandom of=/mnt/nbd/more bs=1M count=90 status=none
	is_whole
	umount /mnt/nbd
	disconnect
	served
}

# Requests fail, nothing hangs, and a new server has what was flushed.
dies()
{
	local level

	serve --unix $SOCKET disk.raw
	connect disk.raw 128 -u $SOCKET
	mount -o ro,noload $DEVICE /mnt/nbd
	# The kernel's complaints are expected here.
	level=$(cut -f 1 /proc/sys/kernel/printk)
	dmesg -n 1
	kill -9 "$server"
	wait "$server" 2>/dev/null || true
	server=0
	[ "$( (dd if=$DEVICE bs=1M count=128 iflag=direct status=none 2>/dev/null || true) | wc -c)" = 0 ]
	umount /mnt/nbd
	client -d $DEVICE >/dev/null || true
	device_connected=''
	until_true "the device to be empty" has_size 0
	dmesg -n "$level"
	serve --read-only --unix $SOCKET disk.raw
	connect disk.raw 128 -u $SOCKET
	[ "$(cat /sys/block/nbd0/ro)" = 1 ]
	e2fsck -fn $DEVICE >/dev/null 2>&1
	mount -o ro,noload $DEVICE /mnt/nbd
	(cd /mnt/nbd && sha256sum -c --quiet) <sums
	umount /mnt/nbd
	disconnect
	served
}

image()
{
	pagurus disk create disk.qcow2 96M
	serve --unix $SOCKET disk.qcow2
	connect disk.qcow2 96 -u $SOCKET
	work disk.qcow2
	disconnect
	served
	pagurus disk check disk.qcow2
	pagurus disk convert disk.qcow2 flat.raw
	mount -o loop,ro flat.raw /mnt/nbd
	(cd /mnt/nbd && sha256sum -c --quiet) <sums
	umount /mnt/nbd
}

modprobe nbd
mkdir -p /mnt/nbd "$FOLDER/work"
cd "$FOLDER/work"
for part in raw grown dies image; do
	$part
done
rm -r "$FOLDER/work"
echo "NBD ok"
