"""Moments in local time, and how far away they are; the calendar is loaded only when there is one to show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.cli.render import seconds

if TYPE_CHECKING:
    from datetime import datetime


def local_time(text: str) -> str:
    """An ISO 8601 time, or seconds since the epoch, as local time; anything else as it is."""
    moment = _moment(text)
    return text if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def elapsed(text: str) -> str:
    """How long ago that time was, short enough for a column; anything else as it is."""
    moment = _moment(text)
    return text if moment is None else seconds(-_seconds_until(moment))


def seconds_until(text: str) -> float | None:
    """Until an ISO 8601 time, at least 0; None if it is none."""
    moment = _moment(text)
    return None if moment is None else max(0.0, _seconds_until(moment))


def now() -> datetime:
    """In local time."""
    from datetime import datetime

    return datetime.now().astimezone()


def _seconds_until(moment: datetime) -> float:
    return (moment - now()).total_seconds()


def _moment(text: str) -> datetime | None:
    from datetime import UTC, datetime

    try:
        if text.replace(".", "", 1).isdigit():
            return datetime.fromtimestamp(float(text), UTC)
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError):
        return None
    return moment if moment.tzinfo else None
