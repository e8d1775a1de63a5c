"""Which part of the document belongs to the pair, and how a node takes it over from its master."""

from __future__ import annotations

from collections.abc import Iterator

from daemon.settings import Settings, dump, parse_document, sections
from daemon.settings.base import Scope
from daemon.settings.migrations import Document


def scope_of(section: str, field: str) -> Scope:
    """The scope of one field; raises KeyError for a field that does not exist."""
    model = sections()[section]
    extra = model.model_fields[field].json_schema_extra
    if isinstance(extra, dict) and "x-scope" in extra:
        return Scope(str(extra["x-scope"]))
    return model.scope


def cluster_part(settings: Settings) -> Document:
    """The fields of cluster scope as JSON types, with `schema`: what a master sends to its slave."""
    document = dump(settings)
    part: Document = {"schema": document["schema"]}
    for section, field in _fields():
        if scope_of(section, field) is Scope.CLUSTER:
            table = part.setdefault(section, {})
            if isinstance(table, dict):
                table[field] = _table(document, section)[field]
    return part


def secret_names(settings: Settings) -> list[str]:
    """The names of the secrets that fields of cluster scope refer to, such as `mail.password_secret`."""
    document = dump(settings)
    return sorted(
        {
            str(_table(document, section)[field])
            for section, field in _fields()
            if field.endswith("_secret") and scope_of(section, field) is Scope.CLUSTER
        }
    )


def with_cluster_part(own: Settings, part: Document) -> Settings:
    """`own` with the cluster scope of `part`; fields of node scope in `part` are ignored.

    Raises InvalidSettingsError if `part` is of another schema or the whole is not valid.
    """
    document = dump(own)
    given = dict(part)
    document["schema"] = given.get("schema", document["schema"])
    for section, field in _fields():
        if scope_of(section, field) is Scope.CLUSTER and field in _table(given, section):
            _table(document, section)[field] = _table(given, section)[field]
    return parse_document(document)


def _fields() -> Iterator[tuple[str, str]]:
    for section, model in sections().items():
        for field in model.model_fields:
            yield section, field


def _table(document: Document, section: str) -> dict[str, object]:
    table = document.get(section)
    return table if isinstance(table, dict) else {}
