"""RSL-RL's runners behind one set of handles, whatever the installed release (see ``versions``)."""

from __future__ import annotations

import copy
import importlib.util
import logging
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from foundation.core.errors import UserError
from foundation.core.files import atomic_torch_save, load_checkpoint
from foundation.engines.base import env_state_entry
from foundation.engines.joint_terms import action_joints
from foundation.ppo.versions import (
    agent_dict,
    check_version,
    fit_to_signature,
    installed_layout,
    installed_version,
    is_distillation,
    resolve_class,
    translate,
)

log = logging.getLogger(__name__)


class InferencePolicy:
    """The deterministic policy, normaliser included, on its own copy of the networks."""

    def __init__(self, module: torch.nn.Module):
        """Copy ``module``, so that evaluating never touches the training run's modes or recurrent state."""
        self.module = copy.deepcopy(module)
        self.module.eval()  # 3.x returns nothing here
        self._act = getattr(self.module, "act_inference", self.module)

    def __call__(self, obs: object) -> torch.Tensor:
        """Return the mean actions for the environment's TensorDict. Shape: (num_envs, num_actions)."""
        with torch.no_grad():
            return self._act(obs)

    def act(self, obs: object) -> torch.Tensor:
        """Do the same, as an actor of ``foundation.evaluation``."""
        return self(obs)

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Forget the recurrent state, of the finished environments or of all."""
        reset = getattr(self.module, "reset", None)
        if reset is not None:
            reset(dones)


def _name_whole_observations(env: Any, error: RuntimeError) -> None:
    """Explain an error of RSL-RL's networks, which compute on floating-point numbers alone, by the observations.

    Raises:
        UserError: If a group is of integers or booleans; names it.
    """
    if "dtype" not in str(error) and "floating point" not in str(error):
        return
    for name, group in env.get_observations().items():
        if isinstance(group, torch.Tensor) and not group.is_floating_point():
            raise UserError(
                f"{type(env.unwrapped).__name__}.get_observations() returned group '{name}' of {group.dtype}: RSL-RL's "
                f"networks compute on floating-point numbers; return {name}.float() there and in step(actions)"
            ) from error


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
        self.distils = is_distillation(self.cfg)
        self._fit(cfg)
        cls = resolve_class(cfg["class_name"], "rsl_rl.runners")
        try:
            self.runner: Any = cls(env, cfg, log_dir=None if log_dir is None else str(log_dir), device=device)
        except ValueError as error:
            raise UserError(f"rsl-rl-lib {installed_version()}: {error}") from error
        except RuntimeError as error:
            _name_whole_observations(env, error)
            raise
        self._joint_order = list(action_joints(env))
        self.on_iteration: Callable[[int], None] | None = None
        self._returns: Collection[float] = ()
        self._init_output(env.num_actions)
        self._inference = InferencePolicy(self.policy)
        self._hook()

    def _fit(self, cfg: dict[str, Any]) -> None:
        algorithm = resolve_class(cfg["algorithm"]["class_name"], "rsl_rl.algorithms")
        keep = {"class_name", "rnd_cfg", "symmetry_cfg"} if not self.distils else {"class_name"}
        if installed_layout() != "policy" and not self.distils:
            keep.add("share_cnn_encoders")
        fit_to_signature(cfg["algorithm"], algorithm, "algorithm", keep)
        if "policy" in cfg:
            module = resolve_class(cfg["policy"]["class_name"], "rsl_rl.modules")
            fit_to_signature(cfg["policy"], module, "policy", {"class_name"})
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
        bias = model.get("init_output")
        gain = model.get("init_output_gain", 1.0)
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

        def log_and_call(*args: object, **kwargs: object) -> None:
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
                _name_whole_observations(self.runner.env, error)
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
        if self._joint_order:  # a policy that teaches where joints are in another order is permuted by it
            infos = {**(infos or {}), "joint_order": self._joint_order}
        entry = env_state_entry(self.runner.env)
        return {**state, "iter": self.iteration, "infos": {**(infos or {}), **entry} if entry else infos}

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
        runner = self.runner
        before = self.runner.current_learning_iteration
        runner.current_learning_iteration = -1
        try:
            runner.load(str(path), map_location=str(runner.device))
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{path}: the checkpoint does not fit this run's networks: {reason}") from error
        finally:
            loaded = runner.current_learning_iteration
            runner.current_learning_iteration = before
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
