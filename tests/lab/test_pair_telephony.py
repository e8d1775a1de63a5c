"""What phones and trunks see of a pair: contacts only its master touches, trunks only its master asks for."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pair_of_nodes import SHARED, PairOfNodes, make_pair

from appliance.lab import LOGS, Client, Lab, Node
from appliance.lab_failover import bring_dialplan
from appliance.lab_host import wait_for
from appliance.lab_pair import add_two, power_on
from appliance.lab_phone import Deskphone, Message
from appliance.lab_sip import Phone, add_phone, call_echo, socket_in

pytestmark = [pytest.mark.lab, pytest.mark.slow]

TRUNK = """\
[lab-trunk]
type = registration
server_uri = sip:{provider}
client_uri = sip:box@{provider}
expiration = 60
retry_interval = 2
"""
QUALIFY_SECONDS = 5


class Provider:
    """Accepts every REGISTER and remembers who sent it."""

    def __init__(self, client: Client) -> None:
        self.senders: list[str] = []
        self._wire = socket_in(client.namespace, socket.AF_INET, socket.SOCK_DGRAM)
        self._wire.bind((client.address(), 5060))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                data, sender = self._wire.recvfrom(65536)
            except OSError:
                return
            request = Message(data.decode())
            if not request.start.startswith("REGISTER"):
                continue
            self.senders.append(sender[0])
            echoed = [line for name in ("Via", "From", "Call-ID", "CSeq") for line in request.all(name)]
            to = f"To: {request.value('To')};tag=provider"
            own = [to, f"Contact: {request.value('Contact')};expires=60", "Content-Length: 0"]
            text = "\r\n".join(["SIP/2.0 200 OK", *echoed, *own, "", ""])
            self._wire.sendto(text.encode(), sender)

    def close(self) -> None:
        self._wire.close()


def asterisk(node: Node, command: str) -> str:
    return node.run(["asterisk", "-rx", command], check=False).output


def expires_contacts(node: Node) -> bool:
    found = re.search(r"contact_expiration_check_interval\s*:\s*(\d+)", asterisk(node, "pjsip show settings"))
    return found is not None and int(found[1]) > 0


def has_trunks(node: Node) -> bool:
    return "res_pjsip_outbound_registration.so" in asterisk(node, "module show like outbound_registration")


def restart_asterisk(node: Node) -> None:
    node.run(["systemctl", "restart", "asterisk"], limit_seconds=60)
    wait_for(lambda: "System uptime" in asterisk(node, "core show uptime"), 30, "Asterisk's start")


@pytest.fixture(scope="module")
def pair(
    lab_root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[PairOfNodes]:
    with Lab(lab_root, tmp_path_factory.mktemp("telephony") / "lab") as lab:
        made = add_two(lab)
        provider = lab.add_client("provider")
        for node in made.nodes:
            bring_dialplan(node)
            node.disk.mount()
            node.path("/etc/asterisk/pjsip.d/trunk.conf").write_text(
                TRUNK.format(provider=provider.address())
            )
            node.disk.unmount()
        power_on(made)
        make_pair(made)
        made.wait_healthy()
        yield made
        if request.session.testsfailed:
            lab.save_logs(LOGS / "telephony")


@pytest.fixture(scope="module")
def provider(pair: PairOfNodes) -> Iterator[Provider]:
    made = Provider(pair.lab.clients["provider"])
    yield made
    made.close()


@pytest.fixture(scope="module")
def desk(pair: PairOfNodes) -> Iterator[Deskphone]:
    """A phone that registered once, and that the master asks every few seconds whether it is there."""
    master = pair.wait_healthy()
    account = add_phone(master, "1001")
    statement = f"UPDATE ps_aors SET qualify_frequency = {QUALIFY_SECONDS} WHERE id = '1001'"
    master.run(["mariadb", "centralino", "--execute", statement])
    with Deskphone(pair.lab.add_client("desk"), account, SHARED) as phone:
        phone.register()
        yield phone


@pytest.fixture(scope="module")
def office(pair: PairOfNodes) -> tuple[Client, Phone]:
    return pair.lab.add_client("office"), add_phone(pair.wait_healthy(), "1002")


def test_only_the_master_expires_contacts_and_registers_trunks(pair: PairOfNodes, provider: Provider) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    wait_for(lambda: expires_contacts(master) and has_trunks(master), 20, "the master's duties")
    wait_for(lambda: not expires_contacts(slave) and not has_trunks(slave), 20, "the slave's silence")
    provider.senders.clear()
    restart_asterisk(slave)
    assert not has_trunks(slave)
    assert not expires_contacts(slave)
    restart_asterisk(master)
    wait_for(lambda: provider.senders, 30, "the master's registration")
    assert set(provider.senders) <= {master.address(), SHARED}
    assert expires_contacts(master)


def test_a_phone_that_the_slave_cannot_ask_is_called_right_after_the_failover(
    pair: PairOfNodes, provider: Provider, desk: Deskphone, office: tuple[Client, Phone]
) -> None:
    """The slave's Asterisk begins when the phone is registered already, asks it in vain, and gives it up."""
    master = pair.wait_healthy()
    slave = pair.other(master)
    restart_asterisk(slave)
    wait_for(lambda: "Unavail" in asterisk(slave, "pjsip show contacts"), 30, "the slave's opinion")
    assert call_echo(*office, SHARED, number="1001", hold_seconds=3).media.echoed > 0
    desk.callers.clear()
    provider.senders.clear()
    master.power_off()
    wait_for(lambda: pair.holders() == [slave], 20, "the slave's promotion")
    call = call_echo(*office, SHARED, number="1001", hold_seconds=3)
    assert call.media.echoed > 0
    assert desk.registrations == 1
    wait_for(lambda: provider.senders, 30, "the registration of the trunk by the new master")
    assert expires_contacts(slave)
    wait_for(lambda: "Unavail" not in asterisk(slave, "pjsip show contacts"), 10, "the phone's return")
    print(f"the phone was called from {desk.callers}, the trunk registered by {provider.senders}")
    master.power_on()
    assert pair.wait_healthy() is slave
    wait_for(lambda: not expires_contacts(master) and not has_trunks(master), 20, "the old master's silence")
