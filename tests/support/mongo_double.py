"""A double of MongoDB: one member's rules of elections and reconfigurations, and the wire protocol before it.

Source: MongoDB manual, "Wire Protocol" (OP_MSG, and OP_QUERY for the first greeting of a client).
"""

from __future__ import annotations

import socketserver
import struct
import threading
from datetime import UTC, datetime
from typing import Any

OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
WIRE_VERSION = 21
ENVELOPE = frozenset({"lsid", "$db", "$readPreference", "$clusterTime", "txnNumber"})


class ServerError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Member:
    """One server of a set, alone in its view: it is primary when it is the only voter."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.config: dict[str, Any] | None = None
        self.frozen = False
        self.primary = False
        self.deaf = False

    def command(self, name: str, value: Any = 1, **arguments: Any) -> dict[str, Any]:
        if self.deaf:
            raise ServerError(6, "no answer")
        method = getattr(self, f"do_{name}")
        answer: dict[str, Any] = method(value, **arguments)
        return answer

    def do_replSetGetConfig(self, _value: Any) -> dict[str, Any]:  # noqa: N802
        if self.config is None:
            raise ServerError(94, "no replset config has been received")
        return {"config": dict(self.config)}

    def do_replSetInitiate(self, config: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        assert self.config is None
        self.take(config)
        return {"ok": 1}

    def do_replSetReconfig(self, config: dict[str, Any], force: bool = False) -> dict[str, Any]:  # noqa: N802
        assert self.config is not None
        if config["version"] <= self.config["version"]:
            raise ServerError(103, "version must grow")
        if not self.primary and not force:
            raise ServerError(10107, "not primary")
        self.take(config)
        return {"ok": 1}

    def take(self, config: dict[str, Any]) -> None:
        for member in config["members"]:
            if member["votes"] == 0 and member["priority"] != 0:
                raise ServerError(103, "a member without a vote must have priority 0")
        before = {member["_id"]: member["host"] for member in (self.config or config)["members"]}
        assert before == {member["_id"]: member["host"] for member in config["members"]}, "numbers stay"
        self.config = config
        self.elect()

    def elect(self) -> None:
        assert self.config is not None
        voters = [member["host"] for member in self.config["members"] if member["votes"]]
        self.primary = voters == [self.host] and not self.frozen

    def do_hello(self, _value: Any) -> dict[str, Any]:
        known: dict[str, Any] = {"isWritablePrimary": self.primary, "secondary": not self.primary}
        if self.config is None:
            return {"isWritablePrimary": False, "isreplicaset": True}
        hosts = [member["host"] for member in self.config["members"]]
        return {**known, "setName": self.config["_id"], "hosts": hosts, "me": self.host}

    def do_replSetStepDown(self, _value: Any, **_arguments: Any) -> dict[str, Any]:  # noqa: N802
        if not self.primary:
            raise ServerError(10107, "not primary")
        self.primary = False
        raise ServerError(91, "connection closed")

    def do_replSetFreeze(self, seconds: int) -> dict[str, Any]:  # noqa: N802
        if self.primary and seconds:
            raise ServerError(95, "cannot freeze a primary")
        self.frozen = seconds > 0
        if self.config is not None:
            self.elect()
        return {"ok": 1}

    def do_replSetGetStatus(self, _value: Any) -> dict[str, Any]:  # noqa: N802
        moments = [datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC) for second in (10, 7)]
        return {"members": [{"health": 1, "optimeDate": moment} for moment in moments]}


class WireServer:
    """Serves a member on a port of loopback, as a context; commands come as they do to a server."""

    def __init__(self, member: Member) -> None:
        self.commands: list[str] = []
        double = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                while header := self._exactly(16):
                    length, number, _, code = struct.unpack("<iiii", header)
                    reply = double.answer(member, code, self._exactly(length - 16))
                    self.request.sendall(
                        struct.pack("<iiii", 16 + len(reply[1]), 0, number, reply[0]) + reply[1]
                    )

            def _exactly(self, count: int) -> bytes:
                data = b""
                while len(data) < count and (part := self.request.recv(count - len(data))):
                    data += part
                return data

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", 0), Handler)
        self.uri = f"mongodb://127.0.0.1:{self._server.server_address[1]}/"

    def __enter__(self) -> WireServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, member: Member, code: int, body: bytes) -> tuple[int, bytes]:
        """Kind and body of the answer to a message."""
        import bson

        if code == OP_QUERY:
            begin = body.index(b"\0", 4) + 9
            document = bson.encode(self._do(member, bson.decode(body[begin:])))
            return OP_REPLY, struct.pack("<iqii", 8, 0, 0, 1) + document
        assert code == OP_MSG
        assert body[4] == 0, "one document of kind 0"
        return OP_MSG, struct.pack("<I", 0) + b"\0" + bson.encode(self._do(member, bson.decode(body[5:])))

    def _do(self, member: Member, command: dict[str, Any]) -> dict[str, Any]:
        name, value = next(iter(command.items()))
        if member.deaf:
            return {"ok": 0, "errmsg": "no answer", "code": 6}
        arguments = {key: word for key, word in command.items() if key != name and key not in ENVELOPE}
        if name in ("hello", "ismaster", "isMaster"):
            found = member.do_hello(1)
            greeting = {"ok": 1, "helloOk": True, "minWireVersion": 0, "maxWireVersion": WIRE_VERSION}
            return {**greeting, "ismaster": found["isWritablePrimary"], **found}
        if name == "endSessions":
            return {"ok": 1}
        self.commands.append(name)
        try:
            return {"ok": 1, **member.command(name, value, **arguments)}
        except ServerError as error:
            return {"ok": 0, "errmsg": str(error), "code": error.code}
