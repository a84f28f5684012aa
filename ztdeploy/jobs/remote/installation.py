"""ztdeploy on a board, in an environment of its own, in the version and with the code of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from ztdeploy.core.bundle import sha256_of
from ztdeploy.core.data import parse_json
from ztdeploy.core.errors import BoardError, InputError, OutputError
from ztdeploy.core.files import write
from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.records import Record
from ztdeploy.jobs.remote.programs import Ended
from ztdeploy.jobs.remote.ssh import VENV, Connection
from ztdeploy.jobs.remote.transfer import send_files
from ztdeploy.jobs.remote.wheel import WHEEL_NAME, wheel
from ztdeploy.target.board import BoardFacts

#: Where wheels go, below the home folder.
WHEELS = ".cache/ztdeploy/remote/wheels"
_LEAST = (3, 10)
#: What any Python 3 says of itself and of the wheels that are there; it is called by the board's own, which may be old.
_LOOK = """
import hashlib, json, os, platform, shutil, sys
def has(name):
    try:
        return bool(__import__(name))
    except Exception:
        return False
folder = os.path.join(os.path.expanduser("~"), sys.argv[1])
if not os.path.isdir(folder): os.makedirs(folder)
wheels = {}
for name in os.listdir(folder):
    with open(os.path.join(folder, name), "rb") as file: wheels[name] = hashlib.sha256(file.read()).hexdigest()
print(json.dumps({"python": list(sys.version_info[:2]), "machine": platform.machine(), "wheels": wheels,
    "venv": has("venv") and has("ensurepip"), "rsync": bool(getattr(shutil, "which", lambda name: None)("rsync"))}))
"""
_RUN = 'p=$1; shift; case "$p" in "~/"*) p="$HOME/${p#??}";; esac; exec "$p" "$@"'
#: Arguments: Python, the environment, "yes" for the system's packages, the wheels' folder, the wheel, its extras in
#: brackets, and "yes" where nothing comes from a network. An environment that is there stays; a new one goes where
#: something fails. The name "ztdeploy" is never looked up in an index.
_INSTALL = """
set -e
python=$1 venv="$HOME/$2" system=$3 wheels="$HOME/$4" wheel=$5 extras=$6 offline=$7
case "$python" in "~/"*) python="$HOME/${python#??}";; esac
pip() {
    if [ "$offline" = yes ]; then set -- --no-index --find-links "$wheels" "$@"; fi
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input install --no-warn-script-location "$@" >&2
}
new=
if ! [ -x "$venv/bin/python" ]; then
    new=yes
    mkdir -p "$(dirname "$venv")"
    trap 'if [ -n "$new" ]; then rm -rf "$venv"; fi' EXIT
    echo "making the environment" >&2
    if [ "$system" = yes ]; then "$python" -m venv --system-site-packages "$venv"; else "$python" -m venv "$venv"; fi
fi
pip --no-deps --force-reinstall "$wheels/$wheel"
pip "$wheels/$wheel$extras"
new=
"""


class _Look(Record):
    """What a board has before anything is installed."""

    python: tuple[int, int]
    machine: str
    venv: bool
    rsync: bool
    wheels: dict[str, str] = Field(default_factory=dict)  #: sha256 by name


def install(
    connection: Connection, *, wheels: Path | None = None, extras: Sequence[str] = (), system: bool = False
) -> BoardFacts:
    """Install this machine's ztdeploy into the board's own environment, which is made where there is none.

    Args:
        wheels: a folder with wheels of all that it requires, for boards without a network.
            (default: pip on the board fetches them)
        extras: such as "openvino".
        system: let a new environment see the packages of the system, such as JetPack's TensorRT.

    Raises:
        BoardError: the board cannot be reached, has no Python that will do, or pip fails; an environment that was there
            is still there.
        InputError: `wheels` holds none.
        OutputError: the board's disk is full.
    """
    found = look(connection)
    files = {path.name: path for path in sorted(wheels.glob("*.whl"))} if wheels is not None else {}
    if wheels is not None and not files:
        raise InputError(f"'{wheels}' holds no *.whl", "wheels for the board", "fetch them: pip download --dest DIR")
    with scratch_folder() as folder:
        own = folder / WHEEL_NAME
        write(own, wheel())
        files[WHEEL_NAME] = own
        missing = {name: path for name, path in files.items() if found.wheels.get(name) != sha256_of(path)}
        if missing:
            send_files(connection, missing, WHEELS, rsync=found.rsync)
    wanted = f"[{','.join(extras)}]" if extras else ""
    arguments = (VENV, _yes(system), WHEELS, WHEEL_NAME, wanted, _yes(bool(wheels)))
    connection.told("installing")
    words = ["sh", "-c", _INSTALL, "sh", connection.board.python, *arguments]
    ended = connection.run(words, heard=connection.told, watched=False)  # pip says nothing while it downloads
    if ended.code != 0:
        raise _failed(connection, ended, found, wheels)
    return connection.hello()


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def look(connection: Connection) -> _Look:
    """
    Raises:
        BoardError: the board cannot be reached, or its Python will not do.
    """
    python = connection.board.python
    ended = connection.run(["sh", "-c", _RUN, "sh", python, "-c", _LOOK, WHEELS])
    if ended.code in (126, 127):
        raise BoardError(
            f"board '{connection.name}' has no Python '{python}'",
            "Python 3.10 or newer",
            "install it there, or name another: ztdeploy remote add --python",
        )
    if ended.code != 0:
        raise BoardError(
            f"board '{connection.name}': {ended.last}", "a home folder that can be written", "free space there"
        )
    try:
        found = connection.as_record(_Look, parse_json(ended.out.decode()))
    except ValueError as error:
        raise BoardError(f"board '{connection.name}' answers no JSON ({error})", "JSON", "look at its shell") from error
    if found.python < _LEAST:
        raise BoardError(
            f"board '{connection.name}' has Python {'.'.join(map(str, found.python))} as '{python}'",
            "Python 3.10 or newer",
            "install it there, and name it: ztdeploy remote add --python",
        )
    if not found.venv:
        raise BoardError(
            f"the Python of board '{connection.name}' has no module venv", "venv", "run there: apt install python3-venv"
        )
    return found


def _failed(connection: Connection, ended: Ended, found: _Look, wheels: Path | None) -> BoardError | OutputError:
    if any("No space left" in line for line in ended.err):
        return OutputError(
            f"the disk of board '{connection.name}' is full: {ended.last}", "some 250 MB", "free space there"
        )
    why = next((line for line in reversed(ended.err) if line.startswith("ERROR: ")), ended.last)
    version = ".".join(map(str, found.python))
    return BoardError(
        f"pip failed on board '{connection.name}' (Python {version}, {found.machine}): {why}",
        "wheels for it" if wheels else "a network there",
        f"fetch wheels for {found.machine} into a folder, and give --wheels DIR",
    )
