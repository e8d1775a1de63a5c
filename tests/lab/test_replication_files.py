"""Stories of the file trees of a pair: real rsync over real SSH between two booted nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from replication_pair import Member, pair_of_nodes

from appliance.lab_host import wait_for

# Minutes each: not part of the default run.
pytestmark = [pytest.mark.lab, pytest.mark.slow]

TREES = "/opt/centralino/trees.toml"
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
def members(lab_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Member, Member]]:
    with pair_of_nodes(lab_root, tmp_path_factory.mktemp("files") / "lab", TREES, DECLARED) as made:
        first, second = made
        shell(first, f"mkdir -p {VOICEMAIL}/1000/INBOX {RECORDINGS}")
        second.call("files.receive", 1)
        first.call("files.send", 1)
        yield made


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
