"""TensorRT and TensorRT-RTX: one code for both, since their Python interfaces differ by little more than a name.

`flavours` imports either; `build` runs `worker` in a child process, because what goes wrong there ends the process;
`runner` executes engines through `cuda`, the driver's own library. Only `flavours` and `worker` import TensorRT.
"""
