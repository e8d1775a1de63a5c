"""From evidence to blocks: pure bookkeeping of the SIP shield, without clock, kernel or Asterisk.

A source collects points; enough of them within a window block it for a time that doubles with each return.
Evidence that needed an answer from us (a response to our challenge, a TCP or TLS connection) proves that
the source address is real. Evidence that a forged datagram could have made counts less, so that nobody can
cheaply have somebody else blocked; and whoever authenticated from an address is not blocked at all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import islice

Address = IPv4Address | IPv6Address

WINDOW_SECONDS = 600.0
FORGEABLE_WEIGHT = 0.5
REMEMBERED_SOURCES = 20_000
KEPT_EVIDENCE = 10
DETAILED_SOURCES = 1000
SHORTEN_EVERY = 500


class Offence(StrEnum):
    """What a source did, as sentences for `firewall why`."""

    WRONG_PASSWORD = "answered our challenge with a wrong password"  # noqa: S105 - a sentence
    UNKNOWN_ACCOUNT = "asked for an account that does not exist"
    NOT_ALLOWED = "was refused by an access list"
    MALFORMED = "sent a malformed or unsupported request"
    SCANNER = "behaves like a known scanning tool"
    BLOCKED_BY_HAND = "was blocked by an administrator"


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
    last_block_end: float = 0.0


class Scoreboard:
    """What is held against each source; the least recently heard are forgotten first.

    `spared` says of an address that it may not be blocked (trusted, registered, in a call, administering).
    """

    def __init__(self, limits: Limits, spared: Callable[[Address], bool] = lambda _address: False) -> None:
        self.limits = limits
        self._spared = spared
        self._records: OrderedDict[Address, _Record] = OrderedDict()

    def record(self, evidence: Evidence) -> Block | None:
        """Take one offence down; returns the new block when it was the one too many."""
        record = self._touch(evidence.source)
        record.offences += 1
        record.evidence = (
            *(old for old in record.evidence if evidence.when - old.when <= WINDOW_SECONDS),
            evidence,
        )[-max(KEPT_EVIDENCE, int(self.limits.points / FORGEABLE_WEIGHT) + 1) :]
        if record.block is not None and record.block.until > evidence.when:
            return None
        points = sum(item.weight for item in record.evidence)
        if points < self.limits.points or self._spared(evidence.source):
            return None
        return self._block(record, evidence.source, evidence.when)

    def forgive(self, source: Address) -> None:
        """The source has authenticated, or an administrator unblocked it: nothing is held against it."""
        self._records.pop(source, None)

    def block(self, source: Address, now: float, seconds: int) -> Block:
        """Block by hand, whatever the score."""
        record = self._touch(source)
        record.evidence = (*record.evidence, Evidence(now, source, Offence.BLOCKED_BY_HAND, proven=True))
        record.count += 1
        record.block = Block(source, now, now + seconds, record.count)
        return record.block

    def blocks(self, now: float) -> Iterator[Block]:
        """The blocks in force."""
        for record in self._records.values():
            if record.block is not None and record.block.until > now:
                yield record.block

    def why(self, source: Address, now: float) -> dict[str, object]:
        """Everything held against one source: block, score, evidence."""
        record = self._records.get(source, _Record())
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
        worst = sorted(self._records.items(), key=lambda item: item[1].offences, reverse=True)
        return [
            {"address": str(source), "offences": record.offences, "times_blocked": record.count}
            for source, record in worst[:count]
            if record.offences
        ]

    def dump(self, now: float) -> list[dict[str, object]]:
        """For the state file: sources that are or were blocked, with their evidence."""
        return [
            {
                "address": str(source),
                "count": record.count,
                "offences": record.offences,
                "since": record.block.since if record.block else 0.0,
                "until": record.block.until if record.block else 0.0,
                "evidence": [item.as_json() for item in record.evidence],
            }
            for source, record in self._records.items()
            if record.count and now - record.last_block_end < 2 * self.limits.longest_block_seconds
        ]

    def restore(self, entries: list[Mapping[str, object]]) -> int:
        """Take `dump`'s entries back; entries that make no sense are left out. Returns how many came back."""
        restored = 0
        for entry in entries:
            try:
                source = ip_address(str(entry["address"]))
                since, until, count = (_number(entry[key]) for key in ("since", "until", "count"))
                evidence = tuple(_evidence(source, item) for item in _list(entry["evidence"]))
                offences = int(_number(entry["offences"]))
            except (KeyError, TypeError, ValueError):
                continue
            block = Block(source, since, until, int(count))
            self._records[source] = _Record(evidence, offences, int(count), block, until)
            restored += 1
        return restored

    def _block(self, record: _Record, source: Address, now: float) -> Block:
        if now - record.last_block_end > 2 * self.limits.longest_block_seconds:
            record.count = 0
        record.count += 1
        doubled = self.limits.first_block_seconds * 2 ** min(record.count - 1, 30)
        until = now + min(doubled, self.limits.longest_block_seconds)
        record.last_block_end = until
        record.block = Block(source, now, until, record.count)
        return record.block

    def count(self, now: float) -> int:
        """How many sources are blocked."""
        return sum(1 for _ in self.blocks(now))

    def _touch(self, source: Address) -> _Record:
        record = self._records.get(source)
        if record is None:
            record = self._records[source] = _Record()
            while len(self._records) > REMEMBERED_SOURCES:
                self._records.popitem(last=False)
            self._shorten()
        else:
            self._records.move_to_end(source)
        return record

    def _shorten(self) -> None:
        """Of sources not heard lately keep the first and the last piece of evidence: twenty thousand
        attackers must not cost tens of megabytes."""
        if len(self._records) % SHORTEN_EVERY or len(self._records) <= DETAILED_SOURCES:
            return
        for record in islice(self._records.values(), len(self._records) - DETAILED_SOURCES):
            if len(record.evidence) > 2:
                record.evidence = (record.evidence[0], record.evidence[-1])


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    return float(value)


def _list(value: object) -> list[Mapping[str, object]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise TypeError(value)
    return value


def _evidence(source: Address, item: Mapping[str, object]) -> Evidence:
    return Evidence(
        _number(item["when"]),
        source,
        Offence(str(item["offence"])),
        item["proven"] is True,
        str(item["account"]),
        str(item["transport"]),
    )
