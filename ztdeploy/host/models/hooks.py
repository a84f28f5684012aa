"""Small reversible changes to modules; each returns what undoes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Undo = Callable[[], None]


def on_output(module: nn.Module, take: Callable[[Tensor], None]) -> Undo:
    """Be told what a module gives, on every forward pass."""

    def tell(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        take(output)

    return module.register_forward_hook(tell).remove


def on_input(module: nn.Module, take: Callable[[Tensor], None]) -> Undo:
    """Be told what a module is given first."""

    def tell(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        take(inputs[0])

    return module.register_forward_pre_hook(tell).remove


def change_option(module: nn.Module, name: str, change: Callable[[Any], Any]) -> Undo:
    """Change what a module is given under a name; it must be called with that name, or not with this at all."""

    def apply(_module: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return inputs, {**options, name: change(options.get(name))}

    return module.register_forward_pre_hook(apply, with_kwargs=True).remove


def switch(module: nn.Module, name: str, value: Any) -> Undo:
    """Set a plain attribute that a module reads in its forward pass."""
    before = getattr(module, name)
    setattr(module, name, value)
    return lambda: setattr(module, name, before)


def override(module: nn.Module, name: str, method: Callable[[], Any]) -> Undo:
    """Let a module call something else than the method of its class."""
    vars(module)[name] = method
    return lambda: vars(module).pop(name)
