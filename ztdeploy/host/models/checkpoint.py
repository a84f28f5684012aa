"""Read weights from untrusted files: no code in a file is ever run.

The claims of a file are checked first: its tables of tensors, their names, sizes, types and offsets. Only then memory
is allocated, and at most twice the size of the file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor, nn

from ztdeploy.core.errors import CheckpointError
from ztdeploy.core.files import open_regular, reason_of
from ztdeploy.core.kernel_files import kibibytes, table
from ztdeploy.core.text import first_line
from ztdeploy.host.models.inert_pickle import Made, Named
from ztdeploy.host.models.stored_tensors import StoredTensor, safetensors
from ztdeploy.host.models.torch_file import read_torch_file

_T = TypeVar("_T")

_LISTED = 5
#: Files that people mistake for weights: their first bytes, what they are, and what to do.
_OTHERS = (
    (b"version https://git-lfs", "a pointer of Git LFS", "run 'git lfs pull' where it was cloned"),
    (b"<", "a page of the web", "download the file itself"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it first"),
    (b"\x89HDF", "a file of HDF5, such as Keras writes", "convert it to safetensors"),
    (b"{", "text in JSON", "give the file of weights that lies beside it"),
)
_HEAD = 32
#: Most tensors of a file, and longest name. Networks have some hundred tensors; averages and optimizer states multiply
#: that by a few times.
_MOST_TENSORS, _LONGEST_NAME = 20_000, 500
#: Tables nested more deeply are not those of a network.
_MOST_LEVELS = 8
#: Memory that tensors may take beyond twice the size of the file: tensors share storages, and small ones repeat.
_SLACK = 64 * 2**20
#: Modules that no weights need. A file that names one is refused as harmful, though nothing in it would be called.
_HARMFUL_MODULES = {"os", "posix", "nt", "sys", "subprocess", "pty", "runpy", "importlib", "socket", "ctypes", "shutil"}
_HARMFUL_BUILTINS = {"eval", "exec", "compile", "open", "__import__", "breakpoint", "input"}

#: Tables of tensors by their path in the file, such as `state_dict` or `ema.shadow`; "" is the file itself.
Tables = dict[str, dict[str, Tensor]]


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The largest table of a file, as `as_weights` leaves it.

    Raises:
        CheckpointError: see `read_tables` and `as_weights`.
    """
    return as_weights(max(read_tables(path).values(), key=len), str(path))


def read_tables(path: Path) -> Tables:
    """All tensors of a file, unchanged and in its order. Everything else in the file is skipped, and nothing is run.

    A tensor without plain values (sparse, quantised, or not of a number type) is returned on torch's device "meta".

    Raises:
        CheckpointError: the file is missing, of an unknown format, corrupt, harmful or without tensors, or its tensors
            would take far more memory than its size allows.
    """
    try:
        with open_regular(path) as file:
            stored = _stored_tables(file, path)
            _check_bounds(stored, os.fstat(file.fileno()).st_size, path)
            return {
                place: {name: tensor.read(file) for name, tensor in state.items()} for place, state in stored.items()
            }
    except OSError as error:
        raise CheckpointError(
            f"checkpoint '{path}' is not a file that can be read: {reason_of(error)}",
            "a .safetensors or .pth file",
            "check the path",
        ) from error
    except (
        ValueError,
        OverflowError,
        MemoryError,
    ) as error:  # an offset may exceed the system's integers
        reason = "it takes more memory than there is" if isinstance(error, MemoryError) else first_line(error)
        raise CheckpointError(
            f"checkpoint '{path}' cannot be read ({reason})", "an intact file", "copy or download it again"
        ) from error


def as_weights(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Cast floating-point tensors to fp32.

    Raises:
        CheckpointError: a tensor is not dense, or holds NaN or infinity.
    """
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            raise CheckpointError(
                f"tensor '{name}' of '{where}' is sparse, quantised, or of a type that is no number by itself",
                "dense tensors of plain numbers",
                "save it as such",
            )
    cast = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    check_finite(cast, where)
    return cast


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """
    Raises:
        CheckpointError: a tensor holds NaN or infinity.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"tensor '{name}' of '{where}' holds NaN or infinity", "finite numbers", "use an intact checkpoint"
            )


def load_strictly(model: nn.Module, state: dict[str, Tensor], path: Path, left_out: Sequence[str] = ()) -> None:
    """Load parameters whose names and shapes must match the model's exactly.

    Args:
        left_out: other names in the file, which the error lists where a parameter is missing.

    Raises:
        CheckpointError: lists what is missing, unexpected and mis-shaped.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [*(name for name in state if name not in own), *(left_out if missing else ())]
    both = [(name, state[name], own[name]) for name in own if name in state]
    misshaped = [f"{name} {list(a.shape)} instead of {list(b.shape)}" for name, a, b in both if a.shape != b.shape]
    of_other_types = [one for one in both if one[1].is_floating_point() != one[2].is_floating_point()]
    misshaped += [f"{name} {a.dtype} instead of {b.dtype}" for name, a, b in of_other_types]
    parts = {"missing": missing, "unexpected": unexpected, "mis-shaped": misshaped}
    found = "; ".join(f"{len(names)} {kind}: {_short(names)}" for kind, names in parts.items() if names)
    if found:
        raise CheckpointError(
            f"checkpoint '{path.name}' does not fit {type(model).__name__} ({found})",
            f"the {len(own)} tensors of the model",
            "give the --model and --image-size that the checkpoint was trained for",
        )
    model.load_state_dict(state, strict=True)


def _short(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def parameters_sha256(model: nn.Module) -> str:
    """A digest of names, types, shapes and values of all parameters and buffers."""
    return tensors_sha256(model.state_dict())


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """A digest of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().cpu().numpy().data)
    return digest.hexdigest()


def _stored_tables(file: BinaryIO, path: Path) -> dict[str, dict[str, StoredTensor]]:
    """
    Raises:
        CheckpointError, ValueError: see `read_tables`.
    """
    head = file.read(_HEAD)
    file.seek(0)
    if head[8:9] == b"{":  # the content decides, since files have many suffixes
        return {"": safetensors(file)}
    if head[:2] != b"PK" and head[:1] != b"\x80":
        unknown = ("of an unknown format" if head else "empty", "copy, download or convert it again")
        what, fix = next((other for start, *other in _OTHERS if head.lstrip().startswith(start)), unknown)
        raise CheckpointError(
            f"checkpoint '{path}' cannot be read: it is {what}", "a file of safetensors or of torch.save", fix
        )
    saved = read_torch_file(file)
    tables = {} if any(map(_is_harmful, saved.names)) else tables_in(saved.root, saved.tensor_of)
    if not tables and any(name.module.partition(".")[0] not in ("torch", "collections") for name in saved.names):
        raise CheckpointError(
            f"checkpoint '{path}' holds more than tensors (nothing in it was run)",
            "a file of tensors, such as a state_dict",
            "load it where you trust it, and save its state_dict as safetensors",
        )
    if not tables:
        raise CheckpointError(
            f"checkpoint '{path}' is not a table of tensors", "a state_dict", "save model.state_dict()"
        )
    return tables


def _is_harmful(name: Named) -> bool:
    package = name.module.partition(".")[0]
    in_builtins = package in ("builtins", "__builtin__") and name.name in _HARMFUL_BUILTINS
    return package in _HARMFUL_MODULES or in_builtins


def tables_in(root: Any, tensor_of: Callable[[Any], _T | None]) -> dict[str, dict[str, _T]]:
    """Every dictionary that holds tensors; other entries, such as an epoch, are skipped.

    A dictionary or list in several places, or inside itself, is visited once. Tensors in a list have no names.

    Args:
        tensor_of: returns a value's tensor, or None for other values.
    """
    seen = {id(root)}

    def tables(node: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, dict[str, _T]]]:
        named = _entries(node)
        tensors = {name: tensor for name, value in named.items() if (tensor := tensor_of(value)) is not None}
        if tensors and not isinstance(node, (list, tuple)):
            yield ".".join(keys), tensors
        for name, value in named.items() if len(keys) < _MOST_LEVELS else ():
            if name not in tensors and isinstance(value, (dict, list, tuple, Made)) and id(value) not in seen:
                seen.add(id(value))
                yield from tables(value, (*keys, name))

    return dict(tables(root, ()))


def _entries(node: Any) -> dict[str, Any]:
    if isinstance(node, (list, tuple)):
        return {str(place): value for place, value in enumerate(node)}
    entries = node.entries if isinstance(node, Made) else node if isinstance(node, dict) else {}
    return {name: value for name, value in entries.items() if isinstance(name, str)}


def _check_bounds(tables: Mapping[str, Mapping[str, StoredTensor]], size: int, path: Path) -> None:
    """Check bounds on sizes and names, before anything is read or compared."""
    tensors = [(name, tensor) for state in tables.values() for name, tensor in state.items()]
    if len(tensors) > _MOST_TENSORS or any(len(name) > _LONGEST_NAME for name, _ in tensors):
        raise CheckpointError(
            f"checkpoint '{path}' holds {len(tensors):,} tensors, or one with a very long name",
            f"at most {_MOST_TENSORS:,}, of names of at most {_LONGEST_NAME} characters",
            "save the network's state_dict by itself",
        )
    cost = sum(tensor.cost for _, tensor in tensors)
    if cost > 2 * size + _SLACK:
        raise CheckpointError(
            f"the tensors of checkpoint '{path}' would take {cost / 2**30:.3g} GiB, of a file of {size:,} bytes",
            "tensors that are stored in full",
            "save a contiguous copy of each",
        )
    available = kibibytes(table(Path("/proc/meminfo")).get("MemAvailable"))
    if available is not None and cost > available * 2**10:
        raise CheckpointError(
            f"the tensors of checkpoint '{path}' take {cost / 2**30:.3g} GiB",
            f"at most the memory at hand, {available / 2**20:.3g} GiB",
            "save the network's state_dict by itself, or use a machine with more memory",
        )
