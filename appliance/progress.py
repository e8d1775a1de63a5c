"""What a person sees while a build runs: stage names, elapsed and remaining time.

On a terminal a moving line (rich), elsewhere one plain line when a stage begins and one when it ends.
Everything goes to standard error; standard output is for results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Reports the stages of one build; `silent` for `--json` and tests."""

    def __init__(self, stream: TextIO | None = None, *, silent: bool = False) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.silent = silent
        self._rich: RichProgress | None = None
        if not silent and self.stream.isatty():
            self._rich = RichProgress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.fields[remaining]}"),
                console=Console(file=self.stream),
            )

    def __enter__(self) -> Progress:
        if self._rich:
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich:
            self._rich.stop()

    def found(self, title: str) -> None:
        """A stage whose output was in the cache."""
        self._line(f"  = {title}: unchanged")

    def note(self, text: str) -> None:
        """One line between stages."""
        self._line(f"    {text}")

    @contextmanager
    def step(self, title: str, expected_seconds: float | None) -> Iterator[None]:
        """Show that a stage runs; `expected_seconds` is what it took last time, None if unknown."""
        started = time.monotonic()
        if self._rich:
            with _ticking(self._rich, title, expected_seconds):
                yield
        else:
            about = f" (about {expected_seconds:.0f} s)" if (expected_seconds or 0) >= 1 else ""
            self._line(f"  > {title}{about}")
            yield
        self._line(f"  + {title}: {time.monotonic() - started:.1f} s")

    def _line(self, text: str) -> None:
        if self.silent:
            return
        if self._rich:
            self._rich.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self.stream, flush=True)


@contextmanager
def _ticking(display: RichProgress, title: str, expected: float | None) -> Iterator[None]:
    """One moving line. A thread advances it, because the stage itself waits for other programs."""
    import threading

    task = display.add_task(title, total=expected, remaining="")
    started = time.monotonic()
    done = threading.Event()

    def tick() -> None:
        while not done.wait(0.5):
            spent = time.monotonic() - started
            if expected is None:
                remaining = ""
            elif spent < expected:
                remaining = f"about {expected - spent:.0f} s left"
            else:
                remaining = "longer than last time"
            display.update(task, completed=min(spent, expected or spent), remaining=remaining)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        display.remove_task(task)
