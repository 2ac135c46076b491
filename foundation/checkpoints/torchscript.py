"""Exported policies of RSL-RL and Isaac Lab, ``policy.pt``: their weights, normaliser and activation are read.

The archive's code is never run, so that only networks of the shapes that the exporters write are understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import torch

from foundation.checkpoints.reading.loading import RUN_IT, LoadedPolicy, Source, report_unknown
from foundation.checkpoints.reading.rsl_rl_parts import Parts, assemble
from foundation.checkpoints.reading.script_archive import Node, is_script, read_script
from foundation.checkpoints.reading.script_flow import RECURRENT, WITHOUT_EFFECT, FlowError, Signal, follow
from foundation.core.errors import UserError
from foundation.policies.distribution import Beta, Deterministic, Heteroscedastic, ShapedActions
from foundation.policies.mlp import activation_class_names, resolve_activation

_KNOWN = {
    "mlp", "actor", "obs_normalizer", "normalizer", "rnn", "memory", "deterministic_output",
    "hidden_state", "cell_state",
}  # fmt: skip
_RECURRENT = ("rnn", "memory")
"""RSL-RL's and legged_gym's name of the recurrent layers."""
_DEFAULTS = {
    "ELU": {1.0}, "CELU": {1.0}, "LeakyReLU": {0.01}, "Softplus": {1.0, 20.0}, "SELU": set(), "GELU": set(),
}  # fmt: skip
"""Constants of PyTorch's activations; those of the file are in its code alone."""


def recognise_file(path: Path, head: bytes) -> bool:
    """Return whether a file is in this format."""
    return is_script(path, head)


def load_file(source: Source) -> LoadedPolicy:
    """Read the policy."""
    root = read_script(source.path)
    where = f"'{source.path}' (TorchScript {root.kind})"
    bare = root.of_torch and root.kind == "Sequential"
    layers = root if bare else _child(root, ("mlp", "actor"), where)
    if not bare:
        extra = [n for n, v in root.values.items() if isinstance(v, Node | torch.Tensor) and n not in _KNOWN]
        report_unknown(sorted(extra), where, source.overrides.strict)
    body, activation, last = _body(layers, where)
    if not body:
        _refuse(f"{where} has no dense layers that can be read: it is frozen, or a policy of another kind.")
    _check_flow(root, [layers] if bare else _parts_in_order(root, layers), where)
    distribution = Deterministic() if bare else _distribution(root, where)
    if last is not None:
        distribution = ShapedActions(distribution, resolve_activation(last))
    parts = Parts(body=body)
    if not bare:
        parts = Parts(body=body, rnn=_rnn(root, where), normalizer=_normalizer(root, where))
    return assemble(
        source,
        "TorchScript export",
        source.agent.role(),
        parts,
        activation=activation,
        distribution=distribution,
    )


def _parts_in_order(root: Node, layers: Node) -> list[Node]:
    """Return normaliser, recurrent layers, dense layers and what makes actions of them, as far as there are any."""
    before = [root.values.get(name) for name in ("obs_normalizer", "normalizer", *_RECURRENT)]
    parts = [*before, layers, root.values.get("deterministic_output")]
    return [part for part in parts if isinstance(part, Node)]


def _child(root: Node, names: tuple[str, ...], where: str) -> Node:
    found = [root.values[name] for name in names if isinstance(root.values.get(name), Node)]
    if len(found) != 1:
        _refuse(f"{where} is not an exported policy of RSL-RL or Isaac Lab: it has no '{names[0]}'.")
    return found[0]


def _check_flow(root: Node, parts: list[Node], where: str) -> None:
    """Refuse an export whose code does anything else than to run its parts, one after the other.

    Args:
        root: The archive's root module.
        parts: What is read of it, in the order in which a policy runs it.
        where: The file, for errors.
    """
    try:
        flow = follow(root)
    except FlowError as error:
        _refuse(f"{where} {error}, which is not read.")
    expected = [layer for part in parts for layer in _in_order(part) if not _has_no_effect(layer)]
    found = flow.result.layers
    again = next((layer.kind for place, layer in enumerate(found) if any(layer is x for x in found[:place])), "")
    if again:
        _refuse(f"{where} runs '{again}' more than once in a step, which is not read.")
    if not flow.result.is_same(Signal(tuple(expected), first=root.values.get("state_dependent_std") is True)):
        shown = ", ".join(layer.kind for layer in found[:8]) or "none"
        _refuse(f"{where} does not run all of its layers in their order ({shown}), which is not read.")
    if not flow.remembers:
        _refuse(f"{where} does not remember what its recurrent layers give, or more than that, which is not read.")


def _has_no_effect(layer: Node) -> bool:
    return layer.of_torch and layer.kind in WITHOUT_EFFECT


def _body(node: Node, where: str) -> tuple[dict[str, torch.Tensor], str, str | None]:
    """Return the dense layers' tensors, the activation between them, and the one after the last, where there is one."""
    tensors: dict[str, torch.Tensor] = {}
    between: list[str | None] = []  # what follows each dense layer
    for layer in _in_order(node):
        if not layer.of_torch:
            _refuse(f"{where} has a layer '{layer.kind}' of its own, whose code is not read.")
        if layer.kind == "Linear":
            given = layer.tensors()
            said = "bias" in layer.values or "bias :" in layer.code or not layer.code
            if layer.values.get("bias") is None and "weight" in given and (not said or "bias" in layer.values):
                given["bias"] = given["weight"].new_zeros(given["weight"].shape[:1])
            tensors |= {f"{2 * len(between)}.{name}": value for name, value in given.items()}
            between.append(None)
        elif layer.kind in activation_class_names() and between and between[-1] is None:
            _check_constants(layer, where)
            between[-1] = activation_class_names()[layer.kind]
        elif not _has_no_effect(layer):
            _refuse(f"{where} has a layer '{layer.kind}' where none is understood.")
    kinds = {name or "identity" for name in between[:-1]}
    if len(kinds) > 1:
        _refuse(f"{where} has several activations: {', '.join(sorted(kinds))}.")
    return tensors, kinds.pop() if kinds else "identity", between[-1] if between else None


def _in_order(node: Node) -> Iterator[Node]:
    """Yield the layers of a Sequential, those inside of further ones too, by their numbers; else the module itself."""
    if not any(isinstance(value, Node) for value in node.values.values()):
        yield node
        return
    named = [(name, value) for name, value in node.values.items() if isinstance(value, Node)]
    if all(name.isdigit() for name, _ in named):
        named.sort(key=lambda item: int(item[0]))
    for _, value in named:
        if value.kind == "Sequential":
            yield from _in_order(value)
        else:
            yield value


def _check_constants(layer: Node, where: str) -> None:
    """Refuse an activation with constants other than PyTorch's own, such as a leaky slope of 0.2."""
    numbers = {float(text) for text in re.findall(r"(?<![\w.])-?\d+\.\d*(?:e[+-]?\d+)?", layer.code)}
    if numbers - _DEFAULTS.get(layer.kind, numbers) or 'approximate="tanh"' in layer.code or '"tanh"' in layer.code:
        _refuse(f"{where} has a {layer.kind} with constants of its own, which is not read.")


def _rnn(root: Node, where: str) -> dict[str, torch.Tensor]:
    found = [root.values[name] for name in _RECURRENT if isinstance(root.values.get(name), Node)]
    found = [node for node in found if node.kind != "Identity"]
    if not found:
        return {}
    if len(found) > 1 or found[0].kind not in RECURRENT or not found[0].of_torch:
        _refuse(f"{where} has recurrent layers of an unknown kind.")
    return found[0].tensors()


def _normalizer(root: Node, where: str) -> dict[str, torch.Tensor]:
    node = root.values.get("obs_normalizer", root.values.get("normalizer"))
    if not isinstance(node, Node) or node.kind == "Identity":
        return {}
    if node.kind != "EmpiricalNormalization" or abs(float(node.values.get("eps", 1e-2)) - 1e-2) > 1e-9:
        _refuse(f"{where} has a normaliser '{node.kind}' that is not RSL-RL's.")
    forward = node.code.partition("  def forward(")[2].partition("\n  def ")[0]
    if sorted(re.findall(r"\btorch\.(\w+)\(", forward)) != ["add", "div", "sub"]:  # (x - mean) / (std + eps)
        _refuse(f"{where} has a normaliser whose formula is not RSL-RL's.")
    return node.tensors()


def _distribution(root: Node, where: str) -> Deterministic:
    """Return how the exported policy makes actions; an export has no standard deviation."""
    output = root.values.get("deterministic_output")
    kind = output.kind if isinstance(output, Node) else ""
    if isinstance(output, Node) and kind == "_BetaDeterministicOutput":
        low = float(output.values["range_offset"])
        scale = float(output.values["range_scale"])
        return Beta((low, low + scale))
    if kind == "_FirstSliceDeterministicOutput" or root.values.get("state_dependent_std") is True:
        return Heteroscedastic(None, (0.0, float("inf")))
    if kind not in ("", "Identity", "_IdentityDeterministicOutput"):
        _refuse(f"{where} ends in '{kind}', which is not understood.")
    return Deterministic()


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message} {RUN_IT}.")
