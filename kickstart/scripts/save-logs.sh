# After a fatal error: the logs go where they survive the restart, if there is such a place.
save_logs() {
    local target="$root/mnt/sysroot/var/log/centralino/installer"
    if [ -d "$root/mnt/sysroot/var/log" ]; then
        mkdir -p "$target"
        cp "$root"/tmp/*.log "$target/" 2>/dev/null || true
        say "The logs of this installation are in /var/log/centralino/installer on the disk."
    fi
}
