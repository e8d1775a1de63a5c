"""Trees, markers, guards and words of the file replication; real rsync where it runs, without a peer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.errors import NotAuthorizedError
from fault_tolerance.contracts import Channel
from fault_tolerance.files import dial, door, receiver, rsync, trees
from fault_tolerance.files.pending import DELETION_SECONDS, FEW, Pending, refusal
from fault_tolerance.files.receiver import Gate
from fault_tolerance.files.replica import Files
from fault_tolerance.files.sender import Cap, Sender
from fault_tolerance.files.trees import Markers, SourceLostError, Tree
from fault_tolerance.files.watch import Watch

# rsync(1) of 3.1.3, the version of AlmaLinux 8: the options that we use must be among these.
KNOWN_TO_3_1_3 = frozenset(
    [
        "archive",
        "backup",
        "backup-dir",
        "bwlimit",
        "checksum",
        "compress",
        "delete",
        "delete-after",
        "delete-before",
        "delete-delay",
        "delete-during",
        "delete-excluded",
        "delete-missing-args",
        "dirs",
        "dry-run",
        "exclude",
        "exclude-from",
        "files-from",
        "force",
        "from0",
        "fuzzy",
        "group",
        "hard-links",
        "ignore-errors",
        "ignore-existing",
        "ignore-missing-args",
        "info",
        "inplace",
        "itemize-changes",
        "links",
        "log-file",
        "max-delete",
        "no-inc-recursive",
        "max-size",
        "numeric-ids",
        "omit-dir-times",
        "one-file-system",
        "out-format",
        "owner",
        "partial",
        "partial-dir",
        "perms",
        "progress",
        "protect-args",
        "prune-empty-dirs",
        "quiet",
        "recursive",
        "relative",
        "rsh",
        "rsync-path",
        "size-only",
        "specials",
        "stats",
        "suffix",
        "temp-dir",
        "timeout",
        "times",
        "update",
        "verbose",
        "whole-file",
    ]
)


def every_command() -> list[list[str]]:
    common = rsync.options(["ssh", "-i", "key"], 500)
    ends = ("/tree/", "peer:7/voicemail/")
    return [
        rsync.batch(common, *ends),
        rsync.deletions(common, *ends),
        rsync.whole(common, *ends, most_deletions=30, checksum=True),
        rsync.rehearsal(common, *ends),
    ]


def test_only_options_of_the_oldest_rsync() -> None:
    for words in every_command():
        for word in words:
            if word.startswith("--"):
                assert word[2:].partition("=")[0] in KNOWN_TO_3_1_3, word


def test_the_cap_is_in_kilobytes_of_a_thousand() -> None:
    assert "--bwlimit=976" in rsync.options(["ssh"], 1000)
    assert "--bwlimit=1" in rsync.options(["ssh"], 1)
    assert not [word for word in rsync.options(["ssh"], 0) if "bwlimit" in word]


def test_words_are_quoted_as_rsync_splits_them() -> None:
    assert rsync.quoted(["ssh", "-o", "ProxyCommand=a b", ""]) == "ssh -o 'ProxyCommand=a b' ''"
    with pytest.raises(ValueError, match="cannot be given"):
        rsync.quoted(["it's"])


def test_the_kept_connection_wins_over_the_links_own_options() -> None:
    """Of an option that is given twice OpenSSH takes the first."""
    words = rsync.kept_open(["ssh", "-o", "ControlPath=none", "peer"], Path("/run/x"))
    assert words.index("ControlPath=/run/x") < words.index("ControlPath=none")
    assert (words[0], words[-1]) == ("ssh", "peer")
    assert rsync.close_kept(["ssh", "peer"], Path("/run/x"))[:3] == ["ssh", "-O", "exit"]


def test_the_door_looks_after_it_has_its_name(tmp_path: Path) -> None:
    """A change of role writes the epoch and then ends what is named: one of the two must catch it."""
    (tmp_path / door.EPOCH_FILE).write_text("7\n")
    call = [sys.executable, "-I", "-S", door.__file__, str(tmp_path)]
    refused = subprocess.run([*call, "6", "true"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "older than 7" in refused.stderr
    assert len(list(tmp_path.glob("receiving-*"))) == 1
    taken = subprocess.run([*call, "7", "true"], capture_output=True, text=True, check=False)
    assert (taken.returncode, taken.stderr) == (0, "")
    # What is over is forgotten by the next.
    assert len(list(tmp_path.glob("receiving-*"))) == 1


def test_the_dialler_leaves_the_host_out() -> None:
    call = [sys.executable, "-I", "-S", dial.__file__, "echo", "files", dial.HOST, "rsync", "--server"]
    assert subprocess.run(call, capture_output=True, text=True, check=True).stdout == "files rsync --server\n"


def test_all_trees_are_declared_once() -> None:
    from appliance.platform_data import load_platform

    for name in ("debian12", "almalinux8"):
        paths = {key: Path(value) for key, value in load_platform(name).box.paths.items()}
        found = trees.read(paths=paths)
        names = [tree.name for tree in found]
        assert len(set(names)) == len(names)
        assert {"voicemail", "recordings", "prompts", "provisioning"} <= set(names)
        # Keys take effect as a whole, and no copy of one may lie about in a tree: see daemon.shared_secrets.
        assert not any("certificates" in str(tree.path) for tree in found)
        assert all(tree.path.is_absolute() and "{" not in str(tree.path) for tree in found)
        urgent = {tree.name: tree.urgent for tree in found}
        assert urgent["voicemail"]
        assert not urgent["recordings"]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    (tmp_path / "voicemail").mkdir()
    return Tree("voicemail", tmp_path / "voicemail", urgent=True)


def test_an_unmounted_tree_is_not_the_tree(tree: Tree, tmp_path: Path) -> None:
    markers = Markers(tmp_path / "state")
    markers.check(tree)
    assert (tree.path / trees.MARKER).is_file()
    shutil.rmtree(tree.path)
    tree.path.mkdir()
    for again in (markers, Markers(tmp_path / "state")):  # also after a restart
        with pytest.raises(SourceLostError, match="marker is missing"):
            again.check(tree)


def test_a_tree_that_never_was_is_nothing(tmp_path: Path) -> None:
    nothing = Tree("prompts", tmp_path / "prompts", urgent=True)
    markers = Markers(tmp_path / "state")
    assert not markers.is_present(nothing)
    with pytest.raises(SourceLostError):
        markers.check(nothing)


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_large_share_is_never_deleted_and_a_few_always(lost: int, left: int) -> None:
    why = refusal(lost, left)
    if lost <= FEW:
        assert why is None
    if lost > FEW and lost > 0.3 * (lost + left):
        assert why == f"{lost} of {lost + left} files vanished at once"


def test_renames_are_no_losses() -> None:
    pending = Pending(files=100)
    for number in range(100):
        counted = pending.note_gone(f"old{number}", 1.0)
        pending.note_changed(f"new{number}", 1.0, new=1, back=counted)
    assert pending.refusal(2.0) is None
    assert pending.files == 100


def test_what_the_peer_never_had_is_no_loss() -> None:
    """Temporary files that come and go by the thousand stop nothing, and hide nothing."""
    pending = Pending(files=100)
    for number in range(500):
        pending.note_born(f"tmp{number}")
        pending.note_gone(f"tmp{number}", 1.0)
    assert pending.refusal(2.0) is None
    for number in range(200):
        pending.note_born(f"new{number}")
        pending.note_changed(f"new{number}", 2.0)
        pending.take_changed()
        pending.sent()
    for number in range(200):
        pending.note_gone(f"new{number}", 3.0)
    assert pending.refusal(4.0) == "200 of 300 files vanished at once"


def test_mass_deletion_is_refused_until_a_person_forgives() -> None:
    pending = Pending(files=100)
    for number in range(60):
        pending.note_gone(f"{number}", 1.0)
    assert pending.refusal(2.0) == "60 of 100 files vanished at once"
    pending.forgive()
    assert pending.refusal(2.0) is None


def test_deletions_wait_and_changes_do_not() -> None:
    pending = Pending(files=50)
    pending.note_gone("gone", 1.0)
    pending.note_changed("here", 1.0)
    assert pending.take_gone(1.0 + DELETION_SECONDS / 2) == []
    assert pending.take_changed() == ["here"]
    pending.sent()
    assert pending.oldest() is None
    assert pending.take_gone(1.0 + DELETION_SECONDS) == ["gone"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans(), st.booleans())))
def test_nothing_is_forgotten(steps: list[tuple[str, bool, bool, bool]]) -> None:
    """Whatever happens while runs fail: the last word on each path is either sent or still pending."""
    pending, here, there = Pending(files=100), set[str](), set[str]()
    for moment, (path, appears, deletions, arrives) in enumerate(steps):
        if appears:
            here.add(path)
            pending.note_changed(path, float(moment))
        else:
            here.discard(path)
            pending.note_gone(path, float(moment))
        taken = pending.take_gone(1e9) if deletions else pending.take_changed()
        if arrives:
            there = there - set(taken) if deletions else there | set(taken)
            pending.sent()
        elif deletions:
            pending.return_gone()
        else:
            pending.return_changed()
        waiting = set(pending.changed) | set(pending.gone)
        assert here ^ there <= waiting
        assert not set(pending.changed) & set(pending.gone)


def test_oldest_keeps_its_age_when_a_run_fails() -> None:
    pending = Pending(files=1)
    pending.note_changed("a", 5.0)
    pending.take_changed()
    assert pending.oldest() == 5.0
    pending.note_changed("b", 7.0)
    pending.return_changed()
    assert list(pending.changed) == ["a", "b"]
    assert pending.oldest() == 5.0


def test_the_kernel_tells_of_everything(tree: Tree, tmp_path: Path) -> None:
    (tree.path / "box/INBOX").mkdir(parents=True)
    (tree.path / "box/INBOX/old.wav").write_text("x")
    pending = Pending()
    watch = Watch(lambda: pytest.fail("no event was lost"))
    try:
        watch.add(tree, pending)
        assert pending.files == 1
        (tree.path / "box/INBOX/new.wav").write_text("x")
        (tree.path / "deep/er").mkdir(parents=True)
        (tree.path / "deep/er/file").write_text("x")
        (tree.path / trees.MARKER).write_text("x")
        assert watch.ready(5)
        watch.read(0)
        assert set(pending.changed) >= {"box/INBOX/new.wav", "deep", "deep/er", "deep/er/file"}
        assert not any(".centralino" in path for path in pending.changed)
        pending.take_changed()
        pending.sent()
        (tree.path / "box").rename(tmp_path / "elsewhere")
        assert watch.ready(5)
        watch.read(0)
        assert "box" in pending.gone
        assert pending.lost_lately(0.0) == 0 or pending.files == 1
        assert pending.files == 1
    finally:
        watch.close()


SERVER = ["rsync", "--server", "-blogDtpre.iLsfxCIvu", "--timeout=30", "--bwlimit=976"]


def test_our_own_words_are_taken() -> None:
    words = [*SERVER, "--backup-dir", ".centralino-removed", "--max-delete=20", "--delete-delay", "--stats"]
    options, epoch, name = receiver.parse(
        [*words, "--partial-dir", ".centralino-partial", ".", "7/voicemail/"]
    )
    assert (epoch, name) == (7, "voicemail")
    assert "--server" not in options


@pytest.mark.parametrize(
    "bad",
    [
        ["--sender"],
        ["--rsh=sh"],
        ["--daemon"],
        ["--remove-source-files"],
        ["--backup-dir", "/etc"],
        ["--partial-dir"],
        ["--partial-dir=../../x"],
        ["-slogDtpre.iLsfxCIvu"],
        ["--log-file=/etc/passwd"],
        ["--temp-dir=/"],
        ["--files-from=/etc/shadow"],
        ["a b"],
        ["/etc"],
    ],
)
def test_foreign_words_are_refused(bad: list[str]) -> None:
    with pytest.raises(NotAuthorizedError):
        receiver.parse([*SERVER, *bad, ".", "7/voicemail/"])


@pytest.mark.parametrize(
    "target", ["/etc/", "7/../", "7/voicemail/../../etc/", "voicemail/", "-1/voicemail/", "7/voicemail"]
)
def test_only_a_declared_tree_is_a_place(target: str) -> None:
    with pytest.raises(NotAuthorizedError):
        receiver.parse([*SERVER, ".", target])


@given(st.lists(st.text(max_size=20), max_size=6))
def test_random_words_never_pass(words: list[str]) -> None:
    with pytest.raises(NotAuthorizedError):
        receiver.parse(words)


def test_older_epochs_and_closed_gates_refuse(tree: Tree, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "run", [tree], Markers(tmp_path / "state"))
    ask = lambda epoch, name="voicemail": gate.argv([*SERVER, ".", f"{epoch}/{name}/"])  # noqa: E731
    with pytest.raises(NotAuthorizedError, match="takes no files"):
        ask(7)
    gate.open(7)
    assert ask(7)[-1] == f"{tree.path}/"
    assert ask(8)[-1] == f"{tree.path}/"
    with pytest.raises(NotAuthorizedError, match="older"):
        ask(6)
    with pytest.raises(NotAuthorizedError, match="no tree"):
        ask(7, "other")
    gate.shut()
    with pytest.raises(NotAuthorizedError):
        ask(9)


def test_a_lost_disk_is_not_written_to(tree: Tree, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "run", [tree], Markers(tmp_path / "state"))
    gate.open(1)
    gate.argv([*SERVER, ".", "1/voicemail/"])
    (tree.path / trees.MARKER).unlink()
    with pytest.raises(SourceLostError):
        gate.argv([*SERVER, ".", "1/voicemail/"])


def test_what_replication_deleted_is_kept_a_week(tree: Tree) -> None:
    import time

    kept = tree.path / trees.REMOVED / "box/msg.wav"
    kept.parent.mkdir(parents=True)
    kept.write_text("x")
    receiver.forget_old([tree], time.time())
    assert kept.exists()
    receiver.forget_old([tree], time.time() + receiver.KEPT_SECONDS + 60)
    assert not kept.parent.exists()


class NoWay:
    """A peer that is not there."""

    def command(self, channel: Channel, words: Sequence[str] = ()) -> list[str]:
        return ["false"]

    def remote_shell(self, channel: Channel) -> list[str]:
        return ["false"]


def test_a_slave_that_began_anew_is_compared(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have lost its power, and files with it that had been sent but lay in its memory alone."""
    compared: list[str] = []
    monkeypatch.setattr(Sender, "compare_all", lambda _self: compared.append("all"))

    def half(name: str) -> Files:
        return Files([tree], NoWay(), tmp_path / name, tmp_path / f"{name}-run", 0)

    master, slave = half("master"), half("slave")
    master.send(1)
    try:
        for _ in range(3):
            master.heard(slave.heartbeat())
        assert compared == []
        again = half("slave")
        for _ in range(3):
            master.heard(again.heartbeat())
        assert compared == ["all"]
    finally:
        master.close()


def test_many_small_runs_keep_within_the_bandwidth() -> None:
    """Each begins with a burst that rsync does not slow: the next one waits until time has paid for it."""
    cap, now, sent = Cap(1000), 100.0, 0
    for _ in range(50):
        now += cap.wait_seconds(now) + 0.01
        sent += 50_000
        cap.note(50_000, 0.01, now)
    now += cap.wait_seconds(now)
    assert sent / (now - 100.0) == pytest.approx(1_000_000, rel=0.01)


def test_a_run_that_was_slowed_by_rsync_owes_nothing() -> None:
    """An urgent message in the middle of a long transfer must not cost the time of that transfer again."""
    cap = Cap(1000)
    cap.note(20_000, 0.02, 15.0)
    cap.note(30_000_000, 30.0, 30.1)
    assert cap.wait_seconds(30.1) == 0.0
    assert Cap(0).wait_seconds(5.0) == 0.0


def test_time_that_a_run_stood_still_gives_no_bandwidth() -> None:
    run = rsync.Run(["sleep", "30"])
    try:
        run.pause()
        run.pause()
        before = run.moved_seconds()
        assert run.moved_seconds() == pytest.approx(before, abs=0.001)
        run.resume()
        run.resume()
    finally:
        run.end()


def test_progress_of_rsync_is_read_and_told() -> None:
    found = rsync.moving(b"     32,768,000  42%   31.25MB/s    1:00:07")
    assert found == rsync.Moving(0.42, 32_768_000, 3607)
    assert found.sentence() == "32.8 MB sent, about 3607 s remain"
    done = rsync.moving(b"  1,000 100%    1.95MB/s    0:00:10 (xfr#1, to-chk=0/2)")
    assert done is not None
    assert done.remaining_seconds == 0, "behind the last byte stands the time that it took"
    assert done.sentence() == "0.0 MB sent"
    assert rsync.moving(b"sending incremental file list") is None


def test_real_rsync_tells_its_progress_so(tmp_path: Path) -> None:
    (tmp_path / "from/deep").mkdir(parents=True)
    (tmp_path / "from/deep/file").write_bytes(bytes(3_000_000))
    (tmp_path / "shell").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    (tmp_path / "shell").chmod(0o755)
    common = rsync.options([str(tmp_path / "shell")], 3000)
    words = rsync.whole(common, f"{tmp_path}/from/", f"x:{tmp_path}/to/", most_deletions=20, checksum=False)
    seen: list[rsync.Moving] = []

    def said(line: bytes) -> None:
        if (found := rsync.moving(line)) is not None:
            seen.append(found)

    assert rsync.Run(words).wait(said).complete
    assert (tmp_path / "to/deep/file").stat().st_size == 3_000_000
    assert seen[-1].share == 1.0
    assert [one.sent for one in seen] == sorted(one.sent for one in seen)
