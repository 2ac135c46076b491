"""Write checkpoints with the installed rl_games, and the actions that its own players give: FOLDER [CASES].

Run by test_other_libraries.py in a process of its own; what lies in data/ was written by it too.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import gymnasium
import numpy as np
import torch
import yaml
from rl_games.algos_torch import torch_ext
from rl_games.torch_runner import Runner

OBS, ACTIONS, ENVS, STEPS = 7, 2, 6, 20
RNN = {"name": "gru", "units": 9, "layers": 1}
CASES = {
    "normalized": {},
    "separate": {"separate": True, "activation": "tanh", "units": [12]},
    "learned_sigma": {"fixed_sigma": False, "activation": "relu"},
    "clipped": {"clip_actions": True, "mu_activation": "tanh", "env": {"clip_actions": 2.0}},
    "wrapped": {"normalize": False, "env": {"clip_observations": 3.0, "clip_actions": 1.0}},
    "deviation": {"model": "continuous_a2c_logstd", "sigma_activation": "tanh"},
    "lstm": {"rnn": RNN | {"name": "lstm", "layers": 2}},
    "gru_first": {"rnn": RNN | {"before_mlp": True, "concat_output": True, "layer_norm": True}},
    "gru_skips": {"rnn": RNN | {"concat_input": True, "concat_output": True}, "separate": True},
    "discrete": {"discrete": True, "activation": "elu"},
}


def config(case: str) -> dict:
    """Config of a case, as Isaac Lab's ``rl_games_ppo_cfg.yaml`` has it."""
    options = CASES[case]
    default, const = {"name": "default"}, {"name": "const_initializer", "val": 0}
    space = {
        "mu_activation": options.get("mu_activation", "None"),
        "sigma_activation": options.get("sigma_activation", "None"),
        "mu_init": default,
        "sigma_init": const,
        "fixed_sigma": options.get("fixed_sigma", True),
    }
    mlp = {"units": options.get("units", [12, 10]), "activation": options.get("activation", "elu")}
    network = {
        "name": "actor_critic",
        "separate": options.get("separate", False),
        "space": {"discrete": None} if options.get("discrete") else {"continuous": space},
        "mlp": mlp | {"d2rl": False, "initializer": default},
    }
    if "rnn" in options:
        network["rnn"] = options["rnn"]
    kind = "discrete" if options.get("discrete") else "continuous"
    normalize = options.get("normalize", True)
    model = "discrete_a2c" if options.get("discrete") else options.get("model", "continuous_a2c_logstd")
    return {
        "params": {
            "seed": 42,
            "env": options.get("env", {}),
            "algo": {"name": f"a2c_{kind}"},
            "model": {"name": model},
            "network": network,
            "config": {
                "name": "case", "env_name": "rlgpu", "device_name": "cpu", "reward_shaper": {"scale_value": 1.0},
                "normalize_input": normalize, "normalize_value": normalize,
                "clip_actions": options.get("clip_actions", False),
            },
        }
    }  # fmt: skip


def player_of(case: str, cfg: dict):
    """Return the library's own player for a case, its moments fitted, with random weights."""
    options = CASES[case]
    cfg = copy.deepcopy(cfg)
    bound = options.get("env", {}).get("clip_actions", np.inf)
    actions = gymnasium.spaces.Box(-bound, bound, (ACTIONS,))
    cfg["params"]["config"]["env_info"] = {
        "action_space": gymnasium.spaces.Discrete(3) if options.get("discrete") else actions,
        "observation_space": gymnasium.spaces.Box(-np.inf, np.inf, (OBS,)),
    }
    runner = Runner()
    runner.load(cfg)
    torch.set_num_threads(1)
    player = runner.create_player()
    torch.manual_seed(5)
    for parameter in player.model.parameters():
        with torch.no_grad():
            parameter.normal_(0.0, 0.5)
    for name, size in (("running_mean_std", OBS), ("value_mean_std", 1)):
        if hasattr(player.model, name):
            scaler = getattr(player.model, name).train()
            scaler(torch.randn(64, size) * (torch.rand(size) * 3 + 0.2) + torch.randn(size) * 2)
            scaler.eval()
    player.has_batch_dimension, player.batch_size = True, ENVS
    return player


def write(case: str, folder: Path) -> None:
    """Write one case into its folder."""
    cfg = config(case)
    player = player_of(case, cfg)
    place = folder / case
    (place / "params").mkdir(parents=True)
    (place / "nn").mkdir()
    optimizer = torch.optim.Adam(player.model.parameters(), 1e-3)
    saved = {
        "model": player.model.state_dict(), "epoch": 4, "frame": 4096, "optimizer": optimizer.state_dict(),
        "last_mean_rewards": np.float32(12.5), "env_state": None,
    }  # fmt: skip
    torch_ext.save_checkpoint(str(place / "nn" / "case"), saved)
    player.restore(str(place / "nn" / "case.pth"))
    player.reset()
    obs, dones = torch.randn(STEPS, ENVS, OBS) * 4 + 1, torch.rand(STEPS, ENVS) < 0.2
    env = CASES[case].get("env", {})
    limit, bound = env.get("clip_observations", np.inf), env.get("clip_actions", np.inf)
    result: dict[str, list] = {"actions": [], "value": [], "std": []}
    for step in range(STEPS):
        seen = obs[step].clamp(-limit, limit)  # the wrapper of Isaac Lab does so before the player sees it
        states = player.states
        with torch.no_grad():
            if states is not None:
                states = [state.clone() for state in states]
            whole = player.model({"is_train": False, "prev_actions": None, "obs": seen, "rnn_states": states})
        actions = player.get_action(seen, is_deterministic=True)
        if CASES[case].get("discrete"):
            actions = actions.unsqueeze(-1)
            result.setdefault("logits", []).append(whole["logits"])
        else:
            actions = actions.clamp(-bound, bound)  # and so after it
            result["std"].append(whole["sigmas"] * (bound if CASES[case].get("clip_actions") else 1.0))
        result["actions"].append(actions)
        result["value"].append(whole["values"])
        if player.states is not None:
            for state in player.states:
                state[:, dones[step]] = 0.0
    tensors = {key: torch.stack(values) for key, values in result.items() if values}
    torch.save({"obs": obs, "dones": dones, **tensors}, place / "expected.pt")
    (place / "params" / "agent.yaml").write_text(yaml.safe_dump(cfg))


def main() -> None:
    """Write the cases."""
    for case in sys.argv[2:] or CASES:
        write(case, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
