"""What `centralino` runs first, to be quick: a command lives for less time than its modules take to load.

Nothing here is needed for a command to work; `daemon.cli.main` has all of it.
"""

from __future__ import annotations

import gc
import importlib
import sys
from _thread import _local
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# Loading modules makes objects that stay: to look for garbage among them again and again is wasted.
OBJECTS_BETWEEN_COLLECTIONS = 50_000
# What typing asks of a type argument; a plain class has none of it.
GENERIC = frozenset({"__parameters__", "__typing_subst__"})


class Late(ModuleType):
    """Stands for a standard module and has what is always asked of it; to ask for more loads the real one.

    `importlib.util.LazyLoader` does not help with these: it loads them at the first question.
    """

    def __init__(self, name: str, **known: object) -> None:
        super().__init__(name)
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> object:
        if name == "__path__":  # `from NAME import` asks whether it is a package
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


class LateClass:
    """Stands for a class of a late module, and is the real one for whoever makes, checks or extends it."""

    def __init__(self, module: str, name: str) -> None:
        self._place = (module, name)

    @property
    def _class(self) -> type:
        module, name = self._place
        found: type = getattr(_real(module), name)
        return found

    def __call__(self, *arguments: object, **options: object) -> object:
        """A new object of the class."""
        return self._class(*arguments, **options)

    def __getattr__(self, name: str) -> object:
        if name in GENERIC:
            raise AttributeError(name)
        return getattr(self._class, name)

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, self._class)

    def __subclasscheck__(self, kind: type) -> bool:
        return issubclass(kind, self._class)

    def __mro_entries__(self, _bases: tuple[object, ...]) -> tuple[type]:
        return (self._class,)


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


def _untranslated(text: str) -> str:
    """As gettext.gettext without a catalogue; ours are English, and click has none."""
    return text


def _plural(one: str, many: str, number: int) -> str:
    """As gettext.ngettext without a catalogue."""
    return one if number == 1 else many


def late_modules() -> list[Late]:
    """Modules that all commands may find instead of the real ones: what these have is the same."""
    return [
        Late("inspect", cleandoc=_cleandoc),  # brings the syntax tree, the disassembler and the tokenizer
        Late(  # brings templates; jeepney wants to know the letters
            "string",
            ascii_letters="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
            digits="0123456789",
        ),
    ]


def late_modules_of_click() -> list[Late]:
    """Modules for what click can and our commands do not ask of it."""
    return [
        Late("datetime", datetime=LateClass("datetime", "datetime")),
        Late("gettext", gettext=_untranslated, ngettext=_plural),  # brings the locales
        Late("threading", local=_local),
        Late("uuid", UUID=LateClass("uuid", "UUID")),  # brings the platform
    ]


@contextmanager
def standing_in(modules: list[Late]) -> Iterator[None]:
    """Whoever imports these meanwhile gets the stand-ins; whoever does so afterwards, the modules."""
    for module in modules:
        sys.modules.setdefault(module.__name__, module)
    try:
        yield
    finally:
        for module in modules:
            if sys.modules.get(module.__name__) is module:
                del sys.modules[module.__name__]


def main() -> None:
    """Entry point of `centralino`."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    for module in late_modules():
        sys.modules.setdefault(module.__name__, module)
    with standing_in(late_modules_of_click()):
        import click  # noqa: F401
    from daemon.cli.main import main as command_line

    command_line()
