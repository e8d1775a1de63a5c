"""What the roles make of a system: on the tree of an image, on its first boot, and from a phone's side."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.lab import Client, Lab, Node
from appliance.lab_host import wait_for
from appliance.lab_sip import add_phone, call_echo, register

pytestmark = pytest.mark.lab

INSTALL = "/opt/centralino/payload/install"
LOG = "var/log/centralino/install.log"
MARKER = "/var/lib/centralino/first-boot-complete"
HOST_KEYS = ("ed25519", "ecdsa", "rsa")
UNITS = (
    "NetworkManager",
    "asterisk",
    "centralino-database",
    "centralino-first-boot",
    "centralinod",
    "mariadb",
    "nftables",
    "nginx",
    "ssh",
)


# --- the tree of the image --------------------------------------------------------------------------------


def test_the_image_holds_no_secret_and_no_identity(lab_root: Path) -> None:
    """S-SE-05: everything that must differ between two boxes is made by the first boot."""
    assert (lab_root / "etc/machine-id").read_text() in ("", "uninitialized\n")
    for pattern in (
        "etc/ssh/ssh_host_*",
        "etc/centralino/secrets/*",
        "etc/centralino/tls/*",
        "etc/asterisk/keys/*",
        "etc/asterisk/manager.d/centralino.conf",
        "etc/ssl/private/*",
        "var/lib/dbus/machine-id",
        "var/lib/systemd/random-seed",
        "var/lib/systemd/credential.secret",
        "var/lib/NetworkManager/secret_key",
        "var/lib/centralino/first-boot-complete",
    ):
        assert not list(lab_root.glob(pattern)), pattern
    hashes = dict(line.split(":")[:2] for line in (lab_root / "etc/shadow").read_text().splitlines())
    # A hash begins with `$`; without one nobody can log in by password.
    assert [user for user, value in hashes.items() if value.startswith("$") or value == ""] == []
    assert "admin" in hashes


@pytest.fixture
def writable_tree(lab_root: Path, tmp_path: Path) -> Iterator[Path]:
    """The image's tree with a layer on top that takes the writes."""
    upper, work, merged = (tmp_path / name for name in ("upper", "work", "merged"))
    for directory in (upper, work, merged):
        directory.mkdir()
    layers = f"lowerdir={lab_root},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, merged], check=True)
    yield merged
    subprocess.run(["umount", merged], check=True)


def install_in(tree: Path, payload: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a payload's installer in a chroot: no systemd, no network, as kickstart and kiwi do."""
    script = 'mount -t proc proc "$1/proc" && mount --bind /dev "$1/dev" && shift && exec chroot "$@"'
    return subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", script, "sh", tree, tree, payload, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.mark.slow
def test_a_second_run_in_a_chroot_changes_nothing(writable_tree: Path) -> None:
    done = install_in(writable_tree, INSTALL)
    assert done.returncode == 0, done.stderr
    assert re.search(r" changed=0 +unreachable=0 +failed=0 ", done.stdout), (writable_tree / LOG).read_text()


def test_a_payload_that_was_tampered_with_is_refused_before_anything_is_done(writable_tree: Path) -> None:
    copy = writable_tree / "srv/payload"
    shutil.copytree(writable_tree / "opt/centralino/payload", copy)
    with (copy / "roles/site.yml").open("a") as file:
        file.write("# added\n")
    (copy / "version").unlink()
    done = install_in(writable_tree, "/srv/payload/install")
    assert done.returncode == 1
    assert "roles/site.yml is not the file that was packed" in done.stderr
    assert "version is missing" in done.stderr
    assert "the log is /var/log/centralino/install.log" in done.stderr
    assert "make the virtual environment" not in done.stdout


def test_a_failing_step_is_loud_and_names_the_log(writable_tree: Path) -> None:
    (writable_tree / "opt/centralino/venv").unlink()
    done = install_in(writable_tree, INSTALL, "--phase", "application")
    assert done.returncode == 1
    assert 'there is no virtual environment: run the phase "dependencies"' in done.stderr
    assert '"install the application" failed; the log is /var/log/centralino/install.log' in done.stderr


@pytest.mark.parametrize("arguments", [("--phase",), ("--phase", "everything"), ("--force",)])
def test_wrong_arguments_are_refused(writable_tree: Path, arguments: tuple[str, ...]) -> None:
    done = install_in(writable_tree, INSTALL, *arguments)
    assert done.returncode == 2
    assert "usage: install" in done.stderr


# --- the first boot ---------------------------------------------------------------------------------------


def own_things(node: Node) -> dict[str, str]:
    """What no other box may have."""
    paths = {
        "machine": "/etc/machine-id",
        "ami": "/etc/centralino/secrets/asterisk-ami",
        "tls": "/etc/centralino/tls/box.key",
        **{kind: f"/etc/ssh/ssh_host_{kind}_key" for kind in HOST_KEYS},
    }
    return {name: node.run(["cat", path]).output for name, path in paths.items()}


def test_two_nodes_of_one_image_share_nothing(lab: Lab) -> None:
    for name in ("node1", "node2"):
        lab.add_node(name)
    lab.power_on_all()
    first, second = (own_things(lab.node(name)) for name in ("node1", "node2"))
    assert [name for name in first if first[name] == second[name]] == []
    assert all(first.values())
    # And a reboot keeps them.
    node = lab.node("node1")
    node.reboot()
    assert own_things(node) == first


def test_nothing_shows_a_key_before_the_box_has_its_own(shared_node: Node) -> None:
    def moment(unit: str, what: str) -> int:
        return int(shared_node.run(["systemctl", "show", unit, f"--property={what}", "--value"]).output)

    finished = moment("centralino-first-boot.service", "ActiveEnterTimestampMonotonic")
    assert finished > 0
    for unit in ("ssh", "asterisk", "nginx", "mariadb", "centralinod"):
        assert moment(f"{unit}.service", "InactiveExitTimestampMonotonic") >= finished, unit


def test_the_first_password_opens_the_door_once_and_is_nowhere_written(shared_node: Node) -> None:
    password = shared_node.run(["cat", "/run/centralino/first-password"]).output.strip()
    assert len(password) == 20
    # Day 0 of the last change: the first login must change it.
    fields = shared_node.run(["getent", "shadow", "admin"]).output.strip().split(":")
    assert fields[2] == "0"
    verify = "import crypt, sys; h = sys.argv[1]; sys.exit(crypt.crypt(sys.stdin.readline().strip(), h) != h)"
    shared_node.run(["python3", "-W", "ignore", "-c", verify, fields[1]], input_text=password + "\n")
    for line in shared_node.journal("-b", "-o", "export").splitlines():
        assert password not in line
    hidden = shared_node.run(["grep", "-rIl", "-e", password, "/etc", "/var", "/root", "/home"], check=False)
    assert hidden.output == ""


def test_secrets_are_root_s_alone(shared_node: Node) -> None:
    listing = shared_node.run(
        [
            "find",
            "/etc/centralino",
            "/etc/asterisk/keys",
            "/etc/asterisk/manager.d",
            "/etc/ssh",
            "-name",
            "*key",
            "-printf",
            "%m %U %p\n",
            "-o",
            "-name",
            "*-ami",
            "-printf",
            "%m %U %p\n",
        ]
    ).output
    rows = [line.split() for line in listing.splitlines()]
    assert {
        "/etc/centralino/secrets/asterisk-ami",
        "/etc/centralino/tls/box.key",
        "/etc/asterisk/keys/box.key",
        "/etc/ssh/ssh_host_ed25519_key",
        "/etc/ssh/ssh_host_rsa_key",
    } <= {path for _, _, path in rows}
    assert {mode for mode, _, _ in rows} == {"600"}
    for file in ("/etc/centralino/secrets/asterisk-ami", "/etc/centralino/tls/box.key"):
        assert not shared_node.run(["cat", file], user="admin", check=False).ok


@pytest.mark.slow
def test_the_power_may_fail_during_the_first_boot(lab: Lab) -> None:
    """Cut at the moment when each of its files appears, and let the next boot finish the work."""
    node = lab.add_node("node1")
    unfinished = 0
    for path in (
        "/etc/ssh/ssh_host_ed25519_key",
        "/etc/centralino/secrets/asterisk-ami",
        "/etc/centralino/tls/box.key",
        "/etc/centralino/secrets/first-password",
    ):
        node.power_on(wait=False)

        def reached(path: str = path) -> bool:
            return node.path(path).exists() or node.path(MARKER).exists()

        wait_for(reached, 60, f"{path} in the first boot", interval_seconds=0.002)
        node.power_off()
        node.prepare()
        unfinished += not node.path(MARKER).exists()
    # Otherwise the cuts came too late to prove anything.
    assert unfinished >= 2
    node.power_on()
    assert node.run(["test", "-e", MARKER]).ok
    assert all(own_things(node).values())
    for unit in ("ssh", "asterisk", "nginx"):
        node.wait_active(unit)
    assert not node.run(["test", "-e", "/etc/centralino/secrets/first-password"], check=False).ok


# --- the running box --------------------------------------------------------------------------------------


def test_no_unit_failed(shared_node: Node) -> None:
    failed = shared_node.run(["systemctl", "--failed", "--no-legend", "--plain"]).output
    assert failed == ""
    for unit in UNITS:
        shared_node.wait_active(unit)


@pytest.mark.slow
def test_a_second_run_on_the_running_box_changes_nothing(shared_node: Node) -> None:
    done = shared_node.run([INSTALL], limit_seconds=300)
    assert re.search(r" changed=0 +unreachable=0 +failed=0 ", done.output), done.output


def test_the_daemon_has_few_rights(shared_node: Node) -> None:
    report = shared_node.run(
        ["systemd-analyze", "security", "--no-pager", "centralinod.service"], check=False
    )
    found = re.search(r"Overall exposure level for centralinod.service: ([0-9.]+)", report.output)
    assert found, report.output
    assert float(found[1]) <= 5.0


WORK_OF_THE_DAEMON = """
nft -f /etc/nftables.conf
nft list ruleset
ip address add 198.51.100.77/32 dev lo noprefixroute
ip address del 198.51.100.77/32 dev lo
arping -c1 -w1 -U -I eth0 -s $address $address
systemctl restart nginx.service
journalctl -u nginx.service -n1 -q
chage -M 99999 admin
touch /etc/centralino/written /var/lib/asterisk/written
chown asterisk:asterisk /var/lib/asterisk/written
rm /etc/centralino/written /var/lib/asterisk/written
runuser -u centralino -- mariadb centralino -e "SELECT 1"
mariadb -e "SELECT 1"
rsync -a /etc/centralino/tls/ /var/lib/centralino/copy/
rm -r /var/lib/centralino/copy
nginx -t
"""
FORBIDDEN_TO_THE_DAEMON = """
touch /usr/written
sysctl -w net.ipv4.ip_forward=1
mount -t tmpfs tmpfs /mnt
unshare --net true
ls /home/admin
"""


def test_the_daemon_s_rights_suffice_for_its_work_and_for_no_more(shared_node: Node) -> None:
    """The same [Service] section with another program in it."""
    unit = shared_node.run(["cat", "/usr/lib/systemd/system/centralinod.service"]).output
    unit = re.sub(
        r"^(WatchdogSec|NotifyAccess|Restart\w*|Runtime\w+|State\w+|Logs\w+)=.*\n", "", unit, flags=re.M
    )
    unit = unit.replace("Type=notify", "Type=oneshot").replace(
        "ExecStart=/usr/sbin/centralinod", "ExecStart=/bin/sh /run/rights.sh"
    )
    lines = [f"address={shared_node.address()}"]
    for wanted, commands in (("OK", WORK_OF_THE_DAEMON), ("FAILED", FORBIDDEN_TO_THE_DAEMON)):
        other = "FAILED" if wanted == "OK" else "OK"
        for command in commands.strip().splitlines():
            quoted = command.replace('"', "'")
            lines.append(
                f'if {command}; then s=OK; else s=FAILED; fi; [ $s = {wanted} ] || echo "{other}: {quoted}"'
            )
    lines.append("echo the end")
    shared_node.run(["tee", "/run/rights.sh"], input_text="\n".join(lines) + "\n")
    shared_node.run(["tee", "/run/systemd/system/rights.service"], input_text=unit)
    shared_node.run(["systemctl", "daemon-reload"])
    shared_node.run(["systemctl", "start", "rights.service"], limit_seconds=60)
    said = shared_node.run(
        ["journalctl", "-u", "rights.service", "-o", "cat", "--no-pager"]
    ).output.splitlines()
    shared_node.run(["rm", "/run/rights.sh", "/run/systemd/system/rights.service"])
    assert "the end" in said
    assert [line for line in said if line.startswith(("OK: ", "FAILED: "))] == []


@pytest.mark.slow
def test_a_daemon_that_hangs_is_replaced(lab: Lab) -> None:
    """The watchdog (10 s), and then what a stopped process makes systemd wait (10 s)."""
    node = lab.add_node("node1")
    node.power_on()
    node.wait_active("centralinod")
    before = node.processes_of("centralinod.service")
    node.signal_unit("centralinod.service", signal.SIGSTOP)
    wait_for(
        lambda: not set(before) & set(node.processes_of("centralinod.service")), 45, "another daemon process"
    )
    node.wait_active("centralinod")
    answer = json.loads(node.run(["centralino", "status", "--json"], check=False).output)
    assert answer["version"]


def test_systemd_understands_every_line_of_our_units(shared_node: Node) -> None:
    units = [f"/usr/lib/systemd/system/{name}.service" for name in (
        "centralinod", "centralino-first-boot", "centralino-database", "centralino-console")]  # fmt: skip
    report = shared_node.run(["systemd-analyze", "verify", "--man=no", *units], check=False)
    ours = [line for line in report.errors.splitlines() if "centralino" in line]
    assert ours == []


def test_only_root_may_own_the_bus_name(shared_node: Node) -> None:
    request = ["busctl", "--system", "call", "org.freedesktop.DBus", "/org/freedesktop/DBus"]
    request += ["org.freedesktop.DBus", "RequestName", "su", "org.centralino", "4"]
    refused = shared_node.run(request, user="admin", check=False)
    assert not refused.ok
    assert "Access denied" in refused.errors
    # The same from root is not refused (3: our daemon has it already; 4 asked not to queue behind it).
    assert shared_node.run(request).output == "u 3\n"


def test_root_cannot_log_in_by_password(shared_node: Node) -> None:
    effective = shared_node.run(["sshd", "-T"]).output.splitlines()
    assert "permitrootlogin without-password" in effective
    weak = [line for line in effective if re.search(r"(sha1|cbc|3des|arcfour|umac-64|ssh-dss)\b", line)]
    assert [
        line for line in weak if line.split()[0] in ("kexalgorithms", "ciphers", "macs", "hostkeyalgorithms")
    ] == []


def test_the_database_is_local_and_keeps_positions(shared_node: Node) -> None:
    asked = "SELECT @@log_bin, @@gtid_strict_mode, @@binlog_format, @@sync_binlog, @@bind_address"
    answer = shared_node.run(["mariadb", "-N", "-e", asked]).output.split()
    assert answer == ["1", "1", "ROW", "1", "127.0.0.1"]
    own = shared_node.run(
        ["mariadb", "-N", "-u", "centralino", "centralino", "-e", "SELECT USER()"], user="centralino"
    )
    assert own.output.strip() == "centralino@localhost"
    # The socket knows who calls: another user of the system is not let in as `asterisk` or `root`.
    for user in ("asterisk", "root"):
        assert not shared_node.run(["mariadb", "-u", user, "-e", "SELECT 1"], user="admin", check=False).ok


def test_the_completion_of_three_shells_is_there(shared_node: Node) -> None:
    completed = shared_node.run(
        ["bash", "-ic", ". /usr/share/bash-completion/completions/centralino; complete -p centralino"],
        check=False,
    )
    assert "centralino" in completed.output
    for file in (
        "/usr/share/zsh/vendor-completions/_centralino",
        "/usr/share/fish/vendor_completions.d/centralino.fish",
    ):
        assert "_CENTRALINO_COMPLETE" in shared_node.run(["cat", file]).output


# --- from outside -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def telephony(lab_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Client]]:
    """A booted node and a phone on its LAN."""
    with Lab(lab_root, tmp_path_factory.mktemp("telephony") / "lab") as made:
        node = made.add_node("node1")
        made.power_on_all()
        node.wait_active("asterisk")
        yield node, made.add_client("phone")


def rows(node: Node, statement: str) -> list[list[str]]:
    """The rows of a query, as text."""
    return [
        line.split("\t")
        for line in node.run(["mariadb", "-N", "centralino", "-e", statement]).output.splitlines()
    ]


def test_a_phone_of_the_database_registers_and_its_contact_is_a_row(telephony: tuple[Node, Client]) -> None:
    node, client = telephony
    phone = add_phone(node, "1001")
    assert rows(node, "SELECT id FROM ps_contacts") == []
    register(client, phone, node.address())
    assert rows(node, "SELECT endpoint, via_addr, prune_on_boot, reg_server FROM ps_contacts") == [
        ["1001", client.address(), "no", "centralino"]
    ]
    # The database is where it lives: a new Asterisk process still knows it.
    node.signal_unit("asterisk.service")
    wait_for(
        lambda: "1001/sip:" in node.run(["asterisk", "-rx", "pjsip show contacts"], check=False).output,
        30,
        "the contact after a crash of Asterisk",
    )


def test_a_call_to_600_echoes_and_leaves_a_record(telephony: tuple[Node, Client]) -> None:
    """S-US-03."""
    node, client = telephony
    phone = add_phone(node, "1002")
    result = call_echo(client, phone, node.address(), hold_seconds=5.0)
    assert result.media.echoed >= 50
    wait_for(
        lambda: (
            rows(node, "SELECT src, dst, disposition FROM cdr WHERE src = '1002'")
            == [["1002", "600", "ANSWERED"]]
        ),
        10,
        "the call's record",
    )


def test_a_stranger_cannot_call(telephony: tuple[Node, Client]) -> None:
    node, client = telephony
    request = (
        f"INVITE sip:600@{node.address()} SIP/2.0\r\n"
        f"Via: SIP/2.0/UDP {client.address()}:5070;branch=z9hG4bKstranger\r\n"
        f"From: <sip:nobody@{client.address()}>;tag=1\r\nTo: <sip:600@{node.address()}>\r\n"
        f"Call-ID: stranger\r\nCSeq: 1 INVITE\r\nContact: <sip:nobody@{client.address()}:5070>\r\n"
        "Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
    )
    answer = client.run(
        ["socat", "-t2", "-", f"UDP:{node.address()}:5060,sourceport=5070"], input_text=request
    ).output
    assert answer.startswith("SIP/2.0 401 ")


def test_only_the_ports_of_standard_mode_are_open(telephony: tuple[Node, Client]) -> None:
    node, client = telephony

    def opens(port: int) -> bool:
        return client.run(
            ["socat", "-u", "/dev/null", f"TCP:{node.address()}:{port},connect-timeout=1"], check=False
        ).ok

    assert [port for port in (22, 80, 443, 3306, 4369, 5038, 5060, 5061, 5071, 8088) if opens(port)] == [
        22, 80, 443, 5060, 5061,
    ]  # fmt: skip


def test_the_web_speaks_modern_tls_only(telephony: tuple[Node, Client]) -> None:
    node, client = telephony
    address = node.address()
    head = client.run(["curl", "-sk", "-o", "/dev/null", "-D", "-", f"https://{address}/"]).output.lower()
    for header in (
        "strict-transport-security",
        "x-content-type-options",
        "x-frame-options",
        "content-security-policy",
    ):
        assert f"\n{header}: " in head
    redirect = client.run(
        ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", f"http://{address}/x"]
    )
    assert redirect.output == f"301 https://{address}/x"
    for version, accepted in (("1.1", False), ("1.2", True), ("1.3", True)):
        tried = client.run(
            [
                "curl",
                "-sk",
                "-o",
                "/dev/null",
                f"--tlsv{version}",
                "--tls-max",
                version,
                f"https://{address}/health",
                "--ciphers",
                "DEFAULT@SECLEVEL=0",
            ],
            check=False,
        )
        assert tried.ok is accepted, version
    script = (
        'openssl s_client -connect "$1:443" </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName'
    )
    names = client.run(["sh", "-c", script, "sh", address]).output
    assert f"IP Address:{address}" in names


def test_sip_over_tls_shows_the_box_s_certificate(telephony: tuple[Node, Client]) -> None:
    node, client = telephony
    shown = client.run(
        [
            "sh",
            "-c",
            'openssl s_client -connect "$1:5061" </dev/null 2>/dev/null | openssl x509',
            "sh",
            node.address(),
        ]
    ).output
    assert shown.strip() == node.run(["cat", "/etc/centralino/tls/box.crt"]).output.strip()


def test_asterisk_comes_back_without_the_daemon(telephony: tuple[Node, Client]) -> None:
    """The fallback: systemd restarts it after 5 s while centralinod is not there."""
    node, _ = telephony
    node.run(["systemctl", "stop", "centralinod"])
    try:
        before = node.processes_of("asterisk.service")
        node.signal_unit("asterisk.service")
        node.wait_active("asterisk", 30)
        wait_for(
            lambda: node.processes_of("asterisk.service") not in ([], before), 30, "another Asterisk process"
        )
    finally:
        node.run(["systemctl", "start", "centralinod"])
    json.loads(node.run(["centralino", "status", "--json"], check=False).output)
