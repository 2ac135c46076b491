"""Vehicle files and the sampled family."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from foundation.core.errors import UserError
from foundation.tasks.quadrotor.sim.vehicles import crazyflie, from_dict, load_vehicles, sample_vehicles, to_dict


def test_json_round_trip(tmp_path):
    """Vehicles written in l2f's form and loaded from a folder, in order of name, are the same vehicles."""
    vehicles = sample_vehicles(3, seed=2)
    for i in range(3):
        (tmp_path / f"{i}.json").write_text(json.dumps(to_dict(vehicles, i)))
    (tmp_path / "notes.txt").write_text("not a vehicle")
    loaded = load_vehicles(str(tmp_path))
    for name, value in vars(vehicles).items():
        torch.testing.assert_close(getattr(loaded, name), value, rtol=1e-12, atol=1e-18)


def test_crazyflie_thrust_to_weight():
    """4 (c0 + c1 + c2) / (m g) = 1.468 by hand."""
    vehicle = crazyflie()
    ratio = vehicle.max_thrust / (vehicle.mass * 9.81)
    assert ratio.item() == pytest.approx(4 * 0.11012887 / (0.0306 * 9.81), rel=1e-12)
    assert vehicle.arm_length.item() == pytest.approx(0.028 * 2**0.5)


def test_sampled_family_is_raptors():
    """2000 sampled vehicles fill RAPTOR's ranges and leave none of them."""
    v = sample_vehicles(2000, seed=0)
    thrust_to_weight = v.max_thrust / (v.mass * 9.81)
    torque = 2**0.5 * v.thrust_coefficients.sum(0)[0] * v.rotor_positions[0, 1].abs()
    for values, low, high in (
        (thrust_to_weight, 1.5, 5.0),
        (torque / v.inertia[0, 0], 40.0, 1200.0),
        (v.mass, 0.02, 5.0),
        (v.time_constant_rising[0], 0.03, 0.10),
        (v.time_constant_falling[0], 0.03, 0.30),
        (v.torque_constants[0], 0.005, 0.05),
    ):
        assert values.min() >= low * (1 - 1e-9)
        assert values.max() <= high * (1 + 1e-9)
        assert values.max() - values.min() > 0.95 * (high - low)
    # Uniform in size: the median of the cube root is in the middle.
    middle = (0.02 ** (1 / 3) + 5.0 ** (1 / 3)) / 2
    assert v.mass.median().item() ** (1 / 3) == pytest.approx(middle, rel=0.05)


def test_sampling_is_seeded():
    """The same seed gives the same vehicles, another seed others."""
    a, b, c = sample_vehicles(4, 7), sample_vehicles(4, 7), sample_vehicles(4, 8)
    assert torch.equal(a.mass, b.mass)
    assert not torch.equal(a.mass, c.mass)
    assert torch.equal(load_vehicles("sampled:4:7").mass, a.mass)


def _bad(change) -> dict:
    data = copy.deepcopy(to_dict(crazyflie(), 0))
    change(data["dynamics"])
    return data


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(mass=-0.03), "mass"),
        (lambda d: d.update(mass="heavy"), "mass"),
        (lambda d: d.update(mass=float("nan")), "not finite"),
        (lambda d: d.update(mass=10**400), "mass"),
        (lambda d: d.update(mass=1e-300), "'dynamics.mass' is beyond the range of single precision"),
        (lambda d: d.update(gravity=[0.0, 0.0, -1e300]), "'dynamics.gravity' is beyond"),
        (lambda d: d.pop("mass"), "lacks 'mass'"),
        (lambda d: d.pop("rotor_thrust_coefficients"), "rotor_thrust_coefficients"),
        (lambda d: (d.pop("J"), d.pop("J_inv")), "lacks 'J'"),
        (lambda d: d.update(J_inv=[[0.0] * 3] * 3), "J_inv"),
        (lambda d: d.update(rotor_positions=[]), "rotor_positions"),
        (lambda d: d.update(rotor_torque_constants=[0.1]), "shape"),
        (lambda d: d.update(rotor_time_constants_rising=[0.0] * 4), "rotor_time_constants_rising"),
        (lambda d: d.update(rotor_thrust_directions=[[0, 0, 2]] * 4), "unit vectors"),
        (lambda d: d.update(action_limit={"min": 1.0, "max": 0.0}), "max <= min"),
        (lambda d: d.update(action_limit={"min": 0.0, "max": 21702.0}), "not within 0 and 1"),
        (lambda d: d.update(mass=10**400), "'dynamics.mass' must be numbers"),
        (lambda d: d.update(J=[[2e-5, 0, 0], [0, 2e-5, 0], [0, 0, 4e-5]]), "contradict"),
        (lambda d: d.update(rotor_thrust_coefficients=[[0.0] * 3] * 4), "no thrust"),
    ],
)
def test_a_bad_vehicle_is_refused_in_one_line(change, words):
    """What no vehicle can be is named with its file and key."""
    with pytest.raises(UserError, match=words) as info:
        from_dict(_bad(change), "vehicle.json")
    assert str(info.value).startswith("vehicle.json: ")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("disturbances", "words"),
    [
        ([0.1], "'disturbances' must have"),
        ({"random_force": 0.1}, "'disturbances.random_force' must have"),
        ({"random_force": {"std": "x"}}, "'disturbances.random_force.std' must be numbers"),
        ({"random_torque": {"std": -1}}, "'disturbances.random_torque.std' is negative"),
    ],
)
def test_a_bad_disturbance_is_named(disturbances, words):
    """It is not taken for none, and the key in the message is the one in the file."""
    with pytest.raises(UserError, match=words):
        from_dict({**to_dict(crazyflie(), 0), "disturbances": disturbances}, "vehicle.json")


def test_an_inertia_of_six_decimals_is_completed_by_its_inverse():
    """l2f prints J of the Crazyflie as 0.000009: J_inv, of which it prints as many decimals, has the rest."""
    data = to_dict(crazyflie(), 0)
    for key in ("J", "J_inv"):
        data["dynamics"][key] = [[round(x, 6) for x in row] for row in data["dynamics"][key]]
    torch.testing.assert_close(from_dict(data, "x").inertia, crazyflie().inertia, rtol=1e-6, atol=0)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"dynamics": 3}', f'{{"dynamics": {"9" * 5000}}}', "[" * 100_000])
def test_a_file_that_is_no_vehicle_is_refused(tmp_path, text):
    """Broken or foreign JSON is an error that names the file."""
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"x\.json"):
        load_vehicles(str(path))


def test_missing_and_empty_folders_are_refused(tmp_path):
    """A path that is not there, and a folder without vehicles, are named."""
    with pytest.raises(UserError, match="no such file"):
        load_vehicles(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"no \*\.json"):
        load_vehicles(str(tmp_path))
    for name in ("sampled:many", "sampled:²"):
        with pytest.raises(UserError, match="sampled:<number>"):
            load_vehicles(name)
    with pytest.raises(UserError, match="64 bits"):
        load_vehicles(f"sampled:2:{2**63}")
