"""Reads what a pickle says without doing what it says.

A pickle is a program for a stack machine; `pickle.load` imports what it names and calls it. Here the program only
builds a description: plain values are themselves, and whatever would be looked up, called or restored becomes an inert
`Named` or `Made`. Why that is safe:

- opcodes are decoded by the standard library's `pickletools`, which executes none of them;
- no module is imported, no attribute looked up and no object called because a file names it;
- text alone counts as a dictionary's key, so that no hash and no comparison is computed of anything a file makes;
- the work is bounded by the number of opcodes, the memory by that and by the bytes at hand. Nothing recurses.

`torch.load(weights_only=True)` is not as strict: it calls constructors with the file's arguments (`bytearray(10**12)`),
compares and hashes what they give, and refuses the numbers, paths and settings that trainers save beside weights.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

#: A million take one to three seconds; a thousand tensors and their optimizer's state are two hundred thousand.
MOST_OPCODES, MOST_NAMES = 1_000_000, 10_000
_OTHER_CLASS_TABLES = ("OrderedDict", "defaultdict", "Counter")


class Named(NamedTuple):
    """What a pickle calls by the name of a module and a name in it; it was not looked up."""

    module: str
    name: str


@dataclass(eq=False, slots=True)
class Made:
    """What a call or a class would have made; it was not made."""

    of: Any  #: a `Named` as a rule
    arguments: Any
    state: Any = None
    entries: dict[str, Any] = field(default_factory=dict)  #: of a class that is a table


@dataclass(eq=False, slots=True)
class Reference:
    """What lies outside of the pickle, by whatever the pickle says about it."""

    to: Any


class PickleError(ValueError):
    """No pickle, a damaged one, or one that is too long."""


def read_pickle(stream: IO[bytes], names: set[Named], references: list[Reference] | None = None) -> Any:
    """The first pickle of a stream, whose position then is behind that pickle.

    Args:
        stream: over bytes in memory, since lengths in it are taken at their word.
        names: takes everything that the pickle names.
        references: takes everything that it refers to outside of itself.

    Raises:
        PickleError: no pickle, a damaged one, or one that is too long.
    """
    machine = _Machine(names, [] if references is None else references)
    try:
        for count, (opcode, argument, _place) in enumerate(pickletools.genops(stream)):
            if count == MOST_OPCODES:
                raise PickleError(f"more than {MOST_OPCODES:,} steps")
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except PickleError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise PickleError("a damaged pickle") from error


class _Machine:
    """The stack machine, with a method for each opcode that does more than push a plain value."""

    def __init__(self, names: set[Named], references: list[Reference]) -> None:
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []  #: the stacks below each mark
        self._memo: dict[int, Any] = {}
        self._names, self._references = names, references

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _IGNORED:
            return
        if opcode in _EMPTY:
            self.stack.append(_EMPTY[opcode]())
        elif opcode in _STEPS:
            _STEPS[opcode](self, argument)
        elif argument is not None and opcode not in _REFUSED:
            self.stack.append(argument)
        else:
            raise PickleError(f"opcode {opcode}")

    def mark(self, _argument: Any) -> None:
        self._below.append(self.stack)
        self.stack = []

    def above_mark(self) -> list[Any]:
        items, self.stack = self.stack, self._below.pop()
        return items

    def constant(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, _argument: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.above_mark()

    def get(self, place: int) -> None:
        self.stack.append(self._memo[place])

    def put(self, place: int) -> None:
        self._memo[place] = self.stack[-1]

    def memoize(self, _argument: Any) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    def tuple_of(self, count: int) -> None:
        items = self.stack[-count:]
        if len(items) < count:
            raise IndexError
        self.stack[-count:] = [tuple(items)]

    def append(self, _argument: Any) -> None:
        item = self.stack.pop()
        self._extend([item])

    def extend(self, _argument: Any) -> None:
        self._extend(self.above_mark())

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):  # else the class of a list; nobody asks for what is in it
            self.stack[-1].extend(items)

    def set_item(self, _argument: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _enter(self.stack[-1], [(key, value)])

    def set_items(self, _argument: Any) -> None:
        items = self.above_mark()
        _enter(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    def whole_dict(self, _argument: Any) -> None:
        items, table = self.above_mark(), dict[str, Any]()
        _enter(table, zip(items[::2], items[1::2], strict=True))
        self.stack.append(table)

    def named(self, argument: str) -> None:
        self._push_named(*argument.split(" ", 1))

    def named_by_stack(self, _argument: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._push_named(module, name)

    def _push_named(self, module: str, name: str) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError
        self._names.add(Named(module, name))
        if len(self._names) > MOST_NAMES:
            raise PickleError(f"more than {MOST_NAMES:,} names of classes and functions")
        self.stack.append(Named(module, name))

    def make(self, _argument: Any) -> None:
        arguments, of = self.stack.pop(), self.stack.pop()
        self.stack.append(_made(of, arguments))

    def make_with_keywords(self, _argument: Any) -> None:
        self.stack.pop()
        self.make(None)

    def make_old_object(self, _argument: Any) -> None:
        of, *arguments = self.above_mark()
        self.stack.append(_made(of, tuple(arguments)))

    def make_old_instance(self, argument: str) -> None:
        arguments = self.above_mark()
        self.named(argument)
        self.stack.append(_made(self.stack.pop(), tuple(arguments)))

    def build(self, _argument: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Made):  # what is said about plain tables, such as `_metadata`, is not needed
            self.stack[-1].state = state

    def refer(self, _argument: Any) -> None:
        self.stack.append(Reference(self.stack.pop()))
        self._references.append(self.stack[-1])


def _made(of: Any, arguments: Any) -> Any:
    """Tables of the standard library are tables here as well."""
    if not (isinstance(of, Named) and of.module == "collections" and of.name in _OTHER_CLASS_TABLES):
        return Made(of, arguments)
    table: dict[str, Any] = {}
    if of.name == "OrderedDict" and isinstance(arguments, tuple) and arguments and isinstance(arguments[0], list):
        _enter(table, ((pair[0], pair[1]) for pair in arguments[0] if isinstance(pair, list) and len(pair) == 2))
    return table


def _enter(target: Any, items: Iterable[tuple[Any, Any]]) -> None:
    table = target.entries if isinstance(target, Made) else target
    if not isinstance(table, dict):
        raise TypeError
    table.update((key, value) for key, value in items if isinstance(key, str))


_IGNORED = frozenset(("PROTO", "FRAME", "STOP"))
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_SET": list,  # of which nobody asks whether something is in it
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
_STEPS: dict[str, Callable[[_Machine, Any], object]] = {
    "NONE": lambda machine, _: machine.constant(None),
    "NEWTRUE": lambda machine, _: machine.constant(True),
    "NEWFALSE": lambda machine, _: machine.constant(False),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, _: machine.above_mark(),
    "DUP": lambda machine, _: machine.constant(machine.stack[-1]),
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "LIST": lambda machine, _: machine.constant(machine.above_mark()),
    "FROZENSET": lambda machine, _: machine.constant(machine.above_mark()),
    "TUPLE": lambda machine, _: machine.constant(tuple(machine.above_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend,
    "ADDITEMS": _Machine.extend,
    "DICT": _Machine.whole_dict,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.named_by_stack,
    "REDUCE": _Machine.make,
    "NEWOBJ": _Machine.make,
    "NEWOBJ_EX": _Machine.make_with_keywords,
    "OBJ": _Machine.make_old_object,
    "INST": _Machine.make_old_instance,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.refer,
}
_REFUSED = ("PERSID", "EXT1", "EXT2", "EXT4")  #: no plain values, and nothing that torch writes
