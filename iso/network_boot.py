"""Serves a network boot tree to a machine under test: HTTP on loopback, reached by the guest alone.

The guest sees the server at the address that the tree was built with (`--url`). That address must be a free
one of QEMU's own network, 10.0.2.0/24, because nothing outside of this host may be touched.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from urllib.parse import urlsplit

from appliance.errors import InputError
from appliance.run import require

GUEST_NETWORK = IPv4Network("10.0.2.0/24")
IPXE_SCRIPT = "boot.ipxe"


@dataclass(frozen=True)
class Served:
    """A served tree: what the guest asks for, and where on this host that is."""

    directory: Path
    address: IPv4Address
    guest_port: int
    prefix: str
    host_port: int

    def netdev(self) -> str:
        """QEMU's `-netdev`: iPXE gets the script by TFTP, everything else comes through the one opening."""
        return (
            f"user,id=net,restrict=on,tftp={str(self.directory).replace(',', ',,')},bootfile={IPXE_SCRIPT},"
            f"guestfwd=tcp:{self.address}:{self.guest_port}-cmd:busybox nc 127.0.0.1 {self.host_port}"
        )


class _Handler(SimpleHTTPRequestHandler):
    """Files below one directory, under the path of the tree's address; no log lines."""

    def __init__(self, *arguments: object, prefix: str, directory: str, **options: object) -> None:
        self.prefix = prefix
        super().__init__(*arguments, directory=directory, **options)  # type: ignore[arg-type]

    def translate_path(self, path: str) -> str:
        """The file of a request; what is outside of the tree's path does not exist."""
        if not path.startswith(self.prefix):
            return "/nonexistent"
        return super().translate_path(path.removeprefix(self.prefix))

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name is http.server's
        """Say nothing: the console's log is what counts."""


@contextmanager
def serving(directory: Path) -> Iterator[Served]:
    """Serve a tree of `centralino-build pxe` until the block ends.

    Raises InputError if it is none, or is made for an address that the guest would not reach.
    """
    require({"busybox": "busybox"})
    script = directory / IPXE_SCRIPT
    if not script.is_file():
        raise InputError(
            f"{directory} is no network boot tree: it has no {IPXE_SCRIPT}", "make one with `pxe`"
        )
    found = re.search(r"^kernel (\S+)/vmlinuz ", script.read_text(), re.M)
    url = urlsplit(found[1] if found else "")
    try:
        address = IPv4Address(url.hostname or "")
    except ValueError:
        address = IPv4Address(0)
    if url.scheme != "http" or address not in GUEST_NETWORK:
        raise InputError(
            f"the tree is made for {url.geturl() or 'no address'}, which a machine under test does not reach",
            "for a boot test build it with --url http://10.0.2.100/pbx",
        )
    handler = partial(_Handler, prefix=url.path or "/", directory=str(directory))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Served(directory.absolute(), address, url.port or 80, url.path, int(server.server_address[1]))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
