"""Two lab nodes whose replications run without the role runtime, and words to work with them in tests."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from appliance.lab import Lab, Node
from appliance.lab_host import LabError, Result, wait_for
from appliance.platform_data import load_platform

REPOSITORY = Path(__file__).parents[2]
AGENT = "/opt/centralino/replication_agent.py"
PYTHON = "/opt/centralino/venv/bin/python"
ROLES = REPOSITORY / "roles"
PACKAGES = ("daemon", "fault_tolerance", "firewall")


def bring_roles(node: Node) -> None:
    """The database role's files of this source tree, as the role would install them; the node is off."""
    tree = node.disk.tree
    box = load_platform("debian12").box
    environment = Environment(autoescape=False, undefined=StrictUndefined, keep_trailing_newline=True)  # noqa: S701
    variables = {"box": box, "mariadb_client": "/usr/bin/mariadb"}

    def render(name: str, target: str) -> None:
        text = environment.from_string((ROLES / "database/templates" / name).read_text()).render(variables)
        path = tree / target.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    render("centralino.cnf.j2", f"{box.paths['mariadb_config']}/60-centralino.cnf")
    render("mariadb-unit.conf.j2", f"/etc/systemd/system/{box.units['mariadb']}.d/60-centralino.conf")
    (tree / "usr/libexec/centralino").mkdir(parents=True, exist_ok=True)
    shutil.copy2(ROLES / "database/files/make-database", tree / "usr/libexec/centralino/make-database")
    shutil.copy2(ROLES / "database/files/schema.sql", tree / "usr/share/centralino/schema.sql")
    if "centralino-replica" not in (tree / "etc/passwd").read_text():
        words = ["useradd", "--root", str(tree), "--system", "--no-create-home", "centralino-replica"]
        subprocess.run(words, check=True)


def bring_programs(node: Node) -> None:
    """This source tree's packages, inotify_simple and the agent; the node is off.

    Nobody but the agent looks after the database here: the supervision of a busy host would end one that a
    story holds up, in the middle of another step.
    """
    import inotify_simple

    daemon = node.disk.tree / "etc/systemd/system/centralinod.service"
    daemon.unlink(missing_ok=True)
    daemon.symlink_to("/dev/null")
    (site,) = (node.disk.tree / "opt/centralino/venv/lib").glob("python3*/site-packages")
    for name in PACKAGES:
        shutil.rmtree(site / name, ignore_errors=True)
        shutil.copytree(REPOSITORY / name, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(inotify_simple.__file__, site / "inotify_simple.py")
    shutil.copy2(REPOSITORY / "tests/support/replication_agent.py", node.disk.tree / AGENT.lstrip("/"))


class Member:
    """One node of the pair."""

    def __init__(self, node: Node, peer: Node, lab: Lab) -> None:
        self.lab = lab
        self.node = node
        self.peer = peer

    def restart(self, trees: str = "", cap: int = 10_000, verify_seconds: int = 3600) -> None:
        """End the agent, which tells nobody, and start it anew."""
        self.node.run(["systemctl", "stop", "replication-agent"])
        self.node.run(["systemctl", "reset-failed", "replication-agent"], check=False)
        self.start(trees, cap, verify_seconds)

    def start(self, trees: str = "", cap: int = 10_000, verify_seconds: int = 3600) -> None:
        self.node.wait_active("centralino-database.service", 120)
        words = [
            "systemd-run",
            "--unit=replication-agent",
            f"--setenv=CAP={cap}",
            f"--setenv=VERIFY={verify_seconds}",
            "--property=Restart=on-failure",
        ]
        run = [PYTHON, AGENT, "run", self.node.address(), self.peer.address(), *([trees] if trees else [])]
        self.node.run([*words, *run])
        wait_for(lambda: self.try_call("database.position") is not None, 30, "the agent's answer")

    def try_call(self, method: str, *words: object) -> object:
        answer = self.node.run(
            [PYTHON, AGENT, "call", method, *map(json.dumps, words)], check=False, limit_seconds=90
        )
        if not answer.ok or "error" in (table := json.loads(answer.output)):
            return None
        return table["result"]

    def call(self, method: str, *words: object, limit_seconds: float = 120.0) -> object:
        answer = self.node.run(
            [PYTHON, AGENT, "call", method, *map(json.dumps, words)], limit_seconds=limit_seconds
        )
        table = json.loads(answer.output)
        if "error" in table:
            raise LabError(f"{self.node.name}: {method}: {table['error']}")
        return table["result"]

    def state(self, part: str = "database") -> dict[str, object]:
        found = self.call(f"{part}.state")
        assert isinstance(found, dict)
        return found

    def sql(self, text: str, *, user: str | None = None, check: bool = True) -> Result:
        return self.node.run(
            ["mariadb", "--batch", "--skip-column-names"], input_text=text, user=user, check=check
        )

    def rows(self, table: str = "centralino.rows") -> set[int]:
        return {int(line) for line in self.sql(f"SELECT n FROM {table}").output.split()}

    def clear(self, part: str = "database", limit_seconds: float = 60) -> dict[str, object]:
        """Wait until nothing keeps this node from taking over."""
        seen: list[dict[str, object]] = []

        def clear() -> bool:
            seen[:] = [self.state(part)]
            return seen[0]["obstacles"] == []

        with suppress(LabError):
            wait_for(clear, limit_seconds, "no obstacle")
        assert seen, self.journal()
        assert seen[0]["obstacles"] == [], (seen[0], self.journal())
        return seen[0]

    def until(self, text: str, part: str = "database", limit_seconds: float = 60) -> dict[str, object]:
        """Wait until the state's sentence holds a text."""
        with suppress(LabError):
            wait_for(lambda: text in str(self.state(part)["detail"]), limit_seconds, text)
        found = self.state(part)
        assert text in str(found["detail"]), (found, self.journal())
        return found

    def journal(self) -> str:
        return "\n".join(self.node.journal("-u", "replication-agent").splitlines()[-25:])


@contextmanager
def pair_of_nodes(
    root: Path, directory: Path, trees: str = "", declared: str = "", cap: int = 2_000
) -> Iterator[tuple[Member, Member]]:
    """Two booted nodes whose agents run and have not been told anything yet; `declared` is what the file
    `trees` on the nodes says."""
    with Lab(root, directory) as lab:
        first, second = lab.add_node(), lab.add_node()
        key = directory / "peer"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        public = key.with_suffix(".pub").read_text()
        for node in (first, second):
            node.prepare()
            node.disk.mount()
            bring_roles(node)
            bring_programs(node)
            if trees:
                (node.disk.tree / trees.lstrip("/")).write_text(declared)
            home = node.disk.tree / "root/.ssh"
            home.mkdir(mode=0o700, exist_ok=True)
            shutil.copy2(key, home / "peer")
            command = f'command="{PYTHON} {AGENT} serve",restrict {public}'
            (home / "authorized_keys").write_text(command)
            node.disk.unmount()
        lab.power_on_all()
        members = Member(first, second, lab), Member(second, first, lab)
        for member in members:
            member.start(trees, cap)
        yield members
