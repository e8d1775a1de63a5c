"""Host entries and time servers of the settings, as text: two pure functions.

/etc/hosts is shared with the distribution and the admin, so only a marked block in it is ours. Time servers
are a sources file of their own (chrony.conf(5), `sourcedir`), which chronyd re-reads without a restart.
"""

from __future__ import annotations

import re

from daemon.settings.network import HostEntry, Ntp

BLOCK_BEGIN = "# BEGIN Centralino: from the settings network.hosts; changes here are overwritten"
BLOCK_END = "# END Centralino"
SOURCES_FILE = "centralino.sources"
SOURCES_MARK = "# Written by Centralino from the settings network.ntp; changes here are overwritten.\n"
IMAGE_SOURCE = "pool pool.ntp.org iburst maxsources 4"
"""Also in the role `time`, which writes the first file."""
DEFAULT_HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"

OWN_NAME_ADDRESS = "127.0.1.1"

_OWN_NAME = re.compile(r"^127\.0\.1\.1[ \t]+(?P<names>[^\n]*)(?:\n|\Z)", re.MULTILINE)
_LOCALHOST = re.compile(r"^127\.0\.0\.1[ \t][^\n]*(?:\n|\Z)", re.MULTILINE)
_BLOCK = re.compile(
    rf"^{re.escape(BLOCK_BEGIN)}\n.*?(?:^{re.escape(BLOCK_END)}\n?|\Z)", re.DOTALL | re.MULTILINE
)


def hosts_text(current: str | None, entries: tuple[HostEntry, ...]) -> str:
    """/etc/hosts with our block replaced; None stands for a file that is missing."""
    rest = _BLOCK.sub("", DEFAULT_HOSTS if current is None else current)
    if not entries:
        return rest
    if rest and not rest.endswith("\n"):
        rest += "\n"
    lines = [f"{entry.address}\t{' '.join(entry.names)}" for entry in entries]
    return rest + "\n".join([BLOCK_BEGIN, *lines, BLOCK_END]) + "\n"


def own_name_text(current: str | None, name: str) -> str:
    """/etc/hosts with the line 127.0.1.1 naming this node.

    Programs that look their own name up (sudo, Asterisk) must find it when no DNS answers; 127.0.1.1 keeps
    localhost's own names apart.
    """
    text = DEFAULT_HOSTS if current is None else current
    line = f"{OWN_NAME_ADDRESS}\t{name}\n"
    found = _OWN_NAME.search(text)
    if found is not None:
        if found.group("names").split()[:1] == [name]:
            return text
        return text[: found.start()] + line + text[found.end() :]
    after = _LOCALHOST.search(text)
    place = after.end() if after is not None else 0
    before = text[:place]
    return before + ("\n" if before and not before.endswith("\n") else "") + line + text[place:]


def sources_text(ntp: Ntp) -> str:
    """chrony's sources: those of the settings instead of the image's pool, not beside it.

    A site that names its time servers often does so because the Internet's are not to be asked.
    """
    lines = [f"server {server} iburst" for server in ntp.servers]
    lines += [f"pool {pool} iburst maxsources 4" for pool in ntp.pools]
    return SOURCES_MARK + "\n".join(lines or [IMAGE_SOURCE]) + "\n"
