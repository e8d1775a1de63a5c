"""The store of certificates: what is newest, served, previous; rights, power loss, damage."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from daemon.certificates.facts import Facts
from daemon.certificates.store import CertificateSet, Renewal, Store
from daemon.settings.reach import CertificateSource

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def facts(number: int) -> Facts:
    fingerprint = f"{number:064X}"[::-1]
    end = BEGIN + timedelta(days=90)
    return Facts(f"{number:02X}", fingerprint, "CN=a", "CN=b", ("a.example",), BEGIN, end, "EC", False, 2)


def serve(
    store: Store, number: int, source: CertificateSource = CertificateSource.UPLOADED
) -> CertificateSet:
    made = store.add(source, facts(number), f"chain {number}", f"key {number}")
    store.set_newest(source, made.name)
    store.begin(made.name)
    store.keep()
    return made


def test_what_is_kept_comes_back_and_keys_are_for_root_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "certificates")
    made = serve(store, 1)
    again = Store(tmp_path / "certificates")
    assert again.served() == made
    assert again.newest(CertificateSource.UPLOADED) == made
    assert again.newest(CertificateSource.ACME) is None
    for path in (tmp_path / "certificates").rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    assert "key 1" not in repr(made)


def test_the_one_before_is_kept_and_older_keys_are_gone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = serve(store, 1), serve(store, 2)
    assert store.get(store.state.previous) == first
    third = serve(store, 3, CertificateSource.ACME)
    assert store.get(store.state.previous) == second
    assert store.get(first.name) is None
    assert {path.name for path in (tmp_path / "sets").iterdir()} == {second.name, third.name}
    # Serving again what is served changes nothing of what was before.
    store.begin(third.name)
    store.keep()
    assert store.get(store.state.previous) == second


def test_a_trial_that_was_cut_off_is_known_after_the_start(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = serve(store, 1)
    second = store.add(CertificateSource.UPLOADED, facts(2), "chain 2", "key 2")
    store.begin(second.name)
    after = Store(tmp_path)
    assert after.state.trial == second.name
    assert after.served() == first
    after.give_up()
    after.prune()
    assert Store(tmp_path).state.trial == ""
    assert after.get(second.name) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"served": 1}', '{"served":"","previous":"","trial":"",'])
def test_a_damaged_state_starts_empty(tmp_path: Path, text: str) -> None:
    serve(Store(tmp_path), 1)
    (tmp_path / "state.json").write_text(text)
    assert Store(tmp_path).served() is None


@pytest.mark.parametrize("file", ["set.json", "chain.pem", "key.pem"])
def test_a_set_that_lost_a_file_is_none(tmp_path: Path, file: str) -> None:
    store = Store(tmp_path)
    made = serve(store, 1)
    (tmp_path / "sets" / made.name / file).unlink()
    assert store.served() is None


def test_requests_accounts_and_renewals_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.pending_key() is None
    store.set_pending("the key", "the request")
    store.set_account("https://one.example/dir", '{"key": 1}')
    store.set_renewal(Renewal(of="A", due="2026-02-01T00:00:00+00:00", failures=2, trouble="no"))
    again = Store(tmp_path)
    assert (again.pending_key(), again.pending_request()) == ("the key", "the request")
    assert again.account("https://one.example/dir") == '{"key": 1}'
    assert again.account("https://two.example/dir") is None
    assert again.state.renewal.failures == 2
    again.clear_pending()
    assert again.pending_key() is None
    assert again.pending_request() is None
    assert stat.S_IMODE(next((tmp_path / "accounts").iterdir()).stat().st_mode) == 0o600
