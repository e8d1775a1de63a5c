"""The terminal of the console menu: lines with a time limit, hidden lines, a clear screen; no curses.

Works on a dumb serial line and on a pipe. What is typed is bounded and stripped of control characters.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

from daemon.cli.render import visible

LONGEST_LINE = 1000


class Hangup(Exception):  # noqa: N818 - an event, not a fault
    """Nobody will ever type on this terminal again."""


class Terminal:
    """Reads from one file descriptor and writes to stdout."""

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor = descriptor
        self._buffer = b""
        self.is_terminal = os.isatty(descriptor)

    def write(self, text: str = "") -> None:
        """One line, or several."""
        print(visible(text, keep="\n"), flush=True)

    def clear(self) -> None:
        """An empty screen where the terminal knows how, else an empty line."""
        if self.is_terminal and os.environ.get("TERM", "dumb") not in ("dumb", "unknown"):
            sys.stdout.write("\x1b[H\x1b[2J")
            sys.stdout.flush()
        else:
            print(flush=True)

    def prompt(self, text: str) -> None:
        """Text without an end of line."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def read(self, prompt: str, seconds: float | None = None) -> str | None:
        """A line without its end; None when `seconds` pass without one; raises Hangup at end of file.

        On a terminal, Ctrl-D counts as an empty line: the next person types on.
        """
        self.prompt(prompt)
        deadline = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._descriptor], [], [], left)
            if not ready:
                return None
            try:
                piece = os.read(self._descriptor, 4096)
            except OSError as error:  # the line was cut
                raise Hangup from error
            if not piece:
                if not self.is_terminal:
                    raise Hangup
                print(flush=True)
                return ""
            self._buffer = (self._buffer + piece)[-4 * LONGEST_LINE :]
        raw, _, self._buffer = self._buffer.partition(b"\n")
        text = raw[:LONGEST_LINE].decode(errors="replace")
        return "".join(character for character in text if character.isprintable()).strip()

    def read_hidden(self, prompt: str, seconds: float | None = None) -> str | None:
        """Like `read`, without showing what is typed. Nothing typed ahead is taken for it."""
        if not self.is_terminal:
            return self.read(prompt, seconds)
        with self._without_echo():
            self._buffer = b""
            termios.tcflush(self._descriptor, termios.TCIFLUSH)
            answer = self.read(prompt, seconds)
        print(flush=True)
        return answer

    @contextmanager
    def _without_echo(self) -> Iterator[None]:
        before = termios.tcgetattr(self._descriptor)
        silent = termios.tcgetattr(self._descriptor)
        silent[3] &= ~termios.ECHO
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, silent)
        try:
            yield
        finally:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, before)
