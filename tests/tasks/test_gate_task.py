"""Flights through gates: crossings against hand-made ones, observations, seeds, endings, exact resume, bad input."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import foundation
from foundation.core.errors import UserError
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.evaluate import evaluate
from foundation.tasks import load_entry_point, resolve_task
from foundation.tasks.camera.camera import CameraCfg
from foundation.tasks.gate import layout, mdp
from foundation.tasks.gate.gate_env import QuadcopterGateEnv, QuadcopterGateEnvCfg
from foundation.tasks.quadrotor.env_cfg import SceneCfg
from foundation.tasks.quadrotor.quadrotor_env import QuadrotorEnv
from foundation.tasks.quadrotor.sim.quadrotor import BODY_RATES, POSITION, QUATERNION, VELOCITY
from foundation.tasks.quadrotor.training.bptt import BpttCfg, PolicyStack, train
from foundation.tasks.quadrotor.training.differentiable_gate import DifferentiableGate
from foundation.tasks.seen_target.seen_env import QuadcopterPointCtrlSeenEnv, QuadcopterPointCtrlSeenEnvCfg
from foundation.teachers import TeacherPolicyWrapper

TEACHERS = Path(foundation.__file__).parent / "assets" / "teachers"
OFF = CameraCfg()


def make(num_envs: int = 8, **changes: Any) -> QuadcopterGateEnv:
    return QuadcopterGateEnv(replace(QuadcopterGateEnvCfg(scene=SceneCfg(num_envs)), **changes))


def roll(env: QuadcopterGateEnv, steps: int, seed: int = 0, image: bool = True) -> list[torch.Tensor]:
    """Fly random commands around hovering, and return everything that the environment returned."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(steps):
        actions = 0.612 + 0.2 * torch.randn(env.num_envs, 4, generator=generator)
        obs, reward, dones, extras = env.step(actions)
        out += [value for group, value in obs.items() if image or group != "camera"]
        out += [reward, dones, extras["time_outs"], *extras["episode_metrics"].values()]
    return [x.clone() for x in out]


@pytest.mark.parametrize(
    ("start", "end", "kind"),
    [
        ((-0.1, 0.0, 0.0), (0.1, 0.0, 0.0), "passed"),
        ((-0.1, 0.3, 0.0), (0.1, -0.1, 0.0), "passed"),  # at y = 0.1 in the plane
        ((-0.1, 0.2, 0.0), (0.1, 0.2, 0.0), "hit"),  # the rotors do not fit
        ((-0.1, 0.0, -0.3), (0.1, 0.0, -0.3), "hit"),
        ((-0.1, 0.0, 0.5), (0.1, 0.0, 0.5), "missed"),
        ((-0.2, 0.0, 0.0), (-0.1, 0.0, 0.0), None),
        ((0.1, 0.0, 0.0), (-0.1, 0.0, 0.0), None),  # back
    ],
)
def test_a_crossing_is_through_the_opening_against_the_frame_or_beside_it(start, end, kind):
    """Of a gate with an opening of 0.5 m, bars of 0.1 m and a clearance of 0.06 m, turned by 30 degrees."""
    yaw = math.pi / 6
    turn = torch.tensor([[math.cos(yaw), -math.sin(yaw), 0.0], [math.sin(yaw), math.cos(yaw), 0.0], [0.0, 0.0, 1.0]])
    centre = torch.tensor([1.5, -0.4, 0.2])
    before, after = (centre + turn @ torch.tensor(place) for place in (start, end))
    gate = torch.tensor([*centre, yaw]).unsqueeze(1)
    crossed = mdp.crossing(before.unsqueeze(1), after.unsqueeze(1), gate, 0.5, 0.1, 0.06)
    assert {name: bool(value) for name, value in crossed._asdict().items()} == {
        name: name == kind for name in ("passed", "hit", "missed")
    }


def test_the_guidance_leads_through_the_opening():
    """A point that moves by it from anywhere before the gate passes it, by Euler steps, near the middle."""
    generator = torch.Generator().manual_seed(0)
    place = torch.rand(3, 200, generator=generator) * torch.tensor([[1.2], [1.6], [1.2]])
    place -= torch.tensor([[2.0], [0.8], [0.6]])
    offset = torch.full((200,), math.inf)
    for _ in range(1000):
        after = place + 0.01 * mdp.guidance(place, 1.3)
        crosses = (place[0] < 0) & (after[0] >= 0)
        offset = torch.where(crosses, after[1:].norm(dim=0), offset)
        place = after
    assert offset.max() < 0.1


def test_observations_are_what_their_layout_says():
    """Columns by the definition of the quaternion's rotation; student groups are parts of the teacher's."""
    env = make()
    roll(env, 20)
    obs = env.get_observations()
    state = env.state.double()
    w, x, y, z = state[QUATERNION]
    rotation = torch.stack(
        [
            torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]),
            torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]),
            torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]),
        ]
    )
    centre = env.gate[:3].double()
    yaw = env.gate[3].double()
    way = torch.stack([yaw.cos(), yaw.sin(), torch.zeros_like(yaw)])
    position, velocity, through = (
        torch.einsum("ijn,in->nj", rotation, v) for v in (state[POSITION] - centre, state[VELOCITY], way)
    )
    flat = rotation.permute(2, 0, 1).reshape(-1, 9)
    rates = state[BODY_RATES].T
    previous = env.previous_action.T.double()
    expected = {
        "deployable": [position, flat, velocity, rates, previous, through],
        "proprioception": [flat, velocity, rates, previous],
        "inertial": [flat, rates, previous],
        "gate": [position, through],
    }
    for group, parts in expected.items():
        assert torch.allclose(obs[group].double(), torch.cat(parts, dim=1), atol=1e-5), group
    assert torch.equal(obs["policy"][:, :25], obs["deployable"])
    fields = layout.make_layout()
    sizes = {name: value.shape[1] for name, value in obs.items() if value.dim() == 2}
    assert sizes == {name: sum(field.size for field in fields[name]) for name in fields if name != "actions"}
    assert obs["camera"].shape == (8, 1, 32, 32) and obs["camera"].dtype == torch.uint8


def test_the_camera_sees_the_gate_where_it_is():
    """Level at the origin, the frame's pixels are around the pinhole projection of the gate's centre."""
    env = make(32)
    state = torch.zeros_like(env.state)
    state[9] = 1.0
    env._pillars = torch.zeros(0, 5, 32)
    assert env.camera is not None
    image = env.camera.render(env.camera.pose(state[POSITION], state[QUATERNION]), env.scene())[:, 0].float()
    ahead = env.gate[0] - env.cfg.camera.position[0]
    column = 16 * (1 - env.gate[1] / ahead) - 0.5
    row = 16 * (1 - env.gate[2] / ahead) - 0.5
    near = image < 255 * 2.3 / 3  # the gate ...
    ground = 255 / 3 / ((torch.arange(32) * 2 + 1) / 32 - 1).clamp(min=1e-6)  # ... and no ground, which is 1 m below
    near &= image < ground.unsqueeze(1) - 3
    for i in range(32):
        rows, columns = near[i].nonzero().unbind(1)
        assert abs(rows.float().mean() - row[i]) < 1.5  # a turned gate is not symmetric in the image
        assert abs(columns.float().mean() - column[i]) < 1.5


def test_switching_the_camera_changes_no_transition():
    """The same 120 steps in every bit, resets within them included, without it, with it, and with its noise."""
    noisy = CameraCfg(image="rgbd", depth_noise=0.1, dropout=0.1, delay=2, width=8, height=8)
    flights = []
    for camera in (OFF, CameraCfg(image="depth"), noisy):
        env = make(seed=5, camera=camera)
        assert ("camera" in env.get_observations()) == (camera.image != "none")
        flights.append(roll(env, 120, image=False))
    for other in flights[1:]:
        assert all(torch.equal(x, y) for x, y in zip(flights[0], other, strict=True))


def test_seeds_work_both_ways():
    """The same seed gives the same 60 steps in every bit, images included; another seed other gates."""
    noisy = CameraCfg(image="depth", depth_noise=0.05)
    flights = [roll(make(seed=5, camera=noisy), 60) for _ in range(2)]
    assert all(torch.equal(x, y) for x, y in zip(*flights, strict=True))
    assert not torch.equal(make(seed=5).gate, make(seed=6).gate)


def test_a_saved_environment_goes_on_bit_for_bit():
    """Gates, surroundings, delayed and noisy images are restored; a state without a camera is one line."""
    camera = CameraCfg(image="depth", depth_noise=0.05, delay=1)
    env = make(seed=7, camera=camera)
    roll(env, 30)
    saved = env.state_dict()
    expected = roll(env, 90, seed=1)
    other = make(seed=8, camera=camera)
    other.load_state_dict(saved)
    found = roll(other, 90, seed=1)
    assert all(torch.equal(x, y) for x, y in zip(expected, found, strict=True))
    with pytest.raises(UserError, match="another 'camera': none"):
        other.load_state_dict(make(seed=7, camera=OFF).state_dict())


def test_an_episode_ends_with_the_crossing_and_only_the_opening_is_a_success():
    """Just before the plane, at 1 m/s: the middle is a success with its bonus, the bar a failure with its penalty."""
    env = make(2, camera=OFF)
    env._gate = torch.tensor([[1.5, 0.0, 0.0, 0.0]] * 2).T.clone()
    state = torch.zeros(17, 2)
    state[0] = 1.495
    state[1] = torch.tensor([0.0, 0.3])
    state[3] = 1.0
    state[9] = 1.0
    state[13:] = 0.806
    env._state = state
    env._action = torch.full((4, 2), 0.612)
    _, reward, dones, extras = env.step(torch.full((2, 4), 0.612))
    assert dones.tolist() == [1, 1] and not extras["time_outs"].any()
    assert extras["episode_metrics"]["success"].tolist() == [True, False]
    assert torch.allclose(reward, torch.tensor([10.0, -10.0]), atol=2e-2)  # the distance is the same on either side


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gate.distance": (0.1, 2.0)}, "env.gate.distance must be a range beyond env.init.position"),
        ({"gate.clearance": 0.3}, "env.gate.clearance must be less than half of env.gate.opening"),
        ({"gate.opening": 0.0}, "env.gate.opening must be positive"),
        ({"gate": None}, "env.gate=null"),
        ({"camera": None}, "env.camera=null"),
        ({"camera.image": "infrared"}, "env.camera.image must be one of none, depth, rgb, rgbd"),
        ({"camera.width": 0}, "env.camera.width must be positive, it is 0"),
        ({"surroundings.pillars": -1}, "env.surroundings.pillars must be 0 or more"),
    ],
)
def test_values_that_no_gate_can_have_are_one_line(changes, words):
    """The line names the key that is typed."""
    cfg = QuadcopterGateEnvCfg(scene=SceneCfg(2))
    for key, value in changes.items():
        *parts, name = key.split(".")
        holder: Any = cfg
        for part in parts:
            holder = getattr(holder, part)
        setattr(holder, name, value)
    with pytest.raises(UserError) as error:
        QuadcopterGateEnv(cfg)
    assert words in str(error.value) and "\n" not in str(error.value)


class Blind(QuadcopterGateEnv):
    """The task with its scene taken away."""

    scene = QuadrotorEnv.scene


def test_a_task_without_a_scene_refuses_a_camera():
    """A class that leaves the camera on is told what to do; without it the task runs."""
    with pytest.raises(UserError, match=r"env\.camera\.image=depth: Blind has nothing to be seen"):
        Blind(QuadcopterGateEnvCfg(scene=SceneCfg(2)))
    Blind(QuadcopterGateEnvCfg(scene=SceneCfg(2), camera=OFF))


def test_the_picture_shows_the_scene_and_what_the_camera_sees():
    """Every grey of the camera's image is in the right of the panel; without a camera that part stays light."""
    env = make(1)
    env.cfg.viewer.num_envs = 1
    frame = env.render()
    assert frame.shape == (720, 960, 3)
    greys = set((255 - env.get_observations()["camera"][0, 0].int()).flatten().tolist())
    shown = {colour[0] for colour in frame[:, 560:].reshape(-1, 3).tolist() if colour[0] == colour[1] == colour[2]}
    assert len(greys - shown) <= 1
    blind = make(1, camera=OFF)
    blind.cfg.viewer.num_envs = 1
    assert (blind.render()[200:500, 700:900] < 30).all(-1).mean() < 0.01


def test_play_is_the_same_task_with_fewer_environments():
    """``-Play`` has 64 environments and the same gate."""
    cfg = load_entry_point(resolve_task("Isaac-Quadcopter-Gate-Play-v0"), "env_cfg_entry_point")
    assert cfg.scene.num_envs == 64 and cfg.gate == QuadcopterGateEnvCfg().gate


@pytest.mark.parametrize("task", ["gate", "seen"])
def test_the_shipped_teacher_does_its_task(task):
    """From fresh starts of another seed, without a camera; the gate's teacher is below 1 MB."""
    if task == "gate":
        env: QuadrotorEnv = make(256, camera=OFF)
        folder = TEACHERS / "gate"
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 1e6
    else:
        env = QuadcopterPointCtrlSeenEnv(QuadcopterPointCtrlSeenEnvCfg(scene=SceneCfg(256), camera=OFF))
        folder = TEACHERS / "point_ctrl"
    policy = TeacherPolicyWrapper(folder / "model.pt")
    actor = PolicyActor(policy, ObsSelector(policy.obs_groups or []))
    assert evaluate(env, actor, 256, seed=987_654).summary()["success_rate"] > 0.97


def test_backpropagation_through_the_simulator_learns_to_fly_towards_the_gate():
    """After 60 updates the mean smooth reward per step is well above that of hovering, the first policy's."""
    env = make(64, camera=OFF)
    hover = (2 * env.vehicles.hover_speed[0] - 1).item()
    task = DifferentiableGate(env)
    cfg = BpttCfg(hidden_dims=[64, 64], updates=60, learning_rate=2e-3)
    actor = PolicyStack(1, task.num_obs, cfg.hidden_dims, task.num_actions, bias=hover)
    rewards: list[float] = []
    train(task, actor, cfg, lambda _, reward: rewards.append(reward.item()))
    assert sum(rewards[-5:]) / 5 > rewards[0] + 0.15
