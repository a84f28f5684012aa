"""What is wrong with one of several profiles, so that the others can go on without it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ztdeploy.core.errors import (
    AccuracyError,
    BundleError,
    EnvironmentLacksError,
    ModelError,
    ParityError,
    ZtdeployError,
)

#: What may be wrong with one profile and not with the others. A full disk, say, is not among these, and neither is a
#: profile that no machine could build, which is a mistake of whoever asked for it.
OWN_FAULTS = (AccuracyError, BundleError, EnvironmentLacksError, ModelError, ParityError)


class StepError(Exception):
    """Carries an error out of a step of a build, with the profiles whose step it was."""

    def __init__(self, profiles: tuple[str, ...], error: ZtdeployError) -> None:
        self.profiles, self.error = profiles, error
        super().__init__(str(error))


@contextmanager
def step_of(*profiles: str) -> Iterator[None]:
    """A step that concerns these profiles alone.

    Raises:
        StepError: it failed, for a reason that may be their own.
    """
    try:
        yield
    except OWN_FAULTS as error:
        raise StepError(profiles, error) from error


def without(fault: StepError, failed: dict[str, ZtdeployError], profiles: Iterable[str]) -> None:
    """Count the profiles of a fault among those that failed.

    Raises:
        ZtdeployError: no profile is left; the first error of all.
    """
    failed |= {name: fault.error for name in fault.profiles if name not in failed}
    if not set(profiles) - set(failed):
        raise next(iter(failed.values())) from fault
