"""`centralino domain` and `centralino mode`: under which name the appliance is reached, and how it works."""

from __future__ import annotations

import click

from daemon.cli.client import SYSTEM
from daemon.cli.json_types import JsonObject, JsonValue, as_object, objects_of, text_of, texts_of
from daemon.cli.network import confirm_option
from daemon.cli.plans import change_settings, current
from daemon.cli.render import emit_json, fields, line, table
from daemon.cli.session import Session, Write, reads, writes

DOMAIN = "Domain1"
CHECK_LIMIT_SECONDS = 60.0


@click.group()
def domain() -> None:
    """The name and the public address under which the appliance is reached.

    Before a domain is saved, the box asks its name servers, and those of domain.public_resolvers, where the
    name leads. Saving restarts Asterisk if the public address changes: the plan says how many calls end.
    """


@domain.command("show")
@reads
def show_domain(session: Session, as_json: bool) -> None:
    """Show the domain, and what name servers inside and outside say of it now."""
    seen = session.client.read_object(DOMAIN, "Check", limit_seconds=CHECK_LIMIT_SECONDS)
    document, _ = current(session.client)
    section = as_object(document.get("domain"))
    if as_json:
        emit_json({"settings": section, "seen": seen})
        return
    reach = "yes" if section.get("reach_through_domain") is True else "no"
    fields(
        [
            ("Domain", text_of(section, "fqdn", "none")),
            ("Public address", text_of(section, "public_address", "none")),
            ("Own addresses", ", ".join(texts_of(seen, "own_addresses"))),
            ("Reach through domain", reach),
            ("Local networks", ", ".join(texts_of(section, "local_networks")) or "those of the interfaces"),
            ("Inside", _view(as_object(seen.get("inside")))),
            ("Outside", _view(as_object(seen.get("outside")))),
        ]
    )
    for problem in objects_of(seen, "problems"):
        words = [text_of(problem, key) for key in ("message", "remedy")]
        line(f"Attention: {'; '.join(filter(None, words))}", style="yellow")


def _view(view: JsonObject) -> str:
    servers = ", ".join(texts_of(view, "servers"))
    if not servers:
        return "not asked"
    if view.get("answered") is not True:
        return f"no answer from {servers}"
    aliases = "".join(f"alias {alias}, " for alias in texts_of(view, "aliases"))
    return f"{aliases}{', '.join(texts_of(view, 'addresses')) or 'no address'} (asked: {servers})"


@domain.command("set")
@click.argument("fqdn", required=False)
@click.option("--public-address", metavar="ADDRESS", help="Address on the Internet; `none` removes it.")
@click.option(
    "--reach-through-domain/--reach-by-address", "reach", default=None, help="Send people to the name."
)
@click.option(
    "--local-network",
    "local_networks",
    multiple=True,
    metavar="NETWORK/LENGTH",
    help="A network without NAT between it and the box; again for more. Replaces the list.",
)
@click.option(
    "--public-resolver",
    "resolvers",
    multiple=True,
    metavar="ADDRESS",
    help="A name server on the Internet to check with; again for more. Replaces the list.",
)
@confirm_option
@writes
def set_domain(
    session: Session,
    write: Write,
    fqdn: str | None,
    public_address: str | None,
    reach: bool | None,
    local_networks: tuple[str, ...],
    resolvers: tuple[str, ...],
    confirm_seconds: int | None,
) -> None:
    """Set the domain; what is not named stays. FQDN `none` removes it.

    \b
    centralino domain set pbx.example.com --public-address 203.0.113.10
    centralino domain set --reach-through-domain
    """
    document, base = current(session.client)
    section: dict[str, JsonValue] = dict(as_object(document["domain"]))
    for key, value in (("fqdn", fqdn), ("public_address", public_address)):
        if value is not None:
            section[key] = None if value == "none" else value
    if reach is not None:
        section["reach_through_domain"] = reach
    if local_networks:
        section["local_networks"] = list(local_networks)
    if resolvers:
        section["public_resolvers"] = list(resolvers)
    document["domain"] = section
    change_settings(session, write, document, base, confirm_seconds=confirm_seconds)


@domain.command("turn-credentials")
@click.argument("name")
@click.option("--seconds", type=click.IntRange(1, 86400), default=3600, show_default=True, help="Their life.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def turn_credentials(session: Session, name: str, seconds: int, as_json: bool) -> None:
    """Make credentials for the TURN server that end by themselves, to try it with a client NAME."""
    made = session.client.read_object(DOMAIN, "TurnCredentials", name, seconds)
    if as_json:
        emit_json(made)
        return
    fields(
        [
            ("User", text_of(made, "username")),
            ("Password", text_of(made, "password")),
            ("Server", " ".join(texts_of(made, "uris"))),
        ]
    )


@click.group()
def mode() -> None:
    """The work mode: standard, on the customer's network, or cloud, on the Internet."""


@mode.command("show")
@reads
def show_mode(session: Session, as_json: bool) -> None:
    """Show the work mode and the defaults that come with it; docs/modes.md compares the two."""
    state = as_object(session.client.read_object(SYSTEM, "Status").get("subsystems"))
    facts = as_object(as_object(state.get("mode")).get("facts"))
    if as_json:
        emit_json(facts)
        return
    line(f"Work mode: {text_of(facts, 'mode')}")
    rows = [(key.replace("_", " "), str(value)) for key, value in as_object(facts.get("defaults")).items()]
    table(("DEFAULT", "VALUE"), rows)


@mode.command("set")
@click.argument("mode", type=click.Choice(["standard", "cloud"]))
@confirm_option
@writes
def set_mode(session: Session, write: Write, mode: str, confirm_seconds: int | None) -> None:
    """Switch the work mode. Look at the whole plan first: --dry-run.

    Cloud mode needs a domain that leads to a static public address: `centralino domain set` first.
    """
    document, base = current(session.client)
    document["mode"] = {**as_object(document["mode"]), "mode": mode}
    change_settings(session, write, document, base, confirm_seconds=confirm_seconds)
