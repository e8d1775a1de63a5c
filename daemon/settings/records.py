"""Settings without pydantic: the same classes with the same fields, made from documents that were checked.

Knows as much of pydantic's way to declare as the schema uses. Nothing here checks a value: `restore` is for
what the helper process answers, and for nothing else. That both forms agree on every document is tested
with generated ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, NoReturn, Self, Union, cast, get_args, get_origin, get_type_hints

REQUIRED = object()
ADDRESSES = (IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network)
ConfigDict = dict
Reader = Callable[[Any], Any]


@dataclass(frozen=True, eq=False, slots=True)
class FieldInfo:
    """What of a field's declaration matters once its value was checked."""

    default: Any = REQUIRED
    default_factory: Callable[[], Any] | None = None
    alias: str | None = None
    json_schema_extra: Mapping[str, object] | None = None
    annotation: object = None

    def value(self) -> Any:
        """The default; raises TypeError if there is none."""
        if self.default_factory is not None:
            return self.default_factory()
        if self.default is REQUIRED:
            raise TypeError("a field without default is missing")
        return self.default


def Field(  # noqa: N802 - pydantic's name
    *,
    default: Any = REQUIRED,
    default_factory: Callable[[], Any] | None = None,
    alias: str | None = None,
    json_schema_extra: Mapping[str, object] | None = None,
    **_limits: object,
) -> Any:
    """As pydantic's; descriptions and limits are the helper's business."""
    return FieldInfo(default, default_factory, alias, json_schema_extra)


class StringConstraints:
    """As pydantic's; the pattern tells the members of a union apart."""

    __slots__ = ("pattern",)

    def __init__(self, *, pattern: str | None = None, **_limits: object) -> None:
        self.pattern = pattern


class Record:
    """Stands in for pydantic's BaseModel: keyword arguments, defaults, frozen, compared by value."""

    model_fields: ClassVar[dict[str, FieldInfo]] = {}
    model_config: ClassVar[dict[str, object]] = {}
    _readers: ClassVar[dict[str, tuple[str, Reader]] | None] = None

    def __init_subclass__(cls) -> None:
        cls._readers = None
        cls.model_fields = dict(cls.model_fields)
        for name, hint in get_type_hints(cls, include_extras=True).items():
            if get_origin(hint) is ClassVar or name in cls.model_fields:
                continue
            declared = cls.__dict__.get(name, REQUIRED)
            if declared is not REQUIRED:
                delattr(cls, name)
            field = declared if isinstance(declared, FieldInfo) else FieldInfo(declared)
            cls.model_fields[name] = replace(field, annotation=hint)

    def __init__(self, **values: Any) -> None:
        fields = type(self).model_fields
        if unknown := values.keys() - fields.keys():
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        state = self.__dict__
        for name, field in fields.items():
            state[name] = values[name] if name in values else field.value()

    @classmethod
    def restore(cls, document: Mapping[str, Any]) -> Self:
        """From JSON types that were checked. Raises TypeError or ValueError for those of another release."""
        if cls._readers is None:
            cls._readers = {
                field.alias or name: (name, _reader(field.annotation))
                for name, field in cls.model_fields.items()
            }
        readers = cls._readers
        if unknown := document.keys() - readers.keys():
            raise TypeError(f"{cls.__name__} has no {', '.join(sorted(unknown))}")
        return cls(**{readers[key][0]: readers[key][1](value) for key, value in document.items()})

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        """With mode `json` what pydantic writes, else the values themselves."""
        if mode != "json":
            return dict(self.__dict__)
        fields = type(self).model_fields
        return {fields[name].alias or name: _plain(value) for name, value in self.__dict__.items()}

    @classmethod
    def model_validate(cls, values: Mapping[str, object]) -> Self:
        """Checked by the helper; raises ValueError with pydantic's `errors()`."""
        from daemon.settings.remote import checked_part

        return cls.restore(checked_part(cls.__name__, _plain(dict(values))))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.values()))

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({inside})"


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.model_dump(mode="json")
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        text = value.isoformat()
        return f"{text[:-6]}Z" if text.endswith("+00:00") else text
    return str(value) if isinstance(value, ADDRESSES) else value


def _reader(hint: Any) -> Reader:
    """The function that makes a field's value from JSON types."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, *notes = get_args(hint)
        patterns = [note.pattern for note in notes if isinstance(note, StringConstraints) and note.pattern]
        return _text_reader(patterns[0]) if patterns else _reader(base)
    if origin is tuple:
        item = _reader(get_args(hint)[0])
        return lambda value: tuple(item(each) for each in value)
    if origin is dict:
        item = _reader(get_args(hint)[1])
        return lambda value: {key: item(each) for key, each in value.items()}
    if origin in (Union, UnionType):
        return _union_reader([member for member in get_args(hint) if member is not NoneType])
    if issubclass(hint, Record):
        restore: Reader = hint.restore
        return restore
    if hint is datetime:
        return datetime.fromisoformat
    makes_itself = issubclass(hint, Enum | float) or hint in ADDRESSES
    return cast(Reader, hint) if makes_itself else _as_it_is


def _as_it_is(value: object) -> object:
    return value


def _text_reader(pattern: str) -> Reader:
    # Rust's `$`, by which the pattern was checked, is the very end.
    matches = re.compile(pattern.removesuffix("$")).fullmatch

    def read(value: str) -> str:
        if not matches(value):
            raise ValueError("is of another form")
        return value

    return read


def _union_reader(members: list[Any]) -> Reader:
    readers = [_reader(member) for member in members]

    def read(value: Any) -> Any:
        if value is None:
            return None
        for each in readers[:-1]:
            try:
                return each(value)
            except ValueError:
                continue
        return readers[-1](value)

    return read
