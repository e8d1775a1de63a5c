"""Ctrl-C ends every program of the build host with the documented status, a sentence and no traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.cli_common import INTERRUPTED

TREE = Path(__file__).parents[2]
# The real entry point and its real command, whose work is replaced by waiting.
PROGRAM = """
import importlib, sys, time
module = importlib.import_module({module!r})
command = module.{command}
def wait(*arguments, **options):
    print("ready", flush=True)
    time.sleep(60)
command.callback = wait
sys.argv[1:] = {words!r}
module.main()
"""


@pytest.mark.parametrize(
    ("module", "command", "words"),
    [
        ("appliance.cli", "plan", ["plan"]),
        ("appliance.cli", "image", ["image"]),
        ("appliance.demo", "demo", []),
        ("tests.bench.__main__", "bench", []),
    ],
)
def test_ctrl_c_ends_with_the_documented_status(module: str, command: str, words: list[str]) -> None:
    program = PROGRAM.format(module=module, command=command, words=words)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TREE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            told = process.communicate(timeout=30)[1]
        finally:
            process.kill()
    assert process.returncode == INTERRUPTED, told
    assert "interrupted" in told
    assert "Traceback" not in told


def test_wrong_usage_keeps_clicks_status() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "appliance.demo", "--no-such-option"],
        capture_output=True, text=True, timeout=60, check=False, cwd=TREE,
    )  # fmt: skip
    assert done.returncode == 2
    assert "No such option" in done.stderr
