"""What watchers of a pair count as an answer, and how our own phone reads and writes SIP."""

from __future__ import annotations

import re

import pytest

from appliance.lab_host import LabTimeoutError
from appliance.lab_phone import Message, register_request
from appliance.lab_sip import Phone
from appliance.lab_watch import first_after

CHALLENGE = (
    "SIP/2.0 401 Unauthorized\r\nVia: SIP/2.0/UDP 10.77.0.101:5060;branch=z9hG4bKa\r\n"
    'Call-ID: abc\r\nCSeq: 1 REGISTER\r\nWWW-Authenticate: Digest realm="asterisk",nonce="17/0",'
    'opaque="5f",algorithm=md5,qop="auth"\r\nContent-Length: 0\r\n\r\n'
)


def test_answers_of_the_dying_node_do_not_count() -> None:
    moments = [9.9, 10.004, 10.02, 11.0, 11.01]
    assert first_after(lambda: moments, 10.0, 1, "an answer") == 1.0


def test_an_address_that_never_was_silent_never_moved() -> None:
    moments = [10 + number / 100 for number in range(200)]
    with pytest.raises(LabTimeoutError, match="an answer after a silence"):
        first_after(lambda: moments, 10.0, 0.05, "an answer")


def test_the_silence_must_be_as_long_as_asked() -> None:
    moments = [10.0, 10.2, 10.6]
    assert first_after(lambda: moments, 10.0, 1, "an answer", 0.3) == pytest.approx(0.6)


def test_a_message_is_read_by_its_headers() -> None:
    message = Message(CHALLENGE)
    assert (message.status, message.start) == (401, "SIP/2.0 401 Unauthorized")
    assert message.value("call-id") == "abc"
    assert message.all("Via") == ["Via: SIP/2.0/UDP 10.77.0.101:5060;branch=z9hG4bKa"]
    assert Message("INVITE sip:1001@h SIP/2.0\r\n\r\n").status == 0


def test_a_registration_answers_its_challenge_without_the_password() -> None:
    phone = Phone("1001", "a secret")
    own = ("10.77.0.101", 5060)
    first = register_request(phone, "10.77.0.200", own, "abc")
    again = register_request(phone, "10.77.0.200", own, "abc", CHALLENGE)
    assert "Authorization" not in first
    assert "CSeq: 2 REGISTER" in again
    assert phone.password not in again
    assert re.search(r'realm="asterisk", nonce="17/0", uri="sip:10.77.0.200", response="[0-9a-f]{32}"', again)
    assert 'opaque="5f"' in again
