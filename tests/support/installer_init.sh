#!/bin/busybox sh
# shellcheck shell=dash disable=SC2013 # busybox; words are what is wanted
# Plays the first steps of the EL8 installer and tells the serial console how far it came.
# It does what dracut and Anaconda do with the command line, the medium and the kickstart, and no more.
export PATH=/bin:/usr/bin:/sbin:/usr/sbin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /run /tmp /run/install/repo /run/stage2 /mnt/sysroot/var/log /mnt/sysroot/var/tmp /mnt/sysroot/boot
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

# A file of the installation source: on the mounted medium, or fetched from the boot server.
source_file() {
    case $source in
        http://*) mkdir -p "$(dirname "/run/source/$1")"; wget -q -O "/run/source/$1" "$source/$1" && echo "/run/source/$1" ;;
        *) [ -f "$source/$1" ] && echo "$source/$1" ;;
    esac
}

configure_network() {
    [ "$(argument ip)" = dhcp ] || fail "the command line asks for no address"
    cat >/bin/lease <<'END'
#!/bin/busybox sh
[ "$1" = bound ] || exit 0
ip address add "$ip/24" dev "$interface"
END
    chmod 0755 /bin/lease
    ip link set lo up
    ip link set eth0 up || fail "there is no network card"
    udhcpc -i eth0 -n -q -t 10 -s /bin/lease || fail "no address by DHCP"
    report "network is up"
}

label=none
stage2=$(argument inst.stage2)
case $stage2 in
    hd:LABEL=*)
        label=${stage2#hd:LABEL=}
        node=$(find_label "$label")
        [ -n "$node" ] || fail "no medium has the label '$label'; there are: $(blkid | tr '\n' ';')"
        report "medium '$label' is $node"
        mkdir -p /dev/disk/by-label
        ln -s "../../${node#/dev/}" "/dev/disk/by-label/$label"
        mount -t iso9660 -o ro "$node" /run/install/repo || fail "$node cannot be mounted"
        source=/run/install/repo
        ;;
    http://*)
        configure_network
        source=$stage2
        [ "$(argument inst.repo)" = "$stage2" ] || fail "inst.repo is not where inst.stage2 is"
        ;;
    *) fail "inst.stage2 is '$stage2'" ;;
esac
runtime=$(source_file images/install.img) || fail "$source has no images/install.img"
mount -t squashfs -o ro,loop "$runtime" /run/stage2 || fail "the stage 2 cannot be mounted"
[ -f /run/stage2/etc/anaconda.marker ] || fail "the stage 2 is not an installer"
report "stage 2 is mounted"

[ "$(sed -n 3p "$(source_file .discinfo)")" = x86_64 ] || fail ".discinfo does not name the architecture"
info=$(source_file .treeinfo)
variants=$(sed -n 's/^variants *= *//p' "$info" | head -n 1 | tr ',' ' ')
[ -n "$variants" ] || fail ".treeinfo names no variant"
for variant in $variants; do
    path=$(awk -v section="[variant-$variant]" '$0 == section {inside = 1; next} /^\[/ {inside = 0}
        inside && /^repository *=/ {sub(/^repository *= */, ""); print}' "$info")
    [ -n "$path" ] || fail ".treeinfo gives no repository for $variant"
    index=$(source_file "$path/repodata/repomd.xml") || fail "repository $variant has no repodata/repomd.xml"
    for file in $(sed -n 's/.*<location href="repodata\/\([^"]*\)".*/\1/p' "$index"); do
        source_file "$path/repodata/$file" >/dev/null || fail "repository $variant lacks repodata/$file"
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
    http://*) file=/tmp/ks.cfg; wget -q -O "$file" "$kickstart" || fail "$kickstart cannot be fetched" ;;
    *) fail "inst.ks is '$kickstart', not on the medium '$label'" ;;
esac
[ -f "$file" ] || fail "the kickstart $kickstart is not there"
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
