"""The last step before rsync receives: names this process, looks once more whether it may, becomes rsync.

    python -I -S door.py DIRECTORY EPOCH rsync --server ...

A program of two imports, because it starts anew for each batch of files. The look comes after the naming: a
change of role writes the epoch first and then ends what is named, so nothing slips through in between.
"""

import os
import sys

CLOSED = "closed"
EPOCH_FILE = "epoch"
PREFIX = "receiving-"


def refusal(directory: str, epoch: int) -> str:
    """Why a sender of this epoch is refused, "" if it is not."""
    with open(f"{directory}/{EPOCH_FILE}", encoding="ascii") as file:  # noqa: PTH123
        text = file.read().strip()
    if text == CLOSED:
        return "this node takes no files: it is not slave"
    if epoch < int(text):
        return f"the sender's epoch {epoch} is older than {text}: it is not master any more"
    return ""


def main(words: list[str]) -> int:
    """Returns only when rsync does not start."""
    directory, epoch = words[0], int(words[1])
    if os.getpgid(0) != os.getpid():
        os.setpgid(0, 0)
    for name in os.listdir(directory):  # noqa: PTH208
        if name.startswith(PREFIX) and not os.path.exists(f"/proc/{name[len(PREFIX) :]}"):  # noqa: PTH110
            os.unlink(f"{directory}/{name}")  # noqa: PTH108
    with open(f"{directory}/{PREFIX}{os.getpid()}", "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(str(epoch))
    try:
        why = refusal(directory, epoch)
        if not why:
            os.execvp(words[2], words[2:])  # noqa: S606
    except (OSError, ValueError) as error:
        why = str(error)
    sys.stderr.write(f"{why}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
