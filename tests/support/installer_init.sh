#!/bin/busybox sh
# Plays the first steps of the EL8 installer and tells the serial console how far it came.
# It does what dracut and Anaconda do with the command line, the medium and the kickstart, and no more.
export PATH=/bin:/usr/bin:/sbin:/usr/sbin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /run /tmp /run/install/repo /run/stage2 /mnt/sysroot/var/log
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

report() {
    for tty in $(cat /sys/class/tty/console/active); do
        printf 'installer: %s\r\n' "$*" >"/dev/$tty"
    done
}

fail() {
    report "FAILED: $*"
    poweroff -f
    sleep 1000
}

report "kernel is up"
while read -r module; do
    insmod "/modules/$module" 2>/tmp/insmod || report "module $module: $(cat /tmp/insmod)"
done </modules/order

# dracut decodes \xNN in labels; so does this.
argument() {
    for word in $(cat /proc/cmdline); do
        case $word in
            "$1="*) printf '%b' "${word#*=}"; return ;;
        esac
    done
}

find_label() {
    tries=0
    while [ "$tries" -lt 120 ]; do
        for node in /dev/sr? /dev/sd? /dev/sd?? /dev/vd? /dev/vd??; do
            [ -b "$node" ] || continue
            # Anaconda takes any device with this label and an ISO 9660 filesystem, sticks included.
            if blkid "$node" 2>/dev/null | grep -F "LABEL=\"$1\"" | grep -q 'TYPE="iso9660"'; then
                echo "$node"
                return
            fi
        done
        tries=$((tries + 1))
        sleep 1
    done
}

stage2=$(argument inst.stage2)
case $stage2 in
    hd:LABEL=*) label=${stage2#hd:LABEL=} ;;
    *) fail "inst.stage2 is '$stage2', not hd:LABEL=..." ;;
esac
node=$(find_label "$label")
[ -n "$node" ] || fail "no medium has the label '$label'; there are: $(blkid | tr '\n' ';')"
report "medium '$label' is $node"
mkdir -p /dev/disk/by-label
ln -s "../../${node#/dev/}" "/dev/disk/by-label/$label"
mount -t iso9660 -o ro "$node" /run/install/repo || fail "$node cannot be mounted"
mount -t squashfs -o ro,loop /run/install/repo/images/install.img /run/stage2 || fail "the stage 2 cannot be mounted"
[ -f /run/stage2/etc/anaconda.marker ] || fail "the stage 2 is not an installer"
report "stage 2 is mounted"

[ "$(sed -n 3p /run/install/repo/.discinfo)" = x86_64 ] || fail ".discinfo does not name the architecture"
variants=$(sed -n 's/^variants *= *//p' /run/install/repo/.treeinfo | head -n 1 | tr ',' ' ')
[ -n "$variants" ] || fail ".treeinfo names no variant"
for variant in $variants; do
    path=$(awk -v section="[variant-$variant]" '$0 == section {inside = 1; next} /^\[/ {inside = 0}
        inside && /^repository *=/ {sub(/^repository *= */, ""); print}' /run/install/repo/.treeinfo)
    [ -n "$path" ] || fail ".treeinfo gives no repository for $variant"
    data="/run/install/repo/$path/repodata"
    [ -f "$data/repomd.xml" ] || fail "repository $variant has no repodata/repomd.xml"
    for file in $(sed -n 's/.*<location href="repodata\/\([^"]*\)".*/\1/p' "$data/repomd.xml"); do
        [ -f "$data/$file" ] || fail "repository $variant lacks repodata/$file"
    done
    report "repository $variant resolves"
done

if grep -qw rd.live.check /proc/cmdline; then
    report "media check was asked for"
fi

kickstart=$(argument inst.ks)
if [ -z "$kickstart" ]; then
    report "PASSED without a kickstart"
    poweroff -f
    sleep 1000
fi
case $kickstart in
    "hd:LABEL=$label:/"*) file="/run/install/repo/${kickstart#hd:LABEL="$label":/}" ;;
    *) fail "inst.ks is '$kickstart', not on the medium '$label'" ;;
esac
[ -f "$file" ] || fail "the kickstart $kickstart is not on the medium"
report "kickstart: $(head -n 1 "$file")"

# The scripts themselves, as Anaconda runs them: every %pre, then the %post that runs outside of the chroot.
awk '/^%(pre|post)/ {name = "/tmp/script" ++count; kind = $0; inside = 1; print kind > (name ".kind"); next}
    /^%end/ {inside = 0} inside {print > name}' "$file"
for kind in '^%pre' '^%post --nochroot'; do
    for script in /tmp/script?; do
        grep -qe "$kind" "$script.kind" || continue
        bash "$script" >"$script.log" 2>&1 || fail "$(cat "$script.kind"): $(tail -n 5 "$script.log" | tr '\n' ';')"
        report "$(cut -d ' ' -f 1 "$script.kind") script ended well: $(tail -n 1 "$script.log")"
    done
done
if [ -f /tmp/centralino-storage.ks ]; then
    report "storage: $(head -n 1 /tmp/centralino-storage.ks)"
fi
report "PASSED"
poweroff -f
sleep 1000
