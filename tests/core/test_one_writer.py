"""No module but those of `core` that do so writes files, makes folders or names temporary ones by itself."""

import ast
from pathlib import Path

import ztdeploy

PACKAGE = Path(ztdeploy.__file__).parent
WRITERS = {"core/files.py", "core/folders.py", "core/locks.py"}

#: Methods of paths. `replace` with one argument is `Path.replace`; text's has two.
METHODS = {"write_text", "write_bytes", "mkdir", "rmdir", "unlink", "rename", "touch", "symlink_to", "hardlink_to"}
METHODS |= {"chmod", "lchmod", "savez", "savez_compressed", "tofile", "extractall", "to_csv", "to_json", "save_model"}
MODULES = {"tempfile", "shutil", "fcntl"}
FUNCTIONS = {"open", "replace", "rename", "renames", "unlink", "remove", "removedirs", "rmdir", "mkdir", "makedirs"}
FUNCTIONS |= {"symlink", "link", "mkfifo", "truncate", "chmod", "chown", "utime", "mknod"}

HARMLESS = {"shutil.get_terminal_size", "shutil.disk_usage", "shutil.which"}

#: What looks like writing and is none, or what a library writes into a scratch folder of ours.
ALLOWED = {
    "jobs/golden.py": {"np.save", ".save"},  # into files of `writing`
    "jobs/graphs.py": {"np.savez"},
    "host/traces.py": {"np.savez"},  # into memory
    "target/evaluate/answers.py": {"np.savez"},  # into memory
    "report/kit/map_files.py": {".save"},  # into memory
    "report/kit/figure.py": {".save"},  # into memory
    "host/proof.py": {"ir.save"},  # into a scratch folder
    "jobs/export/parts.py": {"ir.save"},  # into a new folder
    "host/graph/ranges.py": {"ir.save"},  # into a scratch folder
    "cli/streams.py": {"os.open"},  # /dev/null
    "cli/help.py": {".write_text"},  # of a formatter of help
    "target/runtime/arrays.py": {".open", "np.save"},  # a member of an archive, for reading; into memory
}


def written(call: ast.Call) -> str | None:
    """What a call is, if it may write."""
    name, mode = call.func, [*call.args[1:2], *(one.value for one in call.keywords if one.arg == "mode")]
    if isinstance(name, ast.Name):
        return "open" if name.id == "open" and not reads(mode) else None
    if not isinstance(name, ast.Attribute):
        return None
    owner = name.value.id if isinstance(name.value, ast.Name) else ""
    if owner in MODULES or (owner == "os" and name.attr in FUNCTIONS):
        return f"{owner}.{name.attr}"
    if name.attr == "open":
        mode = [*call.args[:1], *(one.value for one in call.keywords if one.arg == "mode")]
        return None if owner == "Image" or reads(mode) else ".open"
    if name.attr in METHODS or name.attr == "save":
        return f"{owner if owner in ('np', 'ir', 'onnx') else ''}.{name.attr}"
    return ".replace" if name.attr == "replace" and len(call.args) == 1 and not call.keywords else None


def reads(mode: list[ast.expr]) -> bool:
    return all(isinstance(one, ast.Constant) and not set(str(one.value)) & set("wax+") for one in mode)


def test_nobody_else_writes():
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        calls = [one for one in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(one, ast.Call)]
        found[path.relative_to(PACKAGE).as_posix()] = {
            text for call in calls if (text := written(call)) is not None
        } - HARMLESS
    own = {name: found.pop(name) for name in WRITERS}
    assert all(own.values()), "the test sees what is there"
    more = {name: texts - ALLOWED.get(name, set()) for name, texts in found.items()}
    assert {name: texts for name, texts in more.items() if texts} == {}, "write through ztdeploy.core.files"
    assert {name for name in ALLOWED if ALLOWED[name] - found.get(name, set())} == set(), "allowed in vain"
