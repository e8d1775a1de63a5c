"""Detached signatures of manifests, by minisign keys or by GPG.

minisign's format (prehashed Ed25519) is written and read here, so that neither the build host nor who
verifies needs the program; its keys and signatures work with it. GPG is the host's own.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from appliance.errors import InputError, VerificationError
from appliance.profile import Signing
from appliance.run import require, run
from appliance.scratch import Scratch

# A password never comes by argument.
PASSWORD_VARIABLE = "CENTRALINO_SIGNING_PASSWORD"  # noqa: S105 (the name of a variable)
MINISIGN_SUFFIX, GPG_SUFFIX = ".minisig", ".asc"
_SECRET = struct.Struct("<2s2s2s32sQQ104s")


@dataclass(frozen=True)
class _SecretKey:
    number: bytes
    key: Ed25519PrivateKey


def sign(file: Path, signing: Signing, epoch: int) -> Path:
    """Sign a file; returns the signature beside it. Raises InputError if the key cannot be used."""
    if signing.tool == "minisign":
        target = file.with_name(file.name + MINISIGN_SUFFIX)
        target.write_text(minisign(file.read_bytes(), file.name, signing.key_file, epoch), encoding="utf-8")
        return target
    return _gpg_sign(file, signing.key_file, epoch)


def signature_of(file: Path) -> Path | None:
    """The signature beside a file, if there is one."""
    for suffix in (MINISIGN_SUFFIX, GPG_SUFFIX):
        if (found := file.with_name(file.name + suffix)).is_file():
            return found
    return None


def check_signature(file: Path, key_file: Path) -> str:
    """Check the signature beside `file` against one trusted public key; returns who signed.

    Raises VerificationError if there is none or it is wrong, InputError if the key cannot be read.
    """
    signature = signature_of(file)
    if signature is None:
        raise VerificationError(f"{file.name}: no signature beside it", "fetch the .minisig or .asc file too")
    if signature.suffix == MINISIGN_SUFFIX:
        return check_minisign(file.read_bytes(), signature, key_file)
    return _gpg_check(file, signature, key_file)


def _decode(path: Path, text: str) -> bytes:
    try:
        return base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{path}: is no minisign file: {error}") from error


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}", "name a key file") from error


def _scrypt(password: bytes, salt: bytes, operations: int, memory: int) -> bytes:
    """libsodium's choice of parameters (crypto_pwhash_scryptsalsa208sha256), then scrypt."""
    operations = max(operations, 32768)
    block = 8
    if operations < memory // 32:
        parallel, largest = 1, operations // (block * 4)
        exponent = next(number for number in range(1, 64) if 1 << number > largest // 2)
    else:
        largest = memory // (block * 128)
        exponent = next(number for number in range(1, 64) if 1 << number > largest // 2)
        parallel = min((operations // 4) // (1 << exponent), 0x3FFFFFFF) // block
    cost = 1 << exponent
    return hashlib.scrypt(
        password,
        salt=salt,
        n=cost,
        r=block,
        p=parallel,
        dklen=104,
        maxmem=128 * block * (cost + parallel + 2),
    )


def _secret_key(path: Path) -> _SecretKey:
    lines = _lines(path)
    raw = _decode(path, lines[1] if len(lines) > 1 else "")
    if len(raw) != _SECRET.size:
        raise InputError(f"{path}: is no minisign secret key", "make one with `minisign -G`")
    algorithm, derivation, checksum, salt, operations, memory, sealed = _SECRET.unpack(raw)
    if algorithm != b"Ed" or checksum != b"B2" or derivation not in (b"Sc", b"\0\0"):
        raise InputError(f"{path}: is a minisign key of an unknown kind")
    if derivation == b"Sc":
        password = os.environ.get(PASSWORD_VARIABLE)
        if password is None:
            raise InputError(f"{path}: is protected by a password", f"set {PASSWORD_VARIABLE}")
        stream = _scrypt(password.encode(), salt, operations, memory)
        sealed = bytes(one ^ other for one, other in zip(sealed, stream, strict=True))
    number, secret, expected = sealed[:8], sealed[8:72], sealed[72:]
    # minisign leaves the checksum of a key without password empty.
    unsealed = derivation != b"Sc" and not any(expected)
    if not unsealed and hashlib.blake2b(algorithm + number + secret, digest_size=32).digest() != expected:
        raise InputError(f"{path}: the password is wrong or the key is damaged")
    return _SecretKey(number, Ed25519PrivateKey.from_private_bytes(secret[:32]))


def minisign(content: bytes, name: str, key_file: Path, epoch: int) -> str:
    """The text of a signature over `content`; `name` and `epoch` go into the trusted comment."""
    secret = _secret_key(key_file)
    signature = secret.key.sign(hashlib.blake2b(content).digest())
    comment = f"timestamp:{epoch}\tfile:{name}\thashed"
    whole = secret.key.sign(signature + comment.encode())
    return (
        "untrusted comment: signature of centralino-build\n"
        f"{base64.b64encode(b'ED' + secret.number + signature).decode()}\n"
        f"trusted comment: {comment}\n{base64.b64encode(whole).decode()}\n"
    )


def check_minisign(content: bytes, signature_file: Path, key_file: Path) -> str:
    """Check a minisign signature; returns key number and trusted comment. Raises VerificationError."""
    key_lines = [line for line in _lines(key_file) if line and not line.startswith("untrusted comment:")]
    raw = _decode(key_file, key_lines[0] if key_lines else "")
    if len(raw) != 42 or raw[:2] != b"Ed":
        raise InputError(f"{key_file}: is no minisign public key", "name the .pub file")
    public = Ed25519PublicKey.from_public_bytes(raw[10:])
    name = signature_file.name
    try:
        lines = _lines(signature_file)
        signature, whole = _decode(signature_file, lines[1]), _decode(signature_file, lines[3])
        comment = lines[2].removeprefix("trusted comment: ")
    except (InputError, IndexError) as error:
        raise VerificationError(f"{name}: is damaged") from error
    if signature[:2] != b"ED" or len(signature) != 74:
        raise VerificationError(f"{name}: is damaged or of an old kind")
    if signature[2:10] != raw[2:10]:
        raise VerificationError(f"{name}: was made with another key than {key_file}")
    try:
        public.verify(signature[10:], hashlib.blake2b(content).digest())
        public.verify(whole, signature[10:] + comment.encode())
    except InvalidSignature as error:
        raise VerificationError(f"{name}: does not fit the file that it signs") from error
    return f"minisign key {raw[2:10][::-1].hex().upper()}, {comment.replace(chr(9), ' ')}"


def _gpg(home: Path, *arguments: str | Path, password: str | None = None, check: bool = True) -> str:
    words: list[str | Path] = ["gpg", "--homedir", home, "--batch", "--no-tty", "--yes"]
    if password is not None:
        words += ["--pinentry-mode", "loopback", "--passphrase-fd", "0"]
    done = run([*words, *arguments], input_text=password, check=check)
    return done.output + done.errors


def _gpg_sign(file: Path, key_file: Path, epoch: int) -> Path:
    require({"gpg": "gpg"})
    target = file.with_name(file.name + GPG_SUFFIX)
    password = os.environ.get(PASSWORD_VARIABLE, "")
    with Scratch(prefix="centralino-gpg-") as name:
        home = Path(name)
        _gpg(home, "--import", key_file, password=password)
        # The moment of the build, like every other time in what it makes; no key signs before it exists.
        records = [line.split(":") for line in _gpg(home, "--with-colons", "--list-secret-keys").splitlines()]
        created = max((int(record[5]) for record in records if record[0] in ("sec", "ssb")), default=0)
        moment = max(epoch, created)
        _gpg(
            home, "--faked-system-time", f"{moment}!", "--armor", "--output", target, "--detach-sign", file,
            password=password,
        )  # fmt: skip
        _stop_agent(home)
    return target


def _gpg_check(file: Path, signature: Path, key_file: Path) -> str:
    require({"gpg": "gpg"})
    with Scratch(prefix="centralino-gpg-") as name:
        home = Path(name)
        _gpg(home, "--import", key_file)
        text = _gpg(home, "--status-fd", "1", "--verify", signature, file, check=False)
        _stop_agent(home)
    for line in text.splitlines():
        if line.startswith("[GNUPG:] VALIDSIG "):
            return f"GPG key {line.split()[2]}"
    raise VerificationError(f"{signature.name}: is not a valid signature by the key in {key_file}")


def _stop_agent(home: Path) -> None:
    # gpg leaves its agent running; this one has no home any more.
    run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)
