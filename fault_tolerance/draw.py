"""docs/roles.md, made from the role machine itself: a table of its edges and a picture of its states."""

from __future__ import annotations

from fault_tolerance.facts import MOST_MOVES_AN_HOUR
from fault_tolerance.roles import EDGES, STAYING, Edge
from fault_tolerance.view import OVERRIDABLE, Obstacle, Role

INTRODUCTION = """\
# The roles of a node

What a node of a pair is, when it becomes something else, and why. The rows are tried in order and the first
one that holds is taken; rows that step down stand before rows that step up, so the safe side wins. See
[fault tolerance](fault-tolerance.md) for what an administrator does with it.
"""

MEANINGS = {
    Role.STANDALONE: "has no peer and serves alone",
    Role.JOINING: "serves nothing and knows of no master yet",
    Role.SLAVE: "follows the master: the PBX core runs, silent; the database is read-only",
    Role.PROMOTING: "is becoming master",
    Role.MASTER: "serves and holds the shared addresses",
    Role.DEMOTING: "is becoming silent, step by step verified",
    Role.OFF: "services are off by an administrator's wish",
}


def role_reference() -> str:
    """The text of docs/roles.md without its first line."""
    blocks = [INTRODUCTION, "| role | meaning |\n|---|---|"]
    blocks += [f"| `{role.value}` | {MEANINGS[role]} |" for role in Role]
    blocks += ["", "## The picture\n", "```mermaid", "stateDiagram-v2", "    [*] --> joining"]
    blocks += _arrows()
    blocks += ["```", "", "## The table\n", "| from | to | edge | because | then |\n|---|---|---|---|---|"]
    blocks += [_row(edge) for edge in EDGES]
    blocks += ["", "## Why a node stays what it is\n", "| role | because |\n|---|---|"]
    blocks += [f"| {_roles(roles)} | {reason} |" for roles, _guard, _actions, reason in STAYING]
    blocks += [
        "",
        "## Why a node may not take over\n",
        "`centralino fault-tolerance role master --force` steps over those that are marked; the others would",
        "lose data or cannot work at all. The limit of moves is " + f"{MOST_MOVES_AN_HOUR} within an hour.\n",
        "| reason | may be stepped over |\n|---|---|",
    ]
    blocks += [f"| {obstacle.value} | {'yes' if obstacle in OVERRIDABLE else ''} |" for obstacle in Obstacle]
    return "\n".join(blocks) + "\n"


def _arrows() -> list[str]:
    labels: dict[tuple[Role, Role], list[str]] = {}
    for edge in EDGES:
        for source in sorted(edge.sources):
            labels.setdefault((source, edge.target), []).append(edge.name)
    return [
        f"    {source.value} --> {target.value}: {', '.join(names)}"
        for (source, target), names in labels.items()
        if source is not target
    ]


def _row(edge: Edge) -> str:
    actions = "; ".join(action.value for action in edge.actions)
    return f"| {_roles(edge.sources)} | `{edge.target.value}` | `{edge.name}` | {edge.reason} | {actions} |"


def _roles(roles: frozenset[Role]) -> str:
    return ", ".join(f"`{role.value}`" for role in sorted(roles))
