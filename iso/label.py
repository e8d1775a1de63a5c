"""Volume labels and how kernel arguments, GRUB and udev write them."""

from __future__ import annotations

import re

from appliance.errors import InputError

LABEL_LIMIT = 32  # ECMA-119 8.4.7: the volume identifier has 32 bytes
# What udev leaves as it is in /dev/disk/by-label, and dracut and Anaconda therefore expect.
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789#+-.:=@_")


def check_label(label: str) -> str:
    """The label, if a medium may have it; raises InputError.

    Only characters are allowed whose escaped and plain forms are equal, so that no reader can disagree.
    """
    if len(label.encode()) > LABEL_LIMIT:
        raise InputError(
            f"the label {label!r} has {len(label.encode())} characters; a medium holds {LABEL_LIMIT}",
            "set a shorter boot.iso_label in the profile",
        )
    if not re.fullmatch(r"[A-Za-z0-9_-]+", label):
        raise InputError(
            f"the label {label!r} cannot be used in every boot loader",
            "use letters, digits, hyphens and underscores in boot.iso_label",
        )
    return label


def escape(label: str) -> str:
    r"""The label in a kernel argument: everything outside `A-Za-z0-9#+-.:=@_` as `\xNN` (UTF-8 bytes)."""
    return "".join(
        letter if letter in _PLAIN else "".join(f"\\x{byte:02x}" for byte in letter.encode())
        for letter in label
    )


def unescape(text: str) -> str:
    """The inverse of `escape`."""
    raw = re.sub(rb"\\x([0-9a-fA-F]{2})", lambda found: bytes([int(found[1], 16)]), text.encode())
    return raw.decode(errors="replace")
