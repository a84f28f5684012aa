"""A wheel of the ztdeploy that is installed here, made without a network or a build tool."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from ztdeploy.core.errors import EnvironmentLacksError
from ztdeploy.core.profile import data_folder
from ztdeploy.version import __version__

WHEEL_NAME = f"ztdeploy-{__version__}-py3-none-any.whl"
#: Folders of data that lie inside the package in a wheel, and beside it in a checkout.
_DATA = ("profiles", "plugins", "cpp", "schemas")
#: The same bytes whenever it is made.
_DATE = (1980, 1, 1, 0, 0, 0)


def wheel() -> bytes:
    """
    Raises:
        EnvironmentLacksError: ztdeploy runs here without being installed.
    """
    package, facts = Path(__file__).parents[2], f"ztdeploy-{__version__}.dist-info"
    files = {f"ztdeploy/{name}": path.read_bytes() for name, path in _files(package).items()}
    for folder in _DATA:
        files |= {
            f"ztdeploy/data/{folder}/{name}": path.read_bytes() for name, path in _files(data_folder(folder)).items()
        }
    files |= {f"{facts}/{name}": text.encode() for name, text in _metadata().items()}
    record = io.StringIO()
    csv.writer(record, lineterminator="\n").writerows(
        [
            *((name, f"sha256={_digest(content)}", len(content)) for name, content in files.items()),
            (f"{facts}/RECORD", "", ""),
        ]
    )
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**files, f"{facts}/RECORD": record.getvalue().encode()}.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, content)
    return made.getvalue()


def _files(folder: Path) -> Mapping[str, Path]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path for path in found}


def _metadata() -> dict[str, str]:
    """What the installed distribution says of itself, with the version of the code that runs."""
    try:
        known = distribution("ztdeploy")
        metadata, commands = known.read_text("METADATA"), known.read_text("entry_points.txt")
    except PackageNotFoundError:
        metadata = commands = None
    if not metadata or not commands:
        raise EnvironmentLacksError(
            "ztdeploy runs here without being installed",
            "an installed package",
            "run: pip install -e . in the checkout",
        )
    return {
        "METADATA": re.sub(r"(?m)^Version: .*$", f"Version: {__version__}", metadata, count=1),
        "WHEEL": "Wheel-Version: 1.0\nGenerator: ztdeploy\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "entry_points.txt": commands,
    }


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
