"""Signatures in the format of the program minisign, which makes keys and checks signatures just as well.

A signature is Ed25519 over the BLAKE2b-512 digest of what is signed; a second one covers the first and the *trusted
comment*, a line of text. PyNaCl (libsodium, which minisign uses, too) computes Ed25519; the formats are those of
https://jedisct1.github.io/minisign. Signatures of the older kind, over the content itself, are refused.

**Demands.** Who opens a bundle may demand that one of some keys signed it: with `signed_by`, or for all that runs on a
device with the environment variable `ZTDEPLOY_SIGNED_BY`, which child processes inherit. Neither is ever ignored: a
variable that is empty, or a demand that cannot be checked here, is an error.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ztdeploy.core import arguments
from ztdeploy.core.errors import InputError, MissingExtraError, SignatureError
from ztdeploy.core.files import read_bytes
from ztdeploy.core.records import Record

#: Public keys, as paths or base64, with what separates the entries of PATH between them.
VARIABLE = "ZTDEPLOY_SIGNED_BY"
#: minisign writes comments of at most 1,024 and 8,192 bytes.
SIGNATURE_LIMIT, _KEY_LIMIT, _LONGEST_COMMENT = 16 * 2**10, 4 * 2**10, 4 * 2**10
_UNTRUSTED, _TRUSTED = "untrusted comment: ", "trusted comment: "
_ED25519, _PREHASHED, _SCRYPT, _PLAIN = b"Ed", b"ED", b"Sc", b"\0\0"
_ID, _PUBLIC, _SECRET, _SIGNATURE, _CHECKSUM = 8, 32, 64, 64, 32
#: Most memory and work that a key's password may ask for; minisign's own keys ask for 2^30 bytes and 2^25 operations.
_MOST_MEMORY, _MOST_OPERATIONS = 2**30, 2**28
AnyKeys: TypeAlias = "str | os.PathLike[str] | PublicKey | Sequence[str | os.PathLike[str] | PublicKey]"


class SignedBy(Record):
    """A signature that was checked."""

    key: str  #: the number of the key, as minisign prints it
    comment: str  #: the trusted comment, which is signed as well


@dataclass(frozen=True)
class PublicKey:
    """What checks signatures."""

    id: bytes
    key: bytes

    @property
    def number(self) -> str:
        """The key's number, as minisign prints it."""
        return _number(self.id)

    @property
    def line(self) -> str:
        """The key in base64, as minisign takes it with -P."""
        return base64.b64encode(_ED25519 + self.id + self.key).decode()


@dataclass(frozen=True)
class SecretKey:
    """What makes signatures."""

    id: bytes
    seed: bytes

    def __repr__(self) -> str:  # whatever prints a key by mistake
        return f"SecretKey({_number(self.id)})"

    @property
    def public(self) -> PublicKey:
        return PublicKey(self.id, bytes(_nacl().SigningKey(self.seed).verify_key))


# -------------------- keys


def public_key(given: str | os.PathLike[str] | PublicKey) -> PublicKey:
    """A public key: the path of a file that minisign wrote, or the base64 of its last line.

    Raises:
        InputError: it is neither.
    """
    if isinstance(given, PublicKey):
        return given
    found = _public(given) if isinstance(given, str) else None
    if found is not None:
        return found
    path = arguments.named_path(os.fspath(arguments.folder("signed_by", given)))
    expected, fix = "a public key of minisign: its file, or the line that begins with RW", "give the .pub file"
    content = read_bytes(path, _KEY_LIMIT, what="public key", expected=expected, fix=fix)
    lines = content.decode(errors="replace").split("\n")
    found = next((key for line in lines if (key := _public(line)) is not None), None)
    if found is None:
        raise InputError(f"'{path}' holds no public key", expected, fix)
    return found


def public_keys(given: AnyKeys) -> tuple[PublicKey, ...]:
    """
    Raises:
        InputError: there is none, or one of them is no key.
    """
    several = [given] if isinstance(given, str | os.PathLike | PublicKey) else list(given)
    if not several:
        raise InputError("signed_by without a key", "at least one public key", "leave signed_by out, or give a key")
    return tuple(map(public_key, several))


def secret_key(path: Path, password: Callable[[], str] | None = None) -> SecretKey:
    """A secret key that minisign made. One with a password takes as much memory to open as minisign's, 1 GB.

    Args:
        password: asked for where the key has one.

    Raises:
        InputError: it is no secret key, or the password is wrong or missing.
    """
    expected, fix = "a secret key of minisign", "make one: minisign -G -p KEY.pub -s KEY.key"
    content = read_bytes(path, _KEY_LIMIT, what="secret key", expected=expected, fix=fix)
    refused = InputError(f"'{path}' holds no secret key", expected, fix)
    lines = content.decode(errors="replace").split("\n")
    length = 54 + _ID + _SECRET + _CHECKSUM  # behind the kinds of three algorithms, a salt, and limits of scrypt
    data = next((found for line in lines if (found := _decoded(line, length)) is not None), b"")
    if data[:2] != _ED25519 or data[4:6] != b"B2" or data[2:4] not in (_SCRYPT, _PLAIN):
        raise refused
    salt, limits, body = data[6:38], data[38:54], data[54:]
    if data[2:4] == _SCRYPT:
        if password is None:
            fix = "give the password, or for a device make a key without one: minisign -G -W"
            raise InputError(f"'{path}' is protected by a password", "a way to ask for it", fix)
        body = _unlocked(body, salt, limits, password(), refused)
        checksum = hashlib.blake2b(_ED25519 + body[: _ID + _SECRET], digest_size=_CHECKSUM).digest()
        if checksum != body[_ID + _SECRET :]:
            raise InputError(f"the password does not open '{path}'", "the password of that key", "type it again")
    key = SecretKey(body[:_ID], body[_ID : _ID + 32])
    if key.public.key != body[_ID + 32 : _ID + _SECRET]:
        raise refused
    return key


def _unlocked(body: bytes, salt: bytes, limits: bytes, password: str, refused: InputError) -> bytes:
    """A secret key's numbers, which are combined with as many that scrypt makes of a password.

    The parameters of scrypt follow from two limits as in libsodium's `crypto_pwhash_scryptsalsa208sha256`.
    """
    operations, memory = max(int.from_bytes(limits[:8], "little"), 32768), int.from_bytes(limits[8:], "little")
    if memory > _MOST_MEMORY or operations > _MOST_OPERATIONS:
        raise refused
    by_time, block = operations < memory // 32, 8
    most = operations // (4 * block) if by_time else memory // (128 * block)
    cost = next(2**power for power in range(1, 63) if 2**power > most // 2)
    parallel = 1 if by_time else max(1, operations // 4 // cost // block)
    made = hashlib.scrypt(password.encode(), salt=salt, n=cost, r=block, p=parallel, maxmem=2**31 - 1, dklen=len(body))
    return bytes(one ^ other for one, other in zip(body, made, strict=True))


def _public(text: str) -> PublicKey | None:
    data = _decoded(text, 2 + _ID + _PUBLIC)
    return PublicKey(data[2 : 2 + _ID], data[2 + _ID :]) if data and data[:2] == _ED25519 else None


def _decoded(line: str, length: int) -> bytes | None:
    """The bytes that a line of base64 stands for, if there are so many."""
    try:
        data = base64.b64decode(line.strip().encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None
    return data if len(data) == length else None


def _number(id: bytes) -> str:
    return id[::-1].hex().upper()


# -------------------- signatures


def signature_of(content: bytes, key: SecretKey, comment: str) -> str:
    """The text of a signature file.

    Args:
        comment: a line that is signed as well.

    Raises:
        InputError: the comment is no line of text, or too long.
        MissingExtraError: PyNaCl is not installed.
    """
    if not comment.replace("\t", "").isprintable() or len(comment.encode()) > _LONGEST_COMMENT:
        expected = f"one line of at most {_LONGEST_COMMENT} bytes"
        raise InputError(f"comment = {arguments.shown(comment)}", expected, "give another comment")
    signing = _nacl().SigningKey(key.seed)
    first = signing.sign(hashlib.blake2b(content).digest()).signature
    second = signing.sign(first + comment.encode()).signature
    texts = (base64.b64encode(_PREHASHED + key.id + first).decode(), base64.b64encode(second).decode())
    return f"{_UNTRUSTED}signature from ztdeploy\n{texts[0]}\n{_TRUSTED}{comment}\n{texts[1]}\n"


def check_signature(what: str, content: bytes, signature: bytes, keys: Sequence[PublicKey]) -> SignedBy:
    """
    Args:
        what: what errors call the content.
        signature: the content of a signature file.
        keys: those that may have signed.

    Raises:
        SignatureError: it is no signature of this content by one of the keys.
        MissingExtraError: PyNaCl is not installed, so that nothing can be checked.
    """
    nacl = _nacl()
    again = "ask whoever signs your bundles"
    try:
        _, first, comment, second = signature.decode().rstrip("\n").split("\n")
    except ValueError:  # that of decoding is one, too
        first = comment = second = ""
    data, both = _decoded(first, 2 + _ID + _SIGNATURE), _decoded(second, _SIGNATURE)
    if data is None or both is None or data[:2] not in (_PREHASHED, _ED25519) or not comment.startswith(_TRUSTED):
        raise SignatureError(f"the signature of '{what}' is damaged", "the four lines that minisign writes", again)
    if data[:2] != _PREHASHED:
        given = f"the signature of '{what}' is of minisign's older kind"
        raise SignatureError(given, "a signature of the digest", "sign again, without minisign's option -l")
    words = comment.removeprefix(_TRUSTED).rstrip("\r")
    id, own = data[2 : 2 + _ID], data[2 + _ID :]
    wanted = " or ".join(dict.fromkeys(key.number for key in keys))
    candidates = [key for key in keys if key.id == id]
    if not candidates:
        raise SignatureError(f"'{what}' is signed by key {_number(id)}", f"a signature by {wanted}", again)
    for key in candidates:
        try:
            check = nacl.VerifyKey(key.key)
            check.verify(hashlib.blake2b(content).digest(), own)
            check.verify(own + words.encode(), both)
            return SignedBy(key=key.number, comment=words)
        except (nacl.BadSignatureError, nacl.ValueError):
            pass
    given = f"'{what}' is not what key {_number(id)} signed: it, or its signature, was changed"
    raise SignatureError(given, "the content that was signed", "do not use it; copy it again")


def trusted_comment(file: str, *words: str) -> str:
    """What minisign writes into a trusted comment, with the present time, and words of ours behind it."""
    return "\t".join([f"timestamp:{int(time.time())}", f"file:{file}", "hashed", *filter(None, words)])


# -------------------- demands


def demanded_keys() -> tuple[PublicKey, ...]:
    """The keys one of which must have signed whatever this process opens; none where nothing is demanded.

    Raises:
        InputError: the environment names no key, or something that is none.
    """
    named = os.environ.get(VARIABLE)
    if named is None:
        return ()
    try:
        return public_keys([one for one in named.split(os.pathsep) if one])
    except InputError as error:
        raise InputError(
            f"${VARIABLE}: {error.given}", error.expected, f"set it to keys, or unset {VARIABLE}"
        ) from error


def check_nothing_demanded() -> None:
    """
    Raises:
        InputError: a signature is demanded, which a bundle that is being built cannot have.
    """
    if VARIABLE in os.environ:
        given = f"${VARIABLE} demands signatures, and a new bundle has none"
        raise InputError(given, "no demand where bundles are built", f"unset {VARIABLE}, build, then: ztdeploy sign")


@contextmanager
def demanding(signed_by: AnyKeys | None) -> Iterator[None]:
    """Let this process, and those that it starts, open nothing that none of these keys signed, while the block runs.

    Args:
        signed_by: None: nothing changes.

    Raises:
        InputError: these are no keys.
    """
    before = os.environ.get(VARIABLE)
    if signed_by is not None:
        os.environ[VARIABLE] = os.pathsep.join(key.line for key in public_keys(signed_by))
    try:
        yield
    finally:
        if signed_by is not None:
            os.environ.pop(VARIABLE, None)
            os.environ.update({} if before is None else {VARIABLE: before})


class _Nacl:
    """What is used of PyNaCl."""

    def __init__(self) -> None:
        from nacl import exceptions, signing

        self.SigningKey, self.VerifyKey = signing.SigningKey, signing.VerifyKey
        self.BadSignatureError, self.ValueError = exceptions.BadSignatureError, exceptions.ValueError


def _nacl() -> _Nacl:
    try:
        return _Nacl()
    except ImportError as error:
        raise MissingExtraError("nacl", "sign", "a signature") from error
