"""What the parts of the demonstration share: steps that are shown while they run, and the facts found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from appliance.lab import Node
from appliance.lab_host import LabError, wait_for

HEALTHY_LIMIT_SECONDS = 180.0
Facts = dict[str, float | int]


class Steps:
    """Shows each step as it goes and remembers for the table what it said."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rows: list[tuple[str, str]] = []

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Name a step on the console while it runs; an error in it is told with its name."""
        self.console.print(f"[bold]>[/bold] {title}", highlight=False)
        try:
            yield
        except BaseException:
            self.console.print(f"[bold red]failed:[/bold red] {title}", highlight=False)
            raise

    def say(self, what: str, result: str) -> None:
        """A finding: one line now, one row of the table at the end."""
        self.rows.append((what, result))
        self.console.print(f"  {what}: {result}", highlight=False)


def wait_healthy(node: Node, limit_seconds: float = HEALTHY_LIMIT_SECONDS) -> dict[str, object]:
    """Wait until the node calls itself healthy; its whole status. Raises LabError with the reasons given."""
    last: dict[str, object] = {}

    def healthy() -> bool:
        nonlocal last
        last = node.json(["centralino", "status", "--json"])
        return last.get("healthy") is True

    try:
        wait_for(healthy, limit_seconds, f"{node.name} becoming healthy", interval_seconds=0.3)
    except LabError as error:
        raise LabError(f"{error}; its reasons: {last.get('reasons')}") from error
    return last
