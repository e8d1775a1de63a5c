"""When certificates are renewed and when their end is an alarm: pure, wall-clock times in UTC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from daemon.certificates.facts import Facts
from daemon.certificates.store import Renewal
from daemon.settings.reach import CertificateSource

AUTOMATIC = (CertificateSource.SELF_SIGNED, CertificateSource.ACME)
"""Sources that the box renews by itself."""
RENEW_AT = 2 / 3
JITTER = 1 / 24
"""Share of the lifetime by which the renewal may come earlier, so that boxes do not all come at once."""
FIRST_PAUSE = timedelta(hours=1)
LONGEST_PAUSE = timedelta(days=1)


def due(facts: Facts, chance: float) -> datetime:
    """When to renew: at two thirds of the lifetime, earlier by up to JITTER of it. `chance` is in 0..1."""
    return facts.not_before + facts.lifetime * (RENEW_AT - JITTER * chance)


def expiry_threshold(
    facts: Facts, source: CertificateSource, days: Sequence[int], now: datetime
) -> int | None:
    """The smallest of `days` before the end that has been reached, None before the first; 0 when expired.

    A certificate that the box renews by itself is renewed at two thirds of its life: only what remains after
    that has gone wrong is worth an alarm.
    """
    left = facts.not_after - now
    if left <= timedelta(0):
        return 0
    counting = [
        day
        for day in days
        if source not in AUTOMATIC or timedelta(days=day) < facts.lifetime * (1 - RENEW_AT)
    ]
    return min((day for day in counting if left <= timedelta(days=day)), default=None)


def after_failure(renewal: Renewal, now: datetime, trouble: str, retry_after: datetime | None) -> Renewal:
    """The pause doubles with each failure up to a day; the service's own wish is never undercut."""
    pause = min(FIRST_PAUSE * 2 ** min(renewal.failures, 10), LONGEST_PAUSE)
    until = max(now + pause, retry_after) if retry_after is not None else now + pause
    return replace(renewal, failures=renewal.failures + 1, trouble=trouble, not_before=until.isoformat())


def with_suggestion(renewal: Renewal, facts: Facts, answer: Mapping[str, object], now: datetime) -> Renewal:
    """The service's wish (RFC 9773) in place of our own plan, if it makes sense: `suggested` and `ask_again`
    of the helper. A service may bring a renewal forward, and put it off to the last tenth of the lifetime."""
    again = parsed(str(answer.get("ask_again") or "")) or now + LONGEST_PAUSE
    again = min(max(again, now + FIRST_PAUSE), now + LONGEST_PAUSE)
    suggested = parsed(str(answer.get("suggested") or ""))
    due = renewal.due
    if suggested is not None and suggested < facts.not_after - facts.lifetime / 10:
        due = suggested.isoformat()
    return replace(renewal, due=due, ask_again=again.isoformat())


def is_due(renewal: Renewal, now: datetime) -> bool:
    """Whether to renew now."""
    moment, pause = parsed(renewal.due), parsed(renewal.not_before)
    return moment is not None and now >= moment and (pause is None or now >= pause)


def parsed(text: str) -> datetime | None:
    """A moment that the store holds; None for "" and for what is damaged."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else None
