"""What `centralino` runs first, to be quick: a command lives for less time than its modules take to load.

Nothing here is needed for a command to work; `daemon.cli.main` has all of it.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from types import ModuleType

# Loading modules makes objects that stay: to look for garbage among them again and again is wasted.
OBJECTS_BETWEEN_COLLECTIONS = 50_000


class Late(ModuleType):
    """Stands for a standard module and has what is always asked of it; to ask for more loads the real one.

    `importlib.util.LazyLoader` does not help with these: it loads them at the first question.
    """

    def __init__(self, name: str, **known: object) -> None:
        super().__init__(name)
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> object:
        return getattr(_real(self.__name__), name)


def _real(name: str) -> ModuleType:
    """The module itself; whoever imports it from now on gets it."""
    if isinstance(sys.modules.get(name), Late):
        del sys.modules[name]
    return importlib.import_module(name)


def _cleandoc(text: str) -> str:
    """As inspect.cleandoc, which click asks to clean the help of every option; ours are single lines."""
    if "\n" in text or "\t" in text:
        return str(_real("inspect").cleandoc(text))
    return text.lstrip()


def main() -> None:
    """Entry point of `centralino`."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    for module in (
        Late("inspect", cleandoc=_cleandoc),  # brings the syntax tree, the disassembler and the tokenizer
        Late("platform", system=lambda: os.uname().sysname),  # for uuid, a type of option that we do not use
    ):
        sys.modules.setdefault(module.__name__, module)
    from daemon.cli.main import main as command_line

    command_line()
