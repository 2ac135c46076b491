"""Statistics of Stable-Baselines3's ``VecNormalize``: find them beside a model, and read them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from foundation.checkpoints.reading.inert_pickle import Inert, as_array, read_inert
from foundation.checkpoints.reading.scaling import VEC_NORMALIZE, load_moments, report_defaults
from foundation.core.errors import UserError
from foundation.core.files import load_yaml
from foundation.core.text import one_line
from foundation.policies.scaling import ClampedScaler

_SUFFIXES = (".npz", ".pkl")
"""In this order: an ``.npz`` is what the user has made of the pickle."""

_MODULE = b"stable_baselines3.common.vec_env.vec_normalize"
"""What the library's own pickle begins with, whatever it is called."""

BARE = ("obs_rms.pkl", "ob_rms.pkl")
"""Names under which older libraries keep the moments alone, without what is done with them."""

_HEAD = 512
"""Bytes of a pickle within which its class is named."""


@dataclass(frozen=True)
class VecNormalizeStatistics:
    """What a ``VecNormalize`` does to observations: ``clip((x - mean) / sqrt(var + epsilon), ±clip_obs)``."""

    path: Path
    """The file."""
    mean: torch.Tensor
    """Shape: (num_obs,), float32."""
    var: torch.Tensor
    """Shape: (num_obs,), float64."""
    epsilon: float
    """Added to the variance."""
    clip_obs: float
    """Bound of the result."""
    norm_obs: bool = True
    """Whether observations are normalised at all; rewards may be alone."""

    @classmethod
    def read(cls, path: Path, num_obs: int) -> VecNormalizeStatistics:
        """Read an ``.npz`` or the library's own pickle.

        Args:
            path: The file.
            num_obs: Number of observations of the policy.
        """
        if path.suffix == ".npz":
            return cls(path, *load_moments(path, num_obs))
        try:
            return _from_pickle(path, num_obs)
        except UserError:
            raise
        except Exception as error:  # pickle raises whatever a corrupt file runs into
            reason = one_line(error)
            raise UserError(
                f"'{path}' cannot be read as the pickle of a VecNormalize: {reason}. Where you trust it, run: import "
                f'numpy, pickle; v = pickle.load(open("{path.name}", "rb")); numpy.savez("{path.stem}.npz", '
                "mean=v.obs_rms.mean, var=v.obs_rms.var, epsilon=v.epsilon, clip_obs=v.clip_obs)"
            ) from error

    def scaler(self) -> ClampedScaler:
        """Return the normaliser."""
        return ClampedScaler(self.mean, (self.var + self.epsilon).sqrt().float(), self.clip_obs)

    def formula(self) -> str:
        """Return what the normaliser does, to be shown."""
        return f"(x - mean) / sqrt(var + {self.epsilon:g}), clamped to ±{self.clip_obs:g} ({self.path.name})"


def find_statistics(model: Path) -> Path | None:
    """Return the statistics of a model, or None where there are none.

    They lie beside it, or, as rl-zoo writes them, in a folder of the model's name or of its environment's:
    ``Pendulum-v1_1/Pendulum-v1.zip`` and ``Pendulum-v1_1/Pendulum-v1/vecnormalize.pkl``.

    Args:
        model: The ``.zip``.

    Raises:
        UserError: If several lie there, or those of another model.
    """
    run = _run_folder(model)
    own = _own_folder(model)
    places = [run] if own is None else [run, own]
    for place in places:
        for suffix in _SUFFIXES:
            found = _in_folder(place, model.stem, suffix)
            if len(found) > 1:
                names = ", ".join(path.name for path in found[:3])
                raise UserError(
                    f"'{model}': several statistics lie in '{place}' ({names}); leave the one that belongs to it."
                )
            if found:
                return found[0]
    bare = [path for place in places for path in bare_moments(place)]
    if bare:
        return bare[0]
    if own is None:
        _refuse_those_of_others(model, run)
    _refuse_those_of_another_name(model, run)
    return None


def bare_moments(folder: Path) -> list[Path]:
    """Return a folder's moments of observations that are kept alone, links to nothing too."""
    return [path for path in (folder / name for name in BARE) if path.exists() or path.is_symlink()]


def says_normalized(model: Path) -> Path | None:
    """Return the ``config.yml`` of rl-zoo that says that a model's observations are normalised; None where none does.

    Args:
        model: The ``.zip``.
    """
    own = _own_folder(model)
    run = _run_folder(model)
    for folder in [run] if own is None else [own, run]:
        path = folder / "config.yml"
        if path.is_file():
            return path if _normalizes(load_yaml(path)) else None
    return None


def _normalizes(config: object) -> bool:
    """Read ``normalize: true`` or ``normalize: "{'norm_obs': True, ...}"`` of a mapping or of a list of pairs."""
    if isinstance(config, list) and len(config) == 1 and isinstance(config[0], list):
        config = config[0]  # an OrderedDict, with what it was made of
    if isinstance(config, list):
        config = {
            pair[0]: pair[1] for pair in config if isinstance(pair, list) and len(pair) == 2 and pair[0] == "normalize"
        }
    stated = config.get("normalize") if isinstance(config, dict) else None
    if isinstance(stated, dict):
        return stated.get("norm_obs") is not False
    return stated is True or (isinstance(stated, str) and re.search(r"norm_obs\W+False", stated) is None)


def _run_folder(model: Path) -> Path:
    """Return the folder whose files belong to a model: where it is named, or, for a link, where it lies."""
    named = model.absolute().parent
    beside = any(_is_named_so(path) for pattern in ("*", "*/*") for path in named.glob(pattern))
    return named if beside else model.resolve().parent


def _own_folder(model: Path) -> Path | None:
    """Return rl-zoo's folder of a model: of its name, or of the environment that the run's folder is named after."""
    run = _run_folder(model)
    environment = re.sub(r"_\d+$", "", run.name)
    return next((run / name for name in (model.stem, environment) if (run / name).is_dir()), None)


def _refuse_those_of_others(model: Path, run: Path) -> None:
    """Refuse to take a model for one without statistics where those of another name lie in a folder beside it."""
    others = [path for suffix in _SUFFIXES for path in sorted(run.glob(f"*/*{suffix}")) if _is_named_so(path)]
    if others:
        raise UserError(
            f"'{model}' has no statistics of its own, but '{others[0].relative_to(run)}' lies beside it: where they "
            f"belong to it, copy them to '{model.stem}_vecnormalize{others[0].suffix}'; else move the model elsewhere."
        )


def _refuse_those_of_another_name(model: Path, run: Path) -> None:
    """Refuse the same where they lie in the folder above, or beside the model in a pickle of any name."""
    found = [path for suffix in _SUFFIXES for path in sorted(run.parent.glob(f"*{suffix}")) if _is_named_so(path)]
    found += [path for path in sorted(run.glob("*.pkl")) if path.is_file() and _MODULE in _first_bytes(path)]
    if found:
        raise UserError(
            f"'{model}' has no statistics of its own, and there is '{found[0]}': where they belong to it, copy them to "
            f"'{model.stem}_vecnormalize{found[0].suffix}' beside it; else move the model elsewhere."
        )


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _in_folder(folder: Path, stem: str, suffix: str) -> list[Path]:
    """Return a folder's statistics: those that carry the model's name, else all."""
    every = sorted(path for path in folder.glob(f"*{suffix}") if _is_named_so(path))
    for path in every:
        if not path.is_file():
            raise UserError(
                f"'{path}' is a link to nothing, a folder or a pipe, and not the model's statistics: without them its "
                "actions would be others. Copy the file again."
            )
    names = {path: path.stem.lower().replace("vecnormalize_", "").replace("_vecnormalize", "") for path in every}
    named = [path for path in every if names[path] == stem.lower()]
    steps = _steps(stem)
    if named or steps is None:
        return named or every
    of_others = [path for path in every if _steps(path.stem) not in (None, steps)]
    if of_others and of_others == every:
        raise UserError(
            f"'{folder / stem}.zip' is of step {steps}, and the statistics that lie there are of others "
            f"({of_others[0].name}): where they belong to it, copy them to '{stem}_vecnormalize{suffix}'; else move "
            "the model elsewhere."
        )
    return [path for path in every if _steps(path.stem) == steps] or [path for path in every if path not in of_others]


def _steps(stem: str) -> str | None:
    """Return the number in ``rl_model_2000_steps`` or ``rl_model_vecnormalize_2000_steps``."""
    match = re.search(r"_(\d+)_steps$", stem)
    return match[1] if match else None


def _is_named_so(path: Path) -> bool:
    return "normalize" in path.name.lower()


def _from_pickle(path: Path, num_obs: int) -> VecNormalizeStatistics:
    root = read_inert(path)
    kind = root.kind if isinstance(root, Inert) else type(root).__name__
    if isinstance(root, Inert) and kind.rpartition(".")[2] == "RunningMeanStd":
        report_defaults(path, VEC_NORMALIZE)
        return _statistics(path, num_obs, root, *VEC_NORMALIZE.values())
    if not isinstance(root, Inert) or kind.rpartition(".")[2] != "VecNormalize":
        raise ValueError(f"it holds a {kind[:80]}")
    norm_obs = root.attribute("norm_obs")
    if norm_obs is False:
        return VecNormalizeStatistics(path, torch.zeros(num_obs), torch.ones(num_obs).double(), 0.0, math.inf, False)
    moments = root.attribute("obs_rms")
    if isinstance(moments, dict):
        raise UserError(f"'{path}' normalises a dictionary of observations; only one array of them is understood.")
    if not isinstance(moments, Inert):
        raise ValueError("it lacks 'obs_rms'")
    epsilon, clip_obs = (float(as_array(root.attribute(name))) for name in ("epsilon", "clip_obs"))
    return _statistics(path, num_obs, moments, epsilon, clip_obs)


def _statistics(path: Path, num_obs: int, moments: Inert, epsilon: float, clip_obs: float) -> VecNormalizeStatistics:
    mean, var = (torch.from_numpy(as_array(moments.attribute(name)).copy()) for name in ("mean", "var"))
    if mean.shape != (num_obs,) or var.shape != (num_obs,):
        raise UserError(
            f"'{path}' has statistics of shape {list(mean.shape)}, and the policy reads {num_obs} observations: "
            "it belongs to another model."
        )
    if not bool(torch.isfinite(mean).all() and torch.isfinite(var).all() and (var >= 0).all()):
        raise UserError(
            f"'{path}' has a negative variance, or infinite or NaN numbers. Use those of an earlier checkpoint."
        )
    if not (0.0 <= epsilon < math.inf and clip_obs > 0.0):
        raise UserError(f"'{path}' has epsilon={epsilon:g} and clip_obs={clip_obs:g}: it is corrupt. Copy it again.")
    return VecNormalizeStatistics(path, mean.float(), var, epsilon, clip_obs)
