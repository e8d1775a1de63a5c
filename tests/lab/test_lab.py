"""The lab itself: what its verbs promise is what happens, and nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from appliance.lab import Lab, Loss, Node, remove_leftovers
from appliance.lab_host import CGROUP_TOP, LabError, LabTimeoutError, hierarchies, wait_for
from appliance.run import isolated

pytestmark = pytest.mark.lab

# The port lies in the range that the appliance opens for media.
SOCKET = "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
HEAR = SOCKET + "s.bind(('', 15999)); s.settimeout(8); print(s.recv(99).decode())"
SAY = SOCKET + "for _ in range(20): s.sendto(b'heard', ('%s', 15999)); time.sleep(0.05)"


def reaches(source: Node, target: Node, segment: str = "lan") -> bool:
    """Whether a ping gets there and back."""
    return source.run(["ping", "-c1", "-W1", target.address(segment)], check=False).ok


def hears(listener: Node, speaker: Node) -> bool:
    """Whether a datagram gets there, whatever happens to an answer."""
    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(lambda: listener.run(["python3", "-c", HEAR], check=False))
        wait_for(
            lambda: ":3E7F " in listener.run(["cat", "/proc/net/udp"]).output,
            5,
            "the listener binding its socket",
        )
        speaker.run(["python3", "-c", SAY % listener.address()])
        return "heard" in heard.result().output


def traces(lab_name: str, directory: Path) -> list[str]:
    """Everything on this host that still speaks of a lab."""
    found = [str(each) for each in Path("/run/netns").glob(f"cl-{lab_name}-*")]
    found += [
        str(top / CGROUP_TOP / lab_name) for top in hierarchies() if (top / CGROUP_TOP / lab_name).exists()
    ]
    found += [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(directory) in line
    ]
    for loop in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # another test's, released while we looked
            if str(directory) in loop.read_text():
                found.append(str(loop))
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in words and int(process.parent.name) != os.getpid():
            found.append(words)
    return found


def test_two_nodes_meet_and_are_two(lab: Lab) -> None:
    first, second = lab.add_node(), lab.add_node()
    lab.power_on_all()
    assert reaches(first, second)
    assert reaches(first, second, "mgmt")
    assert first.run(["getent", "hosts", "node2"]).output.split()[0] == second.address6()
    identities = {node.run(["cat", "/etc/machine-id"]).output for node in (first, second)}
    assert len(identities) == 2
    client = lab.add_client()
    with pytest.raises(LabError, match="already has a host named phone"):
        lab.add_client()
    heard = client.run(
        [sys.executable, "-c", f"import socket; socket.create_connection(('{first.address()}', 22), 5)"]
    )
    assert heard.ok


def test_partition_one_way_and_heal(lab: Lab) -> None:
    first, second = lab.add_node(), lab.add_node()
    lab.power_on_all()
    lab.partition(["node1"], ["node2"], segments=["lan"])
    assert not reaches(first, second)
    assert reaches(first, second, "mgmt")
    assert first.run(["cat", "/sys/class/net/eth0/carrier"]).output.strip() == "1"
    lab.heal()
    # The neighbour that did not answer is asked again soon, not at once.
    wait_for(lambda: reaches(first, second), 10, "an answer after the heal")
    lab.partition(["node1"], ["node2"], one_way=True)
    assert hears(first, second)
    assert not hears(second, first)
    lab.heal()
    assert hears(second, first)


def test_bad_cable_loses_some_frames_until_healed(lab: Lab) -> None:
    first, second = lab.add_node(), lab.add_node()
    lab.power_on_all()

    def answered() -> int:
        text = first.run(["ping", "-c30", "-i0.05", "-W1", "-q", second.address()], check=False).output
        return int(text.partition(" packets transmitted, ")[2].split()[0])

    lab.lose_frames("node1", Loss.EXTREME, segments=["lan"])
    assert 0 < answered() < 28
    lab.heal()
    assert answered() == 30


def test_names_are_gone_while_the_name_server_is(lab: Lab) -> None:
    node = lab.add_node()
    node.power_on()
    lookup = ["python3", "-c", "import socket; socket.getaddrinfo('node9', None)"]
    lab.add_node("node9")
    wait_for(lambda: node.run(lookup, check=False).ok, 10, "the new node's name")
    lab.stop_names()
    assert not node.run(lookup, check=False, limit_seconds=60).ok
    lab.start_names()
    wait_for(lambda: node.run(lookup, check=False).ok, 10, "the name after the server came back")


def test_pulled_cable_takes_the_carrier(lab: Lab) -> None:
    first, second = lab.add_node(), lab.add_node()
    lab.power_on_all()
    first.link_down("lan")
    assert not reaches(second, first)
    assert first.run(["cat", "/sys/class/net/eth0/carrier"]).output.strip() == "0"
    first.link_up("lan")
    wait_for(lambda: reaches(second, first), 15, "node1 answering again after the cable was plugged in")


def test_power_loss_keeps_what_was_fsynced_and_nothing_of_memory(lab: Lab) -> None:
    node = lab.add_node()
    node.power_on()
    node.run(
        ["sh", "-c", "echo safe > /root/safe && sync /root/safe && sync /root && echo lost > /root/lost"]
    )
    node.run(["ip", "address", "add", "10.77.0.200/24", "dev", "eth0"])
    node.run(["touch", "/run/volatile"])
    node.power_off()
    assert node.state() == "off"
    with pytest.raises(LabError, match="is off"):
        node.run(["true"])
    node.power_on()
    assert node.run(["cat", "/root/safe"]).output == "safe\n"
    assert node.run(["cat", "/root/lost"], check=False).output == ""
    assert not node.run(["test", "-e", "/run/volatile"], check=False).ok
    assert "10.77.0.200" not in node.run(["ip", "address"]).output
    assert node.boots() == 2


def test_a_build_beside_the_lab_does_not_keep_a_disk_in_use(lab: Lab) -> None:
    """Its mount namespace was copied from the host's while the disk was mounted."""
    node = lab.add_node(addressing="none")
    node.prepare()
    node.disk.mount()
    build = subprocess.Popen(isolated(["sleep", "infinity"], network=False))
    try:
        inside = Path(f"/proc/{build.pid}/mountinfo")
        wait_for(lambda: inside.read_text() != Path("/proc/self/mountinfo").read_text(), 10, "the copy")
        node.disk.lose_power()
        node.disk.unmount()
        node.disk.mount()
        assert node.path("/etc/hostname").read_text().strip() == node.name
        node.disk.unmount()
    finally:
        build.kill()
        build.wait()


def test_frozen_node_is_silent_and_goes_on_afterwards(lab: Lab) -> None:
    first, second = lab.add_node(), lab.add_node()
    lab.power_on_all()
    ticking = "i=0; while :; do i=$((i+1)); echo $i > /run/tick; sleep 0.05; done"
    second.run(["systemd-run", "--unit=tick", "sh", "-c", ticking])
    wait_for(lambda: second.run(["cat", "/run/tick"]).output.strip(), 5, "the first tick")
    second.freeze()
    assert second.state() == "frozen"
    assert not reaches(first, second)
    with pytest.raises(LabError, match="frozen"):
        second.run(["true"])
    second.thaw()
    assert reaches(first, second)
    before = int(second.run(["cat", "/run/tick"]).output or 0)
    wait_for(lambda: int(second.run(["cat", "/run/tick"]).output or 0) > before, 5, "the ticks going on")
    second.freeze(silent=False)
    assert reaches(first, second)  # its kernel still answers
    second.power_off()
    second.power_on()
    assert reaches(first, second)


def test_full_disk_refuses_writes_until_freed(lab: Lab) -> None:
    node = lab.add_node(size=512 << 20)
    node.power_on()
    node.fill_disk()
    refused = node.run(["dd", "if=/dev/zero", "of=/root/big", "bs=64k", "count=4"], check=False)
    assert "No space left" in refused.errors
    node.free_disk()
    assert node.run(["dd", "if=/dev/zero", "of=/root/big", "bs=64k", "count=4"]).ok


def test_node_reboots_itself_and_powers_itself_off(lab: Lab) -> None:
    node = lab.add_node()
    node.power_on()
    node.run(["sh", "-c", "echo kept > /root/kept"])
    node.reboot()
    assert node.boots() == 2
    assert node.run(["cat", "/root/kept"]).output == "kept\n"
    node.shut_down()
    assert node.state() == "off"
    assert "kept" not in node.journal("--boot=-5")
    assert "systemd" in node.journal()


def test_signals_reach_exactly_the_processes_of_a_unit(shared_node: Node) -> None:
    shared_node.run(["systemd-run", "--unit=victim", "sleep", "1000"])
    shared_node.run(["systemd-run", "--unit=bystander", "sleep", "1000"])
    assert len(shared_node.processes_of("victim.service")) == 1
    shared_node.signal_unit("victim.service", signal.SIGKILL)
    wait_for(
        lambda: shared_node.run(["systemctl", "is-active", "victim"], check=False).output.strip() == "failed",
        5,
        "systemd noticing the death",
    )
    assert shared_node.run(["systemctl", "is-active", "bystander"]).output.strip() == "active"
    shared_node.run(["systemctl", "stop", "bystander"])
    shared_node.run(["systemctl", "reset-failed", "victim"])


def test_command_that_overruns_is_ended_and_told(shared_node: Node) -> None:
    with pytest.raises(
        LabTimeoutError, match=r"node1: sh .* did not end within 0\.5 s; it had written: begun"
    ):
        shared_node.run(["sh", "-c", "echo begun; sleep 1000"], limit_seconds=0.5)
    assert "sleep 1000" not in shared_node.run(["ps", "-eo", "args"]).output


def test_dhcp_gives_the_reserved_address(lab_root: Path, tmp_path: Path) -> None:
    with Lab(lab_root, tmp_path / "lab", dhcp=True) as lab:
        node = lab.add_node()
        node.power_on()
        wait_for(lambda: node.address() in node.run(["ip", "address"]).output, 20, "an address by DHCP")
        assert "DHCPACK" in (lab.directory / "dnsmasq.log").read_text()


def test_two_labs_with_the_same_addresses_do_not_meet(lab_root: Path, tmp_path: Path) -> None:
    with Lab(lab_root, tmp_path / "one") as one, Lab(lab_root, tmp_path / "two") as two:
        alone, other = one.add_node(), two.add_node()
        other_second = two.add_node()
        for node in (alone, other, other_second):
            node.power_on()
        assert alone.address() == other.address()
        assert not reaches(alone, other_second)
        assert reaches(other, other_second)


def test_directory_of_a_living_lab_is_refused(lab: Lab, lab_root: Path) -> None:
    lab.add_node().prepare()
    with pytest.raises(LabError, match="is in use by another lab"):
        Lab(lab_root, lab.directory).create()
    assert lab.node("node1").disk.image.exists()


def test_nothing_is_left_after_an_error_in_the_block(lab_root: Path, tmp_path: Path) -> None:
    directory = tmp_path / "lab"
    with pytest.raises(ZeroDivisionError), Lab(lab_root, directory) as lab:
        lab.keep_logs = tmp_path / "logs"
        name = lab.name
        lab.add_node().power_on()
        lab.add_client().start(["sleep", "1000"], "sleep.log")
        assert traces(name, directory)
        raise ZeroDivisionError
    assert traces(name, directory) == []
    assert "Startup finished" in (tmp_path / "logs" / name / "node1" / "journal.log").read_text()


def test_leftovers_of_a_killed_process_are_removed(lab_root: Path, tmp_path: Path) -> None:
    directory = tmp_path / "lab"
    program = textwrap.dedent(
        f"""
        import pathlib, time
        from appliance.lab import Lab
        with Lab(pathlib.Path({str(lab_root)!r}), pathlib.Path({str(directory)!r})) as lab:
            lab.add_node().power_on()
            print(lab.name, flush=True)
            time.sleep(1000)
        """
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    name = child.stdout.readline().strip()
    child.kill()
    child.wait()
    assert traces(name, directory)
    assert name in remove_leftovers()
    assert traces(name, directory) == []


def test_command_line_up_status_exec_fault_down(lab_root: Path, tmp_path: Path) -> None:
    def command(*words: str) -> str:
        line = [sys.executable, "-m", "appliance.cli", "lab", *words]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    name = f"c{os.getpid()}"
    command("up", "--root", str(lab_root), "--nodes", "2", "--name", name)
    try:
        table = json.loads(command("status", "--name", name, "--json"))[name]
        assert set(table["nodes"]) == {"node1", "node2"}
        assert all(node["state"] in ("running", "degraded") for node in table["nodes"].values())
        assert table["nodes"]["node2"]["lan"] in command("exec", "--name", name, "node2", "ip", "address")
        command("fault", "power-off", "--name", name, "node2")
        table = json.loads(command("status", "--name", name, "--json"))[name]
        assert table["nodes"]["node2"]["state"] == "off"
    finally:
        command("down", "--name", name)
    assert name not in json.loads(command("status", "--json"))
    assert traces(name, Path(table["directory"])) == []


def test_power_is_cut_at_once(lab: Lab) -> None:
    """A fault campaign measures from the moment that `power_off` returns: the cut itself must be quick."""
    node = lab.add_node()
    node.power_on()
    began = time.monotonic()
    moment = node.power_off()
    assert began <= moment <= began + 5
