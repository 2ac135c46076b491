"""Write checkpoints with the installed release of rsl-rl-lib, and the actions that its own inference policy gives.

Run by test_rsl_rl_checkpoints.py in a process of its own for every release: VERSION FOLDER.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
import yaml
from rsl_rl_cases import GROUPS, NUM_ACTIONS, NUM_ENVS, NUM_STEPS, Case, cases
from tensordict import TensorDict


class FakeEnv:
    """Random observations, enough for a runner to be built."""

    def __init__(self, old: bool):
        self.old, self.num_envs, self.num_actions, self.device, self.cfg = old, NUM_ENVS, NUM_ACTIONS, "cpu", {}
        self.max_episode_length = 5
        self.case: Case | None = None

    def get_observations(self):
        obs = TensorDict({name: torch.randn(NUM_ENVS, size) for name, size in GROUPS.items()}, batch_size=[NUM_ENVS])
        if not self.old:
            return obs
        extra = {}
        if self.case.distilled:
            extra["teacher"] = torch.cat([obs["policy"], obs["privileged"]], dim=-1)
        elif self.case.critic_groups != self.case.actor_groups:
            extra["critic"] = torch.cat([obs[g] for g in self.case.critic_groups], dim=-1)
        return obs["policy"], {"observations": extra}


def config_3(case: Case, old: bool) -> dict:
    """Config of releases up to 3.x: one ``policy``."""
    std = {"scalar": "scalar", "heteroscedastic": "scalar"}.get(case.distribution, "log")
    dims = case.hidden_dims
    policy = {"activation": case.activation, "init_noise_std": 0.7}
    if case.distilled:
        kind = "StudentTeacherRecurrent" if case.rnn else "StudentTeacher"
        policy |= {"class_name": kind, "student_hidden_dims": dims, "teacher_hidden_dims": [8]}
        norms = ("student_obs_normalization", "teacher_obs_normalization")
        sets = {"policy": list(case.actor_groups), "teacher": ["policy", "privileged"]}
        algorithm = {"class_name": "Distillation", "gradient_length": 2}
    else:
        kind = "ActorCriticRecurrent" if case.rnn else "ActorCritic"
        policy |= {"class_name": kind, "actor_hidden_dims": dims, "critic_hidden_dims": [16], "noise_std_type": std}
        norms = ("actor_obs_normalization", "critic_obs_normalization")
        sets = {"policy": list(case.actor_groups), "critic": list(case.critic_groups)}
        algorithm = {"class_name": "PPO"}
        if case.distribution.startswith("hetero"):
            policy["state_dependent_std"] = True
    if case.rnn:
        policy |= {"rnn_type": case.rnn[0], "rnn_hidden_dim": case.rnn[1], "rnn_num_layers": case.rnn[2]}
    cfg = {"policy": policy, "algorithm": algorithm, "num_steps_per_env": 4, "save_interval": 50, "clip_actions": 2.5}
    if old:
        return cfg | {"empirical_normalization": case.normalized}
    policy |= dict.fromkeys(norms, case.normalized)
    return cfg | {"obs_groups": sets}


def config_5(case: Case, four: bool) -> dict:
    """Config of releases from 4.x: one entry per network."""
    log = case.distribution.endswith("log")
    base = {"activation": case.activation, "obs_normalization": case.normalized, "class_name": "MLPModel"}
    if case.rnn:
        base |= {"class_name": "RNNModel", "rnn_type": case.rnn[0]}
        base |= {"rnn_hidden_dim": case.rnn[1], "rnn_num_layers": case.rnn[2]}
    actor = base | {"hidden_dims": case.hidden_dims}
    critic = base | {"hidden_dims": [16]}
    if four:
        actor |= {"stochastic": True, "init_noise_std": 0.7, "noise_std_type": "log" if log else "scalar"}
        actor["state_dependent_std"] = case.distribution.startswith("hetero")
    elif case.distribution == "beta":
        actor["distribution_cfg"] = {"class_name": "BetaDistribution", "action_range": (-2.0, 3.0)}
    else:
        name = "Heteroscedastic" if case.distribution.startswith("hetero") else ""
        actor["distribution_cfg"] = {
            "class_name": f"rsl_rl.modules:{name}GaussianDistribution", "init_std": 0.7,
            "std_type": "log" if log else "scalar", "std_range": (0.05, 0.9),
        }  # fmt: skip
    common = {"num_steps_per_env": 4, "save_interval": 50, "clip_actions": None, "multi_gpu": None}
    if case.distilled:
        sets = {"student": list(case.actor_groups), "teacher": ["policy", "privileged"]}
        teacher = {"class_name": "MLPModel", "hidden_dims": [8]}
        algorithm = {"class_name": "Distillation", "gradient_length": 2}
        return common | {"student": actor, "teacher": teacher, "algorithm": algorithm, "obs_groups": sets}
    sets = {"actor": list(case.actor_groups), "critic": list(case.critic_groups)}
    return common | {"actor": actor, "critic": critic, "algorithm": {"class_name": "PPO"}, "obs_groups": sets}


def build(version: str, case: Case):
    """Return the real runner for a case, with random weights and fitted normalisers, and its config."""
    major = int(version[0])
    env = FakeEnv(old=major == 2)
    env.case = case
    cfg = config_3(case, env.old) if major < 4 else config_5(case, major == 4)
    from rsl_rl import runners

    kind = "DistillationRunner" if case.distilled and major > 2 else "OnPolicyRunner"
    runner = getattr(runners, kind)(env, copy.deepcopy(cfg), log_dir=None, device="cpu")
    if major < 4:
        runner.logger_type = "tensorboard"  # learn() sets it, save() reads it
    elif major == 4:
        runner.logger.writer = None  # likewise
    return env, runner, cfg


def randomize(runner, version: str, case: Case) -> None:
    """Make every weight random, deviations positive."""
    alg = runner.alg
    modules = [alg.policy] if hasattr(alg, "policy") else [getattr(alg, n) for n in vars(alg)["_modules_of_case"]]
    for module in modules:
        for name, parameter in module.named_parameters():
            with torch.no_grad():
                parameter.normal_(0.0, 0.4)
                if name.split(".")[-1] in ("std", "std_param"):
                    parameter.abs_().add_(0.05)
    if case.distribution == "heteroscedastic":  # a deviation must not be negative
        head = [layer for layer in (modules[0].actor if hasattr(modules[0], "actor") else modules[0].mlp)][-2]
        with torch.no_grad():
            head.weight[NUM_ACTIONS:] *= 0.02
            head.bias[NUM_ACTIONS:] = 0.5
    for _ in range(4):
        obs = TensorDict({n: torch.randn(32, s) * 3 + 1.5 for n, s in GROUPS.items()}, batch_size=[32])
        if version.startswith("2"):
            if case.normalized:
                runner.train_mode()
                runner.obs_normalizer(obs["policy"])
                width = runner.privileged_obs_normalizer.mean.shape[0]
                runner.privileged_obs_normalizer(torch.randn(32, width) * 2)
        else:
            for module in modules:
                module.train()
                module.update_normalization(obs)


def rollout(env, runner, version: str, case: Case) -> dict:
    """Run the release's own inference policy over random observations with partial resets."""
    policy = runner.get_inference_policy(device="cpu")
    resets = runner.alg.policy if hasattr(runner.alg, "policy") else policy
    generator = torch.Generator().manual_seed(7)
    obs = {n: torch.randn(NUM_STEPS, NUM_ENVS, s, generator=generator) * 2 + 1 for n, s in GROUPS.items()}
    dones = torch.rand(NUM_STEPS, NUM_ENVS, generator=generator) < 0.15
    actions = []
    for step in range(NUM_STEPS):
        now = TensorDict({n: v[step] for n, v in obs.items()}, batch_size=[NUM_ENVS])
        actions.append(policy(now["policy"] if env.old else now).clone())
        resets.reset(dones[step])
    result = {"obs": obs, "dones": dones, "actions": torch.stack(actions)}
    if case.rnn is None and not case.distilled:
        result |= moments(env, runner, TensorDict({n: v[-1] for n, v in obs.items()}, batch_size=[NUM_ENVS]))
    return result


def moments(env, runner, obs) -> dict:
    """Return the deviation and the value that the release gives."""
    alg = runner.alg
    if hasattr(alg, "policy"):
        normalised = runner.obs_normalizer(obs["policy"]) if env.old else obs
        alg.policy.act(normalised)
        out = {"std": alg.policy.action_std}
        if not env.old:
            out["value"] = alg.policy.evaluate(obs)
        elif env.case.critic_groups == env.case.actor_groups:
            out["value"] = alg.policy.evaluate(runner.privileged_obs_normalizer(obs["policy"]))
        return out
    alg.actor(obs, stochastic_output=True)
    return {"std": alg.actor.output_std, "value": alg.critic(obs)}


def main() -> None:
    """Write every case of the release into its own folder."""
    version, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for case in cases(version):
        env, runner, cfg = build(version, case)
        if not hasattr(runner.alg, "policy"):
            runner.alg._modules_of_case = ("student", "teacher") if case.distilled else ("actor", "critic")
        randomize(runner, version, case)
        place = folder / case.name
        (place / "params").mkdir(parents=True)
        with torch.no_grad():
            expected = rollout(env, runner, version, case)
        runner.save(str(place / "model_7.pt"))
        torch.save(expected, place / "expected.pt")
        if hasattr(runner, "export_policy_to_jit"):
            runner.export_policy_to_jit(str(place / "exported"))
        (place / "params" / "agent.yaml").write_text(yaml.dump(cfg))


if __name__ == "__main__":
    main()
