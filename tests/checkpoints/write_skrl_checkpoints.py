"""Write checkpoints with the installed skrl, 1.x or 2.x, and the actions that its own agents give: FOLDER [CASES].

Run by test_other_libraries.py in a process of its own; what lies in data/ was written by it too.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import gymnasium
import numpy as np
import skrl
import torch
import yaml

OBS, ACTIONS, ENVS, STEPS = 7, 2, 6, 20
NEW = skrl.__version__.startswith("2")


class FakeEnv:
    """Spaces and sizes, enough for a runner to be built."""

    def __init__(self, discrete: bool, states: bool):
        self.num_envs, self.num_agents, self.device, self.possible_agents = ENVS, 1, torch.device("cpu"), ["agent"]
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS,))
        self.state_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS + 2,)) if states else None
        self.action_space = gymnasium.spaces.Discrete(3) if discrete else gymnasium.spaces.Box(-1, 1, (ACTIONS,))

    def close(self) -> None:
        """Nothing to close."""


def model(kind: str, output: str, layers: list[int], activation: str, **options) -> dict:
    """Config of one model."""
    net = {"name": "net", "input": "OBSERVATIONS", "layers": layers, "activations": activation}
    return {"class": kind, "network": [net], "output": output, **options}


def config(case: str) -> dict:
    """Config of a case, as Isaac Lab's ``skrl_ppo_cfg.yaml`` has it."""
    activation = {"shared": "tanh", "squashed": "relu", "categorical": "selu"}.get(case, "elu")
    gaussian = {"clip_actions": False, "clip_log_std": True, "min_log_std": -20.0, "max_log_std": 2.0}
    if case == "squashed":
        gaussian |= {"max_log_std": 0.1, "initial_log_std": 0.5}
    kind, output = "GaussianMixin", "2.5 * tanh(ACTIONS)" if case == "squashed" else "ACTIONS"
    if case == "categorical":
        kind, gaussian = "CategoricalMixin", {"unnormalized_log_prob": True}
    policy = model(kind, output, [12, 10], activation, **gaussian)
    if case == "before_1.3":
        policy = {"class": kind, "hiddens": [12, 10], "hidden_activation": ["tanh", "tanh"], "output_scale": 0.7}
        policy |= {"input_shape": "Shape.STATES", "output_shape": "Shape.ACTIONS", "output_activation": "tanh"}
    value = model("DeterministicMixin", "ONE", [8] if case != "shared" else [12, 10], activation, clip_actions=False)
    if case == "states":
        value["network"][0]["input"] = "STATES"
    scaler = None if case in ("plain", "squashed") else "RunningStandardScaler"
    agent = {
        "class": "PPO", "rollouts": 4, "learning_epochs": 1, "mini_batches": 1, "lambda": 0.95,
        "state_preprocessor": scaler, "state_preprocessor_kwargs": None,
        "value_preprocessor": scaler, "value_preprocessor_kwargs": None,
        "experiment": {"directory": "", "experiment_name": "", "write_interval": 0, "checkpoint_interval": 0},
    }  # fmt: skip
    if case == "options":
        agent["state_preprocessor_kwargs"] = {"epsilon": 0.01, "clip_threshold": 1.5}
    if case == "states":
        agent |= {"observation_preprocessor": scaler, "observation_preprocessor_kwargs": None}
    if case == "states_only":  # only the critic's states are normalised
        agent |= {"observation_preprocessor": None, "observation_preprocessor_kwargs": None}
        value["network"][0]["input"] = "STATES"
    return {
        "seed": 42,
        "models": {"separate": case != "shared", "policy": policy, "value": value},
        "memory": {"class": "RandomMemory", "memory_size": -1},
        "agent": agent,
        "trainer": {"class": "SequentialTrainer", "timesteps": 8, "disable_progressbar": True},
    }


def fit(scaler, size: int) -> None:
    """Give a preprocessor moments unlike those that it starts with."""
    if isinstance(scaler, torch.nn.Module):
        scaler(torch.randn(64, size) * (torch.rand(size) * 3 + 0.2) + torch.randn(size) * 2, train=True)


def write(case: str, folder: Path) -> None:
    """Write one case into its folder."""
    from skrl.utils.runner.torch import Runner

    torch.manual_seed(3)
    cfg = config(case)
    env = FakeEnv(case == "categorical", case.startswith("states"))
    agent = Runner(env, copy.deepcopy(cfg)).agent
    torch.manual_seed(3)
    for network in {id(net): net for net in agent.models.values()}.values():
        for name, parameter in network.named_parameters():
            with torch.no_grad():
                parameter.normal_(0.0, 0.5)
                if "log_std" in name and case == "squashed":
                    parameter.fill_(0.5)
    fit(agent._state_preprocessor, OBS + 2 if case.startswith("states") and NEW else OBS)
    fit(getattr(agent, "_observation_preprocessor", None), OBS)
    fit(agent._value_preprocessor, 1)
    obs = torch.randn(STEPS, ENVS, OBS) * 4 + 1
    result = {"obs": obs, "dones": torch.rand(STEPS, ENVS) < 0.15}
    (agent.enable_models_training_mode(False) if NEW else agent.set_running_mode("eval"))
    with torch.no_grad():
        for step in range(STEPS):
            answer = ask(agent, obs[step])
            for key, value in answer.items():
                result.setdefault(key, []).append(value)
    for key in set(result) - {"obs", "dones"}:
        result[key] = torch.stack(result[key])
    (folder / case / "params").mkdir(parents=True)
    (folder / case / "checkpoints").mkdir()
    agent.save(str(folder / case / "checkpoints" / "agent_8.pt"))
    torch.save(result, folder / case / "expected.pt")
    (folder / case / "params" / "agent.yaml").write_text(yaml.safe_dump(cfg))


def ask(agent, obs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what the agent does, chosen as Isaac Lab's play script does, its deviation and its value."""
    state_size = agent.models["value"].state_space if NEW else None
    states = torch.zeros(ENVS, OBS + 2) if state_size is not None else None
    if NEW:
        _, outputs = agent.act(obs, states, timestep=0, timesteps=0)
        inputs = {"observations": agent._observation_preprocessor(obs), "states": agent._state_preprocessor(states)}
        value, _ = agent.models["value"].act(inputs, role="value")
    else:
        *_, outputs = agent.act(obs, timestep=0, timesteps=0)
        value, *_ = agent.models["value"].act({"states": agent._state_preprocessor(obs)}, role="value")
    found = {"value": agent._value_preprocessor(value, inverse=True)}
    if "net_output" in outputs:
        return found | {"logits": outputs["net_output"], "actions": outputs["net_output"].argmax(-1, keepdim=True)}
    return found | {
        "actions": outputs["mean_actions"],
        "std": agent.models["policy"].distribution(role="policy").stddev,
    }


def main() -> None:
    """Write the cases."""
    torch.set_num_threads(1)
    cases = ["plain", "normalized", "shared", "options", "squashed", "categorical"]
    cases += ["states", "states_only"] if NEW else ["before_1.3"]
    for case in sys.argv[2:] or cases:
        write(case, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
