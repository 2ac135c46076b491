"""The Go1's velocity tasks: their models, against MuJoCo itself, and their maths, by hand."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from foundation.core.errors import UserError
from foundation.export.joints import joints_of
from foundation.tasks.legs import go1_model, mdp
from foundation.tasks.legs.env_cfg import Go1FlatEnvCfg, Go1RoughEnvCfg, JointTargetsCfg, PushCfg, check_legs_cfg
from foundation.tasks.legs.layout import make_layout, make_rough_layout
from foundation.tasks.legs.terrain import Terrain, TerrainCfg
from foundation.tasks.legs.velocity_env import Go1VelocityEnv
from foundation.tasks.mujoco.package import mujoco_is_installed

NUM_ENVS = 8
can_run = pytest.mark.skipif(
    not mujoco_is_installed() or importlib.util.find_spec("mjlab") is None, reason="needs mujoco, and mjlab's files"
)


def make(cfg: Go1FlatEnvCfg) -> Go1VelocityEnv:
    cfg.scene.num_envs = NUM_ENVS
    cfg.sim.num_threads = 1
    return Go1VelocityEnv(cfg)


@pytest.fixture(scope="module")
def flat() -> Any:
    return make(Go1FlatEnvCfg())


@pytest.fixture(scope="module")
def rough() -> Any:
    return make(Go1RoughEnvCfg())


# -- maths -------------------------------------------------------------------------------------------------------------


def test_a_turned_trunk_sees_its_velocity_and_gravity_in_its_own_frame():
    """Yawed by 90 degrees and moving along the world's y it moves ahead; rolled onto its left side, gravity is left."""
    half = math.sqrt(0.5)
    qpos = torch.zeros(2, 19, dtype=torch.float64)
    qpos[0, 3], qpos[0, 6] = half, half  # about z
    qpos[1, 3], qpos[1, 4] = half, -half  # about -x: the left side goes down
    qvel = torch.zeros(2, 18, dtype=torch.float64)
    qvel[:, 1] = 2.0
    qvel[:, 3:6] = torch.tensor([0.1, 0.2, 0.3])
    body = mdp.body_motion(qpos, qvel)
    assert torch.allclose(body.lin_vel[0], torch.tensor([2.0, 0.0, 0.0]), atol=1e-6)
    assert torch.allclose(body.gravity[0], torch.tensor([0.0, 0.0, -1.0]), atol=1e-6)
    assert torch.allclose(body.gravity[1], torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)
    assert torch.allclose(body.ang_vel[1], torch.tensor([0.1, 0.2, 0.3]))


def test_the_clock_asks_for_a_trot():
    """At 2 Hz and 50 steps a second a stride has 25 steps; diagonal feet are down together, the others in the air."""
    clock = mdp.clock(torch.tensor([0, 25, 6, 19]), 0.02, 2.0)
    assert torch.allclose(clock[0], clock[1], atol=1e-5)
    assert torch.allclose(clock[0], torch.tensor([0.0, 1.0]), atol=1e-6)
    down = mdp.stance(clock[2:, 0])
    assert down.tolist() == [[True, False, False, True], [False, True, True, False]]  # FR, FL, RR, RL


def test_the_reward_s_terms_are_what_a_hand_computes():
    """One robot walks half as fast as told, tilted, with one foot slipping; another stands where it is to stand."""
    zeros = torch.zeros(2, 3)
    body = mdp.Body(
        torch.tensor([[0.5, 0.0, 0.1], [0.0, 0.0, 0.0]]),
        zeros.clone(),
        torch.tensor([[0.6, 0.0, -0.8], [0.0, 0.0, -1.0]]),
    )
    feet = mdp.Feet(
        height=torch.tensor([[0.02, 0.05, 0.09, 0.02], [0.023] * 4]),
        contact=torch.tensor([[True, False, False, True], [True] * 4]),
        speed=torch.tensor([[0.5, 3.0, 3.0, 9.0], [0.0] * 4]),
    )
    offset = torch.zeros(2, 12)
    offset[:, 0] = torch.tensor([0.2, -0.3])
    terms = mdp.reward_terms(
        body=body,
        feet=feet,
        command=torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]]),
        phase_sine=torch.tensor([1.0, 1.0]),
        action_change=torch.full((2, 12), 0.5),
        joint_offset=offset,
        height=torch.tensor([0.17, 0.27]),
        clearance=0.08,
        fallen=torch.tensor([True, False]),
    )
    by_name = dict(zip(mdp.REWARD_TERMS, terms, strict=True))
    walking = {
        "track_lin_vel": math.exp(-1.0),
        "track_ang_vel": math.exp(-1.0),
        "lin_vel_z": 0.01,
        "ang_vel_xy": 0.0,
        "orientation": 0.36,
        "action_rate": 3.0,
        "posture": 0.04,
        "base_height": 0.01,
        "gait": 0.5,
        "foot_slip": 0.25 + 2.0,
        "foot_clearance": 0.3,
        "stand_still": 0.0,
        "termination": 1.0,
    }
    for name, value in walking.items():
        assert by_name[name][0].item() == pytest.approx(value, abs=1e-6), name
    standing = {"track_lin_vel": 1.0, "gait": 0.0, "foot_slip": 0.0, "foot_clearance": 0.0, "stand_still": 0.3}
    for name, value in standing.items():
        assert by_name[name][1].item() == pytest.approx(value, abs=1e-6), name


def test_the_ground_is_a_grid_of_triangles_whose_corners_were_drawn():
    """At the grid's points it has their heights, between two it is linear, beyond the edge it is the edge's."""
    terrain = Terrain(TerrainCfg(height=0.2, size=4.0, spacing=0.5, resolution=0.5, start=1.0))
    assert terrain.heights.shape == (9, 9)
    x = torch.tensor([-2.0, 0.5, 0.25, 9.0])
    y = torch.tensor([-2.0, 1.0, 1.0, 0.0])
    h = terrain.heights
    expected = [h[0, 0], h[6, 5], 0.5 * (h[6, 4] + h[6, 5]), h[4, 8]]
    assert torch.allclose(terrain.height_at(x, y), torch.stack(expected))
    assert terrain.heights.max() <= 0.2 and terrain.heights.min() >= 0.0
    other = Terrain(TerrainCfg(height=0.2, size=4.0, spacing=0.5, resolution=0.5, seed=1))
    assert not torch.equal(other.heights, terrain.heights)


# -- the robot ---------------------------------------------------------------------------------------------------------


@can_run
def test_groups_have_the_columns_that_the_layout_names(flat, rough):
    """Sizes agree, and the groups hold what their fields say: velocity, the scan, and one robot's dynamics."""
    for env, layout in ((flat, make_layout()), (rough, make_rough_layout())):
        obs = env.reset(1)
        assert {name: value.shape[1] for name, value in obs.items()} == {
            name: sum(field.size for field in fields) for name, fields in layout.items() if name != "actions"
        }
        body = mdp.body_motion(env.qpos, env.qvel)
        assert torch.equal(obs["policy"][:, :3], body.lin_vel) and torch.equal(obs["velocity"], body.lin_vel)
        assert torch.equal(obs["policy"][:, 54:59], obs["dynamics"])
    assert torch.equal(rough.get_observations()["policy"][:, 59:], rough.get_observations()["heights"])


@can_run
def test_the_student_s_noise_is_within_its_bounds_and_the_teacher_has_none(flat):
    """Columns that both have differ by at most the noise's width, and those without noise not at all."""
    obs = flat.reset(2)
    exact = obs["policy"][:, 3:50]
    noise = obs["proprioception"] - exact
    bounds = torch.cat([torch.full((3,), 0.2), torch.full((3,), 0.05), torch.zeros(3), torch.full((12,), 0.01)])
    bounds = torch.cat([bounds, torch.full((12,), 1.5), torch.zeros(14)])
    assert (noise.abs() <= bounds + 1e-6).all()
    assert noise[:, 21:33].abs().max() > 1.0


@can_run
def test_a_model_has_the_friction_mass_and_motors_that_its_numbers_say(flat):
    """In each variant: the feet's friction, the trunk's mass and centre, the controllers' gain and greatest torque."""
    nominal = go1_model.make_spec(go1_model.find_file(None), 0.005, None, meshes=True).compile()
    trunk = nominal.body("trunk").id
    for model, numbers in zip(flat.variants.models, flat.variants.dynamics.tolist(), strict=True):
        friction, added, ahead, left, strength = numbers
        assert model.geom("RL_foot_collision").friction[0] == pytest.approx(friction)
        assert model.body_mass[trunk] == pytest.approx(nominal.body_mass[trunk] + added)
        assert model.body_ipos[trunk, :2] == pytest.approx(nominal.body_ipos[trunk, :2] + [ahead, left])
        assert model.body_subtreemass[trunk] == pytest.approx(nominal.body_subtreemass[trunk] + added)
        assert model.actuator_gainprm[:, 0] == pytest.approx(strength * go1_model.STIFFNESS)
        assert model.actuator_forcerange[:, 1] == pytest.approx(strength * go1_model.TORQUE_LIMIT)
    spread = flat.variants.dynamics
    assert spread[:, 0].min() < 0.32 and spread[:, 0].max() > 1.08  # of 0.3 to 1.1


@can_run
def test_the_height_below_a_point_is_what_a_ray_meets(rough):
    """MuJoCo's own ray down to its height field, at random points, within rounding."""
    import mujoco

    model = rough.sim.model
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    ground = model.geom("floor").id
    geomgroup = np.array([1, 0, 0, 0, 0, 0], dtype=np.uint8)
    hit = np.zeros(1, dtype=np.int32)
    for x, y in np.random.default_rng(0).uniform(-14.0, 14.0, (100, 2)):
        start = np.array([x, y, 3.0])
        distance = mujoco.mj_ray(model, data, start, np.array([0.0, 0.0, -1.0]), geomgroup, 1, -1, hit)
        assert hit[0] == ground
        height = rough.terrain.height_at(torch.tensor(x), torch.tensor(y)).item()
        assert 3.0 - distance == pytest.approx(height, abs=1e-6)


@can_run
def test_it_stands_when_nothing_is_asked_and_falls_when_its_legs_fold():
    """Zero actions hold the nominal robot up on all feet; folded legs end the episode, which is no time-out."""
    env = make(Go1FlatEnvCfg(variation=go1_model.VariationCfg(num_models=1), push=PushCfg(interval=0.0)))
    for _ in range(60):
        obs, _, dones, _ = env.step(torch.zeros(NUM_ENVS, 12))
        assert not dones.any()
    assert obs["policy"][:, 50:54].eq(1.0).all()
    assert (env.qpos[:, 2] - 0.27).abs().max() < 0.08
    folded = torch.tensor([0.0, 2.0, -2.0]).repeat(4).expand(NUM_ENVS, 12)
    fell = torch.zeros(NUM_ENVS, dtype=torch.bool)
    for _ in range(100):
        _, _, dones, extras = env.step(folded)
        fell |= dones.bool() & ~extras["time_outs"]
    assert fell.all()


@can_run
def test_robots_commands_and_pushes_repeat_with_the_seed(flat):
    """The same seed gives the same robots, commands, pushes and noise; another seed others."""
    runs = []
    for seed in (1, 1, 2):
        flat.reset(seed)
        runs.append([flat.step(torch.zeros(NUM_ENVS, 12))[0]["proprioception"] for _ in range(30)])
    assert all(torch.equal(one, other) for one, other in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][-1], runs[2][-1])


def test_an_export_says_which_joints_it_moves():
    """The config states names, scale and offset of the actions; the first is 0.25 * 23.7 / (I (20 pi)^2) [rad]."""
    joints = joints_of(asdict(Go1FlatEnvCfg()), 12)
    assert joints is not None and joints.names == go1_model.JOINTS
    inertia = 0.000111842 * 36.0
    assert joints.scale[0] == pytest.approx(0.25 * 23.7 / (inertia * (20.0 * math.pi) ** 2), rel=1e-5)
    assert joints.offset[:3] == (0.1, 0.9, -1.8) and joints.offset[3] == -0.1


# -- what users type ---------------------------------------------------------------------------------------------------


def test_missing_files_say_what_to_install(monkeypatch, tmp_path):
    """Without mjlab, and with a path that is no file, one line names the command or the key."""
    monkeypatch.setattr(go1_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^the Go1's model is not here: pip install --no-deps mjlab"):
        go1_model.find_file(None)
    with pytest.raises(UserError, match=r"^env.robot.file=.*none.xml: no such file"):
        go1_model.find_file(str(tmp_path / "none.xml"))


@can_run
def test_another_robot_s_file_is_one_line(tmp_path):
    """The joints that are expected and those that were found are named."""
    other = tmp_path / "other.xml"
    other.write_text('<mujoco><worldbody><body><joint name="hip"/><geom size="1"/></body></worldbody></mujoco>')
    with pytest.raises(UserError, match=r"expected the joints of mjlab's go1.xml, FR_hip_joint.*; got hip"):
        go1_model.make_spec(other, 0.005, None, meshes=False)
    other.write_text("<mujoco><nothing/></mujoco>")
    with pytest.raises(UserError, match="MuJoCo cannot read it"):
        go1_model.make_spec(other, 0.005, None, meshes=False)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("command", {"lin_vel_x": (1.0, 0.0)}, r"env.command.lin_vel_x must be \[lowest, highest\]"),
        ("variation", {"friction": (0.0, 1.0)}, "env.variation.friction must be above 0, it is 0"),
        ("variation", {"num_models": 0}, "env.variation.num_models must be at least 1"),
        ("push", {"interval": -1.0}, "env.push.interval must not be negative"),
        ("observation_noise", {"joint_vel": math.nan}, "env.observation_noise.joint_vel must not be negative"),
        ("terrain", {"height": 0.1, "resolution": 0.0}, "env.terrain needs 0 < resolution"),
        (
            "actions",
            {"joint_pos": JointTargetsCfg(scale={"hip": 1.0})},
            r"joint_pos.scale must have one number for each",
        ),
        ("viewer", {"num_envs": 2}, "env.viewer.num_envs must be 1 on rough ground"),
    ],
)
def test_settings_that_no_task_can_have_are_one_line(part, values, message):
    """The key and its value are named."""
    cfg = Go1RoughEnvCfg()
    for name, value in values.items():
        setattr(getattr(cfg, part), name, value)
    with pytest.raises(UserError, match=message):
        check_legs_cfg(cfg)
    cfg = Go1FlatEnvCfg()
    cfg.push = None  # type: ignore[assignment]  # what env.push=null does
    with pytest.raises(UserError, match=r"env\.push=null"):
        check_legs_cfg(cfg)
