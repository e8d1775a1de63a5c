# Speaks to whoever stands before the machine: the log and every console that the kernel writes to.
# Only bash and what Anaconda's runtime keeps (no stat, timeout, base64, openssl there).
root=${CENTRALINO_ROOT:-}

say() {
    local line tty
    for line in "$@"; do
        printf '%s\n' "$line"
        for tty in $(cat "$root/sys/class/tty/console/active" 2>/dev/null || true); do
            # The device may vanish or be owned by nobody; the log has the line all the same.
            printf '%s\r\n' "$line" 2>/dev/null >>"$root/dev/$tty" || true
        done
    done
}

# refuse WHAT REMEDY: shows both, keeps them on the screen, ends the installation.
refuse() {
    say '' '****************************************************************' \
        "INSTALLATION STOPPED: $1" "What to do: $2" \
        '****************************************************************' ''
    # Anaconda ends and the machine may restart after this script: leave time to read.
    sleep "${CENTRALINO_HOLD_SECONDS:-600}"
    exit 1
}
