"""Exported policies of RSL-RL and Isaac Lab, ``policy.pt``: their weights, normaliser and activation are read.

The archive's code is never run, so that only networks of the shapes that the exporters write are understood.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import torch

from foundation.checkpoints.reading.assembly import Parts, assemble
from foundation.checkpoints.reading.loading import LoadedPolicy, Source, report_unknown
from foundation.checkpoints.reading.script_archive import Node, is_script, read_script
from foundation.core.errors import UserError
from foundation.policies.distribution import Beta, Deterministic, Heteroscedastic
from foundation.policies.mlp import activation_class_names

_KNOWN = {"mlp", "actor", "obs_normalizer", "normalizer", "rnn", "deterministic_output", "hidden_state", "cell_state"}


def recognise_file(path: Path, head: bytes) -> bool:
    """Return whether a file is in this format."""
    return is_script(path, head)


def load_file(source: Source) -> LoadedPolicy:
    """Read the policy."""
    root = read_script(source.path)
    where = f"'{source.path}' (TorchScript {root.kind})"
    extra = [n for n, v in root.values.items() if isinstance(v, Node | torch.Tensor) and n not in _KNOWN]
    report_unknown(sorted(extra), where, source.overrides.strict)
    body, activation = _body(_child(root, ("mlp", "actor"), where), where)
    parts = Parts(body=body, rnn=_rnn(root, where), normalizer=_normalizer(root, where))
    return assemble(
        source,
        "TorchScript export",
        source.agent.role(),
        parts,
        activation=activation,
        distribution=_distribution(root, where),
    )


def _child(root: Node, names: tuple[str, ...], where: str) -> Node:
    found = [root.values[name] for name in names if isinstance(root.values.get(name), Node)]
    if len(found) != 1:
        raise UserError(f"{where} is not an exported policy of RSL-RL or Isaac Lab: it has no '{names[0]}'.")
    return found[0]


def _body(node: Node, where: str) -> tuple[dict[str, torch.Tensor], str]:
    """Return the dense layers' tensors and the activation between them."""
    tensors: dict[str, torch.Tensor] = {}
    kinds: set[str] = set()
    for index, layer in node.values.items():
        if not isinstance(layer, Node):
            continue
        if layer.kind == "Linear":
            tensors |= {f"{index}.{name}": value for name, value in layer.tensors().items()}
        elif layer.kind in activation_class_names():
            kinds.add(activation_class_names()[layer.kind])
        elif layer.kind != "Unflatten":
            raise UserError(f"{where} has a layer '{layer.kind}', which is not understood.")
    if len(kinds) > 1:
        raise UserError(f"{where} has several activations: {', '.join(sorted(kinds))}.")
    return tensors, kinds.pop() if kinds else "identity"


def _rnn(root: Node, where: str) -> dict[str, torch.Tensor]:
    node = root.values.get("rnn")
    if not isinstance(node, Node):
        return {}
    if node.kind not in ("GRU", "LSTM"):
        if node.kind == "Identity":
            return {}
        _refuse(f"{where} has recurrent layers of an unknown kind.")
    return node.tensors()


def _normalizer(root: Node, where: str) -> dict[str, torch.Tensor]:
    node = root.values.get("obs_normalizer", root.values.get("normalizer"))
    if not isinstance(node, Node) or node.kind == "Identity":
        return {}
    if node.kind != "EmpiricalNormalization" or abs(float(node.values.get("eps", 1e-2)) - 1e-2) > 1e-9:
        _refuse(f"{where} has a normaliser '{node.kind}' that is not RSL-RL's.")
    return node.tensors()


def _distribution(root: Node, where: str) -> Deterministic:
    """Return how the exported policy makes actions; an export has no deviation."""
    output = root.values.get("deterministic_output")
    kind = output.kind if isinstance(output, Node) else ""
    if isinstance(output, Node) and kind == "_BetaDeterministicOutput":
        low, scale = float(output.values["range_offset"]), float(output.values["range_scale"])
        return Beta((low, low + scale))
    if kind == "_FirstSliceDeterministicOutput" or root.values.get("state_dependent_std") is True:
        return Heteroscedastic(None, (0.0, float("inf")))
    if kind not in ("", "Identity", "_IdentityDeterministicOutput"):
        _refuse(f"{where} ends in '{kind}', which is not understood.")
    return Deterministic()


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message} Use the training checkpoint instead.")
