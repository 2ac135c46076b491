"""Policies as LEAPP bundles, which Isaac Lab 3.0 exports too: a YAML graph, an ONNX model and the initial memory."""

# LEAPP need not be installed, so a type checker may not find it.
# pyright: reportMissingImports=false

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

from foundation.core.errors import UserError
from foundation.core.text import one_line
from foundation.deploy.description import Description, Field
from foundation.deploy.program import Program
from foundation.export.torch_export import Replayed, Tensors
from foundation.export.torch_step import ProgramStep, initial_state

INSTALL = "format 'leapp' is written and run by the package leapp: pip install leapp"
NODE = "policy"
"""Name of the bundle's one model."""


def write_leapp(folder: Path, program: Program, description: Description) -> list[str]:
    """Write a policy for one robot; its memory is a feedback connection of the graph.

    Args:
        folder: Where to; the bundle is the folder ``leapp/<name>`` in it.
        program: The policy's operations.
        description: Its inputs and outputs: names of columns, units, frames and rate are in the YAML.

    Returns:
        The files' names, the YAML first.
    """
    try:
        import leapp  # an optional package
    except ImportError:
        raise UserError(INSTALL) from None
    name = description.name
    try:
        with _quiet():
            leapp.start(name, save_path=str(folder / "leapp"))
            try:
                _trace(leapp, program, description)
            finally:
                leapp.stop()
            interval = description.control_interval
            rate = leapp.GraphConfigs(frequency=None if interval is None else 1.0 / interval)
            leapp.compile_graph(visualize=False, validate=True, graph_configs=rate)
    except UserError:
        raise
    except Exception as error:  # a layer that it cannot trace fails in any of LEAPP's and PyTorch's ways
        raise UserError(f"LEAPP cannot write this policy: {one_line(error)}") from error
    place = folder / "leapp" / name
    (place / "log.txt").unlink(missing_ok=True)
    files = sorted(place.iterdir(), key=lambda file: (file.suffix != ".yaml", file.name))
    return [str(file.relative_to(folder)) for file in files]


@torch.no_grad()
def _trace(leapp: ModuleType, program: Program, description: Description) -> None:
    """Act once, with what comes in and goes out marked."""
    step = ProgramStep(program, "LEAPP").eval()
    annotate = leapp.annotate
    semantics = leapp.TensorSemantics
    given = semantics(
        name="obs",
        ref=torch.zeros(1, program.num_obs),
        element_names=[column_names(description.observations)],
        extra={
            "units": _stated(description.observations, "unit"),
            "frames": _stated(description.observations, "frame"),
        },
    )
    obs = annotate.input_tensors(NODE, given)
    state = torch.zeros(1, 0)
    if program.state_size:
        state = annotate.state_tensors(NODE, {"state": initial_state(program, 1)})
    actions, after = step(obs, state)
    if program.state_size:
        annotate.update_state(NODE, {"state": after})
    made = semantics(
        name="actions",
        ref=actions,
        element_names=[column_names(description.actions)],
        extra={"units": _stated(description.actions, "unit"), "frames": _stated(description.actions, "frame")},
    )
    annotate.output_tensors(NODE, made, export_with="onnx-dynamo")


def column_names(fields: Sequence[Field]) -> list[str]:
    """Return a name for each column: a field's own where it has one column, ``body_rates[0]`` and so on otherwise."""
    names: list[str] = []
    for field in fields:
        names += [field.name] if field.size == 1 else [f"{field.name}[{index}]" for index in range(field.size)]
    return names


def _stated(fields: Sequence[Field], what: str) -> dict[str, str]:
    return {field.name: getattr(field, what) for field in fields if getattr(field, what)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep LEAPP, and PyTorch's exporter that it calls, from the console; close LEAPP's log, which names folders."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        logger = logging.getLogger("leapp")
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()


def read_leapp(path: Path, program: Program) -> Replayed:
    """Load a bundle that :func:`write_leapp` wrote, by LEAPP's own runtime.

    Args:
        path: The YAML.
        program: What was written, for the memory at the start of an episode, which the bundle must hold too.
    """
    try:
        import leapp  # an optional package
    except ImportError:
        raise UserError(INSTALL) from None
    try:
        with _quiet():
            manager = leapp.InferenceManager(str(path))
    except Exception as error:  # a corrupt bundle fails in any of LEAPP's and onnxruntime's ways
        raise UserError(f"'{path}' cannot be run by LEAPP: {one_line(error)}") from error
    remembers = [key.partition("/")[2] for key in manager.feedback_inputs]
    begun = manager.value_dict[NODE][remembers[0]].reshape(-1).clone() if remembers else torch.zeros(0)
    if begun.numpy().tolist() != program.initial_state.tolist():
        raise UserError(f"'{path}' begins with another memory than the policy.")

    def step(inputs: Tensors) -> Tensors:
        for value, name in zip(inputs[1:], remembers, strict=True):
            manager.set_input_value(NODE, name, value)
        actions = manager.run_policy({f"{NODE}/obs": inputs[0]})[f"{NODE}/actions"]
        after = [manager.value_dict[NODE][name].clone() for name in remembers]
        return (torch.as_tensor(actions).clone(), *after)

    return Replayed(step, begun.numpy(), one_by_one=True)
