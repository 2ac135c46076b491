"""Policies of every kind for the tests of exports, and how they are replayed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy
import torch
from torch import nn

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import LoadedPolicy, Overrides
from foundation.export.bundle import Bundle, make_bundle
from foundation.policies.actor_critic import ActorCritic, Critic, Trunk
from foundation.policies.choices import sizes_of
from foundation.policies.distribution import Beta, Choices, Deterministic, ShapedActions, SquashedGaussian
from foundation.policies.image_encoders import ImageEncoders, build_encoder
from foundation.policies.info import PolicyInfo
from foundation.policies.memory import Skip
from foundation.policies.mlp import build_mlp
from foundation.policies.normalizer import ObsNormalizer
from foundation.policies.policy_network import PolicyNetwork
from foundation.policies.rnn import RecurrentCore
from foundation.students import make_student, student_cfg_class

NUM_OBS, NUM_ACTIONS = 9, 3
STEPS, ENVS = 150, 4

SMALL = {"channels": [4, 5], "image_features": 8, "hidden_size": 8, "hidden_dims": [8]}
STUDENTS: dict[str, tuple[str, dict]] = {
    "mlp": ("mlp", {}),
    "mlp-no-hidden": ("mlp", {"hidden_dims": []}),
    "gaussian": ("mlp", {"stochastic": True, "state_dependent_std": True, "value_head": True, "activation": "silu"}),
    "tanh": ("mlp", {"distribution": "tanh"}),
    "beta": ("gru", {"stochastic": True, "state_dependent_std": True, "distribution": "beta"}),
    "discrete": ("mlp", {"num_choices": 5, "activation": "tanh"}),
    "several-choices": ("mlp", {"num_choices": [3, 1, 4]}),
    "gru": ("gru", {}),
    "gru-2-layers": ("gru", {"num_layers": 2, "encoder_dims": [], "hidden_dims": [8], "learn_initial_state": True}),
    "lstm": ("lstm", {"num_layers": 2, "learn_initial_state": True}),
    "history": ("history", {"length": 5}),
    "history-of-1": ("history", {"length": 1}),
    "tcn": ("tcn", {"channels": [6, 5], "kernel_size": 3, "hidden_dims": []}),
    "cnn": ("cnn", SMALL | {"images": {"front": [1, 2, 3]}, "image_scales": {"front": 0.1}}),
    "cnn-of-images-alone": ("cnn", SMALL | {"images": {"front": [1, 3, 3]}, "encoder": "spatial_softmax"}),
    "cnn-of-frames": (
        "cnn",
        SMALL | {"images": {"front": [1, 2, 2], "wrist": [1, 1, 2]}, "frame_stack": 3, "memory": "gru"},
    ),
    "cnn-impala": ("cnn", SMALL | {"images": {"front": [1, 2, 3]}, "encoder": "impala", "memory": "lstm"}),
}
"""Name of a case -> the student's name and its options."""
ACTIVATIONS = (
    "celu", "elu", "gelu", "identity", "lrelu", "mish", "relu", "selu", "sigmoid", "silu", "softplus", "tanh",
)  # fmt: skip


def student(case: str, normalized: bool = True):
    """Return a student with random weights and a normaliser, fitted unless told otherwise."""
    torch.manual_seed(len(case))
    name, options = STUDENTS[case]
    num_actions = len(sizes_of(options.get("num_choices"))) or NUM_ACTIONS
    made = make_student(student_cfg_class(name)(**options), NUM_OBS, num_actions)
    randomise(made)
    if normalized:
        made.update_normalizer(torch.randn(200, NUM_OBS) * 3 + 1)
    return made.requires_grad_(False).eval()


@torch.no_grad()
def randomise(network: nn.Module) -> None:
    """Give every parameter a random value, learned initial states too."""
    for parameter in network.parameters():
        parameter.normal_(0.0, 0.3)


def save_student(network, path: Path, **more) -> Path:
    """Write a student as this project's checkpoints have it."""
    groups = ["policy", *getattr(network, "image_shapes", {})]
    content = {"student": network.describe(), "model_state_dict": network.state_dict(), "obs_groups": groups}
    torch.save(content | more, path)
    return path


def bundle_of_student(case: str, folder: Path, name: str = "policy", normalized: bool = True, **more) -> Bundle:
    """Return a student's bundle, read from its checkpoint."""
    path = save_student(student(case, normalized), folder / f"{case}.pt", **more)
    return make_bundle(load_policy(path, Overrides()), name)


def _fitted(size: int) -> ObsNormalizer:
    normalizer = ObsNormalizer(size)
    normalizer.update(torch.randn(100, size) * 2 - 1)
    return normalizer


def _teacher(distribution: Deterministic, num_out: int, encoder: nn.Sequential) -> ActorCritic:
    return ActorCritic(Trunk([*encoder, *build_mlp(16, [8], num_out, "elu")]), distribution)


def _recurrent(skips: bool) -> ActorCritic:
    """Return actor and critic with memories of their own, as rl_games has them."""
    parts = {}
    for role, num_out in (("actor", NUM_ACTIONS), ("critic", 1)):
        core = RecurrentCore("lstm" if skips else "gru", 12 + NUM_OBS * skips, 16)
        memory = [Skip(), core, nn.LayerNorm(16), Skip()] if skips else [core]
        encoder = build_mlp(NUM_OBS, [12], None, "relu")
        parts[role] = Trunk([*encoder, *memory, *build_mlp(16 + NUM_OBS * skips, [8], num_out, "relu")])
    return ActorCritic(parts["actor"], Deterministic(), Critic(parts["critic"]), _fitted(NUM_OBS))


def _images() -> ActorCritic:
    """Return a policy that reads 2 flat numbers and two images, with every kind of layer that encoders have."""
    shapes = {"left": (2, 10, 8), "right": (1, 9, 9)}
    options = {
        "left": {"output_channels": [3, 4], "kernel_size": [3, 2], "stride": [2, 1], "norm": "layer", "max_pool": True,
                 "padding": "reflect"},
        "right": {"output_channels": [3, 2], "kernel_size": 3, "stride": 1, "dilation": [1, 2], "norm": "batch",
                  "padding": "circular", "global_pool": "avg"},
    }  # fmt: skip
    encoders = {name: build_encoder(shapes[name], options[name]).eval() for name in shapes}
    for encoder in encoders.values():
        randomise(encoder)
        for layer in encoder:
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2.0)
    with torch.no_grad():
        sizes = [encoders[name](torch.zeros(1, *shapes[name])).numel() for name in shapes]
    body = build_mlp(2 + sum(sizes), [8], NUM_ACTIONS, "elu")
    randomise(body)
    makers = {name: lambda shape, name=name: encoders[name] for name in shapes}
    images = ImageEncoders(_fitted(2), makers, 2 + sum(sizes), "images.pt")
    network = ActorCritic(Trunk([images, *body]), Deterministic())
    network.bind(shapes)
    return network


def teachers() -> dict[str, PolicyNetwork]:
    """Return policies of other libraries' shapes, by name."""
    torch.manual_seed(1)
    bounds = torch.full((NUM_ACTIONS,), -0.5), torch.full((NUM_ACTIONS,), 0.7)
    shaped = ShapedActions(Deterministic(), nn.Tanh(), bounds, torch.rand(NUM_ACTIONS), torch.randn(NUM_ACTIONS))
    made: dict[str, PolicyNetwork] = {
        "beta": _teacher(Beta((-2.0, 1.0)), 2 * NUM_ACTIONS, encoder=build_mlp(NUM_OBS, [16], None, "relu")),
        "squashed": _teacher(SquashedGaussian(), 2 * NUM_ACTIONS, encoder=build_mlp(NUM_OBS, [16], None, "relu")),
        "shaped": _teacher(shaped, NUM_ACTIONS, encoder=build_mlp(NUM_OBS, [16], None, "relu")),
        "choices": _teacher(Choices(True), 6, encoder=build_mlp(NUM_OBS, [16], None, "relu")),
        "gru-with-critic": _recurrent(False),
        "lstm-with-skips": _recurrent(True),
    }
    for network in made.values():
        randomise(network)
    made["images"] = _images()
    return made


def bundle_of(network: PolicyNetwork, folder: Path, clip: float | None = None, name: str = "policy") -> Bundle:
    """Return the bundle of a policy that has no file of its own."""
    path = folder / "made.pt"
    torch.save({"nothing": 1}, path)
    choices = getattr(network, "num_choices", None)
    info = PolicyInfo(
        format="made", path=str(path), num_obs=network.num_obs, num_actions=network.num_actions, num_choices=choices,
        hidden_dims=[], activation="elu", activation_from="checkpoint", distribution="deterministic", has_std=False,
        clip_actions=clip,
    )  # fmt: skip
    return make_bundle(LoadedPolicy(network, info), name)


@dataclasses.dataclass
class Flight:
    """Observations, resets, and what the policy itself does."""

    obs: numpy.ndarray
    resets: numpy.ndarray
    actions: numpy.ndarray


@torch.no_grad()
def fly(network: PolicyNetwork, clip: float | None = None, steps: int = STEPS) -> Flight:
    """Act by ``network.step`` with resets of part of the environments, on other observations than the golden ones."""
    generator = torch.Generator().manual_seed(7)
    obs = torch.randn(steps, ENVS, network.num_obs, generator=generator) * 2 + 0.5
    resets = torch.rand(steps, ENVS, generator=generator) < 0.06
    resets[0] = True
    state, actions = network.initial_state(ENVS), []
    for given, begins in zip(obs, resets, strict=True):
        state = network.reset_state(state, begins)
        output, state = network.step(given, state)
        actions.append(output.mean if clip is None else output.mean.clamp(-clip, clip))
    return Flight(obs.numpy(), resets.numpy(), torch.stack(actions).numpy())
