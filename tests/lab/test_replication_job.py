"""`centralino replication start` on a real pair (S-FT-07): watched, interrupted, repeated, within the cap."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pair_of_nodes import PairOfNodes, boot_two, centralino, make_pair, role, status

from appliance.lab import LOGS, Lab, Node
from appliance.lab_host import Result, wait_for

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CAP = 2_000
RECORDINGS = "/var/spool/asterisk/monitor"
SIZE = 16_000_000
LOG = "/root/follow.log"
REMAINS = re.compile(r"([\d.]+) (?:of about [\d.]+ )?MB (?:sent|received), about (\d+) s remain")


@pytest.fixture(scope="module")
def pair(
    lab_root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[PairOfNodes]:
    with Lab(lab_root, tmp_path_factory.mktemp("job") / "lab") as lab:
        made = boot_two(lab)
        make_pair(made)
        made.wait_healthy()
        done = centralino(made.first, "fault-tolerance", "configure", "--bandwidth", str(CAP), "--yes")
        assert done.ok, done.errors
        made.wait_healthy()
        made.first.run(["sh", "-c", f"mkdir -p {RECORDINGS}; head -c {SIZE} /dev/urandom > /root/long.wav"])
        made.first.run(["sh", "-c", f"mv /root/long.wav {RECORDINGS}/long.wav"])
        wait_for(lambda: same(made), 120, "the recording on both nodes")
        yield made
        if request.session.testsfailed:
            lab.save_logs(LOGS / "job")


def same(pair: PairOfNodes) -> bool:
    sums = {
        node.run(["sh", "-c", f"md5sum < {RECORDINGS}/long.wav"], check=False).output for node in pair.nodes
    }
    return len(sums) == 1 and "" not in sums


def follow(node: Node, what: str) -> None:
    """The command in the background of the node, its words in a file."""
    program = f"exec centralino replication start --what {what} --follow --yes > {LOG} 2>&1"
    node.run(["systemctl", "reset-failed", "follow"], check=False)
    node.run(["systemd-run", "--unit=follow", "--property=RemainAfterExit=no", "sh", "-c", program])


def said(node: Node) -> str:
    return node.run(["cat", LOG], check=False).output


def ended(node: Node) -> bool:
    return node.run(["systemctl", "is-active", "follow"], check=False).output.strip() != "active"


def resync(node: Node) -> dict[str, object]:
    found = json.loads(centralino(node, "replication", "status", "--json").output)["resync"]
    assert isinstance(found, dict)
    return found


def start(node: Node, what: str) -> Result:
    return centralino(node, "replication", "start", "--what", what, "--follow", "--yes", limit_seconds=300)


def spoil(node: Node) -> None:
    """The slave's copy is gone; nothing on the master says so."""
    node.run(["rm", "-f", f"{RECORDINGS}/long.wav"])


def test_the_files_come_anew_with_progress_and_within_the_cap(pair: PairOfNodes) -> None:
    master, slave = pair.first, pair.second
    spoil(slave)
    counter = "/sys/class/net/eth1/statistics/tx_bytes"
    before, began = int(master.run(["cat", counter]).output), time.monotonic()
    done = start(slave, "files")
    seconds = time.monotonic() - began
    assert done.ok, done.errors
    told = REMAINS.findall(done.errors)
    assert len(told) >= 3, done.errors
    megabytes, remaining = [float(one) for one, _ in told], [int(left) for _, left in told]
    assert megabytes == sorted(megabytes)
    assert remaining[0] > remaining[-1]
    sent = int(master.run(["cat", counter]).output) - before
    print(
        f"{sent / 1e6:.1f} MB on the wire in {seconds:.1f} s: {sent / 1000 / seconds:.0f} KB/s at most {CAP}"
    )
    assert sent > SIZE
    assert sent / 1000 / seconds < CAP * 1.1
    assert seconds > SIZE / 1000 / CAP
    assert same(pair)


def test_who_stops_watching_stops_nothing(pair: PairOfNodes) -> None:
    slave = pair.second
    spoil(slave)
    follow(slave, "files")
    wait_for(lambda: REMAINS.search(said(slave)) is not None, 60, "progress")
    slave.signal_unit("follow.service", signal.SIGINT)
    wait_for(lambda: ended(slave), 30, "the end of the watching")
    assert "The job goes on" in said(slave)
    assert resync(slave)["running"] is True
    # A second one is refused, with what to do.
    again = centralino(slave, "replication", "start", "--what", "files", "--yes")
    assert not again.ok
    assert "runs already" in again.errors
    wait_for(lambda: resync(slave)["done"] is True, 120, "its end")
    assert same(pair)


def test_a_cancelled_copy_is_begun_again(pair: PairOfNodes) -> None:
    slave = pair.second
    spoil(slave)
    follow(slave, "files")
    wait_for(lambda: REMAINS.search(said(slave)) is not None, 60, "progress")
    running = json.loads(centralino(slave, "jobs", "list", "--json").output)
    rows = running if isinstance(running, list) else running["jobs"]
    (job,) = [row["id"] for row in rows if row["state"] == "running" and row["kind"] == "replication"]
    assert centralino(slave, "jobs", "cancel", job, "--yes").ok
    wait_for(lambda: ended(slave), 60, "the end of the job")
    assert "cancelled" in said(slave)
    assert start(slave, "files").ok
    assert same(pair)


def test_the_database_comes_anew_also_after_the_runtime_died_in_the_middle(pair: PairOfNodes) -> None:
    master, slave = pair.first, pair.second
    bulk = "CREATE TABLE bulk (n INT AUTO_INCREMENT PRIMARY KEY, text LONGTEXT) ENGINE=InnoDB"
    fill = "INSERT INTO bulk (text) SELECT REPEAT(MD5(RAND()), 31250) FROM seq_1_to_120"
    master.run(["mariadb"], input_text=f"USE centralino; {bulk}; {fill};", limit_seconds=120)
    follow(slave, "db")
    wait_for(lambda: slave.path("/var/lib/mysql/data.seed/ibdata1").exists(), 60, "the copy coming in")
    slave.signal_unit("centralino-peer.service")
    wait_for(lambda: ended(slave), 90, "the end of the watching")
    assert "start it again" in said(slave), said(slave)
    wait_for(lambda: status(slave).get("obstacles") == [], 120, "the old copy, which follows")
    done = start(slave, "db")
    assert done.ok, done.errors
    assert REMAINS.search(done.errors) or "MB received" in done.errors, done.errors
    count = "SELECT COUNT(*) FROM centralino.bulk"
    rows = {node.run(["mariadb", "-Ne", count]).output for node in pair.nodes}
    assert rows == {"120\n"}
    pair.wait_healthy()


def test_a_slave_that_does_not_confirm_is_an_alarm_and_a_reason(pair: PairOfNodes) -> None:
    """Its database hangs while the master writes: told on both nodes while it lasts, and over by itself."""
    master, slave = pair.first, pair.second
    write = "REPLACE INTO centralino.bulk (n, text) VALUES (1, 'asynchronous')"

    def alarms() -> set[str]:
        found = json.loads(master.run(["centralino", "status", "--json"]).output)
        return {alarm["id"] for alarm in found["alarms"]}

    assert "pair.asynchronous" not in alarms()
    slave.signal_unit("mariadb.service", signal.SIGSTOP)
    began = time.monotonic()
    master.run(["mariadb", "-e", write])
    assert 1 < time.monotonic() - began < 10, "the writer waits once, for the limit that is stated"
    wait_for(lambda: "pair.asynchronous" in alarms(), 20, "the alarm")
    began = time.monotonic()
    master.run(["mariadb", "-e", write])
    assert time.monotonic() - began < 1.5, "later writers do not wait"
    shown = status(master)["database"]
    assert isinstance(shown, dict)
    assert shown["synchronous"] is False
    assert "does not confirm" in shown["detail"]
    # What status shows is told every other second unless the role or its reason changes.
    wait_for(lambda: status(slave)["obstacles"] != [], 5, "the obstacle")
    slave.signal_unit("mariadb.service", signal.SIGCONT)
    wait_for(lambda: "pair.asynchronous" not in alarms(), 90, "the end of the alarm")
    pair.wait_healthy()


def test_a_database_that_cannot_start_any_more_is_replaced_and_kept(pair: PairOfNodes) -> None:
    """A power loss can be more than MariaDB's recovery gets over: a slave gets over that by itself."""
    master, slave = pair.first, pair.second
    write = "REPLACE INTO centralino.bulk (n, text) VALUES ({}, 'before and after')"
    master.run(["mariadb", "-e", write.format(501)])
    spoiled = "systemctl kill --signal=SIGKILL mariadb; truncate -s 0 /var/lib/mysql/data/ib_logfile0"
    slave.run(["sh", "-c", spoiled])
    began = time.monotonic()
    wait_for(lambda: "its starts fail" in str(status(slave)["database"]), 60, "what will be done, in status")
    master.run(["mariadb", "-e", write.format(502)])
    directory = Path("/var/lib/mysql")
    wait_for(lambda: kept(slave), 120, "the old data set aside")
    pair.wait_healthy()
    print(f"healthy {time.monotonic() - began:.0f} s after the end of the database")
    (old,) = kept(slave)
    assert (old / "ibdata1").exists() and (old / "centralino-bin.index").exists()
    assert {path.name for path in slave.path(str(directory)).glob("data*")} == {"data", old.name}
    for node, words in ((slave, "never got"), (master, "may have had")):
        wait_for(lambda node=node, words=words: told(node, words, f"{directory}/{old.name}"), 30, "the alarm")
    count = "SELECT COUNT(*), SUM(n) FROM centralino.bulk"
    assert len({node.run(["mariadb", "-Ne", count]).output for node in pair.nodes}) == 1
    slave.run(["rm", "-r", f"{directory}/{old.name}"])
    wait_for(lambda: not told(slave, "kept") and not told(master, "kept"), 30, "the end of the alarm")


def told(node: Node, *words: str) -> bool:
    """Whether one alarm says all of it."""
    alarms = json.loads(node.run(["centralino", "status", "--json"]).output)["alarms"]
    return any(all(word in str(alarm) for word in words) for alarm in alarms)


def kept(node: Node) -> list[Path]:
    return list(node.path("/var/lib/mysql").glob("data.kept-*"))


def test_a_person_need_not_wait_for_the_copy(pair: PairOfNodes) -> None:
    """The same within the hour: the order that status names is carried out, and the old data are kept."""
    slave = pair.second
    slave.run(["sh", "-c", "systemctl kill --signal=SIGKILL mariadb; rm /var/lib/mysql/data/ibdata1"])
    way_out = "replication start --what db"
    wait_for(lambda: way_out in str(status(slave)["database"]), 60, "the way out in status")
    done = start(slave, "db")
    assert done.ok, done.errors
    pair.wait_healthy()
    (old,) = kept(slave)
    assert way_out not in str(status(slave)["database"])
    slave.run(["rm", "-r", f"/var/lib/mysql/{old.name}"])


def test_a_master_whose_log_cannot_be_read_has_its_slave_copied_anew(pair: PairOfNodes) -> None:
    """A full disk can leave half an event: the slave asks for ever and is given nothing. It helps itself."""
    master, slave = pair.wait_healthy(), pair.second
    master.run(["mariadb", "-e", "CREATE TABLE centralino.holes (n INT PRIMARY KEY, text TEXT)"])
    pair.wait_healthy()
    slave.link_down("mgmt")
    wait_for(lambda: "lost" in str(status(slave).get("link")), 15, "the lost link")
    write = "REPLACE INTO centralino.holes (n, text) VALUES ({}, 'in a log with a hole')"
    for number in range(1, 4):
        master.run(["mariadb", "-e", write.format(number)])
    hole = (
        "log=$(ls -t /var/lib/mysql/data/centralino-bin.0* | head -1); "
        "dd if=/dev/zero of=$log bs=1 count=200 conv=notrunc seek=$(($(stat -c %s $log) - 500)) 2>/dev/null"
    )
    master.run(["sh", "-c", hole])
    slave.link_up("mgmt")
    copied = "its log cannot be read"
    wait_for(
        lambda: copied in slave.journal("-u", "centralino-peer", "-n", "200"), 180, "the order for a new copy"
    )
    began = time.monotonic()
    assert pair.wait_healthy(60) is master
    print(f"healthy {time.monotonic() - began:.0f} s after the order for a new copy")


def test_everything_at_once_and_wrong_places_are_told(pair: PairOfNodes) -> None:
    spoil(pair.second)
    done = start(pair.second, "all")
    assert done.ok, done.errors
    assert same(pair)
    refused = start(pair.first, "db")
    assert "this node is master" in refused.errors
    assert pair.wait_healthy() is pair.first


@pytest.mark.parametrize("alone", [False, True], ids=["peer-has-all", "peer-lacks-a-row"])
def test_a_master_whose_database_cannot_start_any_more(pair: PairOfNodes, alone: bool) -> None:
    """A slave that returns to it takes over if it lacks nothing, else a person decides."""
    master = pair.wait_healthy()
    slave = pair.other(master)
    master.run(["mariadb", "-e", "CREATE TABLE IF NOT EXISTS centralino.alone (n INT PRIMARY KEY)"])
    pair.wait_healthy()
    slave.power_off()
    wait_for(lambda: "lost" in str(status(master).get("link")), 15, "the lost link")
    if alone:
        master.run(["mariadb", "-e", "INSERT INTO centralino.alone VALUES (1)"])
    master.run(
        ["sh", "-c", "systemctl kill --signal=SIGKILL mariadb; truncate -s 0 /var/lib/mysql/data/ib_logfile0"]
    )
    began = time.monotonic()
    slave.power_on()
    if alone:
        wait_for(
            lambda: "lacks 1 transactions" in str(status(master)["database"]), 180, "what the peer lacks"
        )
        assert (role(slave), role(master)) == ("slave", "master")
        done = centralino(slave, "fault-tolerance", "unpair", "--yes")
        assert done.ok, done.errors
        open_now = ["mariadb", "-Ne", "SELECT @@read_only"]
        wait_for(
            lambda: slave.run(open_now).output.strip() == "0", 30, "a database that goes on without the row"
        )
        return
    wait_for(lambda: role(slave) == "master", 180, "the other master")
    print(f"the other node serves {time.monotonic() - began:.0f} s after the end of the database")
    assert pair.wait_healthy() is slave
    (old,) = kept(master)
    master.run(["rm", "-r", f"/var/lib/mysql/{old.name}"])
    wait_for(lambda: not told(slave, "kept") and not told(master, "kept"), 30, "the end of the alarm")
