"""Follow an observation through a TorchScript module's code, which is parsed and never run.

What comes out is the list of layers that it went through, so that a policy that is read by its layers is known to be
nothing but those layers, one after the other.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from foundation.checkpoints.reading.script_archive import Node
from foundation.core.text import shorten

WITHOUT_EFFECT = ("Identity", "Dropout", "Unflatten")
"""PyTorch's modules that change no number when a policy acts."""
RECURRENT = ("GRU", "LSTM")
_MAX_STEPS = 20_000
"""Expressions that are looked at: modules that call each other may ask for any number."""
_DEEPEST = 50
"""Calls inside of calls; exporters write a few."""
_MAX_CODE = 128 << 10
"""Text that is parsed in all [B]: an exporter writes a few KiB, and its syntax tree takes two hundred times as much."""
_FLOAT = 6
"""TorchScript's number of float32."""
_WHOLE = ((0, None), (None, (1 << 63) - 1), (1, None))
"""Where a slice begins and ends, and its step, if it takes everything."""


class FlowError(ValueError):
    """The code does something else than to call layers one after the other; the message states what."""


@dataclass(frozen=True)
class Signal:
    """Numbers that come of the observation."""

    layers: tuple[Node, ...] = ()
    """What it went through."""
    state: int | None = None
    """Which of the last layer's memories it is. None: it is what the layer gives."""
    first: bool = False
    """Whether it is the means alone, the first of the two rows of a policy whose std depends on the state."""

    def is_same(self, other: object) -> bool:
        """Return whether another value is the same numbers: layers are compared by what they are, not hold."""
        if not isinstance(other, Signal) or len(self.layers) != len(other.layers):
            return False
        if (self.state, self.first) != (other.state, other.first):
            return False
        return all(one is two for one, two in zip(self.layers, other.layers, strict=True))


@dataclass(frozen=True)
class _Buffer:
    """A tensor of a module, which may be what it remembers."""

    name: str


@dataclass(frozen=True)
class _Plain:
    """A number, a text, or nothing."""

    value: object


class _Unknown:
    """Something that no layer may be given."""


Value = Node | Signal | _Buffer | _Plain | _Unknown | tuple["Value", ...]


@dataclass
class Flow:
    """What a module does with an observation."""

    result: Signal
    """What it returns, or the first of several."""
    before: dict[str, Signal]
    """Name of each buffer that recurrent layers take their memory from, and that memory's next value."""
    after: dict[str, Value]
    """What each buffer is set to."""

    @property
    def remembers(self) -> bool:
        """Whether each memory is set to its next value, and nothing else is."""
        return self.before.keys() == self.after.keys() and all(
            value.is_same(self.after[name]) for name, value in self.before.items()
        )


def follow(root: Node) -> Flow:
    """Follow the observation through ``forward``.

    Args:
        root: The archive's root module.

    Raises:
        FlowError: If anything but layers, and moves that change no number, lies on its way.
    """
    follower = _Follower()
    try:
        result = follower.call(root, "forward", [Signal()])
    except RecursionError:
        raise FlowError("nests its code too deep") from None
    while isinstance(result, tuple) and result:
        result = result[0]
    if not isinstance(result, Signal):
        raise FlowError("returns something else than what its layers give")
    return Flow(result, follower.before, follower.after)


class _Follower:
    """Evaluates statements on stand-ins of their values."""

    def __init__(self) -> None:
        self.before: dict[str, Signal] = {}
        self.after: dict[str, Value] = {}
        self._left = _MAX_STEPS
        self._code_left = _MAX_CODE
        self._depth = 0
        self._functions: dict[tuple[type[Node], str], ast.FunctionDef] = {}

    # -- modules ------------------------------------------------------------------------------------------------------

    def call(self, node: Node, method: str, given: list[Value]) -> Value:
        """Return what a module's method gives: a layer becomes a step of the signal, other code is followed."""
        if method.startswith("forward") and _is_layer(node):
            return self._layer(node, given)
        self._depth += 1
        if self._depth > _DEEPEST:
            raise FlowError("calls its modules inside of each other without end")
        function = self._function(node, method)
        names = [argument.arg for argument in function.args.args]
        if not len(given) < len(names) + 1 or not names:
            raise FlowError(f"calls '{shorten(method, 40)}' with other arguments than it has")
        values: dict[str, Value] = dict(zip(names, [node, *given], strict=False))
        result = self._block(function.body, values)
        self._depth -= 1
        return _Plain(None) if result is None else result

    def _layer(self, node: Node, given: list[Value]) -> Value:
        if node.kind in WITHOUT_EFFECT and not given:
            return _Plain(None)  # traced code still calls it, for nothing
        if node.kind == "Dropout" and re.search(r"torch\.dropout\([^()]*, True\)", node.code):
            raise FlowError("was traced while it was trained, so that it drops numbers by chance")
        x = given[0] if given else None
        if not isinstance(x, Signal) or x.state is not None or x.first:
            raise FlowError(f"gives a {node.kind} something else than the observation or what a layer gives")
        if node.kind in RECURRENT:
            return self._recurrent(node, x, given[1:])
        if len(given) > 1:
            raise FlowError(f"gives a {node.kind} more than one input")
        return x if node.kind in WITHOUT_EFFECT else Signal((*x.layers, node))

    def _recurrent(self, node: Node, x: Signal, given: list[Value]) -> Value:
        """Return the output and the next memory of recurrent layers, and note where the memory came from."""
        layers = (*x.layers, node)
        held = given[0] if len(given) == 1 else None
        held = held if isinstance(held, tuple) else (held,)
        names = [value.name for value in held if isinstance(value, _Buffer)]
        if len(names) != len(held) or len(names) != {"GRU": 1, "LSTM": 2}[node.kind]:
            raise FlowError("has recurrent layers whose memory does not come from where the last step left it")
        states = tuple(Signal(layers, index) for index in range(len(names)))
        self.before |= dict(zip(names, states, strict=True))
        return Signal(layers), (states[0] if node.kind == "GRU" else states)

    def _function(self, node: Node, method: str) -> ast.FunctionDef:
        key = type(node), method
        if key not in self._functions:
            text = node.code.partition(f"\n  def {method}(")[2].partition("\n  def ")[0]
            self._code_left -= len(text)
            if not text or self._code_left < 0:
                raise FlowError(f"has no code of '{shorten(method, 40)}' that can be looked at")
            try:
                (function,) = ast.parse(textwrap.dedent(f"  def {method}({text}")).body
            except (SyntaxError, ValueError, MemoryError) as error:
                raise FlowError("has code that cannot be parsed") from error
            if not isinstance(function, ast.FunctionDef):
                raise FlowError("has code that cannot be parsed")
            self._functions[key] = function
        return self._functions[key]

    # -- statements ---------------------------------------------------------------------------------------------------

    def _block(self, statements: list[ast.stmt], values: dict[str, Value]) -> Value | None:
        """Follow statements; return what they return, or None where they end without a return."""
        for statement in statements:
            if isinstance(statement, ast.Return):
                return _Plain(None) if statement.value is None else self._value(statement.value, values)
            if isinstance(statement, ast.Assign):
                value = self._value(statement.value, values)
                for target in statement.targets:
                    self._assign(target, value, values)
            elif isinstance(statement, ast.Expr):
                self._value(statement.value, values)
            elif isinstance(statement, ast.If):
                result = self._branch(statement, values)
                if result is not None:
                    return result
            elif not isinstance(statement, ast.Pass):
                raise FlowError(f"has a '{type(statement).__name__.lower()}' between its layers")
        return None

    def _branch(self, statement: ast.If, values: dict[str, Value]) -> Value | None:
        test = self._value(statement.test, values)
        if not isinstance(test, _Plain):
            raise FlowError("decides by numbers which of its layers it runs")
        return self._block(statement.body if test.value else statement.orelse, values)

    def _assign(self, target: ast.expr, value: Value, values: dict[str, Value]) -> None:
        if isinstance(target, ast.Name):
            values[target.id] = value
        elif isinstance(target, ast.Tuple) and isinstance(value, tuple) and len(value) == len(target.elts):
            for part, own in zip(target.elts, value, strict=True):
                self._assign(part, own, values)
        elif isinstance(target, ast.Attribute) and isinstance(self._value(target.value, values), Node):
            self.after[target.attr] = value
        else:
            raise FlowError("takes apart what a layer gives in a way that is not understood")

    # -- expressions --------------------------------------------------------------------------------------------------

    def _value(self, given: ast.expr, values: dict[str, Value]) -> Value:
        self._left -= 1
        if self._left < 0:
            raise FlowError("runs its layers again and again")
        if isinstance(given, ast.Name):
            return values.get(given.id, _Unknown())
        if isinstance(given, ast.Constant):
            return _Plain(given.value)
        if isinstance(given, ast.UnaryOp) and isinstance(given.op, ast.USub):
            value = self._value(given.operand, values)
            number = value.value if isinstance(value, _Plain) else None
            return _Plain(-number) if isinstance(number, int | float) else _Unknown()
        if isinstance(given, ast.Tuple | ast.List):
            return tuple(self._value(part, values) for part in given.elts)
        if isinstance(given, ast.Attribute):
            return self._attribute(self._value(given.value, values), given.attr)
        if isinstance(given, ast.Subscript):
            return self._element(self._value(given.value, values), self._value(given.slice, values))
        if isinstance(given, ast.Call):
            return self._call(given, values)
        raise FlowError(f"computes a '{type(given).__name__.lower()}' beside its layers")

    def _attribute(self, holder: Value, name: str) -> Value:
        if not isinstance(holder, Node):
            return _Unknown()
        value = holder.values.get(name)
        if isinstance(value, Node):
            return value
        if value is None or isinstance(value, bool | int | float | str):
            return _Plain(value)
        return _Buffer(name)

    def _element(self, holder: Value, index: Value) -> Value:
        place = index.value if isinstance(index, _Plain) else None
        if not isinstance(holder, tuple) or not isinstance(place, int) or not 0 <= place < len(holder):
            raise FlowError("takes apart what a layer gives in a way that is not understood")
        return holder[place]

    def _call(self, call: ast.Call, values: dict[str, Value]) -> Value:
        given = [self._value(part, values) for part in call.args]
        name = _dotted(call.func)
        if name == "getattr" and len(given) == 2 and isinstance(given[1], _Plain):
            return self._attribute(given[0], str(given[1].value))
        if name in ("annotate", "unchecked_cast") and len(given) == 2:
            return given[1]
        if name.startswith("torch.") and name.count(".") == 1:
            return self._operator(name.removeprefix("torch."), given, bool(call.keywords))
        holder = self._value(call.func.value, values) if isinstance(call.func, ast.Attribute) else None
        if isinstance(call.func, ast.Attribute) and isinstance(holder, Node) and not call.keywords:
            return self.call(holder, call.func.attr, given)
        raise FlowError(f"computes '{shorten(name.rpartition('.')[2], 40)}' beside its layers")

    def _operator(self, name: str, given: list[Value], keywords: bool) -> Value:
        move = _MOVES.get(name)
        if name == "copy_" and len(given) >= 2 and isinstance(given[0], _Buffer):
            self.after[given[0].name] = given[1]
            return given[0]
        if move is None or not given or keywords:
            raise FlowError(f"computes '{shorten(name, 40)}' beside its layers")
        return move(given)


def _is_layer(node: Node) -> bool:
    """Return whether a module is looked at as a whole: those of PyTorch but containers, and those of the exporters."""
    own = node.kind == "EmpiricalNormalization" or node.kind.endswith("DeterministicOutput")
    return own or (node.of_torch and not any(isinstance(value, Node) for value in node.values.values()))


def _dotted(function: ast.expr) -> str:
    """Return a name such as ``torch.unsqueeze``, empty for what is no name."""
    parts: list[str] = []
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    return ".".join([function.id, *reversed(parts)]) if isinstance(function, ast.Name) else ".".join(reversed(parts))


def _same(given: list[Value]) -> Value:
    return given[0]


def _slice(given: list[Value]) -> Value:
    bounds = [value.value if isinstance(value, _Plain) else "?" for value in given[2:5]]
    if any(bound not in usual for bound, usual in zip(bounds, _WHOLE, strict=False)):
        raise FlowError("takes a part of the numbers between its layers")
    return given[0]


def _select(given: list[Value]) -> Value:
    x = given[0]
    place = [value.value if isinstance(value, _Plain) else None for value in given[1:]]
    if not isinstance(x, Signal) or x.state is not None or x.first or place != [-2, 0]:
        raise FlowError("takes a part of the numbers between its layers")
    return Signal(x.layers, first=True)


def _to(given: list[Value]) -> Value:
    if not isinstance(given[1], _Plain) or given[1].value != _FLOAT:
        raise FlowError("turns numbers into another type between its layers")
    return given[0]


def _compare(given: list[Value]) -> Value:
    one, other = given
    if not isinstance(one, _Plain) or not isinstance(other, _Plain):
        raise FlowError("decides by numbers which of its layers it runs")
    return _Plain(one.value == other.value)


def _negated(compare: Callable[[list[Value]], Value]) -> Callable[[list[Value]], Value]:
    def negated(given: list[Value]) -> Value:
        value = compare(given)
        return _Plain(not value.value) if isinstance(value, _Plain) else _Unknown()

    return negated


_MOVES: dict[str, Callable[[list[Value]], Value]] = {
    **dict.fromkeys(("unsqueeze", "squeeze", "detach", "contiguous", "clone", "_cast_Float"), _same),
    "select": _select,
    "slice": _slice,
    "to": _to,
    "eq": _compare,
    "ne": _negated(_compare),
    "__is__": _compare,
    "__isnot__": _negated(_compare),
    "__not__": _negated(_same),
}
"""What exporters do between the layers, and how they choose between them: nothing that changes a number."""
