"""What goes on during every fault, from outside of the nodes: rows, files, SIP, and the question by ARP."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType

from appliance.lab import Client
from appliance.lab_host import LabTimeoutError
from appliance.lab_pair import SHARED
from appliance.lab_phone import Registrar
from appliance.lab_sip import OptionsProber, Phone, socket_in

# Of the ports for audio, which the firewall leaves open.
PORT = 19998
ROW_SECONDS, FILE_SECONDS, ARP_SECONDS, OPTIONS_SECONDS = 0.04, 0.5, 0.025, 0.1
ETHERTYPE_ARP = 0x0806
CLONE_NEWNET = 0x40000000
# Answers nearer to each other are to one question; times with two holders nearer to each other are one.
SAME_QUESTION_SECONDS, APART_SECONDS = 0.6 * ARP_SECONDS, 0.5


@dataclass(frozen=True)
class Acknowledged:
    """A row or a file that a node said it has; `digest` is the file's."""

    number: int
    node: str
    moment: float
    digest: str = ""


class SlowRegistrar(Registrar):
    """One registration a second."""

    interval_seconds = 1.0


class Load:
    """Begins with the block and ends with it. All lists only grow."""

    def __init__(self, probe: Client, phone: Client, watcher: Client) -> None:
        """`watcher` asks by ARP alone, so that its answers refresh nobody else's memory. `account` is set
        before the load begins."""
        self._phone, self._watcher = phone, watcher
        self.account = Phone("", "")
        self.rows: list[Acknowledged] = []
        self.files: list[Acknowledged] = []
        self.arp: list[tuple[float, str]] = []
        self.options = OptionsProber(probe, SHARED, interval_seconds=OPTIONS_SECONDS)
        self.asked_rows = 0
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(client, work), name=work.__name__, daemon=True)
            for client, work in (
                (probe, self._write),
                (watcher, self._ask_by_arp),
            )
        ]
        self.trouble: list[str] = []

    def __enter__(self) -> Load:
        self.options.__enter__()
        self._registrar = SlowRegistrar(self._phone, self.account, SHARED).__enter__()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(10)
        self.options.__exit__(kind, error, trace)
        self._registrar.__exit__(kind, error, trace)

    @property
    def registered(self) -> list[float]:
        """When registrations were accepted."""
        return self._registrar.received

    def holders(self, since: float) -> set[str]:
        """The hardware addresses that have answered for the shared address since then."""
        return {hardware for moment, hardware in self.arp if moment >= since}

    # --- threads --------------------------------------------------------------------------------------

    def _guarded(self, client: Client, work: Callable[[], None]) -> None:
        try:
            enter(client)
            work()
        except Exception as error:
            self.trouble.append(f"{work.__name__}: {error!r}")

    def _write(self) -> None:
        wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        wire.settimeout(0.005)
        row = file = 0
        row_due = file_due = time.monotonic()
        while not self._end.is_set():
            now = time.monotonic()
            with contextlib.suppress(OSError):
                if now >= row_due:
                    row, row_due = row + 1, now + ROW_SECONDS
                    self.asked_rows = row
                    wire.sendto(f"row {row}".encode(), (SHARED, PORT))
                if now >= file_due:
                    file, file_due = file + 1, now + FILE_SECONDS
                    wire.sendto(f"file {file}".encode(), (SHARED, PORT))
            with contextlib.suppress(OSError):
                kind, number, node, *digest = wire.recv(256).decode().split()
                told = Acknowledged(int(number), node, time.monotonic(), *digest)
                (self.rows if kind == "row" else self.files).append(told)

    def _ask_by_arp(self) -> None:
        wire = socket_in(self._watcher.namespace, socket.AF_PACKET, socket.SOCK_RAW)
        wire.bind(("eth0", ETHERTYPE_ARP))
        own, target = wire.getsockname()[4], socket.inet_aton(SHARED)
        # From the client's own address, so that nobody takes it for a probe of a duplicate.
        sender = socket.inet_aton(self._watcher.address())
        question = struct.pack(
            "!HHHBBH6s4s6s4s", ETHERTYPE_ARP, 1, 0x0800, 6, 4, 1, own, sender, bytes(6), target
        )
        due = time.monotonic()
        while not self._end.is_set():
            now = time.monotonic()
            with contextlib.suppress(OSError):
                if now >= due:
                    due = now + ARP_SECONDS
                    wire.send(b"\xff" * 6 + own + question)
                wire.settimeout(max(0.001, due - time.monotonic()))
                frame = wire.recv(128)
                # Answers to us; a gratuitous one goes to everybody and is another matter.
                if frame[:6] == own and frame[20:22] == b"\0\2" and frame[28:32] == target:
                    self.arp.append((time.monotonic(), frame[22:28].hex(":")))


def enter(client: Client) -> None:
    """Take the calling thread into a client's network namespace, for good."""
    library = ctypes.CDLL(None, use_errno=True)
    with client.namespace.open() as namespace:
        if library.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"{client.namespace} cannot be entered")


def double_holders(answers: list[tuple[float, str]]) -> list[tuple[float, float]]:
    """The times in which two machines answered the same question, from moments and hardware addresses in
    order. One that loses the address and another one that gets it never do."""
    found: list[tuple[float, float]] = []
    for (before, first), (moment, second) in pairwise(answers):
        if first == second or moment - before > SAME_QUESTION_SECONDS:
            continue
        if found and before - found[-1][1] < APART_SECONDS:
            found[-1] = (found[-1][0], moment)
        else:
            found.append((before, moment))
    return found


def longest_gap(moments: list[float], begin: float, end: float) -> float:
    """Seconds of the longest time between `begin` and `end` without any of the moments."""
    marks = [begin, *(moment for moment in moments if begin < moment < end), end]
    return max(later - earlier for earlier, later in pairwise(marks))


def sip_answers(client: Client, address: str, limit_seconds: float = 1.0) -> bool:
    """Whether a SIP OPTIONS sent to an address is answered at all."""
    with (
        OptionsProber(client, address, interval_seconds=0.1) as prober,
        contextlib.suppress(LabTimeoutError),
    ):
        prober.first_after(time.monotonic(), limit_seconds)
        return True
    return False
