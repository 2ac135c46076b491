"""Isaac Lab's own cart-poles, the first articulation, with assets made here; what is said where they are wrong."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from isaac_envs import linear_teacher, open_env, run_command, script, the_run
from scipy.linalg import solve_continuous_are

from foundation.engines.isaaclab_assets import find_assets

CART = 1.0
"""Mass [kg]."""
POLE = 0.2
LENGTH = 1.0
"""Of the pole, a uniform rod [m]."""
INERTIA = POLE * LENGTH**2 / 12.0
DAMPING = 10.0
"""Of the cart's joint, in Isaac Lab's config [N s/m]."""
FORCE = 100.0
"""At an action of 1 [N]."""
STEP = 1.0 / 60.0
"""[s]"""
ROBOT = "Isaac/IsaacLab/Robots/Classic/Cartpole/cartpole.usd"
GROUND = "Isaac/IsaacLab/Environments/Grid/default_ground_plane_checker_v1/default_ground_plane.usda"
CARTPOLE_USD = f"""#usda 1.0
(
    defaultPrim = "Cartpole"
    metersPerUnit = 1
    upAxis = "Z"
)

def Xform "Cartpole" (
    prepend apiSchemas = ["PhysicsArticulationRootAPI"]
)
{{
    def Xform "slider" (
        prepend apiSchemas = ["PhysicsRigidBodyAPI", "PhysicsMassAPI"]
    )
    {{
        float physics:mass = 1
        float3 physics:diagonalInertia = (0.1, 0.1, 0.1)
    }}

    def Xform "cart" (
        prepend apiSchemas = ["PhysicsRigidBodyAPI", "PhysicsMassAPI"]
    )
    {{
        float physics:mass = {CART}
        float3 physics:diagonalInertia = (0.01, 0.01, 0.01)
    }}

    def Xform "pole" (
        prepend apiSchemas = ["PhysicsRigidBodyAPI", "PhysicsMassAPI"]
    )
    {{
        float physics:mass = {POLE}
        point3f physics:centerOfMass = (0, 0, {LENGTH / 2.0})
        float3 physics:diagonalInertia = ({INERTIA}, {INERTIA}, 0.0001)
    }}

    def PhysicsFixedJoint "root_joint"
    {{
        rel physics:body1 = </Cartpole/slider>
    }}

    def PhysicsPrismaticJoint "slider_to_cart" (
        prepend apiSchemas = ["PhysicsDriveAPI:linear"]
    )
    {{
        uniform token physics:axis = "X"
        rel physics:body0 = </Cartpole/slider>
        rel physics:body1 = </Cartpole/cart>
        float physics:lowerLimit = -4
        float physics:upperLimit = 4
    }}

    def PhysicsRevoluteJoint "cart_to_pole" (
        prepend apiSchemas = ["PhysicsDriveAPI:angular"]
    )
    {{
        uniform token physics:axis = "Y"
        rel physics:body0 = </Cartpole/cart>
        rel physics:body1 = </Cartpole/pole>
    }}
}}
"""
GROUND_USD = """#usda 1.0
(
    defaultPrim = "Ground"
    metersPerUnit = 1
    upAxis = "Z"
)

def Xform "Ground"
{
    def Plane "CollisionPlane" (
        prepend apiSchemas = ["PhysicsCollisionAPI"]
    )
    {
        uniform token axis = "Z"
        double length = 100
        double width = 100
    }
}
"""
BOTH = pytest.mark.parametrize(
    ("task", "robot"), [("Isaac-Cartpole-Direct", "env.scene.cartpole"), ("Isaac-Cartpole", "env.scene.robot")]
)
LEAN = ["--engine", "isaaclab", "--device", "cpu", "--headless"]


def _assets(folder: Path) -> dict[str, str]:
    """Write a local copy of the assets of both tasks, and return the variable that says where it is."""
    for place, text in ((ROBOT, CARTPOLE_USD), (GROUND, GROUND_USD)):
        (folder / place).parent.mkdir(parents=True)
        (folder / place).write_text(text)
    return {"ISAACSIM_ASSET_ROOT": str(folder)}


def _plant() -> tuple[np.ndarray, np.ndarray]:
    """Linearise the cart-pole's equations of motion, upright: states are cart, angle and their rates."""
    lever = POLE * LENGTH / 2.0
    mass = np.array([[CART + POLE, lever], [lever, INERTIA + POLE * (LENGTH / 2.0) ** 2]])
    inverse = np.linalg.inv(mass)
    a = np.zeros((4, 4))
    a[:2, 2:] = np.eye(2)
    a[2:, 1] = inverse @ [0.0, lever * 9.81]
    a[2:, 2] = inverse @ [-DAMPING, 0.0]
    return a, np.concatenate(([0.0, 0.0], inverse @ [1.0, 0.0]))[:, None]


def _regulator() -> list[list[float]]:
    """Return the gains of the linear-quadratic regulator, as actions."""
    a, b = _plant()
    riccati = solve_continuous_are(a, b, np.diag([1.0, 10.0, 0.1, 0.1]), np.array([[0.01]]))
    return (-100.0 * b.T @ riccati / FORCE).tolist()


@pytest.mark.slow
@BOTH
def test_the_stock_cartpoles_train_and_distil(task, robot, tmp_path):
    """The regulator of the equations of motion balances Isaac Lab's articulation, and a student of it does as well.

    The assets are given as the error for a server that cannot be reached says: a folder, or a file and a null.
    """
    variables = _assets(tmp_path / "assets")
    one_by_one = [f"{robot}.spawn.usd_path={tmp_path / 'assets' / ROBOT}", "env.scene.ground=null"]
    small = ["--task", task, "--num_envs", 16]
    run_command(tmp_path, script("train.py"), *LEAN, *small, "--max_iterations", 1, variables=variables)
    assert list(the_run(tmp_path, "rsl_rl").glob("model_*.pt"))
    teacher = linear_teacher(tmp_path / "teacher", _regulator())
    short = ["--n_epochs", 4, "--epoch_teacher_forcing", 2, "--num_episodes", 16, "--num_eval_episodes", 16]
    tokens = ["distill.final_eval_episodes=16", "distill.optimizer.update_ratio=10", *one_by_one]
    tokens += ["distill.learning_rate=3e-3", "env.episode_length_s=2.0"]
    run_command(tmp_path, script("distillation.py"), *LEAN, *small, "--teacher_checkpoint", teacher, *short, *tokens)
    summary = json.loads((the_run(tmp_path, "distillation") / "summary.json").read_text())
    assert summary["return_ratio"] > 0.97
    assert summary["teacher"]["success_rate"] == 1.0


@pytest.mark.slow
@BOTH
def test_the_articulation_obeys_the_equations_of_motion(task, robot, tmp_path):
    """From rest and upright, a constant force moves cart and pole as the equations say, to the integrator's error."""
    _assets(tmp_path)
    still = {
        "episode_length_s": 2.0,
        f"{robot.removeprefix('env.').replace('.', '__')}__spawn__usd_path": str(tmp_path / ROBOT),
    }
    zero = (0.0, 0.0)
    if task.endswith("Direct"):
        names = ("cart_position", "cart_velocity", "pole_angle", "pole_velocity")
        still |= {f"initial_{name}_range": zero for name in names}
    else:
        events = ("reset_cart_position", "reset_pole_position")
        still |= {f"events__{name}__params__{what}_range": zero for name in events for what in ("position", "velocity")}
    a, b = _plant()
    state = np.zeros((4, 1))
    with open_env("isaaclab", task, 4, **still, scene__ground=None) as env:
        env.reset(0)
        for _ in range(12):
            obs, *_ = env.step(torch.full((4, 1), 0.02))
            for _ in range(1000):
                state = state + STEP / 1000.0 * (a @ state + b * 0.02 * FORCE)
    assert obs["policy"].shape == (4, 4)
    np.testing.assert_allclose(obs["policy"][0].numpy(), state[:, 0], rtol=0.05)
    assert abs(state[1, 0]) > math.radians(1.0)


@pytest.mark.parametrize(
    ("task", "spoil", "words"),
    [
        ("Isaac-Cartpole-Direct", None, r"asset 'https://127.0.0.1:9/A/.*' \(env.scene.ground.spawn.usd_path\)"),
        ("Isaac-Cartpole", None, r"server https://127.0.0.1:9 .*ISAACSIM_ASSET_ROOT=FOLDER .*env.scene.ground=null"),
        ("Isaac-Cartpole-Direct", "", r"cartpole.usd' \(env.scene.cartpole.spawn.usd_path\) is broken"),
        ("Isaac-Cartpole", CARTPOLE_USD[:900], r"\(env.scene.robot.spawn.usd_path\) is broken.* set env.scene.robot"),
        ("Isaac-Cartpole", "#usda 1.0\n", r"cannot make its environment: .*\(asset env.scene.robot.spawn.usd_path="),
        ("Isaac-Cartpole", CARTPOLE_USD.replace("cart_to", "a"), r"cannot make its environment: .*cart_to_pole: \[\]"),
    ],
    ids=["no-server", "no-server-manager", "empty", "cut", "no-prim", "no-joint"],
)
@pytest.mark.slow
def test_a_wrong_asset_is_one_line_that_names_it_and_what_to_set(task, spoil, words, tmp_path):
    """The server, the file and its key, or Isaac Lab's own reason; never "a bug in foundation" or a package of ours."""
    variables = _assets(tmp_path / "assets")
    if spoil is None:
        variables = {"ISAACSIM_ASSET_ROOT": "https://127.0.0.1:9/A"}  # nothing listens there
    else:
        (tmp_path / "assets" / ROBOT).write_text(spoil)
    command = [script("train.py"), *LEAN, "--task", task, "--num_envs", 8, "--max_iterations", 1]
    done = run_command(tmp_path, *command, expect=2, variables=variables)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(words, line), line
    assert "bug in foundation" not in done.stderr
    assert "pip install -e" not in done.stderr
    assert ("Traceback" in done.stderr) == ("cannot make its environment" in line)


def test_the_assets_of_a_config_are_found_with_their_keys():
    """Files nested in scenes, lists and dictionaries are found; a class or a private field is not looked into."""
    inner = SimpleNamespace(usd_path="s3://b/robot.usd", _private=SimpleNamespace(usd_path="no.usd"))
    arm = SimpleNamespace(prim_path="/World/envs/env_.*/Arm", spawn={"assets_cfg": [inner, None]})
    found = list(find_assets(SimpleNamespace(scene=SimpleNamespace(arm=arm, kind=SimpleNamespace)), "env"))
    assert [(a.key, a.path, a.prim, a.optional) for a in found] == [
        ("env.scene.arm.spawn.assets_cfg.0.usd_path", "s3://b/robot.usd", "/World/envs/env_.*/Arm", "")
    ]
