"""The helper process that checks settings: a line is a request, a line is its answer, both JSON.

`python -m daemon.settings.worker`; it ends with its stdin. Requests: `{do: text, text}` and
`{do: document, document}` -> `{document}` (whole, migrated, with defaults) or `{problems}`;
`{do: schema}` -> `{schema}`; `{do: part, name, values}` -> `{document}` or `{errors}`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from daemon.errors import InvalidSettingsError
from daemon.settings import Settings, dump, parse, parse_document
from daemon.settings.base import Part

Table = Mapping[str, Any]
Answer = dict[str, object]


def text(request: Table) -> Answer:
    """Checks JSON text as it came from a person."""
    return _document(lambda: parse(request["text"]))


def document(request: Table) -> Answer:
    """Checks a document that is JSON types already."""
    return _document(lambda: parse_document(request["document"]))


def schema(_request: Table) -> Answer:
    """The JSON Schema of the document."""
    return {"schema": Settings.model_json_schema()}


def part(request: Table) -> Answer:
    """Checks the values of one class of the schema alone."""
    model = next(each for each in _parts(Part) if each.__name__ == request["name"])
    try:
        # As JSON: a strict tuple is a list there.
        return {"document": model.model_validate_json(json.dumps(request["values"])).model_dump(mode="json")}
    except ValidationError as error:
        rows = error.errors(include_url=False, include_context=False, include_input=False)
        return {"errors": [{"loc": row["loc"], "msg": row["msg"], "type": row["type"]} for row in rows]}


VERBS: Mapping[str, Callable[[Table], Answer]] = {
    verb.__name__: verb for verb in (text, document, schema, part)
}


def main() -> int:
    """Answer until there is nothing more to answer."""
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(VERBS[request["do"]](request)), flush=True)
    return 0


def _document(check: Callable[[], Settings]) -> Answer:
    try:
        return {"document": dump(check())}
    except InvalidSettingsError as error:
        return {"problems": [problem.as_json() for problem in error.problems]}


def _parts(model: type[Part]) -> Iterator[type[Part]]:
    for inner in model.__subclasses__():
        yield inner
        yield from _parts(inner)


if __name__ == "__main__":
    sys.exit(main())
