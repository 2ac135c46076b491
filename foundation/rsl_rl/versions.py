"""The one file that knows how the releases of rsl-rl-lib differ (3.0.1 to 5.5.1).

Three layouts of configuration exist: ``policy`` (3.x: one actor-critic module), ``stochastic`` (4.0: one model each,
with flags for the noise) and ``distribution`` (5.x: one model each, with a distribution). Which one is installed is
read from the library's own modules, so a checkout without package metadata works too. :func:`translate` takes our
agent configs and Isaac Lab's of either layout; :class:`RslRlRunner` gives every release the same handles.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import math
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from foundation.errors import UserError, suggest
from foundation.files import atomic_torch_save, load_checkpoint

log = logging.getLogger(__name__)

OLDEST, NEWEST_MAJOR = (3, 0, 1), 5
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
    """Return the installed version, or say which ones work.

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


def translate(agent_cfg: Any, layout: str | None = None) -> dict[str, Any]:
    """Return the dict that the runner of the installed release takes; the caller's config is left alone.

    Args:
        agent_cfg: A config of ``foundation.config.agent_cfg``, or Isaac Lab's (object or dict, either layout).
        layout: What to translate to; the installed one if None.
    """
    layout = layout or installed_layout()
    cfg = agent_dict(agent_cfg)
    distils = _distils(cfg)
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
    cfg["algorithm"].setdefault("class_name", "Distillation" if distils else "PPO")
    if not distils:
        cfg["algorithm"].setdefault("rnd_cfg", None)
        cfg["algorithm"].setdefault("symmetry_cfg", None)
    cfg["logger"] = cfg.get("logger") or "tensorboard"
    return cfg


def _without_missing(value: Any) -> Any:
    missing = type(dataclasses.MISSING)
    if isinstance(value, dict):
        return {k: _without_missing(v) for k, v in value.items() if not isinstance(v, missing)}
    return value


def _distils(cfg: dict[str, Any]) -> bool:
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
    given, noise = model.get("distribution_cfg"), _noise(model)
    dropped = {*_OURS, *_NOISE, "stochastic", "distribution_cfg"}
    out = {k: v for k, v in model.items() if k not in dropped and not (k in _RNN and v is None)}
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


def _fit_to_signature(settings: dict[str, Any], cls: type, where: str, keep: set[str]) -> dict[str, Any]:
    """Drop what this release's class does not know; refuse what no release knows."""
    known = {n for n, p in inspect.signature(cls).parameters.items() if p.kind is not p.VAR_KEYWORD} | keep
    for key in [k for k in settings if k not in known]:
        if key not in _NEWER_KEYS | {"state_dependent_std"}:
            raise UserError(f"agent.{where}.{key}: {cls.__name__} has no such setting. {suggest(key, known)}")
        value = settings.pop(key)
        if value not in (None, False, "adam") and key != "grad_reduce_bucket_mb":
            log.warning("rsl-rl-lib %s does not know agent.%s.%s: ignored", installed_version(), where, key)
    return settings


def _resolve(name: str, *modules: str) -> type:
    """Find a class by RSL-RL's own name or by ``pkg.module:Class``."""
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"agent.class_name {name!r} cannot be imported: {error}") from error
    loaded = [importlib.import_module(module) for module in modules]
    for module in loaded:
        if isinstance(found := getattr(module, name, None), type):
            return found
    valid = [n for module in loaded for n, v in vars(module).items() if isinstance(v, type)]
    raise UserError(f"rsl-rl-lib {installed_version()} has no class {name!r}. {suggest(name, valid)}")


# ---------------------------------------------------------------------------------------------------------------------
# One handle for the runners of every release
# ---------------------------------------------------------------------------------------------------------------------


class InferencePolicy:
    """The deterministic policy, normaliser included, on its own copy of the networks."""

    def __init__(self, module: torch.nn.Module):
        """Copy ``module``, so that evaluating never touches the training run's modes or recurrent state."""
        self.module = copy.deepcopy(module)
        self.module.eval()  # 3.x returns nothing here
        self._act = getattr(self.module, "act_inference", self.module)

    def __call__(self, obs: Any) -> torch.Tensor:
        """Return the mean actions for the environment's TensorDict. Shape: (num_envs, num_actions)."""
        with torch.no_grad():
            return self._act(obs)

    def act(self, obs: Any) -> torch.Tensor:
        """Do the same, as an actor of ``foundation.evaluation``."""
        return self(obs)

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Forget the recurrent state, of the finished environments or of all."""
        reset = getattr(self.module, "reset", None)
        if reset is not None:
            reset(dones)


class RslRlRunner:
    """RSL-RL's runner behind handles that are the same in every release.

    Attributes:
        runner: The library's own runner object.
        on_iteration: Called with the iteration's number after each iteration, when set.
    """

    def __init__(self, env: Any, agent_cfg: Any, log_dir: str | Path | None, device: str):
        """Build the runner that ``agent_cfg.class_name`` names, for ``env`` (an RSL-RL ``VecEnv``)."""
        check_version()
        self.cfg = agent_dict(agent_cfg)
        cfg = translate(self.cfg)
        self.distils = _distils(self.cfg)
        self._fit(cfg)
        cls = _resolve(cfg["class_name"], "rsl_rl.runners")
        try:
            self.runner: Any = cls(env, cfg, log_dir=None if log_dir is None else str(log_dir), device=device)
        except ValueError as error:
            raise UserError(f"rsl-rl-lib {installed_version()}: {error}") from error
        self.on_iteration: Callable[[int], None] | None = None
        self._returns: Collection[float] = ()
        self._init_output(env.num_actions)
        self._inference = InferencePolicy(self.policy)
        self._hook()

    def _fit(self, cfg: dict[str, Any]) -> None:
        algorithm = _resolve(cfg["algorithm"]["class_name"], "rsl_rl.algorithms")
        keep = {"class_name", "rnd_cfg", "symmetry_cfg"} if not self.distils else {"class_name"}
        if installed_layout() != "policy" and not self.distils:
            keep.add("share_cnn_encoders")
        _fit_to_signature(cfg["algorithm"], algorithm, "algorithm", keep)
        if "policy" in cfg:
            module = _resolve(cfg["policy"]["class_name"], "rsl_rl.modules")
            _fit_to_signature(cfg["policy"], module, "policy", {"class_name"})
        if cfg["logger"] in ("wandb", "neptune") and importlib.util.find_spec("rsl_rl.utils.log_writer"):
            project = cfg.get(f"{cfg['logger']}_project")
            cfg["logger"] = {"class_name": f"{cfg['logger'].title()}LogWriter", "project_name": project}

    @property
    def policy(self) -> torch.nn.Module:
        """The module that acts, in training (3.x: with the critic or the teacher beside it)."""
        return self.runner.alg.get_policy() if hasattr(self.runner.alg, "get_policy") else self.runner.alg.policy

    def _init_output(self, num_actions: int) -> None:
        """Start the acting network's last layer where the config's ``init_output`` says."""
        model = self.cfg.get("student" if self.distils else "actor") or {}
        bias, gain = model.get("init_output"), model.get("init_output_gain", 1.0)
        if bias is None and gain == 1.0:
            return
        head = getattr(self.policy, "mlp", None)
        if head is None:
            head = getattr(self.policy, "student" if self.distils else "actor")
        last = [layer for layer in head.modules() if isinstance(layer, torch.nn.Linear)][-1]
        with torch.no_grad():
            last.weight[:num_actions] *= gain
            if bias is not None:
                values = torch.as_tensor(bias, dtype=last.bias.dtype, device=last.bias.device)
                if values.dim() and values.numel() != num_actions:
                    raise UserError(f"init_output has {values.numel()} numbers; the task has {num_actions} actions.")
                last.bias[:num_actions] = values

    def _floor_std(self) -> None:
        """Lift the acting network's standard deviation to the config's ``min_std``."""
        model = self.cfg.get("student" if self.distils else "actor") or {}
        floor = (model.get("distribution_cfg") or {}).get("min_std", 0.0)
        if floor <= 0.0:
            return
        with torch.no_grad():
            for name, value in self.policy.named_parameters():
                leaf = name.rpartition(".")[2]
                if leaf in ("std", "std_param"):
                    value.clamp_(min=floor)
                elif leaf in ("log_std", "log_std_param"):
                    value.clamp_(min=math.log(floor))

    def _hook(self) -> None:
        """Call ``on_iteration`` after RSL-RL's own logging, where its stopwatch does not run; save atomically."""
        owner = self.runner.logger if hasattr(self.runner, "logger") else self.runner
        stock_log = owner.log

        def log_and_call(*args: Any, **kwargs: Any) -> None:
            stock_log(*args, **kwargs)
            local = args[0] if args and isinstance(args[0], dict) else {}  # 3.x hands over learn's own variables
            self._returns = local.get("rewbuffer", getattr(owner, "rewbuffer", ()))
            self._floor_std()
            if self.on_iteration is not None:
                self.on_iteration(self.runner.current_learning_iteration)

        owner.log = log_and_call
        if type(self.runner).save.__module__.startswith("rsl_rl."):
            self.runner.save = self.save

    @property
    def iteration(self) -> int:
        """Index of the iteration that ran last, or is to run first."""
        return self.runner.current_learning_iteration

    def learn(self, iterations: int) -> None:
        """Run so many more iterations, with episodes of random age at the start.

        Raises:
            UserError: If the environment returns NaN, the noise becomes negative, or no teacher is loaded.
        """
        try:
            self.runner.learn(num_learning_iterations=iterations, init_at_random_ep_len=True)
        except ValueError as error:
            raise UserError(f"training stopped in iteration {self.iteration + 1}: {error}") from error
        except RuntimeError as error:
            if "std >= 0" not in str(error):
                raise
            self.check_finite()
            raise UserError(
                "training stopped: the standard deviation of the actions became negative; set std_type=log in the "
                "agent config's distribution, or a lower learning rate"
            ) from error

    def check_finite(self) -> None:
        """Stop before a policy of NaN is saved.

        Raises:
            UserError: If a weight of the acting network is NaN or infinite.
        """
        for name, value in self.policy.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise UserError(
                    f"training stopped: {name} is NaN or infinite after iteration {self.iteration}; look for NaN in "
                    "the environment's observations and rewards, or lower agent.algorithm.learning_rate"
                )

    @property
    def train_return(self) -> float | None:
        """Mean return of the last finished training episodes; None before the first has ended."""
        return sum(self._returns) / len(self._returns) if self._returns else None

    def inference_policy(self, checkpoint: str | Path | None = None) -> InferencePolicy:
        """Return the policy, the present one or a checkpoint's, as a callable on the environment's observations.

        There is one such object, which the next call changes.
        """
        if checkpoint is None:
            state = self.policy.state_dict()
        else:
            saved = load_checkpoint(checkpoint, map_location=str(self.runner.device))
            acting = "student" if self.distils else "actor"
            state = saved["model_state_dict" if "model_state_dict" in saved else f"{acting}_state_dict"]
        self._inference.module.load_state_dict(state)
        self._inference.reset()
        return self._inference

    def add_scalar(self, tag: str, value: float, iteration: int) -> None:
        """Write to the run's logger, once RSL-RL has opened it."""
        if self._writer is not None:
            self._writer.add_scalar(tag, value, iteration)

    @property
    def _writer(self) -> Any:
        """The open log, or None before the first ``learn``."""
        return getattr(getattr(self.runner, "logger", self.runner), "writer", None)

    def state_dict(self, infos: dict | None = None) -> dict[str, Any]:
        """Return the checkpoint that this release's ``runner.save`` writes."""
        alg = self.runner.alg
        if hasattr(alg, "save"):
            state = alg.save()
        else:
            state = {"model_state_dict": alg.policy.state_dict(), "optimizer_state_dict": alg.optimizer.state_dict()}
            if getattr(alg, "rnd", None):
                state["rnd_state_dict"] = alg.rnd.state_dict()
                state["rnd_optimizer_state_dict"] = alg.rnd_optimizer.state_dict()
        return {**state, "iter": self.iteration, "infos": infos}

    def save(self, path: str | Path, infos: dict | None = None) -> None:
        """Write a checkpoint of RSL-RL's own kind atomically, and upload it where the logger does so."""
        atomic_torch_save(self.state_dict(infos), path)
        if self._writer is not None and hasattr(self._writer, "save_model"):
            self._writer.save_model(str(path), self.iteration)

    def load(self, path: str | Path) -> bool:
        """Load a checkpoint; a distillation run takes a trained PPO policy as its teacher.

        Returns:
            Whether training resumes (networks, optimiser and iteration counter), as opposed to loading a teacher.

        Raises:
            UserError: If the file is no checkpoint, or of other networks than this run's.
        """
        checkpoint = load_checkpoint(path)  # refuses anything but plain tensors, before the library unpickles it
        self._check_kind(checkpoint, path)
        runner, before = self.runner, self.runner.current_learning_iteration
        runner.current_learning_iteration = -1
        try:
            runner.load(str(path), map_location=str(runner.device))
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{path}: the checkpoint does not fit this run's networks: {reason}") from error
        finally:
            loaded, runner.current_learning_iteration = runner.current_learning_iteration, before
        if loaded < 0:
            return False
        runner.current_learning_iteration = loaded + 1
        if hasattr(runner.alg, "learning_rate"):
            runner.alg.learning_rate = runner.alg.optimizer.param_groups[0]["lr"]
        return True

    def _check_kind(self, checkpoint: dict[str, Any], path: str | Path) -> None:
        """Refuse the checkpoints of the other family of releases, and files that are none of RSL-RL's."""
        old = installed_layout() == "policy"
        if ("model_state_dict" in checkpoint) == old and ("iter" in checkpoint):
            return
        if "iter" not in checkpoint:
            raise UserError(f"{path} is not a checkpoint of RSL-RL's runners")
        wanted = "'rsl-rl-lib>=4,<6'" if old else "'rsl-rl-lib<4'"
        raise UserError(f"{path} was written by another family of releases than {installed_version()}: use {wanted}")
