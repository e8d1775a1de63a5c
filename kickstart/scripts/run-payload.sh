# Runs the same payload installer as every other image, inside the new system.
run_payload() {
    local status=0
    say "Installing the application layer; this takes some minutes."
    "$root$payload_directory/install" "${install_arguments[@]}" || status=$?
    if [ "$status" -ne 0 ]; then
        say "The last lines of the log ($log_file):"
        # The log is this script's own output, so it is read before more is written to it.
        while IFS= read -r line; do say "  $line"; done <<<"$(tail -n 20 "$root$log_file" 2>/dev/null || true)"
        refuse "the application layer could not be installed (status $status)" \
            "read $log_file in the new system; nothing of this machine is in service"
    fi
    # Anaconda relabels only some directories after this script: what lies elsewhere is done here.
    if command -v restorecon >/dev/null; then
        local place
        for place in "${relabel_paths[@]}"; do
            [ ! -e "$root$place" ] || restorecon -R "$root$place"
        done
    fi
    # The installer looks for this before it erases a disk.
    echo "$medium_id" >"$root/boot/centralino-medium"
    say "The application layer is installed."
}
