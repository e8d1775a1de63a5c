"""The figures of replication: lag and cost of the database, lag and bandwidth of files beside stock lsyncd.

    python -m tests.bench.replication --root TREE

Both nodes are containers of this host, so that their clocks are one.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from replication_pair import PYTHON, Member, pair_of_nodes

from appliance.lab_cli import built_root
from appliance.lab_host import wait_for
from tests.bench import rows
from tests.bench.rows import NO_PEER, Row, median

LOAD = "/opt/centralino/replication_load.py"
TREES = "/opt/centralino/trees.toml"
OURS, PEERS = "/srv/ours", "/srv/lsyncd"
DECLARED = f'[[tree]]\nname = "ours"\npath = "{OURS}"\nurgent = true\n'
BASE, ARRIVAL = "replication of the database", "replication of files: begin of writing to arrival"
STOCK = "stock lsyncd"
PARTS = ("database", "files")
CAP_KILOBYTES = 2_000
CAP_FILE_BYTES = 60_000_000
FILES, FILES_SECONDS, FILE_BYTES = 1000, 60, 20_000
# What lsyncd's manual calls the default, with the key that the nodes have for it.
LSYNCD = """
settings { logfile = "/var/log/lsyncd.log", nodaemon = true }
sync {
    default.rsync, source = "%s", target = "root@%s:%s",
    rsync = { archive = true, rsh = "ssh -i /root/.ssh/plain -o StrictHostKeyChecking=no" },
}
"""


def load(member: Member, *words: object, limit_seconds: float = 180) -> object:
    """Run the load on a node; what it prints."""
    command = [PYTHON, LOAD, *map(str, words)]
    return json.loads(member.node.run(command, limit_seconds=limit_seconds).output)


def database(master: Member, slave: Member, seconds: int) -> list[Row]:
    """Lag at 500 commits a second, and what a commit costs with and without the other node."""
    master.sql("CREATE TABLE centralino.bench_rows (id INT AUTO_INCREMENT PRIMARY KEY, n INT, KEY (n))")
    wait_for(lambda: master.state()["synchronous"] is True, 60, "synchronous replication")
    seen: list[object] = []
    watcher = threading.Thread(target=lambda: seen.append(load(slave, "watch", seconds + 8)))
    watcher.start()
    written = load(master, "commits", seconds, 500, 16)
    watcher.join()
    assert isinstance(written, dict)
    assert isinstance(seen[0], dict)
    lags = [(seen[0][number] - begun) * 1000 for number, (begun, _) in written.items() if number in seen[0]]
    missing = len(written) - len(lags)
    ends = [end for _, end in written.values()]
    rate = len(ends) / (max(ends) - min(begun for begun, _ in written.values()))
    alone, both = [], []
    for _ in range(3):
        for switch, times in (("OFF", alone), ("ON", both)):
            master.sql(f"SET GLOBAL rpl_semi_sync_master_enabled = {switch}")
            if switch == "ON":
                master.sql("REPLACE INTO centralino_pair.pulse (one, moment) VALUES (1, NOW(6))")
                wait_for(lambda: master.state()["synchronous"] is True, 60, "synchronous replication")
            found = load(master, "latency", 300)
            assert isinstance(found, list)
            times += [value * 1000 for value in found]
    count = "SELECT COUNT(*) FROM centralino.bench_rows"
    wait_for(lambda: slave.sql(count).output == master.sql(count).output, 60, "all rows on the slave")
    note = (
        f"{len(written)} commits at {rate:.0f}/s by 16 writers, all on the slave, {missing} not seen coming"
    )
    cost, base = median(both), median(alone) or 0
    return [
        Row(
            f"{BASE}: begin of a commit to its row on the slave",
            median(lags),
            None,
            NO_PEER,
            "ms",
            len(lags),
            100.0,
            note=note,
        ),
        Row(
            f"{BASE}: one commit, semi-synchronous",
            cost,
            base,
            "without the slave",
            "ms",
            len(both),
            2 * base,
            "2 x alone",
        ),
    ]


def files(master: Member, slave: Member) -> list[Row]:
    """Small files as they come in, ours and lsyncd at the same time; then one large file against the cap."""
    for member in (master, slave):
        member.node.run(["mkdir", "-p", OURS, PEERS])
    slave.call("files.receive", 1)
    master.call("files.send", 1)
    master.node.run(["tee", "/etc/lsyncd.lua"], input_text=LSYNCD % (PEERS, master.peer.address(), PEERS))
    master.node.run(["systemd-run", "--unit=stock-lsyncd", "lsyncd", "/etc/lsyncd.lua"])
    wait_for(lambda: master.state("files")["lag_milliseconds"] == 0, 60, "the first pass")
    load(master, "files", FILES, FILES_SECONDS, FILE_BYTES, OURS, PEERS)

    def arrived(directory: str) -> list[float]:
        found = load(slave, "arrivals", directory)
        assert isinstance(found, list)
        return sorted(found)

    wait_for(lambda: all(len(arrived(name)) == FILES for name in (OURS, PEERS)), 120, "all files")
    ours, peers = arrived(OURS), arrived(PEERS)
    master.node.run(["systemctl", "stop", "stock-lsyncd"])
    began = time.time()
    master.node.run(["sh", "-c", f"head -c {CAP_FILE_BYTES} /dev/urandom > {OURS}/0-large.wav"])
    wait_for(lambda: slave.node.path(f"{OURS}/0-large.wav").exists(), 120, "the large file")
    # The cap is about the time in which bytes flow: from the birth of the file at the receiver to its name.
    moments = slave.node.run(["stat", "-c", "%.6W %.6Z", f"{OURS}/0-large.wav"]).output.split()
    born, ended = (float(moment) for moment in moments)
    reached = CAP_FILE_BYTES / 1000 / (ended - born)
    per_cent = abs(reached - CAP_KILOBYTES) / CAP_KILOBYTES * 100
    note = f"{FILES} files of {FILE_BYTES} bytes in {FILES_SECONDS} s, both at once"
    worst = round(FILES * 0.99) - 1
    told = (
        f"{reached:.0f} KB/s reached, {CAP_KILOBYTES} KB/s allowed, {CAP_FILE_BYTES} bytes; "
        f"{ended - began:.1f} s from the begin of writing"
    )
    return [
        Row(f"{ARRIVAL}, median", median(ours), median(peers), STOCK, "s", FILES, 1.0, note=note),
        Row(f"{ARRIVAL}, 99 %", ours[worst], peers[worst], STOCK, "s", FILES, 5.0, note=note),
        Row("replication of files: distance from the cap", per_cent, None, NO_PEER, "%", 1, 10.0, note=told),
    ]


def bring_load(master: Member, slave: Member) -> None:
    """The load program, and a plain key for lsyncd beside ours."""
    for member in (master, slave):
        shutil.copy2(Path(__file__).with_name("replication_load.py"), member.node.path(LOAD))
    master.node.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/plain"])
    public = master.node.run(["cat", "/root/.ssh/plain.pub"]).output
    slave.node.run(["tee", "-a", "/root/.ssh/authorized_keys"], input_text=public)


def measure(root: Path, seconds: int = 30, parts: tuple[str, ...] = PARTS) -> list[Row]:
    """The figures on one pair."""
    with (
        tempfile.TemporaryDirectory(prefix="centralino-bench-", dir="/var/tmp") as folder,
        pair_of_nodes(root, Path(folder) / "lab", TREES, DECLARED, CAP_KILOBYTES) as (master, slave),
    ):
        bring_load(master, slave)
        found: list[Row] = []
        if "database" in parts:
            master.call("database.make_writable", 30)
            slave.call("database.follow", 30)
            slave.clear(limit_seconds=180)
            found += database(master, slave, seconds)
        if "files" in parts:
            found += files(master, slave)
        return found


@click.command()
@click.option("--root", type=click.Path(path_type=Path, exists=True), help="Boot this tree; build none.")
@click.option("--seconds", type=click.IntRange(5, 3600), default=30, show_default=True)
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS)
@click.option("--output", type=click.Path(path_type=Path), default=Path("out/bench.json"), show_default=True)
@click.option("--document", type=click.Path(path_type=Path), default=rows.DOCUMENT, show_default=True)
def main(root: Path | None, seconds: int, parts: tuple[str, ...], output: Path, document: Path) -> None:
    """Measure replication alone."""
    table = rows.write(measure(root or built_root(None, "debian12"), seconds, parts), output)
    rows.update_document(table, document)
    click.echo(rows.markdown(table))


if __name__ == "__main__":
    main()
