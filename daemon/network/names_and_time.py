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
DEFAULT_HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"

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


def sources_text(ntp: Ntp) -> str | None:
    """chrony's sources, preferred to those of the image; None leaves the image's alone."""
    lines = [f"server {server} iburst prefer" for server in ntp.servers]
    lines += [f"pool {pool} iburst maxsources 4 prefer" for pool in ntp.pools]
    return SOURCES_MARK + "\n".join(lines) + "\n" if lines else None
