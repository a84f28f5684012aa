"""A process that keeps threads' worth of cores busy, to see what a load does to an engine.

`python -m ztdeploy.target.measure.co_runner` computes until it is killed, and dies with the process that started it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import AbstractContextManager
from types import TracebackType

from ztdeploy.core.processes import end_with_parent, module_command, module_environment, own_standard_output


class CoRunner(AbstractContextManager["CoRunner"]):
    """Processes of one busy thread each, stopped until they are wanted, so that a load begins and ends at once."""

    def __init__(self, most: int) -> None:
        """
        Args:
            most: busy threads that will be wanted at the same time.
        """
        command = module_command("ztdeploy.target.measure.co_runner")
        self._processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=module_environment(),
            )
            for _ in range(most)
        ]
        for process in self._processes:
            assert process.stdout is not None
            process.stdout.readline()  # it is ready, and has stopped itself

    def busy(self, threads: int) -> None:
        """Have so many threads compute from now on."""
        for at, process in enumerate(self._processes):
            process.send_signal(signal.SIGCONT if at < threads else signal.SIGSTOP)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            with process:  # which closes its pipe and waits for it
                pass


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that measures
    end_with_parent()
    with own_standard_output() as answers:
        answers.write("ready\n")
    os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        pass


if __name__ == "__main__":
    main()
