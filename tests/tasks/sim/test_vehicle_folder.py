"""Folders of vehicles: sampled ones and the registry; the real ``l2f`` flies each alike (recorded and live)."""

from __future__ import annotations

import json

import pytest
import torch
from l2f_flights import fleet, flight, recorded_and_live, steps, unpack_json

from foundation.core.errors import UserError
from foundation.tasks.quadrotor.sim.quadrotor import QuadrotorDynamics
from foundation.tasks.quadrotor.sim.vehicle_folder import registry, write_registry, write_vehicles
from foundation.tasks.quadrotor.sim.vehicles import crazyflie, load_vehicles, sample_vehicles, to_dict


@recorded_and_live
@pytest.mark.parametrize("which", ["sampled", "registry"])
def test_l2f_flies_the_vehicles_alike(tmp_path, which, source):
    """100 sampled vehicles, and the real ones, from their files: one step to 2e-6, 100 steps to 2e-4 below 35 rad/s.

    Each of the 100 steps is also compared by itself, from l2f's own state, relative to the state's size.
    """
    flown = flight(which, source)
    vehicles = fleet(flown, tmp_path / "flown")
    if which == "registry":
        named = load_vehicles(write_registry(tmp_path / "registry"))
        named.force_std.zero_()
        assert [to_dict(named, i) for i in range(named.num_vehicles)] == unpack_json(flown["vehicles"])
    else:
        assert vehicles.num_vehicles == 100
        written = load_vehicles(write_vehicles(tmp_path / "written", vehicles))
        torch.testing.assert_close(written.inertia, vehicles.inertia, rtol=1e-12, atol=0)
        vehicles = written
    dynamics = QuadrotorDynamics(vehicles.to(dtype=torch.float32), 0.01)
    state = torch.from_numpy(flown["states"][0])
    inside = torch.ones(vehicles.num_vehicles, dtype=torch.bool)
    assert len(flown["actions"]) == 100
    for before, action, theirs in steps(flown):
        command = action.T.contiguous()
        single = dynamics.step(before, command)
        state = dynamics.step(state, command)
        inside &= (theirs[6:9].abs() < 35).all(0)
        assert ((single - theirs).abs() / theirs.abs().amax(0).clamp(min=1.0)).max().item() < 2e-6
        assert (state - theirs).abs()[:, inside].max().item() < 2e-4
    assert inside.sum() > vehicles.num_vehicles / 4


def test_a_folder_of_samples_is_seeded_and_exact(tmp_path):
    """Written twice with one seed the files are the same bytes; loaded, they are the sampled vehicles to 1e-12."""
    first = write_vehicles(tmp_path / "a", sample_vehicles(3, seed=4))
    again = write_vehicles(tmp_path / "b", sample_vehicles(3, seed=4))
    assert [file.name for file in first] == ["quad_0000.json", "quad_0001.json", "quad_0002.json"]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in again]
    loaded, drawn = load_vehicles(str(tmp_path / "a")), sample_vehicles(3, seed=4)
    torch.testing.assert_close(loaded.inertia, drawn.inertia, rtol=1e-12, atol=0)
    torch.testing.assert_close(loaded.force_std, drawn.force_std, rtol=1e-12, atol=0)


def test_a_folder_with_other_vehicles_is_refused(tmp_path):
    """Two vehicles are not written to where a third would stay behind."""
    write_vehicles(tmp_path, sample_vehicles(3))
    with pytest.raises(UserError, match="other vehicles"):
        write_vehicles(tmp_path, sample_vehicles(2))


@pytest.mark.parametrize("write", [lambda folder: write_vehicles(folder, sample_vehicles(1)), write_registry])
def test_a_folder_that_cannot_be_is_one_line(tmp_path, write):
    """A file where the folder should be is told, not a traceback."""
    (tmp_path / "vehicles").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write '.*vehicles"):
        write(tmp_path / "vehicles")


def test_the_registry_holds_real_vehicles():
    """The Crazyflie is the built-in one; every vehicle lifts its weight, with rotors in the Crazyflie's order."""
    vehicles = registry()
    torch.testing.assert_close(vehicles["crazyflie"].mass, crazyflie().mass)
    assert {"crazyflie", "x500", "mrs", "arpl"} <= set(vehicles)
    for name, vehicle in vehicles.items():
        assert vehicle.max_thrust.item() > 1.4 * vehicle.mass.item() * 9.81, name
        signs = vehicle.rotor_positions[:, :2, 0].sign().tolist()
        assert signs == [[1, -1], [-1, -1], [-1, 1], [1, 1]], name
        assert vehicle.torque_directions[:, 2, 0].tolist() == [-1, 1, -1, 1], name


@pytest.mark.parametrize("change", [{"mass": -0.5}, {"rotor_time_constants_rising": [0.05, 0.05, 0.05, -0.05]}])
def test_an_impossible_vehicle_is_named(tmp_path, change):
    """A negative mass or time constant is one line that names the file and the value's key."""
    data = to_dict(crazyflie(), 0)
    data["dynamics"].update(change)
    (tmp_path / "odd.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=next(iter(change))) as error:
        load_vehicles(str(tmp_path))
    assert "odd.json" in str(error.value)
    assert "\n" not in str(error.value)
