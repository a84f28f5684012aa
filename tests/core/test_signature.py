"""Signatures: minisign's format, against minisign itself; what is no key; what a signature keeps out of a bundle."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.bundles import edit, linked_copy, rewrite
from helpers.processes import run_ztdeploy
from helpers.signing import KeyPair, key_pair, signed

import ztdeploy
from ztdeploy.core.bundle import MANIFEST, SIGNATURE, read_bundle, sign_bundle
from ztdeploy.core.errors import BundleError, InputError, MissingExtraError, SignatureError, ZtdeployError
from ztdeploy.core.signature import (
    VARIABLE,
    check_signature,
    demanding,
    public_key,
    public_keys,
    secret_key,
    signature_of,
)
from ztdeploy.target.finalize import finalize_bundle


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], KeyPair]:
    folder = tmp_path_factory.mktemp("keys")
    return lambda name: key_pair(folder, name)


@pytest.fixture
def fleet(keys: Callable[[str], KeyPair]) -> KeyPair:
    return keys("fleet")


@pytest.fixture
def signed_copy(digits_bundle: Path, fleet: KeyPair, tmp_path: Path) -> Path:
    """A copy of the shared bundle, of links, with a signature."""
    return signed(linked_copy(digits_bundle, tmp_path / "bundle"), fleet)


def minisign(*arguments: object, password: str = "") -> subprocess.CompletedProcess[str]:
    if shutil.which("minisign") is None:
        pytest.skip("no minisign here")
    command = ["minisign", *map(str, arguments)]
    return subprocess.run(command, input=password, capture_output=True, text=True, timeout=120)


# -------------------- the format


def test_minisign_takes_our_signatures(fleet: KeyPair, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "file.minisig").write_text(signature_of(b"content", fleet.key, "of ours\tümläut"))
    given = ("-V", "-H", "-P", fleet.line, "-m", tmp_path / "file")
    done = minisign(*given)
    assert done.returncode == 0, done.stderr
    assert "of ours\tümläut" in done.stdout
    (tmp_path / "file").write_bytes(b"Content")
    assert minisign(*given).returncode == 1


def test_we_take_minisigns_keys_and_signatures(tmp_path: Path) -> None:
    public, secret, file = tmp_path / "its.pub", tmp_path / "its.key", tmp_path / "file"
    file.write_bytes(b"content")
    for command in (("-G", "-W", "-p", public, "-s", secret), ("-S", "-s", secret, "-m", file, "-t", "of its own")):
        assert minisign(*command).returncode == 0
    key, text = public_key(public), (tmp_path / "file.minisig").read_bytes()
    assert check_signature("file", b"content", text, [key]).comment == "of its own"
    assert key.number in public.read_text(), "numbers are written as minisign writes them"
    assert secret_key(secret).public == key == public_key(key.line)
    assert minisign("-S", "-l", "-s", secret, "-m", file).returncode == 0
    with pytest.raises(SignatureError, match="older kind"):
        check_signature("file", b"content", (tmp_path / "file.minisig").read_bytes(), [key])


@pytest.mark.long
def test_we_open_minisigns_passwords(tmp_path: Path) -> None:
    """As slowly as minisign does, with 1 GB."""
    public, secret = tmp_path / "its.pub", tmp_path / "its.key"
    assert minisign("-G", "-p", public, "-s", secret, password="pässword\npässword\n").returncode == 0
    assert secret_key(secret, lambda: "pässword").public == public_key(public)


def test_a_password_opens_its_key_alone(fleet: KeyPair, tmp_path: Path) -> None:
    locked = key_pair(tmp_path, "fleet", "open")
    assert secret_key(locked.secret, lambda: "open") == fleet.key
    with pytest.raises(InputError, match="does not open"):
        secret_key(locked.secret, lambda: "Open")
    with pytest.raises(InputError, match="protected by a password"):
        secret_key(locked.secret)
    assert fleet.key.seed.hex()[:8] not in repr(fleet.key)


def test_every_part_of_a_signature_counts(fleet: KeyPair) -> None:
    """Another bit, line or length anywhere but in the untrusted comment is refused, and never anything but that."""
    text = signature_of(b"content", fleet.key, "words")
    lines = text.splitlines()
    damaged = {text.replace("words", "Words"), text.replace("words", ""), "", "\n" * 4, text * 2, "\n".join(lines[:3])}
    for at, length in ((1, 74), (3, 64)):
        for byte in (*range(0, length, 7), length - 1):
            data = bytearray(base64.b64decode(lines[at]))
            data[byte] ^= 1
            damaged.add(text.replace(lines[at], base64.b64encode(bytes(data)).decode()))
        damaged |= {text.replace(lines[at], cut) for cut in ("", lines[at][:-4], lines[at] + "AAAA", "!" * 100)}
    for one in (*(one.encode() for one in damaged), b"\xff" * 100, b"\0" * 300):
        with pytest.raises(SignatureError):
            check_signature("it", b"content", one, [fleet.key.public])
    assert (
        check_signature("it", b"content", text.replace(lines[0], "x").encode(), [fleet.key.public]).comment == "words"
    )
    with pytest.raises(SignatureError):
        check_signature("it", b"contents", text.encode(), [fleet.key.public])


def test_one_of_several_keys_will_do(keys: Callable[[str], KeyPair]) -> None:
    text = signature_of(b"content", keys("new").key, "").encode()
    both = [keys("old").key.public, keys("new").key.public]
    assert check_signature("it", b"content", text, both).key == both[1].number
    with pytest.raises(
        SignatureError, match=f"signed by key {both[1].number}; expected a signature by {both[0].number}"
    ):
        check_signature("it", b"content", text, both[:1])


@pytest.mark.parametrize("content", [b"", b"\0" * 500, b"x" * 10_000, b"RW\xff\xff", b"untrusted comment: x\nRWQ=\n"])
def test_what_is_no_key_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    for read in (public_key, secret_key):
        with pytest.raises(InputError):
            read(path)
    for given in ("", "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO", []):
        with pytest.raises(InputError):
            public_keys(given)


def test_a_secret_key_is_no_public_one(fleet: KeyPair) -> None:
    with pytest.raises(InputError, match="holds no public key"):
        public_key(fleet.secret)
    with pytest.raises(InputError, match="holds no secret key"):
        secret_key(fleet.public)


# -------------------- bundles


def test_a_signed_bundle_runs(signed_copy: Path, fleet: KeyPair, keys: Callable[[str], KeyPair]) -> None:
    for given in (fleet.public, fleet.line, str(fleet.public), [keys("other").public, fleet.line]):
        with ztdeploy.load(signed_copy, signed_by=given) as runner:
            assert runner(next((signed_copy / "golden").glob("*.png")))[0].label
    opened = read_bundle(signed_copy, public_keys(fleet.line))
    assert opened.signature is not None
    assert f"built:{opened.manifest.created}" in opened.signature.comment


def weights(manifest: Any) -> str:
    return "graphs/weights.safetensors"


def append(path: Path, content: bytes) -> None:
    before = path.read_bytes()
    path.unlink()  # others have links to it
    path.write_bytes(before + content)


#: What somebody may do to a signed bundle on its way.
TAMPERED: dict[str, Callable[[Path], object]] = {
    "no signature": lambda bundle: (bundle / SIGNATURE).unlink(),
    "empty signature": lambda bundle: (bundle / SIGNATURE).write_text(""),
    "large signature": lambda bundle: append(bundle / SIGNATURE, b"\n" * 2**20),
    "endless signature": lambda bundle: ((bundle / SIGNATURE).unlink(), os.mkfifo(bundle / SIGNATURE)),
    "signature that is a folder": lambda bundle: ((bundle / SIGNATURE).unlink(), (bundle / SIGNATURE).mkdir()),
    "another's signature": lambda bundle: signed(bundle, key_pair(bundle.parent, "stranger")),
    "manifest of the same meaning": lambda bundle: append(bundle / MANIFEST, b"\n"),
    "manifest that names other weights": lambda bundle: rewrite(bundle, "graphs/weights.safetensors", b"others"),
    "other default": lambda bundle: edit(bundle, lambda manifest: manifest.update(default_variant="dense")),
    "manifest that is no JSON": lambda bundle: append(bundle / MANIFEST, b"{"),
    "other weights": lambda bundle: append(bundle / "graphs/weights.safetensors", b"\0"),
    "other classes": lambda bundle: append(bundle / "classes.txt", b"\n"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_what_was_changed_is_refused(name: str, signed_copy: Path, fleet: KeyPair) -> None:
    """Whatever `verify=False` says, and by programs as well; nothing that was not signed is parsed."""
    TAMPERED[name](signed_copy)
    with pytest.raises(BundleError) as refused:
        ztdeploy.load(signed_copy, signed_by=fleet.public, verify=False)
    files = name in ("other weights", "other classes")
    assert files != isinstance(refused.value, SignatureError)
    done = run_ztdeploy("verify", signed_copy, "--signed-by", fleet.public, cwd=signed_copy.parent)
    assert (done.code, done.err.count("error:")) == (4, 1), done.err


def test_the_environment_demands_for_all(
    signed_copy: Path,
    digits_bundle: Path,
    fleet: KeyPair,
    keys: Callable[[str], KeyPair],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with demanding([keys("other").line, fleet.line]):
        assert read_bundle(signed_copy).signature is not None
        for refused in (lambda: read_bundle(digits_bundle), lambda: ztdeploy.load(digits_bundle)):
            with pytest.raises(SignatureError, match="is not signed"):
                refused()
        with pytest.raises(InputError, match="demands signatures"):
            ztdeploy.build("vit_digits", out=signed_copy.parent / "new")
        with pytest.raises(SignatureError):  # what a call demands counts alone
            ztdeploy.load(signed_copy, signed_by=keys("other").public)
    assert read_bundle(digits_bundle).signature is None
    for wrong in ("", ":", "nobody.pub"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(InputError):
            read_bundle(signed_copy)


def test_workers_inherit_the_demand(signed_copy: Path, digits_bundle: Path, fleet: KeyPair) -> None:
    """`bench` times engines in processes of their own, which read the bundle again."""
    report = ztdeploy.bench(signed_copy, iterations=1, rounds=1, warmup=0, signed_by=fleet.public)
    assert report.configurations[0].failure is None
    assert VARIABLE not in os.environ
    append(signed_copy / read_bundle(signed_copy).manifest.dense.engines["cpu"].file, b"\0")
    with pytest.raises(ZtdeployError):
        ztdeploy.bench(signed_copy, iterations=1, rounds=1, warmup=0, signed_by=fleet.public)


def test_without_the_library_nothing_is_accepted(
    signed_copy: Path, fleet: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    demanded = public_keys(fleet.line)
    monkeypatch.setitem(__import__("sys").modules, "nacl", None)
    with pytest.raises(MissingExtraError, match=r"ztdeploy\[sign\]"):
        read_bundle(signed_copy, demanded)


def test_what_changes_a_bundle_takes_its_signature(
    signed_copy: Path, fleet: KeyPair, keys: Callable[[str], KeyPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale signature is never left; where one is demanded, only who may sign can change the bundle."""
    device, before = keys("device"), (signed_copy / MANIFEST).read_bytes()
    with demanding([fleet.line, device.line]):
        for signer in (None, keys("other").key):
            with pytest.raises(InputError, match="whose signed manifest changes"):
                finalize_bundle(signed_copy, lambda *_: None, profile="cpu", signer=signer)
        assert (signed_copy / MANIFEST).read_bytes() == before
        finalize_bundle(signed_copy, lambda *_: None, profile="cpu", signer=device.key)
        opened = read_bundle(signed_copy)
        assert opened.signature is not None
        assert opened.signature.key == device.key.public.number
        opened.verify_files()
    report = finalize_bundle(signed_copy, lambda *_: None, profile="cpu")
    assert not (signed_copy / SIGNATURE).exists()
    assert any("signature is gone" in line for line in report.notes)


def test_figures_do_not_go_into_a_signed_bundle(
    signed_copy: Path, fleet: KeyPair, digit_images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for image in digit_images[:4]:
        shutil.copy(image, tmp_path / "photos")
    done = run_ztdeploy("eval", signed_copy, "--data", "photos", "--signed-by", fleet.public, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "not written into it" in done.err
    assert read_bundle(signed_copy, public_keys(fleet.line)).signature is not None


def test_a_damaged_bundle_is_not_signed(signed_copy: Path, fleet: KeyPair) -> None:
    before = (signed_copy / SIGNATURE).read_bytes()
    append(signed_copy / "graphs/weights.safetensors", b"\0")
    with pytest.raises(BundleError, match="has changed"):
        sign_bundle(signed_copy, fleet.key)
    assert (signed_copy / SIGNATURE).read_bytes() == before


def test_the_verb_signs(digits_bundle: Path, tmp_path: Path) -> None:
    linked_copy(digits_bundle, tmp_path / "bundle")
    locked = key_pair(tmp_path, "locked", "open")
    (tmp_path / "password").write_text("open\n")
    command = ("sign", "bundle", "--key", locked.secret, "--comment", "release 1.4", "--json")
    done = run_ztdeploy(*command, cwd=tmp_path)
    assert done.code == 3, "there is no terminal to ask in"
    done = run_ztdeploy(*command, "--password-file", "password", cwd=tmp_path)
    assert (done.code, json.loads(done.out)["result"]["key"]) == (0, public_key(locked.public).number), done.err
    assert read_bundle(tmp_path / "bundle", public_keys(locked.line)).signature is not None
    for wrong in ("release\n1", "x" * 5000):
        assert run_ztdeploy(*command[:4], "--comment", wrong, "--password-file", "password", cwd=tmp_path).code == 3
