"""When certificates are renewed, and when their end is an alarm."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.certificates import schedule
from daemon.certificates.facts import Facts
from daemon.certificates.store import Renewal
from daemon.settings.reach import CertificateSource

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = (30, 14, 7, 1)


def facts(days: float) -> Facts:
    end = BEGIN + timedelta(days=days)
    return Facts("01", "AB", "CN=a", "CN=b", ("a.example",), BEGIN, end, "EC secp256r1", False, 1)


@given(st.floats(0, 1), st.floats(1, 4000))
def test_renewal_is_at_two_thirds_of_life_or_a_little_earlier(chance: float, days: float) -> None:
    share = (schedule.due(facts(days), chance) - BEGIN) / timedelta(days=days)
    assert 2 / 3 - 1 / 24 - 1e-6 <= share <= 2 / 3 + 1e-6


@pytest.mark.parametrize(
    ("left", "uploaded", "automatic"),
    [
        (31, None, None),
        (30, 30, None),  # a 90-day certificate is renewed then: nothing has gone wrong yet
        (14, 14, 14),
        (8, 14, 14),
        (7, 7, 7),
        (1, 1, 1),
        (0.5, 1, 1),
        (0, 0, 0),
        (-3, 0, 0),
    ],
)
def test_an_alarm_for_each_threshold(left: float, uploaded: int | None, automatic: int | None) -> None:
    now = BEGIN + timedelta(days=90 - left)
    assert schedule.expiry_threshold(facts(90), CertificateSource.UPLOADED, DAYS, now) == uploaded
    assert schedule.expiry_threshold(facts(90), CertificateSource.ACME, DAYS, now) == automatic


def test_a_certificate_of_six_days_raises_no_alarm_all_its_life() -> None:
    short = facts(6)
    early = BEGIN + timedelta(days=3.9)
    assert schedule.expiry_threshold(short, CertificateSource.ACME, DAYS, early) is None
    late = BEGIN + timedelta(days=5.2)
    assert schedule.expiry_threshold(short, CertificateSource.ACME, DAYS, late) == 1


def test_pauses_double_up_to_a_day_and_never_undercut_the_service() -> None:
    renewal = Renewal(of="A", due=BEGIN.isoformat())
    pauses = []
    for _ in range(8):
        renewal = schedule.after_failure(renewal, BEGIN, "no", None)
        pauses.append(datetime.fromisoformat(renewal.not_before) - BEGIN)
    assert pauses == [timedelta(hours=hours) for hours in (1, 2, 4, 8, 16, 24, 24, 24)]
    wish = BEGIN + timedelta(days=3)
    assert schedule.after_failure(renewal, BEGIN, "limit", wish).not_before == wish.isoformat()
    assert schedule.is_due(Renewal(due=BEGIN.isoformat()), BEGIN)
    assert not schedule.is_due(renewal, BEGIN + timedelta(hours=23))
    assert schedule.is_due(renewal, BEGIN + timedelta(hours=24))
    assert not schedule.is_due(Renewal(), BEGIN)


def test_the_service_may_bring_a_renewal_forward_but_not_beyond_reason() -> None:
    renewal, held = Renewal(of="A", due=(BEGIN + timedelta(days=60)).isoformat()), facts(90)
    early, mad = BEGIN + timedelta(days=2), BEGIN + timedelta(days=89)
    taken = schedule.with_suggestion(renewal, held, {"suggested": early.isoformat(), "ask_again": ""}, BEGIN)
    assert taken.due == early.isoformat()
    refused = schedule.with_suggestion(renewal, held, {"suggested": mad.isoformat()}, BEGIN)
    assert refused.due == renewal.due
    for asked, expected in (("2000-01-01T00:00:00+00:00", 1), ("2099-01-01T00:00:00+00:00", 24), ("?", 24)):
        again = schedule.with_suggestion(renewal, held, {"ask_again": asked}, BEGIN).ask_again
        assert datetime.fromisoformat(again) == BEGIN + timedelta(hours=expected)


def test_damaged_moments_count_as_none() -> None:
    assert schedule.parsed("yesterday") is None
    assert schedule.parsed("2026-01-01T00:00:00") is None, "without a time zone it means nothing"
