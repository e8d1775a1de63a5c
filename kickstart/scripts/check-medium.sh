# EL8's Anaconda checks no package signature, so the medium proves itself before a disk is touched.
# This kickstart carries the digest of the hash list; the list names every other file of the medium.
medium="$root/run/install/repo"

check_medium() {
    local list="$medium/SHA256SUMS" found
    [ -f "$list" ] || refuse "the installation medium has no SHA256SUMS file" "write the image to the medium again"
    found=$(sha256sum "$list")
    found=${found%% *}
    [ "$found" = "$hash_list_sha256" ] ||
        refuse "the hash list of the medium is not the one this installer was made with" \
            "write the image to the medium again, from a verified file"
    if [ -n "$signing_key" ]; then
        check_signature "$list"
    fi
    say "Checking every file of the installation medium; this takes a minute or two."
    if ! (cd "$medium" && sha256sum --check --quiet --strict SHA256SUMS); then
        refuse "files of the installation medium are damaged or were changed (named in the log above)" \
            "write the image to the medium again, or use another stick"
    fi
    say "The installation medium is intact."
}

check_signature() {
    if ! command -v gpgv >/dev/null; then
        say "gpgv is not part of this installer: only the digest of the hash list is checked, not its signature."
        return
    fi
    gpgv --keyring "$medium/$signing_key" "$1.sig" "$1" ||
        refuse "the signature of the hash list of the medium is not valid" \
            "write the image to the medium again, from a verified file"
}
