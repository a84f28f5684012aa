"""Every error that ztdeploy raises on purpose, and the exit code the command line gives it.

    ZtdeployError                     1   never raised itself; a bug shows as another exception, exit code 1
    |-- InputError                    3   a request, or a file that was given, cannot be used
    |   |-- ProfileError                  unknown profile, unknown key, value out of range
    |   |-- ScheduleError                 keep ratio out of range, no such block, no token left
    |   |-- ModelError                    unknown model, or one that cannot be pruned soundly
    |   |-- CheckpointError               corrupt, unsafe or mismatching weights
    |   |-- ImageError                    unreadable, truncated or oversized image
    |   `-- OutputError                   the output folder exists, or cannot be written
    |       `-- StreamError               standard output takes nothing more
    |-- BundleError                   4   a bundle is damaged, too new, or points outside itself
    |   `-- SignatureError                none of the demanded keys signed it
    |-- ParityError                   5   an engine does not reproduce its reference
    |-- AccuracyError                 8   pruning costs more on the calibration images than was allowed
    `-- EnvironmentLacksError         6   something outside ztdeploy is missing
        |-- MissingExtraError             an optional extra is not installed
        |-- BoardError                    a board cannot be reached, or lacks something
        |-- WeightsUnavailableError       the model hub cannot be reached and nothing is cached
        `-- EngineMismatchError           the engine was built by another runtime version or device

Other exit codes: 2 a malformed command line; 7 a regression that 'ztdeploy compare' found; 9 a build of several
profiles of which some failed (`PARTLY_BUILT`: the bundle is written and names them); 130 an interruption (Ctrl-C).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from ztdeploy.core.text import printable

#: The exit code of a build that wrote a bundle without some of its profiles.
PARTLY_BUILT = 9
#: How many names a hint lists at most.
_LISTED = 20
#: How many characters of a name are compared: the time grows with the square of its length.
_COMPARED = 100


class ZtdeployError(Exception):
    """An error with a remedy.

    Args:
        given: what was found, with its value.
        expected: what would have been right.
        fix: what to do about it, as an imperative.
    """

    exit_code = 1

    def __init__(self, given: str, expected: str, fix: str) -> None:
        self.given, self.expected, self.fix = map(printable, (given, expected, fix))
        super().__init__(f"{self.given}; expected {self.expected}; {self.fix}")

    def __reduce__(self) -> tuple[type[ZtdeployError], tuple[str, str, str]]:
        return type(self), (self.given, self.expected, self.fix)


class ImageWarning(UserWarning):
    """An image that can be read, but probably not as intended."""


class InputError(ZtdeployError):
    exit_code = 3


class ProfileError(InputError):
    pass


class ScheduleError(InputError):
    pass


class ModelError(InputError):
    pass


class CheckpointError(InputError):
    pass


class ImageError(InputError):
    pass


class OutputError(InputError):
    pass


class StreamError(OutputError):
    """Standard output takes nothing more."""


class BundleError(ZtdeployError):
    exit_code = 4


class SignatureError(BundleError):
    """None of the demanded keys signed it, or not this content."""


class ParityError(ZtdeployError):
    exit_code = 5


class AccuracyError(ZtdeployError):
    exit_code = 8


class EnvironmentLacksError(ZtdeployError):
    exit_code = 6


class MissingExtraError(EnvironmentLacksError):
    """An import failed that an optional extra provides."""

    def __init__(self, module: str, extra: str, purpose: str) -> None:
        self.module, self.extra, self.purpose = module, extra, purpose
        super().__init__(
            f"{purpose} needs the module '{module}', which is not installed",
            f"the extra [{extra}] (in a checkout, uvx has it with --from '.[{extra}]')",
            f"run: pip install 'ztdeploy[{extra}]'",
        )

    def __reduce__(self) -> tuple[type[ZtdeployError], tuple[str, str, str]]:
        return type(self), (self.module, self.extra, self.purpose)


class BoardError(EnvironmentLacksError):
    @classmethod
    def said(cls, message: str, exit_code: int) -> BoardError:
        """An error that ztdeploy on the board has put into words, with the exit code that it has there."""
        error = cls("", "", "")
        error.args, error.exit_code = (printable(message),), exit_code
        return error


class WeightsUnavailableError(EnvironmentLacksError):
    pass


class EngineMismatchError(EnvironmentLacksError):
    pass


# -------------------- faults of one of several profiles, without which the others go on

#: What may be wrong with one profile alone. A full disk is not among these, nor is a profile that no machine could
#: build, which is a mistake of whoever asked for it.
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


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Profile = TypeVar("_Profile", bound=_Named)


def failing(profiles: Iterable[_Profile], check: Callable[[_Profile], None]) -> dict[str, ZtdeployError]:
    """The errors of the profiles that do not pass a check, by name.

    Raises:
        ZtdeployError: none passes; the first error of all.
    """
    failed, profiles = dict[str, ZtdeployError](), list(profiles)
    for profile in profiles:
        try:
            with step_of(profile.name):
                check(profile)
        except StepError as fault:
            without(fault, failed, [one.name for one in profiles])
    return failed


# -------------------- hints


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known name, or lists them where none is near."""
    names = sorted(known)
    near = nearest(name, names, 0.5)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"did you mean '{near}'?" if near else f"choose from: {', '.join(names[:_LISTED])}{more}"


def nearest(name: str, known: Iterable[str], cutoff: float) -> str | None:
    """The most similar known name, regardless of case and of the separators between words.

    Args:
        cutoff: the least similarity, from 0 to 1.
    """
    plain = {_plain(one): one for one in known}
    found = difflib.get_close_matches(_plain(name)[:_COMPARED], plain, n=1, cutoff=cutoff)
    return plain[found[0]] if found else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().casefold())
