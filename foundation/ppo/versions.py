"""The one file that knows how the releases of rsl-rl-lib differ (3.0.1 to 5.5.1).

Three layouts of configuration exist: ``policy`` (3.x: one actor-critic module), ``stochastic`` (4.0: one model each,
with flags for the noise) and ``distribution`` (5.x: one model each, with a distribution). Which one is installed is
read from the library's own modules, so a checkout without package metadata works too. :func:`translate` takes our
agent configs and Isaac Lab's of either layout; ``library_runner`` gives every release the same handles.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import re
from typing import Any

from foundation.core.errors import UserError, suggest
from foundation.core.program import command_name
from foundation.core.registry import resolve_attribute

log = logging.getLogger(__name__)

OLDEST = (3, 0, 1)
NEWEST_MAJOR = 5
_MODELS = ("actor", "critic", "student", "teacher")
_OURS = ("init_output", "init_output_gain")
_RNN = ("rnn_type", "rnn_hidden_dim", "rnn_num_layers")
_NOISE = ("init_noise_std", "noise_std_type", "state_dependent_std")
_NEWER_KEYS = {"optimizer", "share_cnn_encoders", "use_mixed_precision", "grad_reduce_bucket_mb"}
"""Algorithm settings that only some releases know; the others work without them."""


# ---------------------------------------------------------------------------------------------------------------------
# Which release is installed
# ---------------------------------------------------------------------------------------------------------------------


def installed_layout() -> str:
    """Return ``policy`` (3.x), ``stochastic`` (4.0) or ``distribution`` (5.x), as the installed modules show."""
    if importlib.util.find_spec("rsl_rl") is None:
        raise UserError("rsl-rl-lib is not installed: pip install 'rsl-rl-lib>=3.0.1,<6'.")
    if importlib.util.find_spec("rsl_rl.models") is None:
        return "policy"
    return "stochastic" if importlib.util.find_spec("rsl_rl.modules.distribution") is None else "distribution"


def installed_version() -> str:
    """Return the installed version; where there is no metadata, the oldest one that has the installed modules."""
    try:
        return importlib.metadata.version("rsl-rl-lib")
    except importlib.metadata.PackageNotFoundError:
        return {"policy": "3.0.1", "stochastic": "4.0.1", "distribution": "5.0.0"}[installed_layout()]


def check_version() -> str:
    """Return the installed version, if it works.

    Raises:
        UserError: If rsl-rl-lib is missing, or of a release that this project does not know.
    """
    installed_layout()
    version = installed_version()
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:3])
    if numbers < OLDEST or numbers[0] > NEWEST_MAJOR:
        raise UserError(f"rsl-rl-lib {version} is not supported: pip install 'rsl-rl-lib>=3.0.1,<6'.")
    return version


# ---------------------------------------------------------------------------------------------------------------------
# Configuration
# ---------------------------------------------------------------------------------------------------------------------


def agent_dict(agent_cfg: Any) -> dict[str, Any]:
    """Return a config object of ours or Isaac Lab's as a fresh nested dict, without what is left MISSING."""
    if isinstance(agent_cfg, dict):
        raw = agent_cfg
    elif hasattr(agent_cfg, "to_dict"):
        raw = agent_cfg.to_dict()
    else:
        raw = dataclasses.asdict(agent_cfg)
    return _without_missing(copy.deepcopy(raw))


def translate(agent_cfg: object, layout: str | None = None) -> dict[str, Any]:
    """Return the dict that the runner of the installed release takes; the caller's config is left alone.

    Args:
        agent_cfg: A config of ``foundation.config.agent_cfg``, or Isaac Lab's (object or dict, either layout).
        layout: What to translate to; the installed one if None.
    """
    layout = layout or installed_layout()
    cfg = agent_dict(agent_cfg)
    distils = is_distillation(cfg)
    cfg["class_name"] = cfg.get("class_name") or ("DistillationRunner" if distils else "OnPolicyRunner")
    cfg["obs_groups"] = _obs_groups(cfg.get("obs_groups") or {}, layout, distils)
    normalization = cfg.pop("empirical_normalization", None)
    names = ("student", "teacher") if distils else ("actor", "critic")
    models = {name: cfg.pop(name) for name in _MODELS if isinstance(cfg.get(name), dict)}
    policy = cfg.pop("policy", None)
    if "algorithm" not in cfg or (policy is None and not set(names) <= set(models)):
        raise UserError(f"the agent config must have 'algorithm' and {' and '.join(map(repr, names))} (or 'policy').")
    if layout == "policy":
        cfg["policy"] = policy or _policy_from_models(models, names)
        if normalization is not None:
            for name in names if not distils else names[:1]:
                cfg["policy"].setdefault(f"{name}_obs_normalization", normalization)
    else:
        source = models if set(names) <= set(models) else _models_from_policy(policy or {}, names, normalization)
        cfg |= {name: _model(source[name], layout) for name in names}
        if distils and _noise(source["student"]) is None:
            raise UserError(
                "agent.student.distribution_cfg is null: RSL-RL's DistillationRunner needs a student with a "
                "distribution; leave it as it is, or distil a deterministic student with "
                f"{command_name('distillation.py')}."
            )
    cfg["algorithm"].setdefault("class_name", "Distillation" if distils else "PPO")
    if not distils:
        cfg["algorithm"].setdefault("rnd_cfg", None)
        cfg["algorithm"].setdefault("symmetry_cfg", None)
    cfg["logger"] = cfg.get("logger") or "tensorboard"
    return cfg


def _without_missing(value: object) -> Any:
    missing = type(dataclasses.MISSING)
    if isinstance(value, dict):
        return {k: _without_missing(v) for k, v in value.items() if not isinstance(v, missing)}
    return value


def is_distillation(cfg: dict[str, Any]) -> bool:
    """Return whether an agent config asks for distillation: by its class, else by its groups."""
    if "class_name" in cfg and cfg["class_name"] in ("OnPolicyRunner", "DistillationRunner"):
        return cfg["class_name"] == "DistillationRunner"
    algorithm = str((cfg.get("algorithm") or {}).get("class_name", ""))
    return "student" in cfg or "Distill" in algorithm or "student_hidden_dims" in (cfg.get("policy") or {})


def _obs_groups(groups: dict[str, Any], layout: str, distils: bool) -> dict[str, list[str]]:
    """Rename the acting network's set: ``policy`` in 3.x, ``actor`` or ``student`` afterwards."""
    acting = "student" if distils else "actor"
    old, new = (acting, "policy") if layout == "policy" else ("policy", acting)
    renamed = {(new if name == old and new not in groups else name): list(names) for name, names in groups.items()}
    return renamed


def _noise(model: dict[str, Any]) -> dict[str, Any] | None:
    """Return a model's noise as 4.0's flags, whichever way it is given; None for a deterministic output."""
    dist = model.get("distribution_cfg")
    if dist is not None:
        return {
            "init_noise_std": dist.get("init_std", 1.0),
            "noise_std_type": dist.get("std_type", "scalar"),
            "state_dependent_std": "Heteroscedastic" in dist.get("class_name", ""),
        }
    if model.get("stochastic"):
        return {key: model[key] for key in _NOISE if key in model}
    return None


def _model(model: dict[str, Any], layout: str) -> dict[str, Any]:
    """Write one model's config for a release with models."""
    given = model.get("distribution_cfg")
    noise = _noise(model)
    dropped = {*_OURS, *_NOISE, "stochastic", "distribution_cfg"}
    if model.get("rnn_type") is None:  # mjlab's configs state the other two of every model, and a cnn_cfg of null
        dropped |= {*_RNN}
    out = {k: v for k, v in model.items() if k not in dropped and not (k == "cnn_cfg" and v is None)}
    out.setdefault("class_name", "MLPModel")
    if layout == "stochastic":
        return out | {"stochastic": noise is not None} | (noise or {})
    if given is None and noise is not None:
        kind = "HeteroscedasticGaussianDistribution" if noise.get("state_dependent_std") else "GaussianDistribution"
        given = {
            "class_name": kind,
            "init_std": noise.get("init_noise_std", 1.0),
            "std_type": noise.get("noise_std_type", "scalar"),
        }
    if given is not None:
        given = {key: value for key, value in given.items() if key != "min_std"}
    return out | {"distribution_cfg": given}


def _policy_from_models(models: dict[str, dict[str, Any]], names: tuple[str, str]) -> dict[str, Any]:
    """Join two models into 3.x's one policy module."""
    first, second = (models[name] for name in names)
    kinds = {model.get("class_name", "MLPModel") for model in (first, second)}
    if unknown := kinds - {"MLPModel", "RNNModel"}:
        raise UserError(f"rsl-rl-lib {installed_version()} has no {sorted(unknown)[0]}: install rsl-rl-lib>=4.")
    if first.get("activation") != second.get("activation"):
        raise UserError(f"rsl-rl-lib 3 has one activation for {names[0]} and {names[1]}; give both the same.")
    recurrent = first.get("class_name") == "RNNModel"
    distils = names[0] == "student"
    base = "StudentTeacher" if distils else "ActorCritic"
    policy: dict[str, Any] = {"class_name": base + ("Recurrent" if recurrent else "")}
    policy["activation"] = first.get("activation", "elu")
    for name, model in zip(names, (first, second), strict=True):
        policy[f"{name}_hidden_dims"] = list(model.get("hidden_dims", (256, 256, 256)))
        policy[f"{name}_obs_normalization"] = bool(model.get("obs_normalization", False))
    policy |= _noise(first) or {"init_noise_std": 0.1}
    if recurrent:
        policy |= {key: first[key] for key in _RNN if first.get(key) is not None}
    if recurrent and distils:
        policy["teacher_recurrent"] = second.get("class_name") == "RNNModel"
    return policy


def _models_from_policy(policy: dict, names: tuple[str, str], normalization: bool | None) -> dict[str, dict[str, Any]]:
    """Split 3.x's one policy module into two models."""
    recurrent = "Recurrent" in policy.get("class_name", "")
    models = {}
    for name in names:
        rnn = recurrent and (name != "teacher" or policy.get("teacher_recurrent", False))
        model: dict[str, Any] = {
            "class_name": "RNNModel" if rnn else "MLPModel",
            "hidden_dims": policy.get(f"{name}_hidden_dims", [256, 256, 256]),
            "activation": policy.get("activation", "elu"),
            "obs_normalization": policy.get(f"{name}_obs_normalization", bool(normalization)),
            "stochastic": name != "critic",
        }
        model |= {key: policy[key] for key in _NOISE if key in policy and name != "critic"}
        model |= {key: policy[key] for key in _RNN if key in policy and rnn}
        models[name] = model
    return models


def fit_to_signature(settings: dict[str, Any], cls: type, where: str, keep: set[str]) -> dict[str, Any]:
    """Drop what this release's class does not know; refuse what no release knows."""
    known = {n for n, p in inspect.signature(cls).parameters.items() if p.kind is not p.VAR_KEYWORD} | keep
    for key in [k for k in settings if k not in known]:
        if key not in _NEWER_KEYS | {"state_dependent_std"}:
            raise UserError(f"agent.{where}.{key}: {cls.__name__} has no such setting. {suggest(key, known)}")
        value = settings.pop(key)
        if value not in (None, False, "adam") and key != "grad_reduce_bucket_mb":
            log.warning("rsl-rl-lib %s does not know agent.%s.%s: ignored", installed_version(), where, key)
    return settings


def resolve_class(name: str, *modules: str) -> type:
    """Find a class by RSL-RL's own name or by ``pkg.module:Class``."""
    if ":" in name:
        return resolve_attribute(name, "agent.class_name", trusted=True)  # of a task's config, or typed
    loaded = [importlib.import_module(module) for module in modules]
    for module in loaded:
        if isinstance(found := getattr(module, name, None), type):
            return found
    valid = [n for module in loaded for n, v in vars(module).items() if isinstance(v, type)]
    raise UserError(f"rsl-rl-lib {installed_version()} has no class {name!r}. {suggest(name, valid)}")
