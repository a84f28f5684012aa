"""Read the content of a pickle without executing it.

A pickle is a program for a stack machine; `pickle.load` imports the objects that it names and calls them. Here the
program only builds a description: plain values stay themselves, and everything that would be looked up, called or
restored becomes an inert `Named` or `Made`. Why that is safe:

- opcodes are decoded by the standard library's `pickletools`, which executes none of them;
- no module is imported, no attribute looked up and no object called because a file names it;
- only text can be the key of a dictionary, so no hash or comparison of a file's objects is computed;
- the number of opcodes bounds the work, and together with the size of the file the memory. Nothing recurses.

`torch.load(weights_only=True)` is not as strict: it calls constructors with the file's arguments (`bytearray(10**12)`),
compares and hashes what they give, and refuses the numbers, paths and settings that trainers save beside weights.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

#: A million take one to three seconds. A thousand tensors with their optimizer's state have two hundred thousand.
MOST_OPCODES, MOST_NAMES = 1_000_000, 10_000
_OTHER_CLASS_TABLES = ("OrderedDict", "defaultdict", "Counter")


class Named(NamedTuple):
    """An object that a pickle names by a module and a name in it; it was not looked up."""

    module: str
    name: str


@dataclass(eq=False, slots=True)
class Made:
    """The result that a call or class would have; nothing was called."""

    of: Any  #: usually a `Named`
    arguments: Any
    state: Any = None
    entries: dict[str, Any] = field(default_factory=dict)  #: entries, where the class is a table


@dataclass(eq=False, slots=True)
class OutsideReference:
    """A reference to data outside of the pickle, with the pickle's description of it."""

    to: Any


class PickleError(ValueError):
    """The data is no pickle, or a damaged one, or too long."""


def read_pickle(stream: IO[bytes], names: set[Named], references: list[OutsideReference] | None = None) -> Any:
    """Read one pickle from a stream, and leave the stream's position behind it.

    Args:
        stream: over bytes in memory, since lengths in a pickle are trusted.
        names: collects all names in the pickle.
        references: collects all references to outside data.

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
    """The stack machine; `_STEPS` has a step for each opcode that does more than push a plain value."""

    def __init__(self, names: set[Named], references: list[OutsideReference]) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  #: the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.names, self.references = names, references

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _STEPS:
            _STEPS[opcode](self, argument)
        elif argument is not None and opcode not in _REFUSED:
            self.stack.append(argument)
        else:
            raise PickleError(f"opcode {opcode}")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def above_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def last(self, count: int) -> tuple[Any, ...]:
        """Pop the last values from the stack."""
        if len(self.stack) < count:
            raise IndexError
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):  # otherwise a list class, whose items nobody needs
            self.stack[-1].extend(items)

    def set_items(self, items: Sequence[Any]) -> None:
        """Put alternating keys and values into the table on top of the stack."""
        _enter(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    def push_table(self, items: Sequence[Any]) -> None:
        self.push({})
        self.set_items(items)

    def push_named(self, module: str, name: str) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError
        self.names.add(Named(module, name))
        if len(self.names) > MOST_NAMES:
            raise PickleError(f"more than {MOST_NAMES:,} names of classes and functions")
        self.push(Named(module, name))

    def push_made(self, of: Any, arguments: Any) -> None:
        """Push a `Made`, or a table for the dictionary classes of the standard library."""
        plain = isinstance(of, Named) and of.module == "collections" and of.name in _OTHER_CLASS_TABLES
        self.push({} if plain else Made(of, arguments))
        if plain and of.name == "OrderedDict" and isinstance(arguments, tuple) and arguments:
            pairs = arguments[0] if isinstance(arguments[0], list) else []
            _enter(self.stack[-1], ((pair[0], pair[1]) for pair in pairs if isinstance(pair, list) and len(pair) == 2))

    def make_old_instance(self, name: str) -> None:
        arguments = tuple(self.above_mark())
        self.push_named(*name.split(" ", 1))
        self.push_made(self.stack.pop(), arguments)

    def build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Made):  # attributes of plain tables, such as `_metadata`, are not needed
            self.stack[-1].state = state

    def refer(self) -> None:
        self.references.append(OutsideReference(self.stack.pop()))
        self.push(self.references[-1])


def _enter(target: Any, items: Iterable[tuple[Any, Any]]) -> None:
    table = target.entries if isinstance(target, Made) else target
    if not isinstance(table, dict):
        raise TypeError
    table.update((key, value) for key, value in items if isinstance(key, str))


#: Steps by the name of the opcode; some opcodes have a variant for each size of their argument.
_STEPS: dict[str, Callable[[_Machine, Any], object]] = {
    name: step
    for names, step in {
        "PROTO FRAME STOP": lambda _machine, _: None,
        "NONE": lambda machine, _: machine.push(None),
        "NEWTRUE": lambda machine, _: machine.push(True),
        "NEWFALSE": lambda machine, _: machine.push(False),
        "EMPTY_LIST EMPTY_SET": lambda machine, _: machine.push([]),  # nobody looks anything up in a set
        "EMPTY_TUPLE": lambda machine, _: machine.push(()),
        "EMPTY_DICT": lambda machine, _: machine.push({}),
        "MARK": lambda machine, _: machine.mark(),
        "POP": lambda machine, _: machine.stack.pop() if machine.stack else machine.above_mark(),
        "POP_MARK": lambda machine, _: machine.above_mark(),
        "DUP": lambda machine, _: machine.push(machine.stack[-1]),
        "GET BINGET LONG_BINGET": lambda machine, place: machine.push(machine.memo[place]),
        "PUT BINPUT LONG_BINPUT": lambda machine, place: machine.memo.update({place: machine.stack[-1]}),
        "MEMOIZE": lambda machine, _: machine.memo.update({len(machine.memo): machine.stack[-1]}),
        "LIST FROZENSET": lambda machine, _: machine.push(machine.above_mark()),
        "TUPLE": lambda machine, _: machine.push(tuple(machine.above_mark())),
        "TUPLE1": lambda machine, _: machine.push(machine.last(1)),
        "TUPLE2": lambda machine, _: machine.push(machine.last(2)),
        "TUPLE3": lambda machine, _: machine.push(machine.last(3)),
        "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
        "APPENDS ADDITEMS": lambda machine, _: machine.extend(machine.above_mark()),
        "DICT": lambda machine, _: machine.push_table(machine.above_mark()),
        "SETITEM": lambda machine, _: machine.set_items(machine.last(2)),
        "SETITEMS": lambda machine, _: machine.set_items(machine.above_mark()),
        "GLOBAL": lambda machine, name: machine.push_named(*name.split(" ", 1)),
        "STACK_GLOBAL": lambda machine, _: machine.push_named(*machine.last(2)),
        "REDUCE NEWOBJ": lambda machine, _: machine.push_made(*machine.last(2)),
        "NEWOBJ_EX": lambda machine, _: machine.push_made(*machine.last(3)[:2]),  # without keyword arguments
        "OBJ": lambda machine, _: (lambda of, *arguments: machine.push_made(of, arguments))(*machine.above_mark()),
        "INST": lambda machine, name: machine.make_old_instance(name),
        "BUILD": lambda machine, _: machine.build(),
        "BINPERSID": lambda machine, _: machine.refer(),
    }.items()
    for name in names.split()
}
_REFUSED = ("PERSID", "EXT1", "EXT2", "EXT4")  #: opcodes of values that torch does not write
