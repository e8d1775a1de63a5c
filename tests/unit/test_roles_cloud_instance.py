"""The instance ID, asked of a metadata service that gives nothing without a token (S-IN-07)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from daemon.cloud_instance import instance_id, runs_on_ec2
from daemon.errors import UnavailableError


@dataclass
class Service:
    """What the fake service answers, and what it was asked."""

    base: str = ""
    answer: str = "i-0123456789abcdef0"
    refusals: int = 0
    tokens_only: bool = True
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def service() -> Iterator[Service]:
    state = Service()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

        def reply(self, status: int, text: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def do_PUT(self) -> None:
            state.asked.append(f"PUT {self.path}")
            if state.refusals:
                state.refusals -= 1
                self.reply(503, "")
            elif self.headers["X-aws-ec2-metadata-token-ttl-seconds"]:
                self.reply(200, "the-token")
            else:
                self.reply(400, "")

        def do_GET(self) -> None:
            state.asked.append(f"GET {self.path}")
            if self.headers["X-aws-ec2-metadata-token"] != "the-token":
                self.reply(401, "")
            else:
                self.reply(200, state.answer)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    state.base = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


class Clock:
    """Time that only passes in pauses."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


def ask(service: Service, limit_seconds: float = 60.0) -> str:
    clock = Clock()
    return instance_id(service.base, limit_seconds=limit_seconds, clock=clock, pause=clock.pause)


def test_the_id_is_had_with_a_token(service: Service) -> None:
    assert ask(service) == "i-0123456789abcdef0"
    assert service.asked == ["PUT /latest/api/token", "GET /latest/meta-data/instance-id"]


def test_a_proxy_of_the_environment_is_not_asked(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask(service) == "i-0123456789abcdef0"


def test_a_service_that_is_not_up_yet_is_asked_again(service: Service) -> None:
    service.refusals = 5
    assert ask(service) == "i-0123456789abcdef0"
    assert len(service.asked) == 7


@pytest.mark.parametrize("answer", ["", "<html>", "i-0123; rm -rf /", "i-" + "0" * 2000])
def test_what_is_no_instance_id_never_becomes_a_password(service: Service, answer: str) -> None:
    service.answer = answer
    with pytest.raises(UnavailableError, match="IMDSv2"):
        ask(service, limit_seconds=3.0)


def test_without_a_service_it_ends_in_time() -> None:
    clock = Clock()
    with pytest.raises(UnavailableError, match="within 10 s"):
        # Nobody listens on the discard port.
        instance_id("http://127.0.0.1:9", limit_seconds=10.0, clock=clock, pause=clock.pause)
    assert clock.now <= 10.0


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys_vendor": "Amazon EC2\n"}, True),
        ({"sys_vendor": "Xen\n", "bios_version": "4.11.amazon\n"}, True),
        ({"sys_vendor": "QEMU\n", "bios_vendor": "SeaBIOS\n"}, False),
        ({"sys_vendor": "VMware, Inc.\n"}, False),
        ({}, False),
    ],
)
def test_the_firmware_says_whether_this_is_ec2(tmp_path: Path, files: dict[str, str], expected: bool) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert runs_on_ec2(tmp_path) is expected
