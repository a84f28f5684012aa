"""[host] The search for a schedule under a hardware budget: see `run.tune`.

Optuna, of the extra [tune], is imported by `study`, `sampling` and what imports them, on use.
"""

from __future__ import annotations

from pathlib import Path

from ztdeploy.core.errors import MissingExtraError
from ztdeploy.core.progress import Progress, silent
from ztdeploy.report.tune.records import TuneReport, TuneRequest


def tune_into(
    request: TuneRequest, folder: Path, *, cache: Path | None = None, progress: Progress = silent
) -> tuple[TuneReport, list[Path]]:
    """Search, and write what was found into a folder.

    Returns:
        The report, and the files as `folder.write_tuning` lists them.

    Raises:
        MissingExtraError: Optuna or the host half is not installed.
        ZtdeployError: see `run.tune` and `folder.check_folder`.
    """
    from ztdeploy.jobs.tune.folder import check_folder, write_tuning
    from ztdeploy.jobs.tune.request import check_request

    check_request(request)
    check_folder(folder)
    try:
        from ztdeploy.jobs.tune.run import tune
    except ModuleNotFoundError as error:
        name = error.name or "optuna"
        extra = "tune" if name.split(".")[0] in ("optuna", "sqlalchemy") else "build"
        raise MissingExtraError(name, extra, "a search") from error
    report = tune(request, folder, cache=cache, progress=progress)
    return report, write_tuning(report, folder)
