"""What rsync starts as its remote shell: an SSH client without the host name that rsync insists on.

    python -I -S dial.py SSH-CLIENT ... CHANNEL peer-tree rsync --server ...

A program of two imports, because it starts anew for each batch of files.
"""

import os
import sys

HOST = "peer-tree"


def main(words: list[str]) -> None:
    """Leave the host name out and become the client."""
    call = [word for word in words if word != HOST]
    os.execvp(call[0], call)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
