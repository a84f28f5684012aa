"""Executing an engine: one execution context per optimization profile, buffers that are reused."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import Any

import numpy as np

from ztdeploy.core.errors import EnvironmentLacksError, ImageError
from ztdeploy.target.backends.base import Array, Signature, TensorFacts
from ztdeploy.target.backends.tensorrt.cuda import Buffer, Stream, enter_device


class TensorRtRunner:
    """A deserialised engine of either flavour."""

    def __init__(self, trt: Any, engine: Any, keep_alive: tuple[Any, ...]) -> None:
        """
        Args:
            trt: the runtime's Python module.
            engine: an `ICudaEngine`.
            keep_alive: what the engine needs and does not own: the runtime and its logger.
        """
        enter_device()
        self._engine, self._keep_alive = engine, keep_alive
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if name not in self._inputs]
        self._types = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        self._buffers = {name: Buffer() for name in names}
        self._stream = Stream()
        self._contexts: dict[int, Any] = {}
        self._turn = Lock()  # contexts and buffers are one call's at a time

    @property
    def signature(self) -> Signature:
        return Signature(*(tuple(map(self._facts, names)) for names in (self._inputs, self._outputs)))

    def _facts(self, name: str) -> TensorFacts:
        lengths = (int(length) for length in self._engine.get_tensor_shape(name))
        return TensorFacts(name, self._types[name].name, tuple(one if one >= 0 else None for one in lengths))

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with self._turn:
            return self._infer(feeds)

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        enter_device()  # any thread may ask
        context = self._context(self._profile_for(feeds))
        arrays = {name: np.ascontiguousarray(feeds[name], dtype=self._types[name]) for name in self._inputs}
        for name, array in arrays.items():
            context.set_input_shape(name, array.shape)
            context.set_tensor_address(name, self._buffers[name].write(array, self._stream))
        shapes = {name: tuple(context.get_tensor_shape(name)) for name in self._outputs}
        for name, shape in shapes.items():
            size = int(np.prod(shape)) * self._types[name].itemsize
            context.set_tensor_address(name, self._buffers[name].reserve(max(1, size)))
        if not context.execute_async_v3(self._stream.handle):
            raise EnvironmentLacksError(
                "the engine refused to run", "outputs", "read the runtime's own message above, and free GPU memory"
            )
        results = {name: self._buffers[name].read(shapes[name], self._types[name], self._stream) for name in shapes}
        self._stream.wait()
        return results

    def close(self) -> None:
        enter_device()
        self._contexts.clear()
        self._engine, self._keep_alive = None, ()
        for buffer in self._buffers.values():
            buffer.close()
        self._stream.close()

    def _profile_for(self, feeds: Mapping[str, Array]) -> int:
        """The optimization profile with the smallest range that takes the batch."""
        name = self._inputs[0]
        shape = feeds[name].shape
        fitting = []
        for index in range(self._engine.num_optimization_profiles):
            smallest, _, largest = (tuple(s) for s in self._engine.get_tensor_profile_shape(name, index))
            if all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)):
                fitting.append((largest[0], index))
        if not fitting:
            raise ImageError(
                f"an input of shape {list(shape)}", "a batch that the engine was built for", "see 'ztdeploy inspect'"
            )
        return min(fitting)[1]

    def _context(self, profile: int) -> Any:
        if profile not in self._contexts:
            context = self._engine.create_execution_context()
            if context is None:
                raise EnvironmentLacksError(
                    "the GPU has not enough memory for the engine's activations",
                    "free GPU memory",
                    "close other programs, or use a smaller batch",
                )
            context.set_optimization_profile_async(profile, self._stream.handle)
            self._contexts[profile] = context
        return self._contexts[profile]
