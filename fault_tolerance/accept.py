"""The forced command of the peer's key: hands its connection to the runtime, and does nothing else.

sshd runs it as a user without rights, with `python -I -S`: the standard library alone, so it starts at once
and stays small. The open standard streams go to the runtime over a Unix socket (SCM_RIGHTS), so that not a
byte of what follows passes through here; it ends with the status that the runtime reports.
"""

from __future__ import annotations

import os
import socket
import sys

SOCKET = "/run/centralino-peer/link"
NOT_RUNNING = 75  # EX_TEMPFAIL


def main() -> int:
    """Connect, pass the wish and the streams, wait for the end."""
    wish = os.environ.get("SSH_ORIGINAL_COMMAND", "")[:4096].encode()
    # Whose key this is stands in authorized_keys: `peer`, or `guest` for a one-time invitation.
    who = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.connect(SOCKET)
            socket.send_fds(link, [who.encode() + b" " + wish + b"\n"], [0, 1, 2])
            for stream in (0, 1):
                os.close(stream)
            answer = link.recv(1)
    except OSError as error:
        sys.stderr.write(f"the other node's fault tolerance does not run: {error.strerror}\n")
        return NOT_RUNNING
    return answer[0] if answer else NOT_RUNNING


if __name__ == "__main__":
    sys.exit(main())
