"""The daemon on a private bus: a real dbus-daemon, the real program, real pydbus clients of several users."""

from __future__ import annotations

import inspect
import json
import os
import pwd
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from gi.repository import Gio, GLib

from appliance.lab_host import wait_for
from daemon.bus import BUS_NAME, OBJECT_PATH, introspection, leaks_invocations, methods_of_interface
from tests.support.private_bus import LIMIT_SECONDS
from tests.support.running_daemon import Client, Running
from tests.support.users import as_other_user

NOBODY = 65534


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("bus"))
    running.start()
    yield running
    running.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    running.close()


@pytest.fixture
def client(shared: Running) -> Client:
    return Client(shared.address)


# A pydbus client of its own: GLib's threads do not survive a fork, and the user must be set before the first.
CLIENT = """
import json, sys
import pydbus
from gi.repository import Gio, GLib
bus = pydbus.connect(sys.argv[1])
answers = []
for name, arguments in json.load(sys.stdin):
    interface, _, method = name.partition(".")
    proxy = bus.get("org.centralino", "/org/centralino", timeout=20)
    try:
        answers.append(["", getattr(proxy["org.centralino." + interface], method)(*arguments, timeout=20)])
    except GLib.Error as error:
        answers.append([Gio.DBusError.get_remote_error(error) or "unknown", error.message])
json.dump(answers, sys.stdout)
"""
Calls = list[tuple[str, tuple[str | int, ...]]]


def as_user(address: str, uid: int, calls: Calls) -> list[tuple[str, str]]:
    """What another user gets: for each call the error name without its prefix ("" = none), and the text."""
    done = subprocess.run(
        [*as_other_user(uid), sys.executable, "-c", CLIENT, address],
        input=json.dumps(calls),
        cwd="/",
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [(name.removeprefix("org.centralino.Error."), text) for name, text in json.loads(done.stdout)]


def test_the_interface_on_the_bus_is_the_xml(client: Client) -> None:
    proxy = client.bus.get(BUS_NAME, OBJECT_PATH, timeout=10)
    shown = proxy["org.freedesktop.DBus.Introspectable"].Introspect()
    for name in methods_of_interface(introspection()):
        interface, _, method = name.rpartition(".")
        assert f'interface name="{interface}"' in shown
        assert f'method name="{method}"' in shown
    assert json.loads(proxy["org.centralino.Settings1"].Get("node"))["settings"]["timezone"] == "UTC"


def test_pydbus_is_known_to_one_module_and_properties_to_none() -> None:
    sources = Path(inspect.getfile(methods_of_interface)).parent
    users = {
        file.name
        for file in sources.rglob("*.py")
        if re.search(r"^\s*(import|from) pydbus", file.read_text(), re.M)
    }
    assert users == {"bus.py"}
    assert "<property" not in introspection()


def test_get_knows_every_path(client: Client) -> None:
    whole = client.read("Settings1.Get", "")
    assert isinstance(whole, dict)
    assert whole["settings"]["schema"] == 1
    answer = client.read("Settings1.Get", "certificates.expiry_alarm_days.0")
    assert isinstance(answer, dict)
    assert answer["settings"] == 30
    for path in (
        "nothing",
        "node.nothing",
        "node.hostname.x",
        "certificates.expiry_alarm_days.9",
        ".",
        "a" * 9999,
    ):
        assert client.refused("Settings1.Get", path)[0] == "NotFound"


def test_a_change_from_proposal_to_history(shared: Running, client: Client) -> None:
    document = json.dumps({"node": {"hostname": "pbx1"}})
    plan = client.read("Settings1.Propose", document, 0)
    assert isinstance(plan, dict)
    assert [change["sentence"] for change in plan["changes"]] == ["Name this node pbx1."]
    job = client.finished(client.call("Settings1.Apply", document, json.dumps({"comment": "a new name"})))
    assert job["state"] == "done", job
    result = job["result"]
    assert isinstance(result, dict)
    assert result["confirm_by"] is None
    assert (shared.root / "etc/hostname").read_text() == "pbx1\n"
    history = client.read("Settings1.History", 1)
    assert isinstance(history, list)
    newest = history[0]
    assert (newest["revision"], newest["comment"]) == (result["revision"], "a new name")
    assert '+  hostname: "pbx1"' in client.call("Settings1.Diff", 1, 0)
    assert client.read("Settings1.Revision", 0) == client.read("Settings1.Revision", newest["revision"])


def test_confirm_and_return_over_the_bus(client: Client) -> None:
    document = json.dumps({"node": {"hostname": "pbx2"}})
    client.finished(client.call("Settings1.Apply", document, json.dumps({"confirm_seconds": 600})))
    status = client.read("System1.Status")
    assert isinstance(status, dict)
    assert status["pending"]["returns_to"] < status["pending"]["revision"]
    other = client.finished(client.call("Settings1.Apply", "{}", "{}"))
    assert other["error"]["name"] == "org.centralino.Error.Conflict"  # type: ignore[index]
    assert client.read("Settings1.Confirm", "it works") == {"revision": status["pending"]["revision"]}
    assert client.refused("Settings1.Confirm", "")[0] == "NotFound"


def test_a_refused_document_names_every_problem_in_plan_and_job(client: Client) -> None:
    document = json.dumps({"node": {"hostname": "; reboot", "x": 1}, "web": {"session_seconds": 0}})
    plan = client.read("Settings1.Propose", document, 0)
    assert isinstance(plan, dict)
    paths = {problem["path"] for problem in plan["problems"]}
    assert paths == {"node.hostname", "node.x", "web.session_seconds"}
    job = client.finished(client.call("Settings1.Apply", document, "{}"))
    error = job["error"]
    assert isinstance(error, dict)
    assert (job["state"], error["name"]) == ("failed", "org.centralino.Error.InvalidSettings")
    assert {problem["path"] for problem in error["problems"]} == paths


@pytest.mark.parametrize(
    ("method", "arguments", "error"),
    [
        ("Settings1.Apply", ("{}", "[]"), "InvalidSettings"),
        ("Settings1.Apply", ("{}", '{"bass": 1}'), "InvalidSettings"),
        ("Settings1.Apply", ("{}", '{"base": "1"}'), "InvalidSettings"),
        ("Settings1.Apply", ("{}", '{"confirm_seconds": -1}'), "InvalidSettings"),
        ("Settings1.Apply", ("{}", '{"base": true}'), "InvalidSettings"),
        ("Settings1.Revision", (9999,), "NotFound"),
        ("Settings1.Diff", (1, 9999), "NotFound"),
        ("Settings1.Propose", ("{}", 9999), "Conflict"),
        ("Settings1.SetSecret", ("../evil", "x", ""), "InvalidSettings"),
        ("Settings1.SetSecret", ("", "x", ""), "InvalidSettings"),
        ("Settings1.SetSecret", ("mail", "", ""), "InvalidSettings"),
        ("Services1.Act", ("asterisk", "explode", "{}"), "InvalidSettings"),
        ("Services1.Act", ("asterisk", "stop", "{}"), "Unavailable"),
        ("Services1.Logs", ("asterisk", 5, ""), "Unavailable"),
        ("System1.Maintenance", ("explode", "{}"), "InvalidSettings"),
        ("System1.SetPassword", ("root", "Correct-Horse-7", ""), "NotFound"),
        ("System1.SetPassword", ("admin:x\nroot", "Correct-Horse-7", ""), "NotFound"),
        ("Jobs1.Get", ("nothing",), "NotFound"),
        ("Jobs1.Cancel", ("nothing", ""), "NotFound"),
    ],
)
def test_errors_have_names_and_sentences(
    client: Client, method: str, arguments: tuple[str | int, ...], error: str
) -> None:
    name, message = client.refused(method, *arguments)
    assert name == error
    assert "Traceback" not in message


def test_unknown_methods_and_properties_are_refused_by_name(client: Client) -> None:
    assert client.refused("Settings1.Explode")[0].endswith("UnknownMethod")
    proxy = client.bus.get(BUS_NAME, OBJECT_PATH, timeout=10)
    with pytest.raises(GLib.Error):
        proxy["org.freedesktop.DBus.Properties"].Set("org.centralino.System1", "x", GLib.Variant("s", "y"))
    assert client.read("Jobs1.List") is not None


def test_secrets_lie_apart_and_are_never_shown(shared: Running, client: Client) -> None:
    client.call("Settings1.SetSecret", "mail", "Tr0ub4dor&3", "a comment")
    file = shared.root / "etc/centralino/secrets/mail"
    assert file.read_text() == "Tr0ub4dor&3"
    assert oct(file.stat().st_mode)[-4:] == "0600"
    assert oct(file.parent.stat().st_mode)[-4:] == "0700"
    client.refused("System1.SetPassword", "admin", "Tr0ub4dor&3", "")
    everything = [
        shared.log(),
        json.dumps(shared.audit()),
        client.call("System1.Status"),
        client.call("Jobs1.List"),
    ]
    everything += [path.read_text() for path in (shared.root / "var").rglob("*") if path.is_file()]
    assert not any("Tr0ub4dor" in text for text in everything)
    recorded = [entry for entry in shared.audit() if entry["method"] == "Settings1.SetSecret"]
    assert recorded[-1]["arguments"] == {"name": "mail", "comment": "a comment"}


def test_every_change_is_recorded_and_reads_are_not(shared: Running, client: Client) -> None:
    before = len(shared.audit())
    client.read("System1.Status")
    client.read("Settings1.Get", "")
    assert len(shared.audit()) == before
    client.call("System1.Maintenance", "reboot", '{"dry_run": true, "comment": "only looking"}')
    newest = shared.audit()[-1]
    assert (newest["who"], newest["uid"], newest["outcome"]) == ("root", 0, "done") or os.geteuid() != 0
    assert newest["arguments"] == {"verb": "reboot", "dry_run": True, "comment": "only looking"}
    shown = client.read("System1.Audit", 1)
    assert shown == [newest]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be another user")
def test_a_stranger_is_refused_everything_and_recorded(shared: Running) -> None:
    calls: Calls = [
        ("Settings1.Get", ("",)),
        ("System1.Status", ()),
        ("Settings1.Apply", (json.dumps({"node": {"hostname": "hacked"}}), "{}")),
        ("Settings1.SetSecret", ("mail", "Tr0ub4dor&3", "a comment")),
        ("System1.Maintenance", ("reboot", "{}")),
        ("Jobs1.List", ()),
    ]
    answers = as_user(shared.address, NOBODY, calls)
    assert [name for name, _ in answers] == ["NotAuthorized"] * len(calls)
    refused = [entry for entry in shared.audit() if entry["uid"] == NOBODY]
    assert [entry["method"] for entry in refused] == [name for name, _ in calls]
    assert all(str(entry["outcome"]).startswith("refused") for entry in refused)
    assert (shared.root / "etc/hostname").read_text() != "hacked\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make users in a mount namespace")
def test_operators_read_admins_write(own: Running) -> None:
    # Three users that this machine has, in groups that only the daemon's mount namespace knows.
    accounts = [entry for entry in pwd.getpwall() if 0 < entry.pw_uid < NOBODY][:3]
    reader, writer, stranger = ((entry.pw_name, entry.pw_uid) for entry in accounts)
    group = own.directory / "group"
    groups = [f"centralino-operator:x:48001:{reader[0]}", f"centralino-admin:x:48002:{writer[0]}", ""]
    group.write_text(Path("/etc/group").read_text().rstrip() + "\n" + "\n".join(groups))
    own.start(
        "unshare", "-m", "sh", "-ec", 'mount --bind "$1" /etc/group; shift; exec "$@"', "sh", str(group)
    )
    document = json.dumps({"node": {"hostname": "by-writer"}})
    writes: Calls = [
        ("Settings1.Apply", (document, "{}")),
        ("Settings1.Confirm", ("",)),
        ("Settings1.SetSecret", ("mail", "x", "")),
        ("Services1.Act", ("asterisk", "stop", '{"dry_run": true}')),
        ("System1.Maintenance", ("reboot", "{}")),
        ("System1.SetPassword", ("admin", "x", "")),
        ("Jobs1.Cancel", ("x", "")),
    ]
    reads: Calls = [("Settings1.Get", ("node.hostname",)), ("System1.Status", ())]
    read, refused = (
        as_user(own.address, reader[1], reads),
        as_user(own.address, reader[1], writes),
    )
    assert [name for name, _ in read] == ["", ""]
    assert [name for name, _ in refused] == ["NotAuthorized"] * len(writes)
    nothing = as_user(own.address, stranger[1], reads + writes)
    assert [name for name, _ in nothing] == ["NotAuthorized"] * (len(reads) + len(writes))
    assert not (own.root / "etc/hostname").read_text().startswith("by-writer")
    ((error, job),) = as_user(own.address, writer[1], writes[:1])
    assert error == ""
    assert Client(own.address).finished(job)["state"] == "done"
    assert (own.root / "etc/hostname").read_text() == "by-writer\n"
    outcomes = [(entry["who"], entry["method"], str(entry["outcome"]).split(":")[0]) for entry in own.audit()]
    assert outcomes.count((reader[0], "Settings1.Apply", "refused")) == 1
    assert sum(who == reader[0] for who, _, _ in outcomes) == len(writes)
    assert (writer[0], "Settings1.Apply", "applied") in outcomes


def test_shell_metacharacters_reach_no_shell(shared: Running, client: Client) -> None:
    marker = shared.directory / "marker"
    for evil in (f"$(touch {marker})", f"`touch {marker}`", f"; touch {marker}", f"x\ntouch {marker}", "-h"):
        for document in (
            {"node": {"hostname": evil}},
            {"node": {"timezone": evil}},
            {"console": {"banner": evil}},
            {"domain": {"fqdn": evil}},
            {"network": {"interfaces": {evil: {}}}},
        ):
            client.finished(
                client.call("Settings1.Apply", json.dumps(document), json.dumps({"comment": evil}))
            )
        client.refused("System1.SetPassword", evil, evil, evil)
        client.refused("Settings1.SetSecret", evil, evil, evil)
        client.refused("Services1.Logs", evil, 1, evil)
    assert not marker.exists()


def test_signals_report_jobs_without_saying_what_they_hold(shared: Running, client: Client) -> None:
    heard: list[str] = []
    loop = GLib.MainLoop()

    def arrived(*event: object) -> None:
        heard.append(event[5].unpack()[0])  # type: ignore[attr-defined]
        if json.loads(heard[-1])["state"] in ("done", "failed"):
            loop.quit()

    client.bus.con.signal_subscribe(
        BUS_NAME, f"{BUS_NAME}.Jobs1", "JobChanged", OBJECT_PATH, None, Gio.DBusSignalFlags.NONE, arrived
    )
    guard = GLib.timeout_add_seconds(20, loop.quit)
    identifier = client.call("Settings1.Apply", json.dumps({"node": {"hostname": "pbx-signal"}}), "{}")
    loop.run()
    GLib.source_remove(guard)
    jobs = [json.loads(text) for text in heard]
    states = [job["state"] for job in jobs if job["id"] == identifier]
    assert states[-1] == "done"
    assert "pbx-signal" not in "".join(heard)


def test_a_flood_of_one_client_does_not_starve_another(shared: Running, client: Client) -> None:
    stop = threading.Event()
    refused: list[str] = []

    def flood() -> None:
        noisy = Client(shared.address)
        pending = 0

        def answered(connection: Gio.DBusConnection, result: Gio.AsyncResult) -> None:
            nonlocal pending
            pending -= 1
            try:
                connection.call_finish(result)
            except GLib.Error as error:
                refused.append(Gio.DBusError.get_remote_error(error) or "")

        context = GLib.MainContext()
        context.push_thread_default()
        while not stop.is_set():
            while pending < 100:
                pending += 1
                noisy.bus.con.call(
                    BUS_NAME,
                    OBJECT_PATH,
                    f"{BUS_NAME}.System1",
                    "Status",
                    None,
                    None,
                    0,
                    20_000,
                    None,
                    answered,
                )
            context.iteration(True)
        while pending:
            context.iteration(True)
        context.pop_thread_default()

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        wait_for(lambda: refused, LIMIT_SECONDS, "a refusal of the flood")
        for _ in range(20):
            assert client.read("Jobs1.List") is not None
    finally:
        stop.set()
        thread.join()
    assert set(refused) == {"org.centralino.Error.Unavailable"}


def test_calls_do_not_leak(own: Running) -> None:
    """2,000 calls with 20 kB each would leave 40 MB with the bindings' leak (about the arguments a call)."""
    if not leaks_invocations():
        pytest.skip("these bindings do not leak")
    own.start()
    client = Client(own.address)
    for _ in range(300):
        client.refused("Settings1.Get", "x" * 20_000)
    before = own.memory_kilobytes()
    for _ in range(2000):
        client.refused("Settings1.Get", "x" * 20_000)
    assert own.memory_kilobytes() - before < 4000
