"""Stories of the database of a pair: real MariaDB on two booted nodes, over real SSH (S-FT-02)."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pymysql
import pytest
from replication_pair import Member, pair_of_nodes

from appliance.lab import LOGS
from appliance.lab_host import LabError, wait_for

# Minutes each: not part of the default run.
pytestmark = [pytest.mark.lab, pytest.mark.slow]

ROWS = "CREATE TABLE centralino.rows (n INT PRIMARY KEY) ENGINE=InnoDB"
BULK = "CREATE TABLE IF NOT EXISTS bulk (n INT AUTO_INCREMENT PRIMARY KEY, text LONGTEXT) ENGINE=InnoDB"
DATA = "/var/lib/mysql/data"
EVIDENCE = "/var/lib/centralino/fault-tolerance/database/evidence"


@pytest.fixture(scope="module")
def members(
    lab_root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[Member, Member]]:
    with pair_of_nodes(lab_root, tmp_path_factory.mktemp("replication") / "lab") as made:
        first, second = made
        first.call("database.make_writable", 30)
        first.sql(f"{ROWS}; INSERT INTO centralino.rows VALUES (1)")
        second.call("database.follow", 30)
        second.clear(limit_seconds=120)
        yield made
        if request.session.testsfailed:
            first.lab.save_logs(LOGS / "replication-database")


def master_and_slave(members: tuple[Member, Member]) -> tuple[Member, Member]:
    """Whoever writes is the master of this story; the slave follows and is in step."""
    first, second = members
    master, slave = members if first.sql("SELECT @@read_only").output.strip() == "0" else (second, first)
    slave.clear()
    wait_for(lambda: master.state()["synchronous"] is True, 30, "synchronous replication")
    return master, slave


def insert(member: Member, *numbers: int) -> None:
    for number in numbers:
        member.sql(f"INSERT INTO centralino.rows VALUES ({number})", user="centralino")


def in_step(master: Member, slave: Member) -> None:
    wait_for(lambda: slave.rows() == master.rows(), 30, "the same rows on both nodes")


def test_pairing_seeds_the_slave_which_then_follows_synchronously(members: tuple[Member, Member]) -> None:
    master, slave = master_and_slave(members)
    insert(master, 10, 11)
    in_step(master, slave)
    state = slave.state()
    assert state["lag_milliseconds"] is not None
    assert master.sql("SELECT @@server_id").output != slave.sql("SELECT @@server_id").output
    assert not slave.node.path("/var/lib/mysql/data.old").exists()


def test_a_slave_refuses_writes_of_our_own_users(members: tuple[Member, Member]) -> None:
    _, slave = master_and_slave(members)
    for user in ("centralino", "asterisk"):
        refused = slave.sql("DELETE FROM centralino.cdr", user=user, check=False)
        assert "--read-only" in refused.errors, refused
        allowed = slave.sql(f"SHOW GRANTS FOR {user}@localhost").output
        assert "SUPER" not in allowed
        assert "READ_ONLY ADMIN" not in allowed


def test_the_data_of_telephony_is_on_both_nodes(members: tuple[Member, Member]) -> None:
    """Calls, also in tables of months that come, contacts of phones, and metadata of messages: whatever the
    accounts of ours write, after a seed and by following."""
    master, slave = master_and_slave(members)
    months = ("cdr_2026_11", "cdr_2026_12")
    for month in months:
        master.sql(f"CREATE TABLE IF NOT EXISTS centralino.{month} LIKE centralino.cdr", user="centralino")
    calls = "INSERT INTO centralino.{} (start, src, dst, uniqueid) VALUES (NOW(), '{}', '200', '{}')"
    for number, table in enumerate(("cdr", *months)):
        master.sql(calls.format(table, 100 + number, f"1764000000.{number}"), user="asterisk")
    contact = (
        "REPLACE INTO centralino.ps_contacts (id, uri, endpoint) VALUES ('{0}@1', 'sip:{0}@10.0.0.1', '{0}')"
    )
    master.sql(contact.format(100), user="asterisk")
    master.sql(
        "CREATE TABLE IF NOT EXISTS centralino.voicemail_messages (id INT PRIMARY KEY, mailbox VARCHAR(64));"
        "REPLACE INTO centralino.voicemail_messages VALUES (1, '100@default')",
        user="centralino",
    )
    tables = ("cdr", *months, "ps_contacts", "voicemail_messages")

    def contents(member: Member) -> list[str]:
        return [member.sql(f"SELECT * FROM centralino.{table}").output for table in tables]

    wait_for(lambda: contents(slave) == contents(master), 30, "the same data by following")
    assert all(contents(slave))
    slave.call("database.seed_from_peer", limit_seconds=300)
    slave.clear()
    assert contents(slave) == contents(master)
    master.sql(contact.format(101), user="asterisk")
    wait_for(lambda: contents(slave) == contents(master), 30, "the same data after a seed")


def test_replica_stopped(members: tuple[Member, Member]) -> None:
    """Somebody stops the replica by hand: it is an obstacle, and the slave goes on by itself."""
    master, slave = master_and_slave(members)
    slave.sql("STOP SLAVE")
    insert(master, 20)
    in_step(master, slave)
    slave.clear()


def test_the_database_restarts_on_either_node(members: tuple[Member, Member]) -> None:
    master, slave = master_and_slave(members)
    for member in (slave, master):
        member.node.signal_unit("mariadb.service")
        wait_for(lambda member=member: member.sql("SELECT 1", check=False).ok, 60, "the restart")
    wait_for(lambda: master.sql("SELECT @@read_only").output.strip() == "0", 30, "the master writing again")
    slave.clear()
    insert(master, 25)
    in_step(master, slave)


def test_switch_and_return_identical(members: tuple[Member, Member]) -> None:
    """A planned switch: the old master joins without a copy, and no row is lost."""
    old, new = master_and_slave(members)
    insert(old, 30)
    began = time.monotonic()
    old.call("database.make_read_only", 5)
    new.call("database.make_writable", 5)
    seconds = time.monotonic() - began
    insert(new, 31)
    old.call("database.follow", 10)
    old.clear()
    in_step(new, old)
    assert {30, 31} <= new.rows()
    assert "copied" not in old.journal().splitlines()[-1]
    assert seconds < 5, seconds


def test_returning_master_behind(members: tuple[Member, Member]) -> None:
    """The master loses power, the slave takes over and writes; the old one catches up without a copy."""
    old, new = master_and_slave(members)
    insert(old, 40)
    in_step(old, new)
    old.node.power_off()
    began = time.monotonic()
    new.call("database.make_writable", 5)
    promoted = time.monotonic() - began
    insert(new, 41, 42)
    old.node.power_on()
    old.start()
    assert old.sql("SELECT @@read_only").output.strip() == "1"
    old.call("database.follow", 10)
    old.clear()
    in_step(new, old)
    assert {40, 41, 42} <= old.rows()
    assert promoted < 3, promoted
    assert not list(old.node.path(EVIDENCE).glob("*.sql"))


def test_returning_master_ahead(members: tuple[Member, Member]) -> None:
    """Rows that the old master committed alone are in the evidence file, and the location is told."""
    old, new = master_and_slave(members)
    insert(old, 50)
    in_step(old, new)
    new.node.run(["systemctl", "stop", "replication-agent"])
    new.sql("STOP SLAVE")
    # The master says that it is alone, before it has acknowledged anything alone.
    old.until("does not confirm")
    acknowledged = {51, 52, 53}
    insert(old, *acknowledged)
    old.node.power_off()
    new.node.run(["systemctl", "reset-failed"], check=False)
    new.start()
    new.call("database.make_writable", 5)
    insert(new, 54)
    old.node.power_on()
    old.start()
    old.call("database.follow", 10)
    old.until("follows the peer", limit_seconds=120)
    in_step(new, old)
    # The sentence of the alarm names the place; the new master tells of it as well.
    told = str(old.state()["alarm"])
    found = re.search(r"(/\S+\.sql)", told)
    assert found, told
    wait_for(lambda: found.group(1) in str(new.state()["alarm"]), 30, "the alarm on the new master")
    evidence = old.node.run(["cat", found.group(1)]).output
    for row in acknowledged:
        assert re.search(rf"###\s+@1={row}\b", evidence), evidence
    assert not re.search(r"###\s+@1=50\b", evidence)
    assert old.node.run(["stat", "-c", "%a", found.group(1)]).output.strip() == "600"
    old.node.run(["rm", found.group(1)])
    wait_for(lambda: old.state()["alarm"] == "", 30, "the end of the alarm")


def test_errant_write_on_the_slave(members: tuple[Member, Member]) -> None:
    master, slave = master_and_slave(members)
    slave.sql("INSERT INTO centralino.rows VALUES (60)")  # root may
    insert(master, 61)
    slave.until("kept in", limit_seconds=120)
    slave.until("follows the peer", limit_seconds=120)
    slave.clear()
    in_step(master, slave)
    assert 60 not in slave.rows()
    evidence = slave.node.run(["sh", "-c", f"cat {EVIDENCE}/*.sql"]).output
    assert re.search(r"###\s+@1=60\b", evidence)
    slave.node.run(["sh", "-c", f"rm {EVIDENCE}/*.sql"])


@pytest.mark.parametrize("needed", [False, True], ids=["the-peer-has-it", "nobody-else-has-it"])
def test_a_file_of_the_log_ends_in_the_middle(members: tuple[Member, Member], needed: bool) -> None:
    """As a full disk or a power loss leaves it. What can be read is evidence; where transactions may be
    missing from it, all of the old database is kept."""
    master, slave = master_and_slave(members)
    row = 62 + needed
    slave.node.run(["systemctl", "stop", "replication-agent"])
    write, flush = f"INSERT INTO centralino.rows VALUES ({row})", "FLUSH BINARY LOGS"
    slave.sql(f"{write}; {flush}" if needed else f"{flush}; {write}")
    torn = slave.node.run(["sh", "-c", f"ls {DATA}/centralino-bin.0* | tail -2 | head -1"]).output.strip()
    slave.node.run(["truncate", "--size=-10", torn])
    slave.node.run(["systemctl", "reset-failed"], check=False)
    slave.start()
    slave.call("database.follow", 10)
    slave.until("kept in", limit_seconds=120)
    slave.until("follows the peer", limit_seconds=120)
    slave.clear()
    in_step(master, slave)
    evidence = slave.node.run(["sh", "-c", f"cat {EVIDENCE}/*.sql"]).output
    assert re.search(rf"###\s+@1={row}\b", evidence), evidence
    kept = slave.node.run(["sh", "-c", f"ls -d {DATA}.kept-* || true"]).output.split()
    if needed:
        (directory,) = kept
        assert f"{torn.rpartition('/')[2]} cannot be read any further" in evidence
        assert directory in str(slave.state()["alarm"])
        assert slave.node.run(["ls", f"{directory}/{torn.rpartition('/')[2]}"]).ok
        slave.node.run(["rm", "-r", directory])
    else:
        assert not kept
        assert "cannot be read" not in evidence
    slave.node.run(["sh", "-c", f"rm {EVIDENCE}/*.sql"])
    wait_for(lambda: slave.state()["alarm"] == "", 30, "the end of the alarm")


@contextmanager
def new_sessions(member: Member) -> Iterator[list[float]]:
    """Open a session on a node each tenth of a second; how long each took, 10 for one that got no answer."""
    socket, over = f"/proc/{member.node.init}/root/run/mysqld/mysqld.sock", threading.Event()
    seconds: list[float] = []

    def ask() -> None:
        while not over.wait(0.1):
            began = time.monotonic()
            with suppress(pymysql.err.MySQLError, OSError):
                pymysql.connect(unix_socket=socket, user="root", connect_timeout=10, read_timeout=10).close()
            seconds.append(time.monotonic() - began)

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    yield seconds
    over.set()
    asker.join(15)


def test_a_slave_that_returns_holds_nobody_up(members: tuple[Member, Member]) -> None:
    """It lost its power and is back before anybody has noticed; its connections stand at the master still.

    The server would wait for word on the old one, with the lock that every new session needs.
    """
    master, slave = master_and_slave(members)
    with new_sessions(master) as seconds:
        for round_ in range(3):
            slave.node.power_off()
            slave.node.power_on()
            slave.start()
            slave.call("database.follow", 10)
            slave.clear()
            insert(master, 700 + round_)
    print(f"{len(seconds)} sessions, the slowest after {max(seconds):.2f} s")
    assert max(seconds) < 3
    in_step(master, slave)


def fill(master: Member, megabytes: int) -> None:
    bulk = f"INSERT INTO bulk (text) SELECT REPEAT(MD5(RAND()), 31250) FROM seq_1_to_{megabytes}"
    master.sql(f"USE centralino; {BULK}; {bulk};")


def test_seeding_interrupted(members: tuple[Member, Member]) -> None:
    """Cut the slave's power while the copy comes: its old data is whole, and the next try succeeds."""
    master, slave = master_and_slave(members)
    fill(master, 150)
    in_step(master, slave)
    cutting = threading.Thread(target=lambda: slave.try_call("database.seed_from_peer"), daemon=True)
    cutting.start()
    wait_for(lambda: slave.node.path("/var/lib/mysql/data.seed/ibdata1").exists(), 60, "the copy coming in")
    slave.node.power_off()
    cutting.join(60)
    slave.node.power_on()
    slave.start()
    assert slave.rows() == master.rows()
    slave.call("database.follow", 10)
    slave.clear()
    said = slave.call("database.seed_from_peer", limit_seconds=300)
    assert isinstance(said, list)
    assert any("MB received" in text for _, text in said), said
    shares = [share for share, _ in said if share is not None]
    assert shares == sorted(shares)
    slave.clear()
    insert(master, 70)
    in_step(master, slave)
    assert not slave.node.path("/var/lib/mysql/data.seed").exists()


def test_disk_full_on_slave(members: tuple[Member, Member]) -> None:
    """No room for a copy: refused with a sentence, the old data stays and goes on following."""
    master, slave = master_and_slave(members)
    slave.node.fill_disk(leave_bytes=60 << 20)
    try:
        with pytest.raises(LabError, match="has no room for a copy"):
            slave.call("database.seed_from_peer")
    finally:
        slave.node.free_disk()
    slave.clear()
    insert(master, 80)
    in_step(master, slave)


def test_a_frozen_database_cannot_hold_up_the_demotion(members: tuple[Member, Member]) -> None:
    import signal

    old, new = master_and_slave(members)
    insert(old, 90)
    in_step(old, new)
    old.node.signal_unit("mariadb.service", signal.SIGSTOP)
    old.call("database.make_read_only", 4)
    new.call("database.make_writable", 5)
    wait_for(lambda: old.sql("SELECT @@read_only", check=False).output.strip() == "1", 60, "its return")
    old.call("database.follow", 10)
    old.clear()
    insert(new, 91)
    in_step(new, old)


def test_no_acknowledged_row_is_lost_when_the_master_dies(members: tuple[Member, Member]) -> None:
    """Four writers in full swing, the power goes: the slave has every row that a writer was told is saved."""
    old, new = master_and_slave(members)
    socket = f"/proc/{old.node.init}/root/run/mysqld/mysqld.sock"
    acknowledged: list[int] = []

    def write(first: int) -> None:
        with suppress(pymysql.err.MySQLError, OSError):
            link = pymysql.connect(unix_socket=socket, user="root", autocommit=True, read_timeout=10)
            with link.cursor() as cursor:
                for number in count(first, 4):
                    cursor.execute(f"INSERT INTO centralino.rows VALUES ({number})")
                    acknowledged.append(number)

    writers = [threading.Thread(target=write, args=(10_000 + number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    wait_for(lambda: len(acknowledged) > 500, 60, "rows")
    old.node.power_off()
    for writer in writers:
        writer.join(30)
    new.call("database.make_writable", 5)
    assert set(acknowledged) <= new.rows()
    old.node.power_on()
    old.start()
    old.call("database.follow", 10)
    old.clear(limit_seconds=120)
    in_step(new, old)
    old.node.run(["sh", "-c", f"rm -f {EVIDENCE}/*.sql"])


def test_first_start_survives_power_cuts(lab_root: Path, tmp_path: Path) -> None:
    """Cut the power at moments of the first start, until one start comes to its end: it is always whole."""
    from replication_pair import bring_roles

    from appliance.lab import Lab

    with Lab(lab_root, tmp_path / "lab") as lab:
        node = lab.add_node()
        node.prepare()
        node.disk.mount()
        bring_roles(node)
        node.disk.unmount()
        home = node.path("/var/lib/mysql")
        for name in ("data.new", "data.new/ibdata1", "data.new/mysql", "data.new/sys", "data"):
            node.power_on(wait=False)
            wait_for(lambda name=name: (home / name).exists(), 60, name)
            node.power_off()
        node.power_on(120)
        node.wait_active("centralino-database.service", 60)
        assert (
            node.run(["mariadb", "-Ne", "CHECK TABLE mysql.global_priv, centralino.cdr"]).output.count("OK")
            == 2
        )
        assert not (home / "data.new").exists()
