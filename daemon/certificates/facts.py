"""What the daemon knows of a certificate without reading it: made by the helper, kept beside the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta


@dataclass(frozen=True)
class Facts:
    """Of the server's certificate. Times are UTC; `serial` and `fingerprint` (SHA-256 of the DER form) are
    upper-case hexadecimal; `chain` counts the certificates that are served."""

    serial: str
    fingerprint: str
    subject: str
    issuer: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    key: str
    self_signed: bool
    chain: int

    @property
    def lifetime(self) -> timedelta:
        """From the first to the last moment of validity."""
        return self.not_after - self.not_before

    def as_json(self) -> dict[str, object]:
        """All fields; times in ISO 8601."""
        times = {
            name: getattr(self, name).isoformat(timespec="seconds") for name in ("not_before", "not_after")
        }
        return {**asdict(self), "names": list(self.names), **times}

    @classmethod
    def from_json(cls, table: Mapping[str, object]) -> Facts:
        """The reverse of `as_json`; raises KeyError, TypeError or ValueError for anything else."""
        names = table["names"]
        if not isinstance(names, list):
            raise TypeError("names must be a list")
        return cls(
            serial=str(table["serial"]),
            fingerprint=str(table["fingerprint"]),
            subject=str(table["subject"]),
            issuer=str(table["issuer"]),
            names=tuple(str(name) for name in names),
            not_before=_moment(table["not_before"]),
            not_after=_moment(table["not_after"]),
            key=str(table["key"]),
            self_signed=table["self_signed"] is True,
            chain=int(str(table["chain"])),
        )


def _moment(value: object) -> datetime:
    moment = datetime.fromisoformat(str(value))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
