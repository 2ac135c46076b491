"""Write checkpoints with the installed sb3-contrib, and the actions that its own models give: FOLDER [CASES].

Run by test_other_libraries.py in a process of its own, as write_sb3_checkpoints.py is.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium
import numpy as np
import torch
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

sys.path.insert(0, str(Path(__file__).resolve().parent))

from write_sb3_checkpoints import BOX, ENVS, OBS, SMALL, STEPS, Env, strip

CHOICES = gymnasium.spaces.Discrete(3)
OFF_POLICY = {"buffer_size": 10}


class Clamped(BaseFeaturesExtractor):
    """A step of one's own before the network, without weights and of the same size."""

    def __init__(self, space: gymnasium.spaces.Box):
        super().__init__(space, OBS)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Return bounded observations. Shape: as given."""
        return obs.clamp(-1.0, 1.0)


CASES = {
    "qrdqn": (QRDQN, CHOICES, SMALL | {"n_quantiles": 25}, OFF_POLICY),
    "qrdqn_default": (QRDQN, CHOICES, {"activation_fn": torch.nn.Tanh}, OFF_POLICY),
    "tqc": (TQC, BOX, SMALL, OFF_POLICY),
    "tqc_sde": (TQC, BOX, SMALL, OFF_POLICY | {"use_sde": True}),
    "sac_sde": (SAC, BOX, SMALL | {"activation_fn": torch.nn.ELU}, OFF_POLICY | {"use_sde": True}),
    "sac_sde_free": (SAC, BOX, SMALL | {"clip_mean": 0.0}, OFF_POLICY | {"use_sde": True}),
    "sac_sde_tight": (SAC, BOX, SMALL | {"clip_mean": 0.5}, OFF_POLICY | {"use_sde": True}),
    "sac_empty": (SAC, BOX, {"net_arch": []}, OFF_POLICY),
    "tqc_empty": (TQC, BOX, {"net_arch": {"pi": [], "qf": [4]}}, OFF_POLICY),
    "sac_sde_empty": (SAC, BOX, {"net_arch": []}, OFF_POLICY | {"use_sde": True}),
    "own_features": (SAC, BOX, SMALL | {"features_extractor_class": Clamped}, OFF_POLICY),
    "trpo": (TRPO, BOX, SMALL, {}),
    "ars": (ARS, BOX, {}, {}),
    "ars_mlp": (ARS, BOX, SMALL, {}),
    "ars_squashed": (ARS, BOX, {"squash_output": True, "with_bias": True}, {}),
    "ars_free": (ARS, BOX, SMALL | {"squash_output": False, "with_bias": False}, {}),
    "ars_discrete": (ARS, CHOICES, {}, {}),
    "recurrent_ppo": (RecurrentPPO, BOX, {"lstm_hidden_size": 8}, {}),
    "recurrent_deep": (RecurrentPPO, BOX, SMALL | {"lstm_hidden_size": 6, "n_lstm_layers": 2}, {}),
    "recurrent_shared": (RecurrentPPO, BOX, SMALL | {"shared_lstm": True, "enable_critic_lstm": False}, {}),
    "maskable_ppo": (MaskablePPO, CHOICES, SMALL, {}),
    "rows": (SAC, gymnasium.spaces.Box(-1.0, 1.0, (2, 2)), SMALL, OFF_POLICY),
    "crossq": (CrossQ, BOX, SMALL, OFF_POLICY),
    "crossq_deep": (CrossQ, BOX, {"net_arch": [7, 6, 5], "activation_fn": torch.nn.Tanh}, OFF_POLICY),
    "crossq_eps": (CrossQ, BOX, SMALL | {"batch_norm_eps": 0.3}, OFF_POLICY),
    "crossq_sde": (CrossQ, BOX, SMALL, OFF_POLICY | {"use_sde": True}),
    "crossq_plain": (CrossQ, BOX, SMALL | {"batch_norm": False}, OFF_POLICY),
    "crossq_empty": (CrossQ, BOX, {"net_arch": {"pi": [], "qf": [4]}}, OFF_POLICY),
}
POLICIES = {
    "ars": "LinearPolicy",
    "ars_squashed": "LinearPolicy",
    "ars_discrete": "LinearPolicy",
    **dict.fromkeys(("recurrent_ppo", "recurrent_deep", "recurrent_shared"), "MlpLstmPolicy"),
}


class MaskedEnv(Env):
    """All choices are valid at any time."""

    def action_masks(self) -> np.ndarray:
        """Return what may be chosen."""
        return np.ones(3, bool)


@torch.no_grad()
def write(case: str, folder: Path, stripped: bool) -> None:
    """Write one case into its folder."""
    kind, actions, policy, options = CASES[case]
    torch.manual_seed(7)
    np.random.seed(7)
    env = DummyVecEnv([lambda: (MaskedEnv if case == "maskable_ppo" else Env)(actions)])
    place = folder / case
    place.mkdir(parents=True)
    model = kind(POLICIES.get(case, "MlpPolicy"), env, policy_kwargs=dict(policy), device="cpu", **options)
    for parameter in model.policy.parameters():
        parameter.normal_(0.0, 0.4)
    for name, moments in model.policy.named_buffers():  # of CrossQ's normalisation
        if name.endswith(("ra_mean", "ra_var")):
            moments.uniform_(0.2, 2.0)
    model.policy.set_training_mode(False)
    model.save(str(place / "model"))
    obs = torch.randn(STEPS, ENVS, OBS) * 3 + 1
    dones = torch.rand(STEPS, ENVS) < 0.15
    result: dict[str, list] = {}
    state, begins = None, np.ones(ENVS, bool)
    for step in range(STEPS):
        kept = {"state": state, "episode_start": begins} if kind is RecurrentPPO else {}
        raw, state = model.predict(obs[step].numpy(), deterministic=True, **kept)
        chosen, begins = torch.from_numpy(raw), dones[step].numpy()
        result.setdefault("actions", []).append(chosen.unsqueeze(-1) if chosen.dim() == 1 else chosen)
        if case in ("ars_discrete", "maskable_ppo"):
            network = model.policy.action_net
            features = obs[step] if kind is ARS else model.policy.mlp_extractor.forward_actor(obs[step])
            result.setdefault("logits", []).append(network(features))
        if kind is QRDQN:
            result.setdefault("logits", []).append(model.policy.quantile_net(obs[step]).mean(dim=1))
    tensors = {key: torch.stack(values) for key, values in result.items()}
    torch.save({"obs": obs, "dones": dones, **tensors}, place / "expected.pt")
    if stripped:
        strip(place / "model.zip")


def main() -> None:
    """Write the cases; those that are named are stripped."""
    torch.set_num_threads(1)
    for case in sys.argv[2:] or CASES:
        write(case, Path(sys.argv[1]), stripped=len(sys.argv) > 2)


if __name__ == "__main__":
    main()
