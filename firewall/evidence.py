"""From evidence to blocks: pure bookkeeping of the SIP shield, without clock, kernel or Asterisk.

A source collects points; enough of them within a window block it for a time that doubles with each return.
Evidence that needed an answer from us (a response to our challenge, a TCP or TLS connection) proves that
the source address is real. Evidence that a forged datagram could have made counts less, so that nobody can
cheaply have somebody else blocked; and whoever authenticated from an address is not blocked at all.
"""

from __future__ import annotations

import json
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from heapq import nlargest
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address

WINDOW_SECONDS = 600.0
FORGEABLE_WEIGHT = 0.5
REMEMBERED_SOURCES = 20_000
KEPT_EVIDENCE = 10
DETAILED_SOURCES = 2000


class Offence(StrEnum):
    """What a source did, as sentences for `firewall why`."""

    WRONG_PASSWORD = "answered our challenge with a wrong password"  # noqa: S105 - a sentence
    UNKNOWN_ACCOUNT = "asked for an account that does not exist"
    NOT_ALLOWED = "was refused by an access list"
    MALFORMED = "sent a malformed or unsupported request"
    SCANNER = "behaves like a known scanning tool"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One offence: `when` in seconds since the epoch, `proven` when the source address cannot be forged."""

    when: float
    source: Address
    offence: Offence
    proven: bool
    account: str = ""
    transport: str = ""

    @property
    def weight(self) -> float:
        """Points toward a block."""
        return 1.0 if self.proven else FORGEABLE_WEIGHT

    def as_json(self) -> dict[str, object]:
        """For `firewall why` and the state file."""
        return {
            "when": self.when,
            "offence": self.offence.value,
            "proven": self.proven,
            "account": self.account,
            "transport": self.transport,
        }


@dataclass(frozen=True)
class Limits:
    """From settings `firewall.shield`: points, seconds, seconds."""

    points: float = 5.0
    first_block_seconds: int = 600
    longest_block_seconds: int = 86_400


@dataclass(frozen=True, slots=True)
class Block:
    """A source that is blocked: since, until (seconds since the epoch), for the how-manieth time."""

    source: Address
    since: float
    until: float
    count: int


@dataclass(slots=True)
class _Record:
    evidence: tuple[Evidence, ...] = ()
    offences: int = 0
    count: int = 0
    block: Block | None = None

    def until(self) -> float:
        """The end of the last block, 0 if there was none."""
        return 0.0 if self.block is None else self.block.until


class Scoreboard:
    """What is held against each source; the least recently heard are forgotten first.

    Of a few thousand sources every piece of evidence is kept. Of others that are or were blocked only the
    last piece, packed: twenty thousand attackers must not cost tens of megabytes.
    `spared` says of an address that it may not be blocked (trusted, registered, in a call, administering).
    """

    def __init__(self, limits: Limits, spared: Callable[[Address], bool] = lambda _address: False) -> None:
        self.limits = limits
        self._spared = spared
        self._records: OrderedDict[Address, _Record] = OrderedDict()
        self._packed: dict[bytes, bytes] = {}

    def record(self, evidence: Evidence) -> Block | None:
        """Take one offence down; returns the new block when it was the one too many."""
        record = self._touch(evidence.source, evidence.when)
        record.offences += 1
        record.evidence = (
            *(old for old in record.evidence if evidence.when - old.when <= WINDOW_SECONDS),
            evidence,
        )[-max(KEPT_EVIDENCE, int(self.limits.points / FORGEABLE_WEIGHT) + 1) :]
        if record.until() > evidence.when:
            return None
        points = sum(item.weight for item in record.evidence)
        if points < self.limits.points or self._spared(evidence.source):
            return None
        return self._block(record, evidence.source, evidence.when)

    def forgive(self, source: Address) -> None:
        """The source has authenticated, or an administrator unblocked it: nothing is held against it."""
        self._records.pop(source, None)
        self._packed.pop(source.packed, None)

    def blocks(self, now: float) -> Iterator[Block]:
        """The blocks in force."""
        for record in self._records.values():
            if record.block is not None and record.block.until > now:
                yield record.block
        for packed, data in self._packed.items():
            if _PACKED.unpack_from(data)[1] > now:
                record = _unpack(packed, data)
                if record.block is not None:
                    yield record.block

    def count(self, now: float) -> int:
        """How many sources are blocked."""
        detailed = sum(1 for record in self._records.values() if record.until() > now)
        return detailed + sum(1 for data in self._packed.values() if _PACKED.unpack_from(data)[1] > now)

    def why(self, source: Address, now: float) -> dict[str, object]:
        """Everything held against one source: block, score, evidence."""
        record = self._look(source)
        block = record.block if record.block is not None and record.block.until > now else None
        recent = [item for item in record.evidence if now - item.when <= WINDOW_SECONDS]
        return {
            "address": str(source),
            "blocked": block is not None,
            "since": block.since if block else None,
            "until": block.until if block else None,
            "times_blocked": record.count,
            "points": sum(item.weight for item in recent),
            "points_for_block": self.limits.points,
            "spared": self._spared(source),
            "offences": record.offences,
            "evidence": [item.as_json() for item in record.evidence],
        }

    def top(self, count: int) -> list[dict[str, object]]:
        """The sources with the most offences, worst first."""
        rows = [(record.offences, source.packed) for source, record in self._records.items()]
        rows += [(_PACKED.unpack_from(data)[3], packed) for packed, data in self._packed.items()]
        worst = nlargest(count, (row for row in rows if row[0]))
        return [
            {
                "address": str(_address(packed)),
                "offences": offences,
                "times_blocked": self._look(_address(packed)).count,
            }
            for offences, packed in worst
        ]

    def dump(self, now: float) -> Iterator[str]:
        """For the state file, a JSON line a source: those that are or were blocked, the oldest first."""
        for packed, data in self._packed.items():
            if now - _PACKED.unpack_from(data)[1] < self._memory():
                yield _line(_address(packed), _unpack(packed, data))
        for source, record in self._records.items():
            if record.count and now - record.until() < self._memory():
                yield _line(source, record)

    def restore(self, lines: Iterable[str]) -> int:
        """Take `dump`'s lines back; those that make no sense are left out. Returns how many came back."""
        restored = 0
        for line in lines:
            try:
                address, since, until, count, offences, evidence = json.loads(line)
                source = ip_address(str(address))
                since, until, count, offences = (_number(each) for each in (since, until, count, offences))
                kept = tuple(_evidence(source, item) for item in _list(evidence))
            except (TypeError, ValueError, IndexError):
                continue
            block = Block(source, since, until, int(count))
            self.forgive(source)
            self._records[source] = _Record(kept, int(offences), int(count), block)
            self._pack_old()
            restored += 1
        return restored

    def _memory(self) -> float:
        """Seconds after its end for which a block makes the next one longer."""
        return 2 * self.limits.longest_block_seconds

    def _block(self, record: _Record, source: Address, now: float) -> Block:
        if now - record.until() > self._memory():
            record.count = 0
        record.count += 1
        doubled = self.limits.first_block_seconds * 2 ** min(record.count - 1, 30)
        until = now + min(doubled, self.limits.longest_block_seconds)
        record.block = Block(source, now, until, record.count)
        return record.block

    def _look(self, source: Address) -> _Record:
        record = self._records.get(source)
        if record is None and (data := self._packed.get(source.packed)) is not None:
            record = _unpack(source.packed, data)
        return record or _Record()

    def _touch(self, source: Address, now: float) -> _Record:
        record = self._records.get(source)
        if record is not None:
            self._records.move_to_end(source)
            return record
        record = self._look(source)
        self._packed.pop(source.packed, None)
        # What was dumped of a block long over must not lengthen the next one.
        if record.block is not None and now - record.until() > self._memory():
            record = _Record(offences=record.offences)
        self._records[source] = record
        self._pack_old()
        return record

    def _pack_old(self) -> None:
        while len(self._records) > DETAILED_SOURCES:
            source, record = self._records.popitem(last=False)
            if record.block is not None:
                self._packed[source.packed] = _pack(record)
                if len(self._packed) > REMEMBERED_SOURCES:
                    del self._packed[next(iter(self._packed))]


# since, until, times blocked, offences, the last offence's number, whether it was proven
_PACKED = struct.Struct("=ddHIB?")
_OFFENCES = tuple(Offence)


def _pack(record: _Record) -> bytes:
    block, last = record.block, record.evidence[-1] if record.evidence else None
    since, until = (block.since, block.until) if block else (0.0, 0.0)
    offence = _OFFENCES.index(last.offence) if last else 0
    head = _PACKED.pack(
        since,
        until,
        min(record.count, 0xFFFF),
        min(record.offences, 0xFFFFFFFF),
        offence,
        last is not None and last.proven,
    )
    return head + (f"{last.transport} {last.account}" if last else "").encode()


def _unpack(packed: bytes, data: bytes) -> _Record:
    since, until, count, offences, offence, proven = _PACKED.unpack_from(data)
    source = _address(packed)
    transport, _, account = data[_PACKED.size :].decode("utf-8", "replace").partition(" ")
    evidence = Evidence(since, source, _OFFENCES[offence], proven, account, transport)
    return _Record((evidence,), offences, count, Block(source, since, until, count))


def _address(packed: bytes) -> Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _line(source: Address, record: _Record) -> str:
    since = 0.0 if record.block is None else record.block.since
    evidence = [
        [item.when, item.offence.name, item.proven, item.account, item.transport] for item in record.evidence
    ]
    return json.dumps([str(source), since, record.until(), record.count, record.offences, evidence])


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    return float(value)


def _list(value: object) -> list[list[object]]:
    if not isinstance(value, list) or not all(isinstance(item, list) for item in value):
        raise TypeError(value)
    return value


def _evidence(source: Address, item: list[object]) -> Evidence:
    when, offence, proven, account, transport = item
    try:
        known = Offence[str(offence)]
    except KeyError as error:
        raise ValueError(offence) from error
    return Evidence(_number(when), source, known, proven is True, str(account), str(transport))
