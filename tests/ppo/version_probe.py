"""Exercise the installed release of rsl-rl-lib on a toy environment and print what was seen as JSON.

Run by test_versions.py in a process of its own for every release.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path

import torch
from tensordict import TensorDict

from foundation.config.agent_cfg import DistillationRunnerCfg, ModelCfg, OnPolicyRunnerCfg
from foundation.core.errors import UserError
from foundation.ppo.library_runner import RslRlRunner
from foundation.ppo.versions import installed_layout, installed_version, translate

NUM_ENVS, NUM_OBS, NUM_ACTIONS = 6, 5, 2


class ToyEnv:
    """Observations are random walks; the reward is highest for actions equal to the first two of them."""

    def __init__(self):
        self.num_envs, self.num_actions, self.max_episode_length = NUM_ENVS, NUM_ACTIONS, 7
        self.device, self.cfg = "cpu", {}
        self.episode_length_buf = torch.zeros(NUM_ENVS, dtype=torch.long)
        self.generator = torch.Generator().manual_seed(0)
        self.state = torch.randn(NUM_ENVS, NUM_OBS, generator=self.generator)

    def get_observations(self):
        return TensorDict({"policy": self.state, "few": self.state[:, :3]}, batch_size=[NUM_ENVS])

    def step(self, actions):
        reward = -(actions - self.state[:, :NUM_ACTIONS]).square().sum(-1)
        self.state = 0.9 * self.state + torch.randn(NUM_ENVS, NUM_OBS, generator=self.generator) * 0.3 + 0.1
        self.episode_length_buf = self.episode_length_buf + 1
        dones = self.episode_length_buf >= self.max_episode_length
        self.episode_length_buf = self.episode_length_buf * ~dones
        return self.get_observations(), reward, dones, {"time_outs": dones, "log": {"toy/reward": reward.mean()}}


def small(cfg):
    """Shrink a config of ours to toy size."""
    cfg.num_steps_per_env, cfg.save_interval = 8, 100
    for name in ("actor", "critic", "student", "teacher"):
        if hasattr(cfg, name):
            getattr(cfg, name).hidden_dims = [16, 8]
            getattr(cfg, name).obs_normalization = True
    return cfg


def by_hand(checkpoint: dict, obs: torch.Tensor) -> torch.Tensor:
    """Compute the actor's mean from the checkpoint's tensors alone: normalise, then Linear-ELU-Linear-ELU-Linear."""
    new = "actor_state_dict" in checkpoint
    state = checkpoint["actor_state_dict" if new else "model_state_dict"]
    net, norm = ("mlp", "obs_normalizer") if new else ("actor", "actor_obs_normalizer")
    x = (obs - state[f"{norm}._mean"]) / (state[f"{norm}._var"].sqrt() + 1e-2)
    for layer in (0, 2, 4):
        x = x @ state[f"{net}.{layer}.weight"].T + state[f"{net}.{layer}.bias"]
        x = torch.where(x > 0, x, x.exp() - 1) if layer < 4 else x
    return x


def adam_steps(runner) -> list[int]:
    return sorted({int(s["step"]) for s in runner.runner.alg.optimizer.state_dict()["state"].values()})


def ppo(folder: Path) -> dict:
    seen: list[int] = []
    cfg = small(OnPolicyRunnerCfg())
    runner = RslRlRunner(ToyEnv(), cfg, folder / "a", "cpu")
    runner.on_iteration = seen.append
    runner.learn(2)
    path = folder / "mine.pt"
    runner.save(path, infos={"note": "kept"})
    checkpoint = torch.load(path, weights_only=True)
    obs = ToyEnv().get_observations()
    hand = (by_hand(checkpoint, obs["policy"]) - runner.inference_policy()(obs)).abs().max().item()
    again = RslRlRunner(ToyEnv(), small(OnPolicyRunnerCfg()), folder / "b", "cpu")
    resumed = again.load(path)
    start, steps_loaded = again.iteration, adam_steps(again)
    same = (again.inference_policy()(obs) - runner.inference_policy()(obs)).abs().max().item()
    again.on_iteration = seen.append
    again.learn(1)
    return {
        "iterations": seen, "hand": hand, "resumed": resumed, "start": start, "same": same, "iter": checkpoint["iter"],
        "infos": checkpoint["infos"], "steps": [adam_steps(runner), steps_loaded, adam_steps(again)],
        "files": sorted(p.name for p in (folder / "a").glob("model_*.pt")),
        "unchanged": cfg == small(OnPolicyRunnerCfg()),
    }  # fmt: skip


def distillation(folder: Path) -> dict:
    teacher = folder / "teacher.pt"
    RslRlRunner(ToyEnv(), small(OnPolicyRunnerCfg()), folder / "t", "cpu").save(teacher)
    runner = RslRlRunner(ToyEnv(), small(DistillationRunnerCfg()), folder / "d", "cpu")
    resumes = runner.load(teacher)
    runner.learn(2)
    obs = ToyEnv().get_observations()
    alg = runner.runner.alg
    given = alg.teacher(obs) if hasattr(alg, "teacher") else alg.policy.evaluate(obs)
    off = (given - by_hand(torch.load(teacher, weights_only=True), obs["policy"])).abs().max().item()
    runner.save(folder / "student.pt")
    again = RslRlRunner(ToyEnv(), small(DistillationRunnerCfg()), folder / "e", "cpu")
    again_resumes = again.load(folder / "student.pt")
    same = (again.inference_policy()(obs) - runner.inference_policy()(obs)).abs().max().item()
    return {
        "runner": type(runner.runner).__name__, "resumes": [resumes, again_resumes], "teacher_off": off,
        "start": again.iteration, "same": same,
    }  # fmt: skip


def recurrent(folder: Path) -> dict:
    cfg = small(OnPolicyRunnerCfg())
    for model in (cfg.actor, cfg.critic):
        model.class_name, model.rnn_type, model.rnn_hidden_dim, model.rnn_num_layers = "RNNModel", "gru", 12, 1
    runner = RslRlRunner(ToyEnv(), cfg, folder / "r", "cpu")
    runner.learn(1)
    obs, policy = ToyEnv().get_observations(), runner.inference_policy()
    first, second = policy(obs), policy(obs)
    policy.reset()
    third = policy(obs)
    other = RslRlRunner(ToyEnv(), cfg, folder / "r2", "cpu")
    other.on_iteration = lambda _: other.inference_policy()(ToyEnv().get_observations()[:2])
    other.learn(2)  # evaluating on another number of environments must not disturb the training state
    return {"remembers": not torch.equal(first, second), "forgets": torch.equal(first, third)}


def isaaclab_configs(folder: Path) -> dict:
    """Dicts as Isaac Lab's ``to_dict`` gives them: 2.3's layout and 3.0's, with fields left MISSING."""
    common = {
        "seed": 42, "device": "cuda:0", "num_steps_per_env": 8, "max_iterations": 3, "save_interval": 50,
        "experiment_name": "x", "run_name": "", "logger": "tensorboard", "neptune_project": "isaaclab",
        "wandb_project": "isaaclab", "resume": False, "load_run": ".*", "load_checkpoint": "model_.*.pt",
        "clip_actions": None, "empirical_normalization": dataclasses.MISSING,
    }  # fmt: skip
    ppo_cfg = {
        "class_name": "PPO", "value_loss_coef": 1.0, "use_clipped_value_loss": True, "clip_param": 0.2,
        "entropy_coef": 0.005, "num_learning_epochs": 2, "num_mini_batches": 2, "learning_rate": 1e-3,
        "schedule": "adaptive", "gamma": 0.99, "lam": 0.95, "desired_kl": 0.01, "max_grad_norm": 1.0,
        "normalize_advantage_per_mini_batch": False, "rnd_cfg": None, "symmetry_cfg": None,
    }  # fmt: skip
    old = {
        **common, "class_name": "OnPolicyRunner", "obs_groups": dataclasses.MISSING, "empirical_normalization": True,
        "policy": {
            "class_name": "ActorCritic", "init_noise_std": 0.7, "noise_std_type": "scalar",
            "state_dependent_std": False, "actor_hidden_dims": [16, 8], "critic_hidden_dims": [16, 8],
            "activation": "elu",
        }, "algorithm": ppo_cfg,
    }  # fmt: skip
    model = {
        "class_name": "MLPModel", "hidden_dims": [16, 8], "activation": "elu", "obs_normalization": False,
        "noise_std_type": "scalar", "state_dependent_std": False, "stochastic": dataclasses.MISSING,
        "init_noise_std": dataclasses.MISSING,
    }  # fmt: skip
    new = {
        **common, "class_name": "OnPolicyRunner", "obs_groups": {"actor": ["few"], "critic": ["policy"]},
        "actor": {**model, "distribution_cfg": {"class_name": "GaussianDistribution", "init_std": 0.7,
                                                "std_type": "scalar"}},
        "critic": {**model, "distribution_cfg": None}, "policy": dataclasses.MISSING,
        "algorithm": {**ppo_cfg, "optimizer": "adam", "share_cnn_encoders": False, "use_mixed_precision": False},
    }  # fmt: skip
    out = {}
    for name, cfg in (("old", old), ("new", new)):
        runner = RslRlRunner(ToyEnv(), cfg, folder / name, "cpu")
        state = runner.policy.state_dict()
        std = state["distribution.std_param"] if "distribution.std_param" in state else state["std"]
        first = state["mlp.0.weight" if "mlp.0.weight" in state else "actor.0.weight"]
        normalizes = any("obs_normalizer._mean" in key for key in state)
        out[name] = [round(float(std[0]), 4), list(first.shape), normalizes]
        runner.learn(1)
    return out


def errors(folder: Path) -> dict:
    def message(cfg, load=None):
        try:
            runner = RslRlRunner(ToyEnv(), cfg, folder / "x", "cpu")
            if load is not None:
                runner.load(load)
        except UserError as error:
            return str(error)
        return None

    wrong = dict(small(OnPolicyRunnerCfg()).to_dict())
    wrong["algorithm"]["learnign_rate"] = 1.0
    groups = small(OnPolicyRunnerCfg())
    groups.obs_groups["actor"] = ["polcy"]
    runner_name = small(OnPolicyRunnerCfg())
    runner_name.class_name = "OnPolcyRunner"
    RslRlRunner(ToyEnv(), small(OnPolicyRunnerCfg()), folder / "y", "cpu").save(folder / "ok.pt")
    sizes = small(OnPolicyRunnerCfg())
    sizes.actor.hidden_dims = [4]
    return {
        "key": message(wrong), "group": message(groups), "runner": message(runner_name),
        "sizes": message(sizes, folder / "ok.pt"), "missing": message(small(OnPolicyRunnerCfg()), folder / "no.pt"),
    }  # fmt: skip


def init_output(folder: Path) -> float:
    cfg = small(OnPolicyRunnerCfg())
    cfg.actor = ModelCfg(hidden_dims=[16, 8], distribution_cfg=cfg.actor.distribution_cfg)
    cfg.actor.init_output, cfg.actor.init_output_gain = [0.5, -0.25], 0.0
    actions = RslRlRunner(ToyEnv(), cfg, None, "cpu").inference_policy()(ToyEnv().get_observations())
    return (actions - torch.tensor([0.5, -0.25])).abs().max().item()


class NanEnv(ToyEnv):
    """Rewards become NaN in the second iteration."""

    steps = 0

    def step(self, actions):
        obs, reward, dones, extras = super().step(actions)
        self.steps += 1
        return obs, reward if self.steps < 12 else reward * float("nan"), dones, extras


def nan(folder: Path) -> list:
    """Train on NaN rewards and return the error and the files that were written."""
    runner = RslRlRunner(NanEnv(), small(OnPolicyRunnerCfg()), folder / "n", "cpu")
    runner.on_iteration = lambda _: runner.check_finite()
    try:
        runner.learn(5)
    except UserError as error:
        return [str(error), sorted(p.name for p in (folder / "n").glob("*.pt"))]
    return ["", []]


def min_std(folder: Path) -> list[float]:
    """Train with a floor above the start, and with none, and return the smallest standard deviations."""
    out = []
    for kind, floor in (("scalar", 0.7), ("log", 0.7), ("scalar", 0.0)):
        cfg = small(OnPolicyRunnerCfg())
        dist = cfg.actor.distribution_cfg
        dist.init_std, dist.std_type, dist.min_std = 0.5, kind, floor
        runner = RslRlRunner(ToyEnv(), cfg, folder / f"{kind}{floor}", "cpu")
        runner.learn(1)
        runner.runner.alg.act(ToyEnv().get_observations())
        out.append(
            float(
                getattr(
                    runner.policy, "output_std" if "mlp" in dict(runner.policy.named_children()) else "action_std"
                ).min()
            )
        )
    return out


def main() -> None:
    """Run every probe in the folder given on the command line."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with contextlib.redirect_stdout(sys.stderr):
        out = {"version": installed_version(), "layout": installed_layout()}
        for probe in (ppo, distillation, recurrent, isaaclab_configs, errors, init_output, min_std, nan):
            (folder / probe.__name__).mkdir(parents=True)
            out[probe.__name__] = probe(folder / probe.__name__)
        assert translate(small(DistillationRunnerCfg()))["class_name"] == "DistillationRunner"
    print(json.dumps(out))


if __name__ == "__main__":
    main()
