"""What `centralino` runs first, to be quick: a command lives for less time than its modules take to load.

Nothing here is needed for a command to work; `daemon.cli.main` has all of it.
"""

from __future__ import annotations

import gc
import sys
from types import ModuleType

# Loading modules makes objects that stay: to look for garbage among them again and again is wasted.
OBJECTS_BETWEEN_COLLECTIONS = 50_000


class LateInspect(ModuleType):
    """Stands for `inspect` until more is asked of it than to clean a line of help, click's for every option.

    The real one loads the syntax tree, the disassembler and the tokenizer, a tenth of the time that a command takes.
    `importlib.util.LazyLoader` does not help: the first option would load it.
    """

    @staticmethod
    def cleandoc(text: str) -> str:
        """As inspect.cleandoc."""
        if "\n" in text or "\t" in text:
            return str(_inspect().cleandoc(text))
        return text.lstrip()

    def __getattr__(self, name: str) -> object:
        return getattr(_inspect(), name)


def _inspect() -> ModuleType:
    """The real module; whoever imports it from now on gets it."""
    if isinstance(sys.modules["inspect"], LateInspect):
        del sys.modules["inspect"]
    import inspect

    return inspect


def main() -> None:
    """Entry point of `centralino`."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    sys.modules.setdefault("inspect", LateInspect("inspect"))
    from daemon.cli.main import main as command_line

    command_line()
