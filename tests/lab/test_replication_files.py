"""Stories of the file trees of a pair: real rsync over real SSH between two booted nodes (S-FT-02)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from replication_pair import Member, pair_of_nodes

from appliance.lab import LOGS
from appliance.lab_host import LabError, wait_for

# Minutes each: not part of the default run.
pytestmark = [pytest.mark.lab, pytest.mark.slow]

TREES = "/opt/centralino/trees.toml"
CAP = 2_000
VOICEMAIL = "/srv/voicemail"
RECORDINGS = "/srv/recordings"
DECLARED = f"""
[[tree]]
name = "voicemail"
path = "{VOICEMAIL}"
urgent = true
[[tree]]
name = "recordings"
path = "{RECORDINGS}"
urgent = false
"""


@pytest.fixture(scope="module")
def members(
    lab_root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[Member, Member]]:
    with pair_of_nodes(lab_root, tmp_path_factory.mktemp("files") / "lab", TREES, DECLARED, CAP) as made:
        first, second = made
        shell(first, f"mkdir -p {VOICEMAIL}/1000/INBOX {RECORDINGS}")
        second.call("files.receive", 1)
        first.call("files.send", 1)
        yield made
        if request.session.testsfailed:
            first.lab.save_logs(LOGS / "replication-files")


def shell(member: Member, script: str) -> str:
    """Several steps on the node, as a user would type them."""
    return member.node.run(["sh", "-euc", script], limit_seconds=120).output


def names(member: Member, tree: str) -> set[str]:
    text = shell(member, f"cd {tree} 2>/dev/null && find . -type f -not -path './.centralino-*' || true")
    return set(text.split())


def in_step(first: Member, second: Member, limit_seconds: float = 60) -> None:
    def equal() -> bool:
        return all(names(first, tree) == names(second, tree) for tree in (VOICEMAIL, RECORDINGS))

    wait_for(equal, limit_seconds, "equal trees")


def test_files_arrive_with_owner_mode_and_contents(members: tuple[Member, Member]) -> None:
    first, second = members
    steps = ("echo hello > m.tmp", "chown asterisk: m.tmp", "chmod 640 m.tmp", "mv m.tmp msg0000.txt")
    make = "; ".join((f"cd {VOICEMAIL}/1000/INBOX", *steps))
    shell(first, f"{make}; mkdir -p {RECORDINGS}/2026/11; echo call > {RECORDINGS}/2026/11/call.wav")
    in_step(first, second)
    seen = shell(
        second, f"stat -c '%U %a' {VOICEMAIL}/1000/INBOX/msg0000.txt; cat {VOICEMAIL}/1000/INBOX/msg0000.txt"
    )
    assert seen.split() == ["asterisk", "640", "hello"]
    wait_for(lambda: first.state("files")["lag_milliseconds"] == 0, 30, "no lag")
    wait_for(lambda: second.state("files")["lag_milliseconds"] == 0, 30, "the slave knowing it")


def test_deletions_follow_later_and_are_kept_aside(members: tuple[Member, Member]) -> None:
    first, second = members
    shell(first, f"echo x > {VOICEMAIL}/doomed")
    wait_for(lambda: "./doomed" in names(second, VOICEMAIL), 30, "the file")
    shell(first, f"rm {VOICEMAIL}/doomed")
    wait_for(lambda: "./doomed" not in names(second, VOICEMAIL), 60, "its end")
    assert shell(second, f"cat {VOICEMAIL}/.centralino-removed/doomed") == "x\n"


def test_a_break_of_the_network_is_made_good(members: tuple[Member, Member]) -> None:
    first, second = members
    second.node.link_down("lan")
    shell(
        first,
        f"for n in 1 2 3 4 5; do echo $n > {VOICEMAIL}/break$n; done; rm -f {RECORDINGS}/2026/11/call.wav",
    )
    wait_for(lambda: float(str(first.state("files")["lag_milliseconds"] or 0)) > 1000, 30, "a lag that shows")
    second.node.link_up("lan")
    in_step(first, second, 120)


def test_a_large_file_in_the_slow_lane_does_not_hold_up_voicemail(members: tuple[Member, Member]) -> None:
    """The cap is 2,000 KB/s: 30 MB take 15 s, a message must not wait for them."""
    first, second = members
    shell(first, f"head -c 30000000 /dev/urandom > {RECORDINGS}/large.wav")
    began = time.monotonic()
    begun = f"ls -a {RECORDINGS} {RECORDINGS}/.centralino-partial 2>/dev/null || true"
    wait_for(lambda: "large" in shell(second, begun), 60, "its beginning")
    shell(first, f"echo urgent > {VOICEMAIL}/urgent.txt")
    sent = time.monotonic()
    wait_for(lambda: "./urgent.txt" in names(second, VOICEMAIL), 10, "the message")
    assert time.monotonic() - sent < 6
    assert "./large.wav" not in names(second, RECORDINGS)
    in_step(first, second, 60)
    assert time.monotonic() - began > 10  # the cap
    sums = {shell(member, f"md5sum {RECORDINGS}/large.wav") for member in members}
    assert len(sums) == 1


def sent_bytes(member: Member) -> int:
    return int(shell(member, "cat /sys/class/net/eth0/statistics/tx_bytes"))


def sums(member: Member, path: str) -> str:
    return shell(member, f"md5sum < {path} 2>/dev/null || true").strip()


def test_the_cap_holds_for_both_lanes_together(members: tuple[Member, Member]) -> None:
    """A recording and a message of 24 MB each at 2,000 KB/s: 24 s on the wire, and never both at once."""
    first, second = members
    in_step(first, second)
    size = 24_000_000
    shell(first, f"head -c {size} /dev/urandom > /srv/long.wav; cp /srv/long.wav /srv/longer.wav")
    begun, at_first = time.monotonic(), sent_bytes(first)
    shell(first, f"mv /srv/long.wav {RECORDINGS}/long.wav")
    wait_for(lambda: sent_bytes(first) - at_first > 2_000_000, 30, "the recording being sent")
    shell(first, f"mv /srv/longer.wav {VOICEMAIL}/longer.wav")
    seen = [(time.monotonic(), sent_bytes(first))]
    ends: dict[str, float] = {}
    paths = (f"{VOICEMAIL}/longer.wav", f"{RECORDINGS}/long.wav")
    while len(ends) < len(paths):
        assert time.monotonic() - begun < 120
        time.sleep(0.5)
        seen.append((time.monotonic(), sent_bytes(first)))
        for path in paths:
            if path not in ends and second.node.path(path).exists():
                ends[path] = time.monotonic() - begun
    # What begins and ends apart, the cap is what the wire carried, with the headers of SSH and TCP.
    middle = seen[2:-2]
    rate = (middle[-1][1] - middle[0][1]) / (middle[-1][0] - middle[0][0]) / 1000
    spans = [(later, sooner) for sooner, later in zip(seen, seen[8:], strict=False)]
    worst = max((later[1] - sooner[1]) / (later[0] - sooner[0]) / 1000 for later, sooner in spans)
    print(f"{rate:.0f} KB/s on the wire, at most {worst:.0f} over four seconds; {ends}")
    assert 1_800 < rate < 2_200
    assert worst < 2_300
    assert ends[paths[0]] < ends[paths[1]], "the message first"
    assert {sums(first, path) for path in paths} == {sums(second, path) for path in paths}
    shell(first, f"rm {' '.join(paths)}")


def test_a_large_file_goes_on_after_every_kind_of_break(members: tuple[Member, Member]) -> None:
    first, second = members
    path, size = f"{RECORDINGS}/huge.wav", 40_000_000
    partial = f"{RECORDINGS}/.centralino-partial/huge.wav"
    shell(first, f"head -c {size} /dev/urandom > /srv/huge.wav; mv /srv/huge.wav {path}")
    before = sent_bytes(first)
    wait_for(lambda: sent_bytes(first) - before > size // 4, 60, "a quarter")
    # A change of role ends the receiver so; what it has is kept and goes on.
    shell(second, "pkill -TERM -x rsync")
    wait_for(lambda: second.node.path(partial).exists(), 30, "the part that came")
    have = second.node.path(partial).stat().st_size
    assert have > size // 8
    before = sent_bytes(first)
    wait_for(lambda: sent_bytes(first) - before > size // 8, 60, "its going on")
    # Longer than the connection waits for an answer.
    second.node.link_down("lan")
    wait_for(lambda: "broke off" in str(first.state("files")["detail"]), 90, "the broken connection")
    second.node.link_up("lan")
    wait_for(lambda: second.node.path(path).exists(), 120, "the file")
    assert sums(first, path) == sums(second, path) != ""
    assert sent_bytes(first) - before < size, "it did not begin anew"
    # The slave loses its power in the middle of another one.
    shell(first, f"rm {path}; head -c 10000000 /dev/urandom > /srv/huge.wav; mv /srv/huge.wav {path}2")
    before = sent_bytes(first)
    wait_for(lambda: sent_bytes(first) - before > 2_000_000, 60, "its beginning")
    second.node.power_off()
    second.node.power_on()
    second.start(TREES, CAP)
    second.call("files.receive", 1)
    wait_for(lambda: second.node.path(f"{path}2").exists(), 120, "the file")
    assert sums(first, f"{path}2") == sums(second, f"{path}2") != ""
    shell(first, f"rm {path}2")
    in_step(first, second, 120)


def test_a_full_pass_finds_what_size_and_time_do_not_tell(members: tuple[Member, Member]) -> None:
    first, second = members
    shell(first, f"echo contents > {VOICEMAIL}/rotten")
    in_step(first, second)
    shell(
        second,
        f"cd {VOICEMAIL}; touch -r rotten /tmp/then; echo contentz > rotten; touch -r /tmp/then rotten",
    )
    first.call("files.resynchronize")
    assert shell(second, f"cat {VOICEMAIL}/rotten") == "contents\n"


def test_what_goes_astray_on_the_slave_is_found_by_itself(members: tuple[Member, Member]) -> None:
    """The hourly pass, here each five seconds."""
    first, second = members
    first.restart(TREES, CAP, verify_seconds=5)
    first.call("files.send", 1)
    shell(second, f"rm {VOICEMAIL}/rotten; echo stray > {VOICEMAIL}/stray")
    in_step(first, second, 60)
    assert "./rotten" in names(second, VOICEMAIL)
    first.restart(TREES, CAP)
    first.call("files.send", 1)


def test_source_tree_emptied(members: tuple[Member, Member]) -> None:
    """`rm -rf tree/*`: the slave keeps everything, the reason is told, a person may insist."""
    first, second = members
    shell(first, f"mkdir -p {RECORDINGS}/bulk; for n in $(seq 60); do echo $n > {RECORDINGS}/bulk/$n; done")
    in_step(first, second)
    wait_for(lambda: first.state("files")["lag_milliseconds"] == 0, 30, "the end of the sending")
    before = names(second, RECORDINGS)
    shell(first, f"rm -rf {RECORDINGS}/*")
    first.until("vanished at once", "files")
    second.until("vanished at once", "files")
    first.node.run(["systemctl", "restart", "replication-agent"])
    wait_for(lambda: first.try_call("files.state") is not None, 30, "the agent")
    first.call("files.send", 1)
    first.until("vanished at once", "files")
    assert names(second, RECORDINGS) == before
    with pytest.raises(LabError, match="vanished at once"):
        first.call("files.resynchronize")
    assert names(second, RECORDINGS) == before
    first.call("files.resynchronize", True)
    assert names(second, RECORDINGS) == set()
    assert shell(second, f"ls {RECORDINGS}/.centralino-removed/bulk | wc -l").strip() == "60"


def test_source_tree_unmounted(members: tuple[Member, Member]) -> None:
    """Another disk (here: none) where the tree was: nothing is deleted, and the return is seen."""
    first, second = members
    shell(first, f"echo stays > {VOICEMAIL}/stays")
    in_step(first, second)
    before = names(second, VOICEMAIL)
    shell(first, f"mount -t tmpfs none {VOICEMAIL}")
    try:
        first.until("marker is missing", "files")
        shell(first, f"echo wrong > {VOICEMAIL}/wrong")
        time.sleep(2)
        assert names(second, VOICEMAIL) == before
    finally:
        shell(first, f"umount {VOICEMAIL}")
    shell(first, f"echo again > {VOICEMAIL}/again")
    wait_for(lambda: "./again" in names(second, VOICEMAIL), 60, "files after the return")
    assert "marker" not in str(first.state("files")["detail"])


def test_the_slave_asks_its_master_for_a_full_pass(members: tuple[Member, Member]) -> None:
    first, second = members
    shell(second, f"echo stray > {VOICEMAIL}/stray; rm {VOICEMAIL}/stays")
    said = second.call("files.resynchronize")
    assert isinstance(said, list)
    assert said[-1] == [1.0, "all trees are equal"]
    in_step(first, second)
    assert "./stays" in names(second, VOICEMAIL)


def test_older_epoch_refused(members: tuple[Member, Member]) -> None:
    """The old master does not know yet that it is not master any more: it cannot send a byte."""
    first, second = members
    second.call("files.receive", 5)
    shell(first, f"echo late > {VOICEMAIL}/late")
    first.until("older", "files")
    assert "./late" not in names(second, VOICEMAIL)
    # Roles turn: what only the old master had is kept aside when it receives.
    second.call("files.send", 6)
    first.call("files.receive", 6)
    wait_for(lambda: "./late" not in names(first, VOICEMAIL), 60, "the new master's tree")
    assert shell(first, f"cat {VOICEMAIL}/.centralino-removed/late") == "late\n"
    in_step(first, second)
