"""Installing: programs load the old bundle or the new one, whatever happens meanwhile and whenever power goes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.bundles import edit, linked_copy, rewrite
from helpers.errors import refused
from helpers.leftovers import dead_folder, leftovers
from helpers.places import mounted
from helpers.processes import run_ztdeploy
from helpers.signing import KeyPair, key_pair, signed

import ztdeploy
from ztdeploy.core.bundle import SIGNATURE, read_bundle
from ztdeploy.core.errors import (
    BundleError,
    EngineMismatchError,
    EnvironmentLacksError,
    InputError,
    OutputError,
    ParityError,
    SignatureError,
)
from ztdeploy.core.files import new_name
from ztdeploy.core.locks import only_writer
from ztdeploy.core.manifest import ParityRecord
from ztdeploy.core.progress import silent
from ztdeploy.core.signature import demanding
from ztdeploy.target import install as installing
from ztdeploy.target.install import InstallReport, install_bundle, roll_back
from ztdeploy.target.verify import VerifyReport

OLD, NEW = "2026-01-01T00:00:00+00:00", "2026-02-01T00:00:00+00:00"


def built(bundle: Path, at: str, **changes: object) -> Path:
    return edit(bundle, lambda manifest: manifest.update(created=at, **changes))


@pytest.fixture
def old(digits_bundle: Path, tmp_path: Path) -> Path:
    return built(linked_copy(digits_bundle, tmp_path / "old"), OLD)


@pytest.fixture
def new(digits_bundle: Path, tmp_path: Path) -> Path:
    return built(linked_copy(digits_bundle, tmp_path / "new"), NEW)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "models" / "door"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks of files stand for the run on golden data, which writes nothing; other tests have the real one."""

    def checked(root: Path, profile: str | None, progress: object) -> VerifyReport:
        bundle = read_bundle(root)
        bundle.verify_files()
        parity = bundle.manifest.dense.engines["cpu"].parity
        assert isinstance(parity, ParityRecord)
        return VerifyReport(files=1, variants={"dense": parity}, not_run={}, signature=bundle.signature)

    monkeypatch.setattr(installing, "verify_bundle", checked)


@pytest.fixture
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the disk: what a killed process has written is there for others all the same."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def installed(bundle: Path, place: Path, **options: Any) -> InstallReport:
    return install_bundle(bundle, place, silent, **options)


def in_use(place: Path) -> str:
    """When the bundle was built that programs load now; it is whole."""
    bundle = read_bundle(place)
    bundle.verify_files()
    return bundle.manifest.created


def answers(place: Path) -> bool:
    with ztdeploy.load(place) as runner:
        return runner(next((place / "golden").glob("*.png")))[0].label is not None


# -------------------- what it is for


def test_an_update_and_the_way_back(old: Path, new: Path, place: Path, digit_images: list[Path]) -> None:
    """With the real runtime. A program that has the old one open goes on, and opens more of it."""
    assert installed(old, place).version.previous is None
    with ztdeploy.load(place, variant="dense") as runner:
        before = runner(digit_images[0])[0].logits.tobytes()
        report = installed(new, place)
        assert (report.version.previous, report.changed, in_use(place)) == (1, True, NEW)
        shutil.rmtree(new)  # a copy needs nothing else
        assert answers(place)
        runner.switch(0.5)
        runner.switch(variant="dense")
        assert runner(digit_images[0])[0].logits.tobytes() == before
    assert roll_back(place, silent).version.number == 1
    assert in_use(place) == OLD
    assert answers(place)
    with pytest.raises(InputError, match="no earlier version"):
        roll_back(place, silent)
    assert not installed(old, place).changed, "what is in use already is not installed again"
    assert {one.name for one in place.parent.iterdir()} == {"door", "door.versions"}
    assert not leftovers(place.parent)


@pytest.mark.usefixtures("quick")
def test_two_versions_stay(old: Path, new: Path, place: Path) -> None:
    newest = built(linked_copy(new, new.with_name("newest")), "2026-03-01T00:00:00+00:00")
    for one in (old, new, newest):
        installed(one, place)
    versions = place.with_name("door.versions")
    assert sorted(one.name for one in versions.iterdir()) == ["2", "3"]
    roll_back(place, silent)
    assert in_use(place) == NEW
    assert installed(newest, place).version.number == 4, "a number is never given twice while anybody may use it"
    assert sorted(one.name for one in versions.iterdir()) == ["2", "4"]
    record = json.loads((versions / "4" / "install.json").read_text())
    assert (record["previous"], record["built"]) == (2, "2026-03-01T00:00:00+00:00")


# -------------------- loss of power

#: What changes a file system, of what Python reports ahead of doing it.
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate"}
Operation = tuple[str, ...]


def observed(
    act: Callable[[], object],
    folder: Path,
    *,
    die_at: int | None = None,
    ahead: Callable[[int], object] = lambda _: None,
) -> list[Operation] | None:
    """What a child process does to the file system while it acts, up to the operation at which it dies.

    Args:
        ahead: called ahead of each operation with its number.
    """
    report = folder / new_name()
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if die_at is not None and code == 9:
            return None
        assert code == 0
        found = [tuple(one) for one in json.loads(report.read_text())]
        report.unlink()
        return found
    done, listening = list[Operation](), True

    def note(event: str, *paths: object) -> None:
        nonlocal listening
        if not listening:
            return
        if len(done) == die_at:
            os._exit(9)
        listening = False
        ahead(len(done))
        listening = True
        done.append((event, *(str(one) for one in paths if isinstance(one, str | os.PathLike))))

    def hook(event: str, given: tuple[Any, ...]) -> None:
        opens = event == "open" and isinstance(given[0], str | os.PathLike)  # and is no file that is open already
        if event in CHANGES or (opens and given[2] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)):
            note(event, *given)

    sync = os.fsync

    def synced(descriptor: int) -> None:
        note("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    os.fsync = synced  # type: ignore[assignment]
    sys.addaudithook(hook)
    code = 1
    try:
        act()
        listening = False
        report.write_text(json.dumps(done))
        code = 0
    finally:
        os._exit(code)


def telling(operations: list[Operation]) -> list[int]:
    """Which operations to die at: all that differ in kind, and some of those that copy one file after the other."""
    kinds, chosen = dict[Operation, int](), list[int]()
    for at, (event, *paths) in enumerate(operations):
        copies = any("/new/door/" in path for path in paths)
        kind = (event, "a file of the copy") if copies else (event, *paths)
        kinds[kind] = kinds.get(kind, 0) + 1
        if not copies or kinds[kind] in (1, 20):
            chosen.append(at)
    return chosen


@pytest.mark.usefixtures("quick", "no_disk")
@pytest.mark.parametrize(
    ("start", "every"),
    [
        ("an older one", False),
        *(pytest.param(one, False, marks=pytest.mark.long) for one in ("nothing", "two older ones", "rolled back")),
        pytest.param("an older one", True, marks=pytest.mark.long),
    ],
)
def test_power_may_go_at_any_moment(start: str, every: bool, old: Path, new: Path, tmp_path: Path) -> None:
    """Killed ahead of each operation on files, an update leaves what was there or the new one, and the next works."""
    ready = tmp_path / "ready"
    ready.mkdir()
    before = None if start == "nothing" else OLD
    newest = built(linked_copy(new, tmp_path / "newest"), "2026-03-01T00:00:00+00:00")
    if start == "two older ones":
        installed(built(linked_copy(old, tmp_path / "oldest"), "2025-01-01T00:00:00+00:00"), ready / "door")
    if before:
        installed(old, ready / "door")
    if start == "rolled back":
        installed(newest, ready / "door")
        roll_back(ready / "door", silent)

    def fresh(name: str) -> Path:
        return Path(shutil.copytree(ready, tmp_path / name, symlinks=True, copy_function=os.link)) / "door"

    whole = fresh("whole")
    operations = observed(lambda: installed(new, whole), tmp_path)
    assert operations is not None
    moments = list(range(len(operations))) if every else telling(operations)
    assert in_use(whole) == NEW
    seen = set[str | None]()
    for at in moments:
        place = fresh(f"at {at}")
        assert observed(lambda place=place: installed(new, place), tmp_path, die_at=at) is None  # type: ignore[misc]
        found = in_use(place) if place.is_symlink() else None
        assert found in (before, NEW), operations[at]
        seen.add(found)
        assert installed(new, place).version.built == NEW, operations[at]
        assert in_use(place) == NEW
        assert not leftovers(place.parent)
        kept = {one.name for one in place.with_name("door.versions").iterdir()}
        assert len(kept) == (1 if before is None else 2), operations[at]
        if before:
            roll_back(place, silent)
            assert in_use(place) == before
    assert seen == {before, NEW}, "some died before, some after the new one took its place"


@pytest.mark.usefixtures("quick", "no_disk")
def test_power_may_go_while_going_back(old: Path, new: Path, tmp_path: Path) -> None:
    for one in (old, new):
        installed(one, tmp_path / "ready" / "door")
    for at in range(100):
        copy = shutil.copytree(tmp_path / "ready", tmp_path / f"at {at}", symlinks=True, copy_function=os.link)
        done = observed(lambda copy=copy: roll_back(copy / "door", silent), tmp_path, die_at=at)  # type: ignore[misc]
        assert in_use(copy / "door") in ((OLD,) if done else (OLD, NEW))
        if done:
            assert at > 3
            return
    pytest.fail("a rollback of a hundred operations")


@pytest.mark.usefixtures("quick")
def test_all_is_on_the_disk_before_the_link_leads_to_it(old: Path, new: Path, place: Path, tmp_path: Path) -> None:
    """A killed process shows no missing fsync: the order is held against what file systems promise."""
    for bundle in (old, new):
        operations = observed(lambda bundle=bundle: installed(bundle, place), tmp_path)  # type: ignore[misc]
        assert operations is not None
        versions = place.with_name("door.versions")
        number = read_bundle(place).root.parent.name
        synced = {one[1]: at for at, one in enumerate(operations) if one[0] == "fsync"}
        moves = {one[2]: (at, one[1]) for at, one in enumerate(operations) if one[0] == "os.rename"}
        moved, staged = moves[str(versions / number)]
        linked, _ = moves[str(place)]
        (made,) = (at for at, one in enumerate(operations) if one[0] == "os.symlink")
        for home, folders, files in os.walk(versions / number):
            for one in (".", *folders, *files):
                path = str((Path(home) / one).relative_to(versions / number))
                before = str(Path(staged) / path)
                written = moves.get(before, (-1, ""))[0]
                assert written < synced[before] < moved, path
        assert moved < synced[str(versions)] < linked
        parents = [at for at, one in enumerate(operations) if one == ("fsync", str(place.parent))]
        assert any(made < at < linked for at in parents), "the new link, before it takes the place of the old one"
        assert any(at > linked for at in parents)
        removed = [at for at, one in enumerate(operations) if one[0] == "os.remove" and "door.versions/1" in one[1]]
        assert all(at > parents[-1] for at in removed), "the old one stays until the new one is there for good"


@pytest.mark.long
@pytest.mark.usefixtures("quick")
def test_power_may_go_at_any_moment_on_ext4(old: Path, new: Path, tmp_path: Path) -> None:
    """What a real file system has on its disk ahead of each operation is, mounted again, the old bundle or the new."""
    disk, image, plain = tmp_path / "disk", tmp_path / "image", tmp_path / "plain" / "door"
    place = disk / "models" / "door"
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4 here")
    installed(old, plain)
    operations = observed(lambda: installed(new, plain), tmp_path)
    assert operations is not None
    moments = [*telling(operations), len(operations)]
    with image.open("wb") as file:
        file.truncate(64 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    disk.mkdir()

    def keep(at: int) -> None:
        if at in moments:
            shutil.copyfile(image, f"{image}.{at}")

    mounted("-o", "loop", image, disk)
    try:
        installed(old, place)
        again = observed(lambda: installed(new, place), tmp_path, ahead=keep)
        assert len(again or ()) == len(operations)
        keep(len(operations))
    finally:
        subprocess.run(["umount", disk], check=True)
    found = list[str]()
    for at in moments:
        mounted("-o", "loop", f"{image}.{at}", disk)
        try:
            found.append(in_use(place))
        finally:
            subprocess.run(["umount", disk], check=True)
    assert found == [OLD] * found.count(OLD) + [NEW] * found.count(NEW)
    assert found[0] == OLD
    assert found[-1] == NEW, "once the command has ended, the update stays"


# -------------------- bad input


@pytest.mark.usefixtures("quick")
def test_two_installs_at_once(old: Path, new: Path, place: Path) -> None:
    installed(old, place)
    with only_writer(place.with_name("door.versions")), pytest.raises(OutputError, match="another install"):
        installed(new, place)
    assert in_use(place) == OLD


def a_file(place: Path) -> None:
    place.write_text("mine")


def a_folder(place: Path) -> None:
    place.mkdir()
    (place / "mine").touch()


def a_link(place: Path) -> None:
    (place.parent / "elsewhere").mkdir()
    place.symlink_to("elsewhere")


def a_file_of_versions(place: Path) -> None:
    place.with_name("door.versions").write_text("mine")


def a_link_of_versions(place: Path) -> None:
    (place.parent / "elsewhere").mkdir()
    place.with_name("door.versions").symlink_to("elsewhere")


@pytest.mark.parametrize("prepare", [a_file, a_folder, a_link, a_file_of_versions, a_link_of_versions])
def test_what_install_did_not_make_is_left_alone(prepare: Callable[[Path], None], new: Path, place: Path) -> None:
    place.parent.mkdir()
    prepare(place)
    before = sorted(place.parent.rglob("*"))
    with pytest.raises(OutputError):
        installed(new, place)
    assert sorted(place.parent.rglob("*")) == before


def test_a_bundle_as_it_was_built_is_no_install(new: Path) -> None:
    """Nothing that somebody copied there is replaced."""
    before = in_use(new)
    with pytest.raises(OutputError, match="did not make"):
        installed(new, new)
    assert in_use(new) == before


def damaged(bundle: Path) -> None:
    path = bundle / "graphs" / "weights.safetensors"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])


def wrong(bundle: Path) -> None:
    """Consistent, and not what PyTorch computed."""
    manifest = read_bundle(bundle).manifest
    name, other = (manifest.golden.outputs[variant] for variant in ("dense", "keep-0.50"))
    with_kept = (bundle / other).read_bytes()
    rewrite(bundle, name, with_kept)


def of_others(bundle: Path) -> None:
    """Only for boards that this machine is not."""

    def change(manifest: Any) -> None:
        for part in manifest["variants"]:
            part["engines"].pop("cpu")
        for table in ("profiles", "blocks"):
            manifest[table].pop("cpu", None)
        for part in manifest["variants"]:
            part["graphs"].pop("cpu")

    edit(bundle, change)


def ancient(bundle: Path) -> None:
    built(bundle, "2020-01-01T00:00:00+00:00")


def dateless(bundle: Path) -> None:
    built(bundle, "once upon a time")


def another_model(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["model"].update(name="another"))


FAULTS: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "damaged": (damaged, BundleError, "has changed"),
    "wrong": (wrong, (BundleError, ParityError), ""),  # type: ignore[dict-item]
    "of others": (of_others, EnvironmentLacksError, "runs here"),
    "ancient": (ancient, InputError, "add --older"),
    "dateless": (dateless, InputError, "add --older"),
    "another model": (another_model, InputError, "add --force"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_used_changes_nothing(name: str, old: Path, new: Path, place: Path) -> None:
    prepare, error, words = FAULTS[name]
    installed(old, place)
    prepare(new)
    before = sorted(place.parent.rglob("*"))
    with pytest.raises(error, match=words):
        installed(new, place, **({"force": True} if name == "of others" else {}))
    assert sorted(place.parent.rglob("*")) == before
    assert in_use(place) == OLD


@pytest.mark.usefixtures("quick")
def test_what_is_told_is_done(old: Path, new: Path, place: Path) -> None:
    installed(new, place)
    with pytest.raises(InputError, match="before the one in use"):
        installed(old, place)
    assert installed(old, place, older=True).changed
    another_model(new)
    assert installed(new, place, force=True).version.model == "another"
    assert installed(new, place, force=True).version.number == 4


@pytest.mark.usefixtures("quick")
def test_a_damaged_one_in_use_is_replaced(old: Path, new: Path, place: Path) -> None:
    installed(new, place)
    damaged(place.resolve())
    report = installed(new, place)
    assert (report.changed, in_use(place)) == (True, NEW)
    (place.resolve() / "manifest.json").write_text("{")
    report = installed(old, place)
    assert (in_use(place), len(report.notes)) == (OLD, 1)


@pytest.mark.usefixtures("quick")
def test_a_link_to_nothing_is_mended(old: Path, place: Path) -> None:
    installed(old, place)
    shutil.rmtree(place.resolve().parent)
    report = installed(old, place)
    assert (report.version.number, report.version.previous, in_use(place)) == (2, None, OLD)


@pytest.mark.usefixtures("quick")
def test_a_disk_that_fails_at_last_leaves_what_the_link_leads_to(
    old: Path, new: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(old, place)
    sync = os.fsync

    def fails(descriptor: int) -> None:
        if in_use(place) == NEW:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OutputError):
        installed(new, place)
    assert in_use(place) == NEW


@pytest.mark.usefixtures("quick")
def test_nothing_is_left_where_nothing_was(new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged(new)
    with pytest.raises(BundleError):
        installed(new, tmp_path / "deep" / "models" / "door")
    assert not (tmp_path / "deep").exists()


@pytest.mark.usefixtures("quick")
def test_there_is_no_space(old: Path, new: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known ahead, or found out while copying."""
    installed(old, place)
    before = sorted(place.parent.rglob("*"))
    full = shutil.disk_usage(place)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: full)
        with pytest.raises(OutputError, match="free space"):
            installed(new, place)

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", fails)
        with pytest.raises(OutputError, match="the disk is full"):
            installed(new, place)
    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", fails)
        with pytest.raises(OutputError, match="the disk is full"):
            installed(new, place)
    assert sorted(place.parent.rglob("*")) == before
    assert in_use(place) == OLD


@pytest.mark.usefixtures("quick")
def test_another_file_system(old: Path, new: Path, tmp_path: Path) -> None:
    """The bundle lies on one, what programs load on another; the versions on a third."""
    home = tmp_path / "disk"
    home.mkdir()
    mounted("-t", "tmpfs", "none", home)
    try:
        versions = home / "door.versions"
        versions.mkdir()
        mounted("-t", "tmpfs", "none", versions)
        try:
            for bundle, at in ((old, OLD), (new, NEW)):
                installed(bundle, home / "door")
                assert in_use(home / "door") == at
        finally:
            os.system(f"umount '{versions}'")
    finally:
        os.system(f"umount '{home}'")


@pytest.mark.usefixtures("quick")
def test_what_others_left_is_not_touched(old: Path, new: Path, place: Path) -> None:
    """Only our own leftovers go."""
    installed(old, place)
    (place.parent / new_name()).symlink_to("elsewhere")
    (place.with_name("door.versions") / "notes.txt").write_text("mine")
    dead_folder(place.with_name("door.versions"))
    installed(new, place)
    assert len(leftovers(place.parent)) == 1
    assert (place.with_name("door.versions") / "notes.txt").exists()


def test_the_command_line(old: Path, place: Path, tmp_path: Path) -> None:
    for arguments, code in (
        (("--to", place), 3),
        ((old, "--rollback", "--to", place), 3),
        (("--rollback", "--to", place), 3),
        ((tmp_path / "nothing", "--to", place), 3),
        ((old, "--to", place, "--signed-by", "nobody.pub"), 3),
        ((old, "--to", place, "--profile", "nobody"), 3),
        ((old,), 2),
    ):
        done = run_ztdeploy("install", *arguments, cwd=tmp_path)
        assert (done.code, done.err.count("error:"), place.parent.exists()) == (code, 1, False), done.err
    done = run_ztdeploy("install", old, "--to", place, "--json", cwd=tmp_path)
    assert (done.code, json.loads(done.out)["result"]["version"]["number"]) == (0, 1)


# -------------------- signatures


@pytest.fixture
def fleet(tmp_path: Path) -> KeyPair:
    return key_pair(tmp_path, "fleet")


@pytest.mark.usefixtures("quick")
def test_only_what_is_signed_is_installed(old: Path, new: Path, place: Path, fleet: KeyPair, tmp_path: Path) -> None:
    with demanding(fleet.line):
        assert installed(signed(old, fleet), place).signature is not None
        for prepare in (lambda: None, lambda: signed(new, key_pair(tmp_path, "stranger"))):
            prepare()
            with pytest.raises(SignatureError):
                installed(new, place)
        damaged(signed(new, fleet))
        with pytest.raises(BundleError):
            installed(new, place)
        assert in_use(place) == OLD


def test_engines_of_a_device_are_signed_by_the_device(
    old: Path, new: Path, place: Path, fleet: KeyPair, tmp_path: Path
) -> None:
    """What is built here changes the manifest; it is demanded, too, so it must be signed, before programs load it."""
    device = key_pair(tmp_path, "device")

    def without_engines(manifest: Any) -> None:
        for part in manifest["variants"]:
            part["engines"].pop("cpu")

    signed(edit(new, without_engines), fleet)
    with demanding([fleet.line, device.line]):
        with pytest.raises(InputError, match="no key to sign it again"):
            installed(new, place)
        assert not place.parent.exists()
        report = installed(new, place, signer=device.key)
        assert report.signature is not None
        assert report.signature.key == device.key.public.number
        assert report.finalized is not None
        assert len(report.finalized.rebuilt) == 3
        assert answers(place)
        assert not installed(new, place).changed, "the release is known by what was signed elsewhere"
    report = installed(built(new, "2026-04-01T00:00:00+00:00"), place)
    assert report.signature is None
    assert not (place / SIGNATURE).exists(), "the old signature is not of what was built here"


def test_engines_of_another_runtime_are_built_again(old: Path, place: Path) -> None:
    def other(manifest: Any) -> None:
        for part in manifest["variants"]:
            part["engines"]["cpu"]["fingerprint"]["runtime_version"] = "1.0.0"

    refused(lambda: installed(edit(old, other), place), "add --finalize", kind=EngineMismatchError)
    assert installed(old, place, finalize=True).finalized is not None
    assert answers(place)
