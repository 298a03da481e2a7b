#!/bin/sh
# Run by virtme-ng's init in the guest, whose root is the host's, read-only. Makes a world in which nothing that a test does
# reaches the host, enters it, and runs the command. usage: guest.sh DIRECTORY COMMAND [ARGUMENT...]
set -eu
trap 'echo "guest ended with $?"' EXIT

if [ "$1" != --inside ]; then
	here=$1
	mount -t tmpfs tmpfs /mnt
	cd /mnt
	mkdir host upper work root
	# Mounted once more: virtme-ng's own share of it has no page cache, and with one everything is several times as fast.
	mount -t 9p -o version=9p2000.L,trans=virtio,access=any,msize=524288,cache=loose,ro host host
	modprobe -a overlay loop ext4
	mount -t overlay -o lowerdir=host,upperdir=upper,workdir=work root root
	cd root
	mount -t proc proc proc
	mount -t sysfs sysfs sys
	mount -t cgroup2 cgroup2 sys/fs/cgroup
	mount -t devtmpfs devtmpfs dev
	mkdir -p dev/pts dev/shm
	mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
	for directory in dev/shm run var/tmp var/log var/cache; do mount -t tmpfs -o mode=1777 tmpfs "$directory"; done
	# Volumes and roots are idmapped, which a tmpfs can't be before Linux 6.3.
	truncate -s 512M ../disk
	/sbin/mkfs.ext4 -q -O ^has_journal ../disk
	mount -o loop ../disk tmp
	chmod 1777 tmp
	for directory in "$here" "$(dirname "$(dirname "$2")")"; do
		mkdir -p ".$directory"
		mount --bind "../host$directory" ".$directory"
	done
	mount --make-rprivate /
	# Not chroot: whoever is in one can't make user namespaces.
	pivot_root . mnt
	exec chroot . "$here/tests/vm/guest.sh" --inside "$@"
fi
shift
umount -l /mnt
cd "$1"
shift
export HOME=/root LANG=C.UTF-8 PATH="$(dirname "$1"):/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
export PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis TINYVISOR_MUST_WORK=1 TMPDIR=/tmp
uname -sr
"$@"
