#!/bin/sh
# nvidia-modprobe stand-in for hosts with a kernel of their own: loads the module and makes the device nodes of the minor
# numbers behind -c (255: nvidiactl); with -u those of unified memory. Options: nvidia-modprobe(1).
unified= minors=
while [ $# -gt 0 ]; do
    case "$1" in
    -u) unified=yes ;;
    -c) minors="$minors $2"; shift ;;
    esac
    shift
done
node() { [ -c "/dev/$1" ] || mknod -m 0666 "/dev/$1" c "$2" "$3"; }
if [ "$unified" ]; then
    /sbin/modprobe nvidia-uvm || exit 1
    major=$(while read -r number name; do [ "$name" = nvidia-uvm ] && echo "$number"; done </proc/devices)
    node nvidia-uvm "$major" 0 && node nvidia-uvm-tools "$major" 1
else
    /sbin/modprobe nvidia || exit 1
    for minor in $minors; do
        if [ "$minor" = 255 ]; then node nvidiactl 195 255; else node "nvidia$minor" 195 "$minor"; fi
    done
fi
