# Finds the disks to install on and writes the storage commands for Anaconda to $storage_file.
storage_file="$root/tmp/centralino-storage.ks"

# attribute DISK NAME: one value out of sysfs, empty if there is none.
attribute() {
    cat "$root/sys/block/$1/$2" 2>/dev/null || true
}

bytes_of() {
    local sectors
    sectors=$(attribute "$1" size)
    echo $((${sectors:-0} * 512))
}

gigabytes() {
    echo $(($1 / 1000000000))
}

# The disk that a device node or a partition belongs to, empty if it belongs to none.
parent_disk() {
    local node name disk
    node=$(readlink -f "$root/$1" 2>/dev/null || true)
    name=${node##*/}
    for disk in "$root"/sys/block/*; do
        if [ "${disk##*/}" = "$name" ] || [ -d "$disk/$name" ]; then
            echo "${disk##*/}"
            return
        fi
    done
}

# Disks that carry this installer: the mounted source and whatever has our label.
medium_disks() {
    local source
    source=$(findmnt --noheadings --output SOURCE "$root/run/install/repo" 2>/dev/null || true)
    source=${source#"$root"}
    [ -z "$source" ] || parent_disk "$source"
    [ ! -e "$root/dev/disk/by-label/$medium_label" ] || parent_disk "/dev/disk/by-label/$medium_label"
}

# Why a block device is no place to install on; empty if it is one.
unsuitable() {
    local disk=$1 holder uuid
    case $disk in
        loop* | ram* | zram* | sr* | fd* | dm-* | md* | nbd*) echo "not a disk"; return ;;
    esac
    case " $carriers " in
        *" $disk "*) echo "carries this installer"; return ;;
    esac
    [ "$(attribute "$disk" removable)" != 1 ] || { echo "removable"; return; }
    [ "$(attribute "$disk" ro)" != 1 ] || { echo "read-only"; return; }
    [ "$(bytes_of "$disk")" -gt 0 ] || { echo "no medium"; return; }
    for holder in "$root/sys/block/$disk"/holders/*; do
        uuid=$(cat "$holder/dm/uuid" 2>/dev/null || true)
        case $uuid in
            mpath-* | DMRAID-*) echo "part of a multipath or firmware RAID device"; return ;;
        esac
        case $(cat "$holder/md/metadata_version" 2>/dev/null || true) in
            external:*) echo "part of a firmware RAID device"; return ;;
        esac
    done
}

# A disk is in use when it has partitions or any signature that blkid knows.
in_use() {
    local part
    for part in "$root/sys/block/$1/$1"*; do
        [ ! -d "$part" ] || return 0
    done
    blkid -p "$root/dev/$1" >/dev/null 2>&1
}

# A machine that starts from a medium first would install itself again and again, and erase what it became.
refuse_second_time() {
    local node place="$root/tmp/centralino-look" found=""
    case " $(cat "$root/proc/cmdline" 2>/dev/null || true) " in
        *" centralino.reinstall "*) return ;;
    esac
    mkdir -p "$place"
    for node in "$root"/sys/block/*/*/partition "$root"/sys/block/md*/md; do
        [ -e "$node" ] || continue
        node=${node%/*}
        # Not every partition can be mounted; the one with our marker can.
        mount -o ro "$root/dev/${node##*/}" "$place" 2>/dev/null || continue
        found=$(cat "$place/centralino-medium" 2>/dev/null || true)
        umount "$place"
        [ "$found" != "$medium_id" ] ||
            refuse "this machine was already installed by this very installer (${node##*/})" \
                "remove the medium and restart; to erase and install again, add centralino.reinstall to the boot line"
    done
}

describe() {
    local model
    model=$(attribute "$1" device/model)
    echo "/dev/$1 ($(gigabytes "$(bytes_of "$1")") GB${model:+, ${model%"${model##*[! ]}"}})"
}

choose_disks() {
    local disk reason name suitable=() small=() used=() empty=()
    carriers=$(medium_disks | tr '\n' ' ')
    if [ ${#wanted_disks[@]} -gt 0 ]; then
        for name in "${wanted_disks[@]}"; do
            disk=$(parent_disk "$name")
            [ -n "$disk" ] ||
                refuse "the disk $name named in the profile is not in this machine" \
                    "connect it, or build the installer with another disk name"
            reason=$(unsuitable "$disk")
            [ -z "$reason" ] || refuse "the disk $name named in the profile cannot be used: $reason" \
                "build the installer with another disk name"
            if [ "$erase_used" != yes ] && in_use "$disk"; then
                refuse "$(describe "$disk") holds data, and the profile forbids to erase any (disk.wipe)" \
                    "empty the disk, or build the installer with disk.wipe on"
            fi
            [ "$(bytes_of "$disk")" -ge "$minimum_bytes" ] ||
                refuse "$(describe "$disk") is too small: this product needs $(gigabytes "$minimum_bytes") GB" \
                    "use a larger disk, or a profile of a smaller tier"
            chosen+=("$disk")
        done
    else
        for disk in "$root"/sys/block/*; do
            disk=${disk##*/}
            reason=$(unsuitable "$disk")
            if [ -n "$reason" ]; then
                [ "$reason" = "not a disk" ] || say "Not used: /dev/$disk: $reason"
            else
                suitable+=("$disk")
                # Data on a disk too small to install on is data all the same.
                if in_use "$disk"; then used+=("$disk"); fi
                if [ "$(bytes_of "$disk")" -lt "$minimum_bytes" ]; then
                    small+=("$(describe "$disk")")
                elif in_use "$disk"; then
                    chosen+=("$disk")
                else
                    empty+=("$disk")
                fi
            fi
        done
        [ ${#suitable[@]} -gt 0 ] ||
            refuse "no disk to install on was found" "connect a disk, or check the disk controller's driver"
        if [ ${#used[@]} -gt 1 ] && [ "$allow_several_used_disks" != yes ]; then
            refuse "${#used[@]} disks hold data (${used[*]/#//dev/}) and the profile names none of them" \
                "disconnect the disks to be kept, or name the disk in the profile (disk.names)"
        fi
        if [ "$erase_used" != yes ]; then
            [ ${#empty[@]} -gt 0 ] || [ ${#chosen[@]} -eq 0 ] ||
                refuse "no empty disk was found, and the profile forbids to erase any (disk.wipe)" \
                    "empty the disk, or build the installer with disk.wipe on"
            chosen=()
        fi
        # An empty disk first: nothing is lost where nothing was.
        chosen=("${empty[@]}" "${chosen[@]}")
        [ ${#chosen[@]} -gt 0 ] ||
            refuse "every disk is too small: this product needs $(gigabytes "$minimum_bytes") GB; found ${small[*]}" \
                "use a larger disk, or a profile of a smaller tier"
    fi
    if [ "$raid1" = yes ]; then
        [ ${#chosen[@]} -ge 2 ] ||
            refuse "the profile asks for RAID 1, which needs two suitable disks; found ${#chosen[@]}" \
                "connect a second disk of $(gigabytes "$minimum_bytes") GB, or use a profile without RAID"
        chosen=("${chosen[@]:0:2}")
    else
        chosen=("${chosen[0]}")
    fi
}

write_storage() {
    local disks volume name mount filesystem size grow number
    disks=$(IFS=,; echo "${chosen[*]}")
    {
        echo "ignoredisk --only-use=$disks"
        echo "zerombr"
        echo "clearpart --all --initlabel --disklabel=gpt --drives=$disks"
        echo "bootloader --boot-drive=${chosen[0]} --append=\"$kernel_arguments\""
        if [ "$raid1" = yes ]; then
            write_mirror
        else
            echo "reqpart"
            echo "part /boot --fstype=$boot_filesystem --size=$boot_mib --ondisk=${chosen[0]}"
            echo "part pv.1 --size=1024 --grow --ondisk=${chosen[0]}"
        fi
        echo "volgroup $volume_group pv.1"
        for volume in "${volumes[@]}"; do
            read -r name mount filesystem size grow <<<"$volume"
            number=""
            [ "$grow" != grow ] || number=" --grow"
            if [ "$filesystem" = swap ]; then
                echo "logvol swap --vgname=$volume_group --name=$name --fstype=swap --size=$size$number"
            else
                echo "logvol $mount --vgname=$volume_group --name=$name --fstype=$filesystem --size=$size$number"
            fi
        done
    } >"$storage_file"
}

# reqpart serves one disk only: both halves of the mirror must be able to start the machine.
write_mirror() {
    local number=0 disk
    for disk in "${chosen[@]}"; do
        number=$((number + 1))
        if [ -d "$root/sys/firmware/efi" ]; then
            echo "part raid.esp$number --size=600 --ondisk=$disk"
        else
            echo "part biosboot --fstype=biosboot --size=1 --ondisk=$disk"
        fi
        echo "part raid.boot$number --size=$boot_mib --ondisk=$disk"
        echo "part raid.pv$number --size=1024 --grow --ondisk=$disk"
    done
    if [ -d "$root/sys/firmware/efi" ]; then
        echo "raid /boot/efi --device=boot_efi --level=1 --fstype=efi raid.esp1 raid.esp2"
    fi
    echo "raid /boot --device=boot --level=1 --fstype=$boot_filesystem raid.boot1 raid.boot2"
    echo "raid pv.1 --device=pv --level=1 raid.pv1 raid.pv2"
}
