"""Certificate services that refuse: each refusal is one sentence with its remedy. Pebble proves the rest."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from certificate_authority import PrivateAuthority
from certificate_servers import RefusingService

from daemon.certificates.ordering import OrderError, OrderFault, Service, directory_trouble, order

ERROR = "urn:ietf:params:acme:error:"


@pytest.fixture
def refusing(tmp_path: Path) -> Iterator[RefusingService]:
    authority = PrivateAuthority()
    chain, key = authority.issue(["127.0.0.1"])
    (tmp_path / "roots.pem").write_text(authority.root)
    (tmp_path / "chain.pem").write_text(chain)
    (tmp_path / "key.pem").write_text(key)
    service = RefusingService(tmp_path / "chain.pem", tmp_path / "key.pem")
    yield service
    service.close()


def refusal(service: RefusingService, folder: Path) -> OrderError:
    wanted = Service(service.directory, folder / "roots.pem", "admin@example.com")
    with pytest.raises(OrderError) as refused:
        order(wanted, ["pbx.example.com"], "ec-p256", folder / "web", 5)
    assert refused.value.remedy
    assert not list((folder / "web").rglob("*"))
    return refused.value


def test_a_rate_limit_is_respected_and_said_plainly(refusing: RefusingService, tmp_path: Path) -> None:
    refusing.problem = {"type": f"{ERROR}rateLimited", "detail": "too many certificates already issued"}
    refusing.headers = {"Retry-After": "86400"}
    found = refusal(refusing, tmp_path)
    assert found.fault is OrderFault.RATE_LIMITED
    assert found.retry_after is not None
    assert timedelta(hours=23) < found.retry_after - datetime.now(UTC) <= timedelta(hours=24)
    assert "too many certificates already issued; it asks to wait until 20" in str(found)
    assert found.as_json()["fault"] == "rate-limited"
    assert len(refusing.asked) == 1, "it asks once and leaves"


def test_a_rate_limit_with_a_date(refusing: RefusingService, tmp_path: Path) -> None:
    refusing.problem = {"type": f"{ERROR}rateLimited", "detail": "slow down"}
    refusing.headers = {"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT"}
    assert refusal(refusing, tmp_path).retry_after == datetime(2100, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("code", "detail", "fault", "said"),
    [
        (
            "rejectedIdentifier",
            "forbidden by policy",
            OrderFault.REFUSED,
            "rejectedIdentifier: forbidden by policy",
        ),
        ("caa", "CAA record prevents it", OrderFault.REFUSED, "caa: CAA record prevents it"),
        ("malformed", "Order has expired", OrderFault.EXPIRED, "Order has expired"),
        ("serverInternal", "\x1b[31mred\nlines", OrderFault.REFUSED, "serverInternal: [31mred lines"),
    ],
)
def test_other_refusals(
    refusing: RefusingService, tmp_path: Path, code: str, detail: str, fault: OrderFault, said: str
) -> None:
    refusing.status = 403
    refusing.problem = {"type": ERROR + code, "detail": detail}
    found = refusal(refusing, tmp_path)
    assert (found.fault, said in str(found)) == (fault, True), str(found)


def test_rejected_nonces_are_answered_with_patience_but_not_for_ever(
    refusing: RefusingService, tmp_path: Path
) -> None:
    refusing.status = 400
    refusing.problem = {"type": f"{ERROR}badNonce", "detail": "stale"}
    refusal(refusing, tmp_path)
    assert 8 < len(refusing.asked) < 30


def test_a_directory_that_nobody_vouches_for(refusing: RefusingService, tmp_path: Path) -> None:
    (tmp_path / "roots.pem").write_text(PrivateAuthority("Another").root)
    found = refusal(refusing, tmp_path)
    assert found.fault is OrderFault.UNREACHABLE
    assert "not trusted" in str(found)
    assert "--roots" in found.remedy


def test_a_directory_that_is_away(refusing: RefusingService, tmp_path: Path) -> None:
    wanted = Service(refusing.directory, tmp_path / "roots.pem")
    assert directory_trouble(wanted) is None
    refusing.close()
    trouble = directory_trouble(wanted)
    assert trouble is not None
    assert "connection refused" in trouble
