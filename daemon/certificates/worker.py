"""The helper process: one request (JSON) on stdin, one answer (JSON) on stdout, then the end.

`python -m daemon.certificates.worker`. TLS and keys are its business, so that OpenSSL is in memory for
moments instead of for good, and so that a hostile file is parsed in a process that dies with it. Secrets
come and go by the pipes alone. What each verb takes and gives is written at its function.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

Table = Mapping[str, Any]
Answer = dict[str, object]


def describe(request: Table) -> Answer:
    """`chain` (PEM) -> `facts`."""
    from daemon.certificates import making

    return {"facts": making.describe(request["chain"]).as_json()}


def self_signed(request: Table) -> Answer:
    """`names`, `key_type` -> `chain`, `key`, `facts`; the addresses of the box are added to the names."""
    from daemon.certificates import making
    from daemon.first_boot import addresses_of_box

    key = making.make_key(request["key_type"])
    addresses = ["127.0.0.1", *(str(address) for address in addresses_of_box())]
    chain = making.self_signed(key, [*request["names"], *addresses], datetime.now(UTC))
    return {"chain": chain, "key": making.key_text(key), "facts": making.describe(chain).as_json()}


def make_request(request: Table) -> Answer:
    """`names`, `key_type`, `organisation` -> `request`, `key`; or `problems`."""
    from daemon.certificates import making

    key = making.make_key(request["key_type"])
    try:
        text = making.request(key, request["names"], request["organisation"])
    except ValueError as error:
        return {"problems": [_problem("request", str(error), "correct that field")]}
    return {"request": text, "key": making.key_text(key)}


def judge(request: Table) -> Answer:
    """`files` (base64), `password`, `pending_key` (PEM or null), `names`, `roots` (a file)
    -> `problems`, `notes`; and if there is no problem `chain`, `key`, `facts`, `used_pending_key`."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from daemon.certificates import making
    from daemon.certificates.check import check
    from daemon.certificates.material import UploadError, UploadFault, read_material

    blobs = [base64.b64decode(text) for text in request["files"]]
    pending = None if request["pending_key"] is None else making.read_key(request["pending_key"])
    used_pending = False
    try:
        try:
            material = read_material(blobs, request["password"])
        except UploadError as error:
            if error.fault is not UploadFault.NO_KEY or pending is None:
                raise
            material, used_pending = read_material(blobs, request["password"], key=pending), True
    except UploadError as error:
        problem = _problem(f"certificate.{_word(error.fault.name)}", error.message, error.remedy)
        return {"problems": [problem], "notes": []}
    bundle = Path(request["roots"])
    roots = x509.load_pem_x509_certificates(bundle.read_bytes()) if bundle.is_file() else []
    verdict = check(material, request["names"], datetime.now(UTC), roots)
    problems = []
    for fault in verdict.faults:
        message = f"{fault.kind.value} ({fault.detail})" if fault.detail else fault.kind.value
        problems.append(_problem(f"certificate.{_word(fault.kind.name)}", message, fault.remedy))
    answer: Answer = {"problems": problems, "notes": [note.sentence() for note in verdict.notes]}
    if verdict.accepted:
        chain = "".join(one.public_bytes(Encoding.PEM).decode() for one in verdict.chain)
        key = material.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        facts = making.describe(chain).as_json()
        answer |= {"chain": chain, "key": key, "facts": facts, "used_pending_key": used_pending}
    return answer


def acme_conditions(request: Table) -> Answer:
    """What `_service` takes, `cloud`, `names`, `public_address`, `terms_accepted`, `resolvers`, `webroot`
    -> `problems`, fatal or not."""
    from daemon.certificates.conditions import Circumstances, failing, system_resolvers
    from daemon.certificates.ordering import Service, directory_trouble, roots_file

    given = Circumstances(
        cloud=request["cloud"],
        names=tuple(request["names"]),
        public_address=ip_address(request["public_address"]) if request["public_address"] else None,
        terms_accepted=request["terms_accepted"],
        resolvers=tuple(ip_address(text) for text in request["resolvers"]) or system_resolvers(),
        webroot=Path(request["webroot"]),
        directory=request["directory"],
    )
    with roots_file(Path(request["bundle"]), request["roots"]) as roots:
        service = Service(request["directory"], roots)
        found = list(failing(given, lambda: directory_trouble(service)))
    return {"problems": [one.as_json() for one in found]}


def acme_order(request: Table) -> Answer:
    """`directory`, `bundle`, `roots` (PEM or null), `contact`, `account` (as last answered, or null),
    `names`, `key_type`, `webroot`, `patience_seconds` ->
    `chain`, `key`, `facts`, `account`; or `order_error`."""
    from daemon.certificates import making
    from daemon.certificates.ordering import OrderError, Service, order, roots_file

    with roots_file(Path(request["bundle"]), request["roots"]) as roots:
        service = Service(request["directory"], roots, request["contact"], request["account"])
        try:
            got = order(
                service,
                request["names"],
                request["key_type"],
                Path(request["webroot"]),
                request["patience_seconds"],
            )
        except OrderError as error:
            # Registrations are limited as well: an account that stands is kept, even if no order came of it.
            kept: Answer = {} if error.account is None else {"account": error.account}
            return {"order_error": error.as_json(), **kept}
    if wrong := _unusable(got.chain, got.key, request["names"]):
        refused = {
            "fault": "unusable",
            "message": wrong,
            "remedy": "use another service",
            "retry_after": None,
        }
        return {"order_error": refused, "account": got.account}
    facts = making.describe(got.chain).as_json()
    return {"chain": got.chain, "key": got.key, "facts": facts, "account": got.account}


def _unusable(chain: str, key: str, names: list[str]) -> str:
    """Why an issued certificate cannot be served; the service's root is its own affair."""
    from daemon.certificates.check import Fault, check
    from daemon.certificates.material import read_material

    verdict = check(read_material([chain.encode(), key.encode()]), names, datetime.now(UTC))
    wrong = [fault.sentence() for fault in verdict.faults if fault.kind is not Fault.CHAIN_INCOMPLETE]
    return f"the certificate that was issued cannot be used: {'; '.join(wrong)}" if wrong else ""


def acme_renewal(request: Table) -> Answer:
    """`directory`, `bundle`, `roots`, `chain` -> `suggested` (or null), `ask_again`; or `order_error`."""
    from daemon.certificates.ordering import OrderError, Service, renewal_moment, roots_file

    with roots_file(Path(request["bundle"]), request["roots"]) as roots:
        try:
            suggested, again = renewal_moment(Service(request["directory"], roots), request["chain"])
        except OrderError as error:
            return {"order_error": error.as_json()}
    return {"suggested": None if suggested is None else suggested.isoformat(), "ask_again": again.isoformat()}


VERBS: Mapping[str, Callable[[Table], Answer]] = {
    "describe": describe,
    "self-signed": self_signed,
    "request": make_request,
    "judge": judge,
    "acme-conditions": acme_conditions,
    "acme-order": acme_order,
    "acme-renewal": acme_renewal,
}


def _problem(path: str, message: str, remedy: str) -> Answer:
    return {"path": path, "message": message, "remedy": remedy, "fatal": True}


def _word(name: str) -> str:
    return name.lower().replace("_", "-")


def main() -> int:
    """Entry point; 0 when an answer was written, whatever it says."""
    request = json.load(sys.stdin)
    json.dump(VERBS[request["verb"]](request), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
