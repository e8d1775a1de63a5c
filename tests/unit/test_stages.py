"""Stages and the programs that they run: made once, whole or absent, and nothing left after Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.cache import Cache, cache_directory, digest_tree, disk_usage, remove_tree
from appliance.errors import BuildError, CommandFailedError, HostError
from appliance.progress import Progress
from appliance.run import find_program, require, run
from appliance.stages import BuildContext, Stage, build_context, replacing

TREE = Path(__file__).parents[2]
WAIT_SECONDS = 20.0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {WAIT_SECONDS} s for {what}"
        time.sleep(0.01)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def write_file(output: Path, context: BuildContext) -> None:
    (output / "file").write_text("made")


def counted(made: list[str]) -> Callable[[Path, BuildContext], None]:
    def action(output: Path, context: BuildContext) -> None:
        made.append("once")
        write_file(output, context)

    return action


def test_a_step_tells_how_long_it_took_the_last_time(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def told(*, failing: bool = False) -> str:
        stream = io.StringIO()
        with build_context("test", epoch=0, cache=cache, progress=Progress(stream)) as context:
            try:
                with context.step("write the medium"):
                    if failing:
                        raise BuildError("it broke")
            except BuildError:
                pass
        return stream.getvalue()

    assert "> write the medium\n" in told()
    cache.remember_step("write the medium", 42)
    # What broke off tells nothing about the next time.
    assert "(about 42 s)" in told(failing=True)
    assert "(about 42 s)" in told()
    assert "> write the medium\n" in told()
    cache.clean()
    assert cache.step_seconds("write the medium") is None


def test_a_stage_runs_once_for_the_same_inputs(tmp_path: Path) -> None:
    made: list[str] = []
    for _ in range(2):
        with build_context("test", epoch=0, cache=Cache(tmp_path), progress=Progress(silent=True)) as context:
            entry = context.build(Stage("one", "make it", {"a": 1}, counted(made)))
            assert (entry.output / "file").read_text() == "made"
    assert made == ["once"]
    with build_context("test", epoch=0, cache=Cache(tmp_path), progress=Progress(silent=True)) as context:
        context.build(Stage("one", "make it", {"a": 2}, counted(made)))
    assert made == ["once", "once"]


def test_cold_builds_anew(tmp_path: Path) -> None:
    made: list[str] = []
    for _ in range(2):
        with build_context(
            "test", epoch=0, cold=True, cache=Cache(tmp_path), progress=Progress(silent=True)
        ) as context:
            context.build(Stage("one", "make it", {}, counted(made)))
    assert made == ["once", "once"]


def test_a_failed_stage_leaves_the_log_and_nothing_else(tmp_path: Path) -> None:
    def fail(output: Path, context: BuildContext) -> None:
        (output / "half").write_text("half")
        run([sys.executable, "-c", "print('working'); raise SystemExit('no space')"], log=context.log)

    with (
        pytest.raises(CommandFailedError) as caught,
        build_context("test", epoch=0, cache=Cache(tmp_path), progress=Progress(silent=True)) as context,
    ):
        context.build(Stage("one", "fail", {}, fail))
    assert not list(tmp_path.glob("stages/one/*")) + list(tmp_path.glob("stages/one/.*"))
    assert caught.value.log is not None
    assert "no space" in caught.value.log.read_text()
    assert caught.value.last_lines[-1] == "no space"
    with build_context("test", epoch=0, cache=Cache(tmp_path), progress=Progress(silent=True)) as context:
        context.build(Stage("one", "fail", {}, write_file))


def test_a_stage_without_room_is_not_begun(tmp_path: Path) -> None:
    made: list[str] = []
    with (
        pytest.raises(HostError, match="needed"),
        build_context("test", epoch=0, cache=Cache(tmp_path), progress=Progress(silent=True)) as context,
    ):
        context.build(Stage("huge", "too much", {}, counted(made), needs_bytes=1 << 62))
    assert made == []


BUILDER = """
import sys, time
from pathlib import Path
from appliance.cache import Cache
from appliance.progress import Progress
from appliance.run import run
from appliance.stages import Stage, build_context

base = Path(sys.argv[1])

def action(output, context):
    with (base / "made").open("a") as stream:
        stream.write("once ")
    (output / "half").write_text("half")
    script = (
        "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid()));"
        "time.sleep(float(sys.argv[2]))"
    )
    run([sys.executable, "-c", script, base / "child", sys.argv[2]], log=context.log)

with build_context("test", epoch=0, cache=Cache(base / "cache"), progress=Progress(silent=True)) as context:
    context.build(Stage("slow", "take time", {}, action))
"""


def builder(base: Path, seconds: float) -> subprocess.Popen[bytes]:
    script = base / "builder.py"
    script.write_text(textwrap.dedent(BUILDER))
    return subprocess.Popen(
        [sys.executable, script, base, str(seconds)],
        env={**os.environ, "PYTHONPATH": str(TREE)},
        stderr=subprocess.DEVNULL,
    )


def child_of(base: Path) -> int:
    wait_for(lambda: (base / "child").exists() and bool((base / "child").read_text()), "the stage's program")
    return int((base / "child").read_text())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_leaves_no_process_and_no_half(tmp_path: Path, number: signal.Signals) -> None:
    process = builder(tmp_path, 600)
    child = child_of(tmp_path)
    process.send_signal(number)
    assert process.wait(timeout=WAIT_SECONDS) != 0
    wait_for(lambda: not alive(child), "the stage's program to end")
    assert not list((tmp_path / "cache/stages/slow").iterdir())


def test_a_killed_builder_leaves_a_half_that_the_next_removes(tmp_path: Path) -> None:
    process = builder(tmp_path, 600)
    child = child_of(tmp_path)
    process.kill()
    process.wait(timeout=WAIT_SECONDS)
    os.kill(child, signal.SIGKILL)
    assert list((tmp_path / "cache/stages/slow").glob(".partial-*"))
    cache = Cache(tmp_path / "cache")
    assert cache.clean() != []
    assert not list((tmp_path / "cache/stages/slow").iterdir())


def test_two_builds_of_the_same_make_it_once(tmp_path: Path) -> None:
    first = builder(tmp_path, 0.3)
    child_of(tmp_path)
    second = builder(tmp_path, 0.3)
    assert first.wait(timeout=WAIT_SECONDS) == 0
    assert second.wait(timeout=WAIT_SECONDS) == 0
    assert (tmp_path / "made").read_text() == "once "


def test_two_builds_do_not_share_a_download_directory(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.download_directory("debian12") as first, cache.download_directory("debian12") as second:
        assert first != second
    with cache.download_directory("debian12") as again:
        assert again == first


def test_a_program_over_its_time_limit_is_ended_with_its_children(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time; p = subprocess.Popen(['sleep', '600']); "
        "open(sys.argv[1], 'w').write(str(p.pid)); time.sleep(600)"
    )
    with pytest.raises(CommandFailedError, match="did not end within"):
        run([sys.executable, "-c", script, tmp_path / "child"], limit_seconds=1.5)
    wait_for(lambda: not alive(int((tmp_path / "child").read_text())), "the grandchild to end")


def test_a_failure_shows_the_last_line_and_a_missing_program_its_name() -> None:
    with pytest.raises(CommandFailedError, match="status 3: why"):
        run([sys.executable, "-c", "import sys; print('before\\nwhy', file=sys.stderr); sys.exit(3)"])
    with pytest.raises(HostError, match="no-such-program"):
        run(["no-such-program"])


def test_hostile_arguments_reach_no_shell(tmp_path: Path) -> None:
    hostile = f"$(touch {tmp_path}/pwned); `touch {tmp_path}/pwned` | touch {tmp_path}/pwned"
    done = run([sys.executable, "-c", "import sys; print(sys.argv[1])", hostile], log=tmp_path / "log")
    assert hostile in done.output
    assert not (tmp_path / "pwned").exists()


def test_every_missing_program_is_named_with_its_package() -> None:
    assert find_program("sh") is not None
    with pytest.raises(HostError) as caught:
        require({"sh": "dash", "no-such-one": "one", "no-such-two": "two"})
    assert "no-such-one, no-such-two" in str(caught.value)
    assert "one, two" in caught.value.remedy


def test_replacing_is_whole_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "result"
    target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    with replacing(target) as partial:
        partial.write_text("new")
    assert target.read_text() == "new"
    with pytest.raises(BuildError), replacing(target):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_directory_replaces_a_directory(tmp_path: Path) -> None:
    target = tmp_path / "tree"
    for text in ("old", "new"):
        with replacing(target) as partial:
            partial.mkdir()
            (partial / text).write_text(text)
    assert [path.name for path in target.iterdir()] == ["new"]


def test_digest_counts_names_contents_links_and_executability(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    first = digest_tree(tmp_path)
    os.utime(tmp_path / "a", (0, 0))
    assert digest_tree(tmp_path) == first
    (tmp_path / "a").chmod(0o755)
    executable = digest_tree(tmp_path)
    (tmp_path / "b").symlink_to("a")
    linked = digest_tree(tmp_path)
    assert len({first, executable, linked}) == 3


def test_a_hard_link_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    before = disk_usage(tmp_path)
    os.link(tmp_path / "a", tmp_path / "b")
    assert disk_usage(tmp_path) == before


def test_clean_keeps_the_newest(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for number in range(3):
        with build_context("test", epoch=0, cache=cache, progress=Progress(silent=True)) as context:
            entry = context.build(Stage("one", "make it", number, write_file))
        os.utime(entry.output.parent / "stage.json", (number, number))
    assert len(cache.clean(keep_newest=1)) == 2
    assert (entry.output / "file").exists()


def test_old_large_entries_go_by_themselves_but_not_what_was_used_lately(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.cache.LARGE_BYTES", 1)
    monkeypatch.setattr("appliance.cache.KEPT_LARGE", 1)
    cache = Cache(tmp_path)

    def made(number: int) -> Path:
        with build_context("test", epoch=0, cache=cache, progress=Progress(silent=True)) as context:
            return context.build(Stage("tree", "make it", number, write_file)).output.parent

    old, recent = made(0), made(1)
    os.utime(old / "stage.json", (0, 0))
    newest = made(2)
    assert [path.exists() for path in (old, recent, newest)] == [False, True, True]


def test_a_tree_that_a_node_runs_on_is_not_removed(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    cache = Cache(tmp_path / "cache")
    with build_context("test", epoch=0, cache=cache, progress=Progress(silent=True)) as context:
        tree = context.build(Stage("tree", "make it", 1, write_file)).output
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tree},upperdir={tmp_path / 'upper'},workdir={tmp_path / 'work'}"
    script = (
        "import subprocess, sys;"
        "subprocess.run(['mount', '-t', 'overlay', '-o', sys.argv[1], 'overlay', sys.argv[2]], check=True);"
        "print('mounted', flush=True); sys.stdin.read()"
    )
    node = subprocess.Popen(
        [
            *("unshare", "--mount", "--propagation", "private", "--"),
            *(sys.executable, "-c", script, options, tmp_path / "merged"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert node.stdout is not None and node.stdout.readline() == b"mounted\n"
    assert cache.clean() == []
    node.communicate(timeout=WAIT_SECONDS)
    assert cache.clean() == [tree.parent]


def test_a_mounted_tree_is_not_removed(tmp_path: Path) -> None:
    """Removing through a mount would reach the host's own files."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    tree = tmp_path / "tree"
    (tree / "inside").mkdir(parents=True)
    script = textwrap.dedent(
        f"""
        import subprocess
        from pathlib import Path
        from appliance.cache import remove_tree
        from appliance.errors import HostError
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", {str(tree / "inside")!r}], check=True)
        try:
            remove_tree(Path({str(tree)!r}))
        except HostError as error:
            print(error)
        """
    )
    told = run(
        ["unshare", "--mount", "--propagation", "private", "--", sys.executable, "-c", script],
        environment={"PYTHONPATH": str(TREE)},
    )
    assert f"{tree / 'inside'} is mounted" in told.output
    remove_tree(tree)
    assert not tree.exists()


FULL = """
import subprocess, sys
from pathlib import Path
from appliance.cache import Cache
from appliance.cli_common import errors_to_exit_codes
from appliance.progress import Progress
from appliance.stages import Stage, build_context

base = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", base], check=True)

def action(output, context):
    (output / "large").write_bytes(b"x" * 1_000_000)

@errors_to_exit_codes
def main():
    with build_context("test", epoch=0, cache=Cache(base), progress=Progress(silent=True)) as context:
        context.build(Stage("large", "fill the disk", {}, action))

try:
    main()
finally:
    print(sorted(path.name for path in base.glob("stages/*/*")) + list(base.glob("stages/*/.partial*")))
"""


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    told = run(
        ["unshare", "--mount", "--propagation", "private", "--", sys.executable, "-c", FULL, tmp_path],
        environment={"PYTHONPATH": str(TREE)},
        check=False,
    )
    assert told.status == HostError.exit_code
    assert "No space left on device" in told.errors
    assert "CENTRALINO_CACHE" in told.errors
    assert "Traceback" not in told.errors
    assert told.output.strip() == "[]"


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CENTRALINO_CACHE", "/somewhere/cache")
    assert cache_directory() == Path("/somewhere/cache")
    monkeypatch.delenv("CENTRALINO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_directory() == Path("/xdg/centralino")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/builder")
    assert cache_directory() == Path("/home/builder/.cache/centralino")


def test_progress_without_a_terminal_is_plain_lines() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress.found("known")
        with progress.step("unknown [bracketed]", 12.0):
            pass
    lines = stream.getvalue().splitlines()
    assert lines[0] == "  = known: unchanged"
    assert lines[1] == "  > unknown [bracketed] (about 12 s)"
    assert lines[2].startswith("  + unknown [bracketed]: ")
    assert "\x1b" not in stream.getvalue()


INTERRUPTED = """
import os, signal, sys
from appliance.scratch import Scratch
from appliance.interruptions import interruptible

name = sys.argv[1]
real = getattr(os, name)

def and_interrupt(*given, **options):
    result = real(*given, **options)
    setattr(os, name, real)
    os.kill(os.getpid(), signal.SIGINT)
    return result

with interruptible():
    if name == "rmdir":
        with Scratch() as directory:
            os.mkdir(directory + "/inside")
            setattr(os, name, and_interrupt)
    else:
        setattr(os, name, and_interrupt)
        with Scratch():
            pass
print("not interrupted")
"""


@pytest.mark.parametrize("name", ["open", "mkdir", "rmdir"])
def test_ctrl_c_leaves_no_temporary_directory(tmp_path: Path, name: str) -> None:
    """Neither the trial file of the first one, nor one just made, nor one half removed."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, name],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TREE), "TMPDIR": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert "KeyboardInterrupt" in done.stderr and not done.stdout, done.stderr
    assert not list(tmp_path.iterdir())
