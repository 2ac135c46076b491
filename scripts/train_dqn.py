"""Train a teacher for a task with discrete actions by Stable-Baselines3's DQN.

    python scripts/train_dqn.py --task CartPole-v1

The best policy of the evaluations is kept, in logs/sb3/<task>/<time>/: model.zip, which Stable-Baselines3 goes on with,
and teacher.zip, a quarter of its size, with the Q-network alone and no pickle in it. distillation.py reads either.
All evaluations are in evaluations.npz.
Needs the extra sb3, and the extra gymnasium for tasks that need packages.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import sys
import time
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stable_baselines3 import DQN
    from stable_baselines3.common.vec_env import VecEnv

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gymnasium
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.config.validate import MAX_SEED
from foundation.core.devices import resolve_device
from foundation.core.errors import UserError
from foundation.core.files import atomic_write_bytes
from foundation.core.registry import note_typed
from foundation.core.text import one_line
from foundation.engines.gymnasium import find_spec

LOG_ROOT = Path("logs/sb3")
DESCRIBING = ("policy_class", "policy_kwargs", "observation_space", "action_space", "num_timesteps", "gamma", "seed")
"""Settings of a model that its teacher has too."""


@dataclass(frozen=True)
class DqnCfg:
    """Settings of DQN, those of Stable-Baselines3 where nothing else is said."""

    total_timesteps: int = 500_000
    """Env steps of training at most."""
    net_arch: tuple[int, ...] = (256, 256)
    """Hidden layers of the Q-network."""
    eval_freq: int = 10_000
    """Env steps between two evaluations."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of ``stable_baselines3.DQN``; its ``train_freq`` counts steps of all environments together."""
    num_envs: int = 1
    """Environments that are stepped together in training."""
    num_eval_envs: int = 1
    """Environments that are stepped together in an evaluation."""
    optimizer: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of ``torch.optim.Adam``, besides the learning rate."""
    experiment: str = "cartpole"
    """Preset of ``distillation.py`` for a student of such a teacher."""


def _options(**changed: Any) -> dict[str, Any]:
    return {"gamma": 0.99, "buffer_size": 100_000, "learning_starts": 1_000, "exploration_final_eps": 0.05} | changed


SETTINGS = {
    "CartPole": DqnCfg(
        50_000, eval_freq=2_560,
        options=_options(learning_rate=2.3e-3, batch_size=64, target_update_interval=10, train_freq=256,
                         gradient_steps=128, exploration_fraction=0.16, exploration_final_eps=0.04),
    ),
    "Acrobot": DqnCfg(
        100_000, eval_freq=5_000,
        options=_options(learning_rate=6.3e-4, batch_size=128, target_update_interval=250, train_freq=4,
                         gradient_steps=-1, exploration_fraction=0.12, exploration_final_eps=0.1),
    ),
    "LunarLander": DqnCfg(
        200_000,
        options=_options(learning_rate=6.3e-4, batch_size=128, target_update_interval=250, train_freq=4,
                         gradient_steps=-1, exploration_fraction=0.12, exploration_final_eps=0.1),
    ),
    "MinAtar": DqnCfg(
        2_000_000, (256, 128), 25_000, num_envs=8, num_eval_envs=20, optimizer={"fused": True},
        experiment="rusu_minatar",
        options=_options(learning_rate=2.5e-4, batch_size=32, learning_starts=5_000, target_update_interval=1_000,
                         train_freq=1, gradient_steps=2, n_steps=3, exploration_fraction=0.05,
                         exploration_final_eps=0.1),
    ),
    "Pong": DqnCfg(
        600_000, (256, 128), 40_000, num_envs=8, num_eval_envs=5, optimizer={"fused": True},
        options=_options(learning_rate=2.5e-4, batch_size=64, buffer_size=200_000, learning_starts=5_000,
                         target_update_interval=8_000, train_freq=1, gradient_steps=2, n_steps=3,
                         exploration_fraction=0.125, exploration_final_eps=0.02),
    ),
}  # fmt: skip
"""Settings by the beginning of the id: for the first three those that are usual with Stable-Baselines3.

MinAtar's environments are far cheaper than an update of the Q-network: with eight of them together, and two updates for
their eight env steps, an update's fixed costs and the choice of actions are paid less often. Rewards come late, most of
all in Freeway, and the returns of three steps carry them back sooner. Pong, from the console's memory
(``examples/atari_task.py``), is learned likewise.
"""
EVAL_SEED = 500_001
"""Added to the seed of the evaluations' environments, so that no training episode is among theirs."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--task", required=True, help="gymnasium id with Discrete actions, or module:Id")
    parser.add_argument("--output", type=Path, help="folder (default: logs/sb3/<task>/<time>)")
    parser.add_argument("--total_timesteps", type=int, help="env steps at most")
    parser.add_argument("--net_arch", type=int, nargs="+", help="hidden layers of the Q-network")
    parser.add_argument("--learning_rate", type=float, help="of Adam")
    parser.add_argument("--start", type=Path, help="go on from this model.zip, without exploring anew")
    parser.add_argument(
        "--target_return", type=float, help="stop at this mean return (default: the registered threshold)"
    )
    parser.add_argument("--num_eval_episodes", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.read(argv)
    for name in ("total_timesteps", "num_eval_episodes"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, it is {value}")
    if args.net_arch is not None and min(args.net_arch) < 1:
        raise UserError(f"--net_arch {' '.join(map(str, args.net_arch))}: each size must be at least 1")
    if args.learning_rate is not None and not 0 < args.learning_rate < 1:
        raise UserError(f"--learning_rate must be between 0 and 1, it is {args.learning_rate:g}")
    if args.start is not None and not args.start.is_file():
        raise UserError(f"--start {args.start}: no such file")
    if not 0 <= args.seed <= MAX_SEED:
        raise UserError(f"--seed must be between 0 and {MAX_SEED}, got {args.seed}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and write the teacher."""
    note_typed(sys.argv if argv is None else argv)
    args = parse(argv)
    try:
        from stable_baselines3 import DQN  # an extra
        from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
    except ImportError as error:
        raise UserError("Stable-Baselines3 trains it: pip install -e '.[sb3]' in the clone's folder") from error
    try:
        spec = find_spec(args.task)
        env = gymnasium.make(spec)
    except (UserError, ImportError, gymnasium.error.Error) as error:
        raise UserError(f"--task {args.task}: {error}") from error
    if not isinstance(env.action_space, spaces.Discrete):
        raise UserError(
            f"--task {args.task}: DQN needs Discrete actions, and these are {type(env.action_space).__name__}"
        )
    cfg = settings_for(spec.id, args)
    folder = args.output or LOG_ROOT / spec.id.replace("/", "-") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder.mkdir(parents=True, exist_ok=True)
    device = resolve_device(args.device)
    kwargs = {"net_arch": list(cfg.net_arch)} | ({"optimizer_kwargs": cfg.optimizer} if cfg.optimizer else {})
    warnings.filterwarnings("ignore", module="stable_baselines3")
    envs = make_vec_env(spec, cfg.num_envs)
    model = DQN("MlpPolicy", envs, policy_kwargs=kwargs, seed=args.seed, device=device, **cfg.options)
    if args.start is not None:
        start_from(model, args.start)
    eval_envs = make_vec_env(spec, min(cfg.num_eval_envs, args.num_eval_episodes))
    eval_envs.seed((args.seed + EVAL_SEED) % MAX_SEED)
    target = args.target_return if args.target_return is not None else spec.reward_threshold
    stop = None if target is None else StopTrainingOnRewardThreshold(target)
    judge = EvalCallback(
        eval_envs,
        n_eval_episodes=args.num_eval_episodes,
        eval_freq=max(1, cfg.eval_freq // cfg.num_envs),  # counted in steps of all environments together
        best_model_save_path=str(folder),
        log_path=str(folder),
        callback_on_new_best=stop,
        verbose=0,
    )
    started = time.perf_counter()
    print(f"DQN on {spec.id}: at most {cfg.total_timesteps} env steps, until {target or 'then'}; {folder}", flush=True)
    model.learn(cfg.total_timesteps, callback=judge)
    best = folder / "best_model.zip"
    if not best.is_file():
        raise UserError(f"no evaluation was reached: --total_timesteps must be at least {cfg.eval_freq}")
    best.replace(folder / "model.zip")
    write_teacher(folder / "model.zip", folder / "teacher.zip")
    seconds = time.perf_counter() - started
    print(f"Mean return {judge.best_mean_reward:.1f} after {model.num_timesteps} env steps, {seconds:.0f} s")
    named = ["--task", args.task, "--teacher_checkpoint", str(folder / "teacher.zip")]
    print(shlex.join(["python", "foundation/rsl_rl/distillation.py", *named, f"experiment={cfg.experiment}"]))
    return 0


def make_vec_env(spec: EnvSpec, num_envs: int) -> VecEnv:
    """Return environments of an id that Stable-Baselines3 steps together, in this process."""
    from stable_baselines3.common.monitor import Monitor  # an extra
    from stable_baselines3.common.vec_env import DummyVecEnv

    return DummyVecEnv([lambda: Monitor(gymnasium.make(spec)) for _ in range(num_envs)])


def start_from(model: DQN, path: Path) -> None:
    """Take up the weights of another model, and the state of its optimiser; transitions are collected anew."""
    try:
        model.set_parameters(str(path), device=model.device)
    except (ValueError, RuntimeError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"--start {path}: not a model.zip of this task and these layers: {one_line(error)}") from error


def settings_for(task: str, args: argparse.Namespace) -> DqnCfg:
    """Return the settings for an id, with what was typed."""
    cfg = next((cfg for prefix, cfg in SETTINGS.items() if task.startswith(prefix)), DqnCfg(options=_options()))
    typed = {} if args.learning_rate is None else {"learning_rate": args.learning_rate}
    if args.start is not None:
        typed["exploration_initial_eps"] = cfg.options.get("exploration_final_eps", 0.05)
    cfg = replace(cfg, options=cfg.options | typed)
    if args.total_timesteps is not None:
        cfg = replace(cfg, total_timesteps=args.total_timesteps, eval_freq=min(cfg.eval_freq, args.total_timesteps))
    return cfg if args.net_arch is None else replace(cfg, net_arch=tuple(args.net_arch))


def write_teacher(model: Path, teacher: Path) -> None:
    """Write a model's Q-network and the plain settings that describe it: no target network, optimiser and pickles."""
    out = io.BytesIO()
    with zipfile.ZipFile(model) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as lean:
        weights = torch.load(io.BytesIO(source.read("policy.pth")), weights_only=True, map_location="cpu")
        kept = io.BytesIO()
        torch.save({name: value.clone() for name, value in weights.items() if name.startswith("q_net.")}, kept)
        lean.writestr("policy.pth", kept.getvalue())
        lean.writestr("data", json.dumps(plain_settings(json.loads(source.read("data"))), indent=1))
        lean.writestr("_stable_baselines3_version", source.read("_stable_baselines3_version"))
    atomic_write_bytes(teacher, out.getvalue())


def plain_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what describes the policy, without the pickles and texts of Python objects that lie beside the values."""
    described = {name: settings[name] for name in DESCRIBING if name in settings}
    return {name: _plain(value) for name, value in described.items()}


def _plain(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {key: entry for key, entry in value.items() if not str(entry).startswith("<function")}
    named = {key for key in kept if not key.startswith("_")} | {"__module__", "_shape"}
    return {key: _plain(entry) for key, entry in kept.items() if key in named and key != ":serialized:"}


if __name__ == "__main__":
    sys.exit(run_command(main))
