"""The console menu's dialogue for addresses: from a few answers to a change of the network settings."""

from __future__ import annotations

import copy
import ipaddress
from dataclasses import dataclass

from daemon.cli.json_types import JsonObject, JsonValue, as_object, objects_of, text_of, texts_of

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
InterfaceAddress = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True)
class Answers:
    """What a person answered. No `address` means DHCP. No name servers leave those in the settings."""

    interface: str
    address: InterfaceAddress | None = None
    gateway: Address | None = None
    name_servers: tuple[Address, ...] = ()


def network_facts(status: JsonObject) -> JsonObject:
    """What the network subsystem sees, in a status document: `interfaces`, `gateways`, `name_servers`."""
    subsystems = status.get("subsystems")
    if isinstance(subsystems, dict):
        entry = as_object(subsystems.get("network"))
    else:
        entry = next((each for each in objects_of(status, "subsystems") if each.get("name") == "network"), {})
    return as_object(entry.get("facts")) or entry


def address_lines(facts: JsonObject) -> list[tuple[str, str]]:
    """Name and text for every interface, the gateways and the name servers."""
    lines = []
    for interface in objects_of(facts, "interfaces"):
        addresses = [text for text in texts_of(interface, "addresses") if not _is_link_local(text)]
        state = "up" if interface.get("up") is True else "down"
        if interface.get("carrier") is not True:
            state = "no cable"
        lines.append((text_of(interface, "name"), f"{', '.join(addresses) or 'no address'} ({state})"))
    lines.append(("Gateway", ", ".join(texts_of(facts, "gateways")) or "none"))
    lines.append(("Name servers", ", ".join(texts_of(facts, "name_servers")) or "none"))
    return lines


def _is_link_local(text: str) -> bool:
    try:
        return ipaddress.ip_interface(text).is_link_local
    except ValueError:
        return False


def read_interface_address(text: str) -> InterfaceAddress:
    """`192.0.2.10/24`, `192.0.2.10 255.255.255.0` or an IPv6 address; raises ValueError with a sentence."""
    joined = "/".join(text.replace("/", " ").split())
    if "/" not in joined:
        raise ValueError("the length of the subnet is missing: write it like 192.0.2.10/24")
    try:
        address = ipaddress.ip_interface(joined)
    except ValueError:
        raise ValueError(f"{text} is no address: write it like 192.0.2.10/24") from None
    network = address.network
    if address.version == 4 and network.prefixlen < 31 and address.ip in (network[0], network[-1]):
        raise ValueError(f"{address.ip} is the subnet's own first or last address: choose one between")
    if address.ip.is_loopback or address.ip.is_multicast or address.ip.is_unspecified:
        raise ValueError(f"{address.ip} cannot be the address of an interface")
    return address


def read_gateway(text: str, address: InterfaceAddress) -> Address | None:
    """The gateway beside an address, None for an empty answer; raises ValueError with a sentence."""
    if not text:
        return None
    try:
        gateway = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{text} is no address: write it like {address.network[1]}") from None
    if gateway.version != address.version:
        raise ValueError(f"{gateway} is of another family than {address.ip}")
    if gateway == address.ip:
        raise ValueError(f"{gateway} is this box itself")
    if gateway not in address.network and not gateway.is_link_local:
        raise ValueError(f"{gateway} is outside {address.network}, so this box could not reach it")
    return gateway


def read_name_servers(text: str) -> tuple[Address, ...]:
    """Addresses with blanks or commas between; raises ValueError with a sentence."""
    found = []
    for word in text.replace(",", " ").split():
        try:
            found.append(ipaddress.ip_address(word))
        except ValueError:
            raise ValueError(f"{word} is no address of a name server") from None
    return tuple(found)


def with_address(document: JsonObject, answers: Answers) -> JsonObject:
    """The settings document with the answers in it; the other address family stays as it is."""
    changed = copy.deepcopy(document)
    network = as_object(changed.setdefault("network", {}))
    interfaces = as_object(network.setdefault("interfaces", {}))
    interface = as_object(interfaces.get(answers.interface))
    version = answers.address.version if answers.address else 4
    method, gateway = ("ipv4", "gateway") if version == 4 else ("ipv6", "gateway6")
    others: list[JsonValue] = [
        text for text in texts_of(interface, "addresses") if ipaddress.ip_interface(text).version != version
    ]
    added: list[JsonValue] = [answers.address.with_prefixlen] if answers.address else []
    interfaces[answers.interface] = {
        **interface,
        "enabled": True,
        method: "static" if answers.address else "dhcp",
        "addresses": added + others,
        gateway: str(answers.gateway) if answers.gateway else None,
    }
    if answers.gateway:
        _leave_one_gateway(interfaces, answers.interface, gateway)
    if answers.name_servers:
        dns = as_object(network.setdefault("dns", {}))
        network["dns"] = {**dns, "servers": [str(server) for server in answers.name_servers]}
    return changed


def _leave_one_gateway(interfaces: JsonObject, chosen: str, gateway: str) -> None:
    """There is one way out for each family: the one that was just named."""
    for name, interface in interfaces.items():
        if name != chosen and isinstance(interface, dict) and interface.get(gateway) is not None:
            interfaces[name] = {**interface, gateway: None}
