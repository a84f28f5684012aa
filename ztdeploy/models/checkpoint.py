"""Reading weights that may come from anywhere: no code is ever run from a file."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ztdeploy.errors import CheckpointError

_PICKLED = {".pth", ".pt", ".bin", ".tar", ".ckpt"}
_LISTED = 5

#: The tables of tensors in a file by where they are in it, as in `state_dict` or `ema.shadow`; "" is the file itself.
Tables = dict[str, dict[str, Tensor]]


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The largest table of a file, as `as_weights` leaves it.

    Raises:
        CheckpointError: see `read_tables` and `as_weights`.
    """
    return as_weights(max(read_tables(path).values(), key=len), str(path))


def read_tables(path: Path) -> Tables:
    """All tensors of a file as they are, in its order.

    Pickle formats are read with torch's restricted unpickler, which builds tensors and plain containers only.

    Raises:
        CheckpointError: missing, of an unknown format, corrupt, unsafe, or without a table of tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint '{path}' is not a file", "a .safetensors or .pth file", "check the path")
    if path.suffix == ".safetensors":
        tables = {"": _read_safetensors(path)}
    elif path.suffix in _PICKLED:
        tables = dict(tables_in(_read_pickled(path)))
    else:
        raise CheckpointError(
            f"checkpoint '{path}' ends in '{path.suffix}'", "a .safetensors or .pth file", "convert it to safetensors"
        )
    if not any(tables.values()):
        raise CheckpointError(
            f"checkpoint '{path}' is not a table of tensors", "a state_dict", "save model.state_dict()"
        )
    return tables


def as_weights(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The same with floating point tensors cast to fp32.

    Raises:
        CheckpointError: a tensor is not dense, or holds NaN or infinity.
    """
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            raise CheckpointError(
                f"tensor '{name}' of '{where}' is sparse or without values", "dense tensors", "save it with its values"
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


def load_strictly(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load parameters whose names and shapes must match the model's exactly.

    Raises:
        CheckpointError: lists what is missing, unexpected and mis-shaped.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    misshaped = [
        f"{name} {list(state[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    misshaped += [
        f"{name} {state[name].dtype} instead of {own[name].dtype}"
        for name in own
        if name in state and own[name].is_floating_point() != state[name].is_floating_point()
    ]
    if missing or unexpected or misshaped:
        parts = {"missing": missing, "unexpected": unexpected, "mis-shaped": misshaped}
        found = "; ".join(f"{len(names)} {kind}: {_short(names)}" for kind, names in parts.items() if names)
        raise CheckpointError(
            f"checkpoint '{path.name}' does not fit {type(model).__name__} ({found})",
            f"the {len(own)} tensors of the model",
            "give the --model and --image-size that the checkpoint was trained for",
        )
    model.load_state_dict(state, strict=True)


def parameters_sha256(model: nn.Module) -> str:
    """A digest of names, types, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().cpu().numpy().data)
    return digest.hexdigest()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _corrupt(path, error) from error


def _read_pickled(path: Path) -> Any:
    try:
        # A script's options, which DeiT and its descendants save as well, are a plain container.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # about pickle protocols, in torch's own words
            data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            head = file.read(2)
        if head != b"PK" and head[:1] != b"\x80":  # text, for instance what a clone without Git LFS holds
            raise _corrupt(path, ValueError("neither an archive nor a pickle")) from error
        raise CheckpointError(
            f"checkpoint '{path}' holds more than tensors (nothing in it was run)",
            "a file of tensors only",
            "load it where you trust it, and save its state_dict as safetensors",
        ) from error
    except Exception as error:  # torch.load fails in many ways on damaged files, with no common base
        raise _corrupt(path, error) from error
    return data


def tables_in(data: Any, path: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dictionary that holds tensors; what lies beside them, such as an epoch, is skipped."""
    if isinstance(data, dict):
        state = {str(name): value for name, value in data.items() if isinstance(value, Tensor)}
        if state:
            yield path, state
        for key, value in data.items():
            yield from tables_in(value, f"{path}.{key}" if path else str(key))


def _corrupt(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
    return CheckpointError(
        f"checkpoint '{path}' cannot be read ({reason})", "an intact file", "copy or download it again"
    )


def _short(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
