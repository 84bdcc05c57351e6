set -e
here=$PWD
mount --rbind "$ORACLE" "$ORACLE"
cd "$ORACLE"
mkdir -p host .old
mount --rbind "$here" host
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs none dev/shm
pivot_root . .old
umount -l /.old
cd /host
# As a plain user, unless BECOME says otherwise.
exec ${BECOME-setpriv --reuid 1000 --regid 1000 --clear-groups env HOME=/home/user USER=user} "$@"
