"""MuJoCo models of the Unitree Go1 from mjlab's files, which are found where that package is installed."""

from __future__ import annotations

import copy
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from foundation.core.errors import UserError
from foundation.core.text import one_line
from foundation.tasks.legs.terrain import Terrain
from foundation.tasks.mujoco.package import import_mujoco

FEET = ("FR", "FL", "RR", "RL")
"""Front right, front left, rear right, rear left: the order of all that is listed per foot."""
JOINTS = tuple(f"{leg}_{part}_joint" for leg in FEET for part in ("hip", "thigh", "calf"))
"""The order of joints, actuators and actions: the model's own."""
STANDING_HEIGHT = 0.278
"""Height of the trunk when it stands [m]."""
STANDING = np.array([(0.1 if leg[1] == "R" else -0.1, 0.9, -1.8)[part] for leg in FEET for part in range(3)])
"""Joint angles when it stands [rad]. Shape: (12,)."""
_ROTOR_INERTIA = 0.000111842
"""Of a motor, from Unitree's description [kg m^2]."""
_GEAR = np.tile([6.0, 6.0, 9.0], 4)
TORQUE_LIMIT = np.tile([23.7, 23.7, 35.55], 4)
"""Greatest torque of each joint [N m]. Shape: (12,)."""
_ARMATURE = _ROTOR_INERTIA * _GEAR**2
_NATURAL_FREQUENCY = 20.0 * math.pi
"""Of each joint's controller with the motor's own inertia [rad/s]; its damping ratio is 2."""
STIFFNESS = _ARMATURE * _NATURAL_FREQUENCY**2
"""Of each joint's controller [N m/rad]. Shape: (12,)."""
DAMPING = 4.0 * _ARMATURE * _NATURAL_FREQUENCY
"""Of each joint's controller [N m s/rad]. Shape: (12,)."""
ACTION_SCALE = 0.25 * TORQUE_LIMIT / STIFFNESS
"""Change of a joint's target for an action of 1: a quarter of what its greatest torque holds [rad]. Shape: (12,)."""
FOOT_RADIUS = 0.023
"""[m]."""
_TRUNK = "trunk"
_FILE = Path("asset_zoo/robots/unitree_go1/xmls/go1.xml")
INSTALL = "pip install --no-deps mjlab"


@dataclass
class VariationCfg:
    """How models differ; each episode draws one of them."""

    num_models: int = 64
    """Number of models. 1: the nominal robot alone, with the middle of the range of friction."""
    seed: int = 0
    """Seed of what they differ in: another one gives other robots."""
    friction: tuple[float, float] = (0.3, 1.1)
    """Range of the feet's coefficient of sliding friction."""
    added_mass: tuple[float, float] = (-1.0, 3.0)
    """Range of the mass that the trunk carries beside its own 5.2 kg [kg]."""
    center_of_mass: float = 0.05
    """Greatest shift of the trunk's centre of mass ahead or behind, and half of it to the sides [m]."""
    motor_strength: tuple[float, float] = (0.85, 1.15)
    """Range of the factor on the stiffness, damping and greatest torque of all joints."""


class Variants(NamedTuple):
    """Models and what they differ in."""

    models: list[Any]
    """``mujoco.MjModel``."""
    dynamics: torch.Tensor
    """Friction, added mass [kg], shift of the centre of mass ahead and to the left [m], motor strength.
    Shape: (num_models, 5)."""


def find_file(path: str | None) -> Path:
    """Return the robot's MJCF file.

    Args:
        path: What the user typed. None: the one in an installed mjlab, which is not imported.

    Raises:
        UserError: If there is none, with what to install.
    """
    if path is not None:
        found = Path(path).expanduser()
        if not found.is_file():
            raise UserError(f"env.robot.file={path}: no such file; it is mjlab's go1.xml: {INSTALL}")
        return found
    spec = importlib.util.find_spec("mjlab")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (Path(folder) / _FILE).is_file():
            return Path(folder) / _FILE
    raise UserError(
        f"the Go1's model is not here: {INSTALL} (its files alone are used), or env.robot.file=PATH of mjlab's go1.xml"
    )


def make_spec(file: Path, dt: float, terrain: Terrain | None, meshes: bool) -> Any:
    """Build the robot on its ground: joint controllers, and sensors of the feet's positions.

    Args:
        file: mjlab's ``go1.xml``, which has neither floor nor actuators.
        dt: Time step [s].
        terrain: Rough ground; None: a plane.
        meshes: Whether to keep what is drawn alone.

    Returns:
        ``mujoco.MjSpec``.
    """
    mujoco = import_mujoco()
    try:
        spec = mujoco.MjSpec.from_file(str(file))
    except ValueError as error:
        raise UserError(f"{file}: MuJoCo cannot read it: {one_line(error)}") from error
    names = [joint.name for joint in spec.joints if joint.type == mujoco.mjtJoint.mjJNT_HINGE]
    if tuple(names) != JOINTS:
        raise UserError(f"{file}: expected the joints of mjlab's go1.xml, {', '.join(JOINTS)}; got {', '.join(names)}")
    _set_collisions(spec)
    if not meshes:
        _leave_out_meshes(mujoco, spec)
    _add_ground(mujoco, spec, terrain)
    for foot in FEET:
        spec.add_sensor(
            type=mujoco.mjtSensor.mjSENS_FRAMEPOS,
            objtype=mujoco.mjtObj.mjOBJ_GEOM,
            objname=f"{foot}_foot_collision",
            name=f"{foot}_position",
        )
    for index, name in enumerate(JOINTS):
        spec.joint(name).armature = _ARMATURE[index]
        actuator = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        actuator.set_to_position(kp=STIFFNESS[index], kv=DAMPING[index])
        actuator.forcerange = [-TORQUE_LIMIT[index], TORQUE_LIMIT[index]]
        actuator.forcelimited = 1
    spec.option.timestep = dt
    spec.option.iterations = 5
    spec.option.ls_iterations = 10
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    return spec


def _set_collisions(spec: Any) -> None:
    """Let feet and trunk collide with the ground; nothing collides with the robot itself."""
    for geom in spec.geoms:
        foot = "foot" in geom.name
        geom.contype = 0
        geom.conaffinity = 1 if foot or geom.name == "trunk_collision" else 0
        if foot:
            geom.priority = 1  # the pair's friction is the foot's
            geom.condim = 3


def _leave_out_meshes(mujoco: Any, spec: Any) -> None:
    """Take out what is drawn alone: half of a model's size, and it has many variants."""
    drawn = [geom for geom in spec.geoms if geom.type == mujoco.mjtGeom.mjGEOM_MESH]
    for part in [*drawn, *spec.meshes]:
        spec.delete(part)


def _add_ground(mujoco: Any, spec: Any, terrain: Terrain | None) -> None:
    material = "ground"
    spec.visual.headlight.ambient = [0.45, 0.45, 0.45]
    spec.visual.headlight.diffuse = [0.5, 0.5, 0.5]
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.75, 0.83, 0.92],
        rgb2=[0.95, 0.96, 0.97],
        width=64,
        height=384,
    )
    spec.add_texture(
        name=material,
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=[0.78, 0.8, 0.78],
        rgb2=[0.66, 0.7, 0.68],
        width=64,
        height=64,
    )
    textures = [""] * mujoco.mjtTextureRole.mjNTEXROLE
    textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = material
    repeat = [2.0, 2.0] if terrain is None else [terrain.cfg.size, terrain.cfg.size]
    spec.add_material(name=material, textures=textures, texrepeat=repeat, texuniform=terrain is None)
    common = {"name": "floor", "contype": 1, "conaffinity": 1, "material": material}
    if terrain is None:
        spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 0.05], **common)
        return
    half = 0.5 * terrain.cfg.size
    rows, columns = terrain.heights.shape
    elevation = terrain.cfg.height
    # MuJoCo keeps a field's heights as shares of the greatest, which it fills in by their range.
    field = terrain.heights.flatten().tolist()
    spec.add_hfield(name="ground", nrow=rows, ncol=columns, size=[half, half, elevation, 0.5], userdata=field)
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_HFIELD, hfieldname="ground", **common)


def compile_model(spec: Any, terrain: Terrain | None) -> Any:
    """Compile a model whose ground is exactly the terrain's."""
    model = spec.compile()
    if terrain is not None:
        model.hfield_data[:] = (terrain.heights.flatten() / terrain.cfg.height).numpy()
    return model


def make_variants(model: Any, cfg: VariationCfg) -> Variants:
    """Make models that differ as asked for, evenly spread over the ranges and independent of one another."""
    mujoco = import_mujoco()
    random = np.random.default_rng(cfg.seed)
    n = cfg.num_models
    # Latin hypercube: every range is covered evenly by any number of models.
    share = (np.stack([random.permutation(n) for _ in range(5)], 1) + random.random((n, 5))) / n
    shift = cfg.center_of_mass
    low = np.array([cfg.friction[0], cfg.added_mass[0], -shift, -0.5 * shift, cfg.motor_strength[0]])
    high = np.array([cfg.friction[1], cfg.added_mass[1], shift, 0.5 * shift, cfg.motor_strength[1]])
    dynamics = low + share * (high - low)
    if n == 1:
        dynamics = np.array([[0.5 * (low[0] + high[0]), 0.0, 0.0, 0.0, 1.0]])
    trunk = model.body(_TRUNK).id
    feet = [model.geom(f"{foot}_foot_collision").id for foot in FEET]
    data = mujoco.MjData(model)
    models = []
    for friction, added, ahead, left, strength in dynamics:
        variant = copy.copy(model)
        variant.geom_friction[feet, 0] = friction
        variant.body_inertia[trunk] *= 1.0 + added / variant.body_mass[trunk]
        variant.body_mass[trunk] += added
        variant.body_ipos[trunk, :2] += (ahead, left)
        variant.actuator_gainprm[:, 0] *= strength
        variant.actuator_biasprm[:, 1:3] *= strength
        variant.actuator_forcerange *= strength
        mujoco.mj_setConst(variant, data)
        models.append(variant)
    return Variants(models, torch.from_numpy(dynamics).float())
