"""The process in which one contender is timed; speaks the protocol of `ztdeploy.target.measure.orders`."""

from __future__ import annotations

import sys
import time

from ztdeploy.target.measure.worker import prepare, serve


def main() -> None:
    answers = prepare()
    from benchmarks.contenders import CONTENDERS, Infer, pixels_for, read_job
    from ztdeploy.core.errors import EnvironmentLacksError

    name, text, ordered_ns = sys.argv[1:]
    job = read_job(text)
    assert job.image_size is not None
    pixels = pixels_for(job, job.image_size)

    def start() -> Infer:
        """Whatever keeps a contender from running is said, and the others go on without it."""
        try:
            infer = CONTENDERS[name](job)
            infer(pixels)  # torch.compile compiles now
        except Exception as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
            raise EnvironmentLacksError(
                f"{type(error).__name__}: {reason[:200]}", "a runtime that works here", "install or repair it"
            ) from error
        return infer

    serve(
        answers,
        start,
        lambda infer: lambda: infer(pixels),
        imported_ns=time.monotonic_ns(),
        ordered_ns=int(ordered_ns),
    )


if __name__ == "__main__":
    main()
