"""Normalisers of other libraries, built from the moments and the bound in a file."""

from __future__ import annotations

import io
import logging
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy
import torch

from foundation.checkpoints.reading.loading import Tensors
from foundation.core.archives import check_members, size_of
from foundation.core.errors import UserError
from foundation.core.text import one_line

logger = logging.getLogger(__name__)


VEC_NORMALIZE = {"epsilon": 1e-8, "clip_obs": 10.0}
"""Options of a ``VecNormalize``, and the library's own values of them."""


def report_defaults(path: Path, taken: Mapping[str, float]) -> None:
    """Warn that a file of statistics does not state how they are used.

    Args:
        path: The file.
        taken: The options that it lacks, with the values that are taken.
    """
    shown = " and ".join(f"{name}={value:g}" for name, value in taken.items())
    logger.warning(
        "'%s' does not state %s: taking %s, which are the library's own. If the training had others, write an .npz "
        "with mean, var, epsilon and clip_obs.",
        path,
        " and ".join(taken),
        shown,
    )


def moments(entries: Tensors, var_name: str, count_name: str, size: int, where: str) -> tuple[torch.Tensor, ...]:
    """Return mean and variance as float32, checked. Shape of both: (size,).

    Args:
        entries: ``running_mean``, the variance and the count, and nothing else.
        var_name: The variance's name.
        count_name: The count's name.
        size: Number of observations.
        where: What to name in errors.
    """
    mean = entries.get("running_mean")
    var = entries.get(var_name)
    count = entries.get(count_name)
    if mean is None or var is None or count is None or len(entries) != 3:
        raise UserError(f"{where} has entries {sorted(entries)}, not 'running_mean', '{var_name}', '{count_name}'.")
    if mean.shape != (size,) or var.shape != (size,) or count.numel() != 1:
        raise UserError(
            f"{where} has moments of shape {list(mean.shape)} and {list(var.shape)}; [{size}] was expected. "
            "The file mixes two networks, or is corrupt."
        )
    if bool((var < 0).any()):
        raise UserError(f"{where} has a negative variance. The file is corrupt.")
    return mean.float(), var.float()


def load_moments(path: Path, size: int) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """Return mean, variance, epsilon and bound of a ``VecNormalize``, written by ``numpy.savez``; no pickle is read.

    Args:
        path: An ``.npz`` with ``mean`` and ``var``, and ``epsilon`` and ``clip_obs`` unless they are the library's own.
        size: Number of observations.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, size_of(path))
            held = [name for name in VEC_NORMALIZE if f"{name}.npy" in archive.namelist()]
            names = ("mean", "var", *held)
            found = {name: torch.from_numpy(_array(archive.read(f"{name}.npy"))).double() for name in names}
    except Exception as error:  # zipfile, KeyError and ValueError all mean the same
        text = one_line(error)
        raise UserError(
            f"'{path}' cannot be read as the statistics of a VecNormalize: {text}. Write it again."
        ) from error
    missing = {name: value for name, value in VEC_NORMALIZE.items() if name not in found}
    if missing:
        report_defaults(path, missing)
    found |= {name: torch.tensor(value, dtype=torch.float64) for name, value in missing.items()}
    mean = found["mean"]
    var = found["var"]
    if mean.shape != (size,) or var.shape != (size,) or found["epsilon"].numel() != 1 or found["clip_obs"].numel() != 1:
        raise UserError(f"'{path}' has statistics of {mean.numel()} observations; the policy reads {size}.")
    if not all(bool(torch.isfinite(value).all()) and bool((value >= 0).all()) for value in list(found.values())[1:]):
        raise UserError(f"'{path}' has a negative or infinite variance, epsilon or clip_obs. Write it again.")
    if not bool(torch.isfinite(mean).all()):
        raise UserError(f"'{path}' has NaN or infinite numbers in 'mean'. Write it again.")
    return mean.float(), var, float(found["epsilon"]), float(found["clip_obs"])


def _array(content: bytes) -> numpy.ndarray:
    """Return the array of an ``.npy`` that holds all that its head says."""
    stream = io.BytesIO(content)
    version = numpy.lib.format.read_magic(stream)
    read_head = {1: numpy.lib.format.read_array_header_1_0, 2: numpy.lib.format.read_array_header_2_0}[version[0]]
    shape, fortran, dtype = read_head(stream)
    if dtype.kind not in "fiub" or math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise ValueError(f"an array of shape {str(shape)[:80]} has {len(content) - stream.tell()} bytes")
    flat = numpy.frombuffer(content, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if fortran else "C").astype(numpy.float64)
