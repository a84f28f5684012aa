"""Building an engine in a child process, whose death becomes an error that says what happened."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pydantic import ValidationError

from ztdeploy.core.errors import BundleError, EnvironmentLacksError, ProfileError, ZtdeployError
from ztdeploy.core.kernel_files import kibibytes, table
from ztdeploy.core.processes import how_it_ended, module_command, module_environment
from ztdeploy.core.records import from_json, to_json
from ztdeploy.target.backends.tensorrt.cuda import KNOWN_CAPABILITIES
from ztdeploy.target.backends.tensorrt.worker import BuildAnswer, BuildOrder

_MIB, _SMALLEST_WORKSPACE_MIB = 2**20, 64
_TIMEOUT_S = 3600.0
#: Parsing and building hold the weights several times over, beside the workspace and the runtime itself.
_COPIES_OF_WEIGHTS, _RUNTIME_MIB = 4, 512


def build_engine(order: BuildOrder) -> BuildAnswer:
    """Build with as much workspace as was ordered, or with less where memory runs out.

    Raises:
        EnvironmentLacksError: too little memory, or the runtime ended the process.
        BundleError: the runtime refuses the graph.
        ProfileError: it cannot build for a GPU that was asked for.
    """
    workspace = order.workspace_mib
    while True:
        answer = _run(order.model_copy(update={"workspace_mib": workspace}))
        if answer.failure is None:
            return answer
        if answer.failure != "memory" or workspace <= _SMALLEST_WORKSPACE_MIB:
            raise _error(order, answer)
        workspace = max(_SMALLEST_WORKSPACE_MIB, workspace // 2)


def check_memory(weights_bytes: int, workspace_mib: int) -> int:
    """How much of the workspace fits into the memory that is free now, in MiB.

    Raises:
        EnvironmentLacksError: not even the smallest one does.
    """
    available = available_memory_mib()
    if available is None:
        return workspace_mib
    base = _RUNTIME_MIB + _COPIES_OF_WEIGHTS * weights_bytes // _MIB
    if available < base + _SMALLEST_WORKSPACE_MIB:
        raise EnvironmentLacksError(
            f"{available} MiB of memory are free",
            f"about {base + _SMALLEST_WORKSPACE_MIB} MiB to build this engine",
            "close other programs, stop the desktop, or add swap; then run it again",
        )
    return min(workspace_mib, available - base)


def available_memory_mib() -> int | None:
    """What a new process can have without swapping, or None where the system does not say."""
    available = kibibytes(table(Path("/proc/meminfo")).get("MemAvailable"))
    return None if available is None else available // 1024


def _run(order: BuildOrder) -> BuildAnswer:
    command = module_command("ztdeploy.target.backends.tensorrt.worker")
    try:
        ended = subprocess.run(
            command,
            input=to_json(order),
            capture_output=True,
            text=True,
            errors="replace",
            env=module_environment(),
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentLacksError(
            f"building '{Path(order.graph).name}' took longer than {_TIMEOUT_S / 60:.0f} minutes",
            "an engine by then",
            "lower workspace_mib in the profile, or build with fewer batches",
        ) from error
    try:
        return from_json(BuildAnswer, ended.stdout)
    except ValidationError:
        if ended.returncode == -9:  # as the kernel does when memory runs out
            return BuildAnswer(failure="memory", messages=("the process was killed, as Linux does for memory",))
        raise _death(order, ended) from None


def _death(order: BuildOrder, ended: subprocess.CompletedProcess[str]) -> ZtdeployError:
    last = (ended.stderr.strip().splitlines() or ["without a word"])[-1][:200]
    return EnvironmentLacksError(
        f"the process that builds '{Path(order.graph).name}' with {order.backend} {how_it_ended(ended.returncode)} "
        f"({last})",
        "an engine or an error message",
        "run 'ztdeploy doctor'; if all is well there, report it with the model's name",
    )


def _error(order: BuildOrder, answer: BuildAnswer) -> ZtdeployError:
    graph, runtime = Path(order.graph).name, f"{order.backend} {answer.runtime_version}".strip()
    lines = [line.strip() for message in answer.messages for line in message.splitlines() if line.strip()]
    reason = (lines or ["no message"])[0][:300]
    if answer.failure == "memory":
        return EnvironmentLacksError(
            f"memory ran out while {runtime} built '{graph}' (workspace down to {_SMALLEST_WORKSPACE_MIB} MiB)",
            "more free memory",
            "close other programs, add swap, or build with a smaller batch",
        )
    if answer.failure == "capability":
        capability = answer.messages[0]
        return ProfileError(
            f"{runtime} cannot build for compute capability {capability}",
            f"one that it knows (of {', '.join(KNOWN_CAPABILITIES)})",
            "correct compute_capabilities under [tensorrt] in the profile",
        )
    if answer.failure == "plugin":
        return EnvironmentLacksError(
            f"{runtime}: {reason}", "the plugin library of this ztdeploy", "run 'ztdeploy finalize' again"
        )
    verb = "read" if answer.failure == "parse" else "build"
    return BundleError(
        f"{runtime} cannot {verb} '{graph}': {reason}", "a graph that it can", "report it with the model's name"
    )
