"""TensorRT and TensorRT-RTX: one code for both, since their Python interfaces differ by little more than a name.

`backend` has what both share and TensorRT itself, `rtx` what TensorRT-RTX does otherwise. `build` runs `worker` in a
child process, because a runtime that fails there ends the process. `runner` executes engines through `cuda`, the
driver's own library.
"""
