# Brings the payload from the medium (or the boot server) into the installed system.
copy_payload() {
    local archive found words system="$root/mnt/sysroot"
    if [ -n "$payload_url" ]; then
        archive="$system/var/tmp/payload.tar"
        words=$(curl --fail --silent --show-error --location --retry 5 --output "$archive" "$payload_url" 2>&1) ||
            refuse "the payload could not be fetched from $payload_url: ${words##*$'\n'}" \
                "check the boot server and its log"
    else
        archive="$root/run/install/repo/$payload_path"
    fi
    [ -f "$archive" ] || refuse "the payload $archive is missing" "write the image to the medium again"
    found=$(sha256sum "$archive")
    found=${found%% *}
    [ "$found" = "$payload_sha256" ] ||
        refuse "the payload is not the one this installer was made with" "write the image to the medium again"
    # The archive has one top directory, the last part of the path.
    rm -rf "${system:?}$payload_directory"
    mkdir -p "$system${payload_directory%/*}"
    tar --extract --file="$archive" --directory="$system${payload_directory%/*}" --no-same-owner ||
        refuse "the payload could not be unpacked" "read /tmp/centralino-copy.log in the installer's shell"
    [ -z "$payload_url" ] || rm -f "$archive"
    say "The payload is in $payload_directory of the new system."
}
