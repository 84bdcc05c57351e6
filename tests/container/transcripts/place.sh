# Makes the current directory /mnt, with user 1000 at home in /mnt/home, and runs the cases in /mnt/cases as that user.
# $1 is our program, under the names that it is called by; without it, the programs of that name that are installed.
set -e
path=/usr/bin:/bin
cp /etc/passwd passwd
sed -i '/:1000:1000:/d' passwd
echo 'user:x:1000:1000::/mnt/home:/bin/sh' >>passwd
mount --bind passwd /etc/passwd
if [ -n "$1" ]; then
    path=/mnt/names:$path
    mkdir -p names
    for name in apptainer singularity sifon run-singularity; do
        touch names/$name
        mount --bind "$1" names/$name
    done
    test -e fuse || mknod fuse c 10 229
    chmod 666 fuse
    mount --bind fuse /dev/fuse
else
    chmod 666 /dev/fuse
fi
mount --rbind . /mnt
mount -t tmpfs -o mode=1777 none /tmp
mount -t tmpfs -o mode=1777 none /var/tmp
cd /mnt/work
exec setpriv --reuid 1000 --regid 1000 --clear-groups env -i HOME=/mnt/home USER=user \
    PATH=$path SIFON_STORE=/mnt/home/store SIFON_LINGER=20 XDG_RUNTIME_DIR=/mnt/home/run sh -c '
        for case in /mnt/cases/*.sh; do
            timeout 60 sh "$case" >"$case.out" 2>"$case.err" </dev/null
            echo $? >"$case.status"
        done
        sifon stop >/dev/null 2>&1
        true'
