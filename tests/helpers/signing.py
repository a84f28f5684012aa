"""Keys in minisign's format, made without minisign."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from nacl.signing import SigningKey

from ztdeploy.core.bundle import sign_bundle
from ztdeploy.core.signature import SecretKey, secret_key


@dataclass(frozen=True)
class KeyPair:
    """The files of a pair of keys."""

    public: Path
    secret: Path

    @property
    def line(self) -> str:
        return self.public.read_text().splitlines()[1]

    @property
    def key(self) -> SecretKey:
        return secret_key(self.secret)


def key_pair(folder: Path, name: str, password: str | None = None) -> KeyPair:
    """A pair that the name alone decides. A password's scrypt takes 16 MiB and not, as minisign's, 1 GiB."""
    seed, id = hashlib.sha256(name.encode()).digest(), hashlib.sha256(b"id of " + name.encode()).digest()[:8]
    public = bytes(SigningKey(seed).verify_key)
    kdf, salt, operations, memory = b"\0\0", bytes(32), 0, 0
    body = id + seed + public + bytes(32)
    if password is not None:
        kdf, salt, operations, memory = b"Sc", hashlib.sha256(salt).digest(), 524288, 2**24  # libsodium's least
        body = body[:72] + hashlib.blake2b(b"Ed" + body[:72], digest_size=32).digest()
        stream = hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1, maxmem=2**26, dklen=len(body))
        body = bytes(one ^ other for one, other in zip(body, stream, strict=True))
    limits = operations.to_bytes(8, "little") + memory.to_bytes(8, "little")
    pair = KeyPair(folder / f"{name}.pub", folder / f"{name}.key")
    for path, data in ((pair.public, b"Ed" + id + public), (pair.secret, b"Ed" + kdf + b"B2" + salt + limits + body)):
        path.write_text(f"untrusted comment: {name}\n{base64.b64encode(data).decode()}\n")
    return pair


def signed(bundle: Path, pair: KeyPair) -> Path:
    sign_bundle(bundle, pair.key)
    return bundle
