#!/bin/bash
# SPDX-License-Identifier: MIT
#
# guest_disks.sh - in a host: makes /dev/vg/xfs, /dev/vg/btrfs, its snapshot /dev/vg/snap, /dev/vg/extra and /root/ext4.img. On each file system
# is the tiny guest's user space as a root; when it starts it writes 24 MB, reads them again from the disk, leaves their sum in /sum, and says "DISK ok".

set -euo pipefail
# There is no udev that would make the nodes.
export DM_DISABLE_UDEV=1
readonly TREE=/root/tree DISK=/mnt/disk

modprobe -a dm-mod dm-snapshot xfs btrfs
truncate -s 1G /root/pv.img
vgcreate -q vg "$(losetup -f --show /root/pv.img)"
for volume in xfs:320 btrfs:200 extra:64; do
	lvcreate -q -y -Wn -Zn -L "${volume#*:}M" -n "${volume%:*}" vg
done
mkfs.xfs -q /dev/vg/xfs
mkfs.btrfs -q /dev/vg/btrfs
truncate -s 200M /root/ext4.img
mkfs.ext4 -q /root/ext4.img

# Each entry of the archive: a head of 110 letters, a name, the content; both padded to 4 bytes.
mkdir -p "$TREE" "$DISK"
python3 - "$TREE" <<'PY'
import gzip, os, stat, sys
data, at = gzip.open("/var/lib/pagurus/guests/tiny.cpio.gz").read(), 0
while True:
    field = [int(data[at + 6 + 8 * i:at + 14 + 8 * i], 16) for i in range(13)]
    name = data[at + 110:at + 110 + field[11] - 1].decode()
    start = (at + 110 + field[11] + 3) & ~3
    content, at = data[start:start + field[6]], (start + field[6] + 3) & ~3
    path = os.path.join(sys.argv[1], name)
    if name == "TRAILER!!!":
        break
    if name.startswith("lib/modules"):
        continue
    if stat.S_ISDIR(field[1]):
        os.makedirs(path, exist_ok=True)
    elif stat.S_ISLNK(field[1]):
        os.symlink(content.decode(), path)
    elif stat.S_ISREG(field[1]):
        with open(path, "wb") as file:
            file.write(content)
        os.chmod(path, field[1] & 0o777)
PY
mkdir -p "$TREE"/{proc,sys,dev,tmp,run,etc}
cat >"$TREE/etc/inittab" <<'TABLE'
::sysinit:/etc/rc
hvc0::respawn:-/bin/sh
::shutdown:/bin/umount -r /
TABLE
cat >"$TREE/etc/rc" <<'RC'
#!/bin/sh
mount -t proc proc /proc
dmesg -n 5
dd if=/dev/urandom of=/data bs=64k count=384 iflag=fullblock 2>/dev/null
sha256sum </data >/sum
sync
echo 3 >/proc/sys/vm/drop_caches
[ "$(sha256sum </data)" = "$(cat /sum)" ] && echo "DISK ok $(sed -n 's#.* / \([a-z0-9]*\) .*#\1#p' /proc/mounts | tail -n 1)" || echo "DISK bad"
RC
chmod 755 "$TREE/etc/rc"
for device in /dev/vg/xfs /dev/vg/btrfs /root/ext4.img; do
	mount "$device" "$DISK"
	cp -a "$TREE/." "$DISK/"
	umount "$DISK"
done
lvcreate -q -y -s -L 100M -n snap vg/btrfs
