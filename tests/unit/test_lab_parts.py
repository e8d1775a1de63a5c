"""Parts of the lab that need neither root nor nodes."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance import lab as lab_module
from appliance.errors import HostError
from appliance.lab import Lab
from appliance.lab_cli import lab as command
from appliance.lab_host import LabError, LabTimeoutError, Result, execute, wait_for
from appliance.lab_identity import write_connections, write_name
from appliance.lab_network import LAN, MANAGEMENT, Network, prefix
from appliance.lab_node import REBOOT_STATUS, Node, NodeSpecification, repeat_boots
from appliance.lab_sip import Answer, OptionsProber, add_phone


@pytest.fixture
def node(tmp_path: Path) -> Node:
    network = Network("none")
    directory = tmp_path / "nodes" / "node1"
    directory.mkdir(parents=True)
    return Node("none", NodeSpecification("node1", 11), tmp_path, directory, network)


def test_wait_for_returns_the_first_true_value() -> None:
    values = iter([0, "", None, "ready"])
    assert wait_for(lambda: next(values), 5, "a value", interval_seconds=0) == "ready"


def test_wait_for_names_what_and_the_last_value() -> None:
    with pytest.raises(
        LabTimeoutError, match=r"the peer's answer did not happen within 0 s; the last value was 7"
    ):
        wait_for(lambda: NotYet(7), 0, "the peer's answer")


class NotYet(int):
    def __bool__(self) -> bool:
        return False


def test_wait_for_takes_an_error_for_not_yet_and_tells_it() -> None:
    def fails() -> bool:
        raise LabError("node1 is off")

    with pytest.raises(LabTimeoutError, match="the last error was: node1 is off"):
        wait_for(fails, 0, "a boot")


def test_execute_keeps_status_and_both_streams() -> None:
    result = execute(["sh", "-c", "cat; echo wrong >&2; exit 3"], input_text="given", check=False)
    assert (result.status, result.output, result.errors) == (3, "given", "wrong\n")
    with pytest.raises(LabError, match=r"`sh .*` ended with status 3: wrong"):
        result.check()


def test_execute_ends_the_whole_session_of_a_command_that_overruns(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(LabTimeoutError, match=r"did not end within 0\.2 s; it had written: begun"):
        execute(["sh", "-c", "echo begun; sleep 1000 & wait"], limit_seconds=0.2)
    # The child of the child held the pipe: had it survived, reading would not have ended.
    assert time.monotonic() - began < 500


def test_execute_names_a_program_that_is_missing() -> None:
    with pytest.raises(LabError, match="no-such-program could not be started"):
        execute(["no-such-program"])


def test_addresses_follow_from_the_number() -> None:
    assert str(LAN.address(11)) == "10.77.0.11"
    assert str(LAN.address6(11)) == "fd77::11"
    assert str(MANAGEMENT.address6(200)) == "fd78::200"
    assert LAN.hardware(11) != MANAGEMENT.hardware(11)
    assert LAN.hardware(300) == "02:4c:4d:00:01:2c"


def test_long_host_names_are_refused_before_the_kernel_cuts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.lab_network.execute", lambda *_, **__: None)
    with pytest.raises(LabError, match="more than 15 characters"):
        Network("x").attach("averylonghostname", 11, ["lan"])


def test_no_prefix_of_a_lab_matches_another_lab() -> None:
    assert not f"{prefix('ab')}node1".startswith(prefix("a"))


def test_keeper_boots_again_after_a_reboot_and_stops_after_a_power_off(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared: list[bool] = []
    monkeypatch.setattr(node, "clear", lambda *, power_loss: cleared.append(power_loss))
    endings = iter([REBOOT_STATUS, REBOOT_STATUS, 0])
    assert repeat_boots(node, lambda: next(endings)) == 0
    assert node.boots() == 3
    assert cleared == [False, False, False]


def test_static_node_gets_profiles_that_only_root_reads(tmp_path: Path) -> None:
    write_connections(tmp_path, 11, [LAN, MANAGEMENT], uuid.UUID(int=1), dhcp=False)
    file = tmp_path / "etc/NetworkManager/system-connections/eth0.nmconnection"
    assert file.stat().st_mode & 0o777 == 0o600
    text = file.read_text()
    assert "address1=10.77.0.11/24" in text
    assert "gateway=10.77.0.1" in text
    other = (file.parent / "eth1.nmconnection").read_text()
    assert "address1=10.78.0.11/24" in other
    assert "gateway" not in other


def test_dhcp_is_for_the_lan_alone(tmp_path: Path) -> None:
    write_connections(tmp_path, 11, [LAN, MANAGEMENT], uuid.UUID(int=1), dhcp=True)
    folder = tmp_path / "etc/NetworkManager/system-connections"
    assert "method=auto" in (folder / "eth0.nmconnection").read_text()
    assert "method=manual" in (folder / "eth1.nmconnection").read_text()


def test_only_a_real_machine_id_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    file = tmp_path / "etc/machine-id"
    for before, after in (
        ("", ""),
        ("uninitialized\n", "uninitialized\n"),
        ("0" * 32, f"{uuid.UUID(int=7).hex}\n"),
    ):
        file.write_text(before)
        write_name(tmp_path, "node1", uuid.UUID(int=7))
        assert file.read_text() == after


def test_lab_names_and_roots_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("appliance.run.require", lambda _: None)
    with pytest.raises(LabError, match="is no root tree"):
        Lab(tmp_path, tmp_path / "lab").create()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text("ID=debian\n")
    with pytest.raises(LabError, match="1 to 12 letters and digits"):
        Lab(tmp_path, tmp_path / "lab", "../escape").create()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(LabError, match="needs root"):
        Lab(tmp_path, tmp_path / "lab").create()


def test_missing_programs_of_the_host_are_named_with_their_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("appliance.run.find_program", lambda _: None)
    with pytest.raises(HostError, match=r"systemd-container"):
        Lab(tmp_path, tmp_path / "lab").create()


def test_commands_without_a_lab_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_module, "REGISTRY", tmp_path)
    runner = CliRunner()
    assert "no lab is up" in str(runner.invoke(command, ["exec", "node1", "true"]).exception).lower()
    assert "No lab is up" in runner.invoke(command, ["status"]).output
    assert runner.invoke(command, ["status", "--json"]).output == "{}\n"
    unknown = runner.invoke(command, ["down", "--name", "other"]).exception
    assert "there is no lab named other" in str(unknown)


def test_every_fault_has_a_command_and_its_help() -> None:
    shown = CliRunner().invoke(command, ["fault", "--help"]).output
    for verb in (
        "power-off",
        "power-on",
        "freeze",
        "thaw",
        "partition",
        "heal",
        "fill-disk",
        "kill",
        "link-down",
    ):
        assert verb in shown
    assert "Cut the power, without goodbye." in shown


def test_silence_is_the_longest_gap_between_answers(node: Node) -> None:
    prober = OptionsProber(None, "10.77.0.11")  # type: ignore[arg-type]
    prober.answers = [Answer(t - 0.01, t, 200) for t in (1.0, 1.1, 3.5, 3.6)]
    assert prober.longest_silence(0.9, 3.7) == pytest.approx(2.4)
    assert prober.longest_silence(0.0, 1.05) == pytest.approx(1.0)
    assert prober.first_after(1.2, 1).received == 3.5


def test_phone_numbers_reach_no_sql_unchecked(node: Node) -> None:
    with pytest.raises(LabError, match="needs digits"):
        add_phone(node, "1'; DROP TABLE cdr; --")


def test_result_knows_whether_it_is_good() -> None:
    assert Result(("true",), 0, "", "", 0.0).check().ok
