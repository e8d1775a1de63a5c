"""A node for certificate tests that runs this source tree, whatever its root was built from."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from appliance.lab import Node
from appliance.lab_host import Result

REPOSITORY = Path(__file__).resolve().parents[2]
OWN = ("daemon", "firewall", "fault_tolerance")
LIBRARIES = (
    *(
        "acme",
        "josepy",
        "OpenSSL",
        "pyrfc3339",
        "requests",
        "urllib3",
        "certifi",
        "charset_normalizer",
        "idna",
    ),
    "inotify_simple.py",
)


def this_tree(lab_root: Path, copy: Path) -> dict[str, str]:
    """Binds of our packages as they are now, and of libraries that an older root does not have yet."""
    (site,) = (lab_root / "opt/centralino/venv/lib").glob("python3*/site-packages")
    inside = Path("/") / site.relative_to(lab_root)
    found = {}
    for name in OWN:
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        found[str(copy / name)] = str(inside / name)
    for name in LIBRARIES:
        specification = importlib.util.find_spec(name.removesuffix(".py"))
        if specification is None or specification.origin is None or (site / name).exists():
            continue
        origin = Path(specification.origin)
        found[str(origin if name.endswith(".py") else origin.parent)] = str(inside / name)
    return found


def certificate(node: Node, *words: str, check: bool = True, input_text: str | None = None) -> Result:
    """Run `centralino certificate ...` on the node."""
    return node.run(
        ["centralino", "certificate", *words], check=check, limit_seconds=240, input_text=input_text
    )


def served_serial(node: Node, port: int) -> str:
    """The serial that a port of the node serves, as openssl reads it, from inside."""
    program = (
        f"openssl s_client -connect 127.0.0.1:{port} </dev/null 2>/dev/null | openssl x509 -noout -serial"
    )
    return node.run(["sh", "-c", program]).output.strip().removeprefix("serial=")
