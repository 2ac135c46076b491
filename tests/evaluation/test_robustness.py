"""Curves of robustness: closed forms, and an environment whose return is a known function of the perturbation."""

from __future__ import annotations

import io
from types import MappingProxyType

import pytest
import torch
from rich.console import Console
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.evaluation.robustness import mean_over_range, measure_robustness, robustness_table, wilson_interval
from foundation.policies.actors import ZeroActor


class WindyEnv:
    """One step long; the return is 10 - (wind + action)^2 plus a seeded draw that all policies share."""

    num_actions = 1
    max_episode_length = 1
    device = torch.device("cpu")
    perturbations = MappingProxyType({"wind": ("m/s", 0.0, (-1.0, 2.0))})

    def __init__(self, num_envs: int = 8):
        self.num_envs = num_envs
        self.cfg = None
        self.wind = 0.0
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.long)
        self.reset(0)

    def perturb(self, values):
        self.next_wind = values.get("wind", 0.0)

    def reset(self, seed=None):
        self.wind = getattr(self, "next_wind", 0.0)
        if seed is not None:
            self.luck = torch.rand(self.num_envs, generator=torch.Generator().manual_seed(seed))
        return self.get_observations()

    def get_observations(self):
        return TensorDict({"policy": self.luck.unsqueeze(1)}, batch_size=[self.num_envs])

    def step(self, actions):
        rewards = 10.0 - (self.wind + actions[:, 0]).square() + self.luck
        dones = torch.ones(self.num_envs, dtype=torch.bool)
        metrics = {"success": rewards > 8.0}
        return self.get_observations(), rewards, dones, {"time_outs": dones, "episode_metrics": metrics}

    def close(self):
        pass


class Constant(ZeroActor):
    def __init__(self, value: float):
        super().__init__(1)
        self.value = value

    def act(self, obs):
        return super().act(obs) + self.value


def test_each_policy_is_measured_at_each_value_from_the_same_starts():
    """Worst case, its place and the mean over the range follow from 10 - (wind + action)^2 by hand."""
    env = WindyEnv()
    shown = []
    measured = measure_robustness(
        env, {"zero": Constant(0.0), "lean": Constant(-1.0)}, num_episodes=8, seed=5, show=shown.append
    )
    luck = torch.rand(8, generator=torch.Generator().manual_seed(5)).mean().item()
    curve = next(curve for curve in measured.curves if curve.name == "wind")
    assert curve.values == (-1.0, 0.0, 2.0)
    returns = {name: [point.mean_return for point in points] for name, points in curve.points.items()}
    assert returns["zero"] == pytest.approx([9 + luck, 10 + luck, 6 + luck], abs=1e-5)
    assert returns["lean"] == pytest.approx([6 + luck, 9 + luck, 9 + luck], abs=1e-5)
    summary = measured.summary()["quantities"]["wind"]
    assert summary["unit"] == "m/s" and summary["range"] == [-1.0, 2.0]
    zero = summary["policies"]["zero"]
    assert zero["worst_return"] == pytest.approx(6 + luck, abs=1e-5) and zero["worst_at"] == 2.0
    # Trapezoids: (9 + 10) / 2 over 1 and (10 + 6) / 2 over 2, of 3 in all.
    assert zero["area_return"] == pytest.approx((9.5 + 16.0) / 3 + luck, abs=1e-5)
    assert zero["worst_success"] == 0.0 and zero["nominal_success"] == 1.0
    assert zero["area_success"] == pytest.approx((1.0 + 0.5 * 2) / 3)
    scalars = measured.scalars()
    assert scalars["robustness/wind/zero_worst_return"] == zero["worst_return"]
    assert scalars["robustness/wind/zero_area_success"] == zero["area_success"]
    assert shown[0].endswith(f", 1 of {len(shown)}")
    assert any(line.startswith(f"wind, {len(shown)} of {len(shown)}, about ") for line in shown)
    env.reset(0)
    assert env.wind == 0.0  # nominal again
    assert robustness_table(measured).row_count == 2 * len(measured.curves)


def test_the_table_names_each_quantity_in_full_in_80_columns():
    """Names that differ at their ends only, as ``observation_bias`` and ``observation_dropout``, are not cut."""
    measured = measure_robustness(WindyEnv(), {"zero": Constant(0.0)}, num_episodes=4, seed=5)
    page = io.StringIO()
    Console(file=page, width=80).print(robustness_table(measured))
    assert len(measured.curves) > 3
    assert "worst" in page.getvalue() and "success" in page.getvalue()
    for curve in measured.curves:
        assert set(curve.name.split("_")) <= set(page.getvalue().split())


def test_what_the_simulation_lacks_is_one_line():
    """Quantities that simulations usually have and this one lacks are named once; typed ones are refused instead."""
    measured = measure_robustness(WindyEnv(), {"zero": Constant(0.0)}, num_episodes=8)
    assert measured.missing == ("mass", "inertia", "gravity", "push", "control_rate")
    assert measured.lacking().startswith("Not varied: mass, inertia, gravity, push, control_rate;")
    chosen = measure_robustness(WindyEnv(), {"zero": Constant(0.0)}, ["wind=1,3"], num_episodes=8)
    assert chosen.missing == () and chosen.lacking() == ""
    assert [curve.values for curve in chosen.curves] == [(0.0, 1.0, 3.0)]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("mass", r"--perturbation mass: this environment cannot vary it\. Valid are"),
        ("win=1", "Did you mean 'wind'"),
        ("wind=1,x", "expected NAME=NUMBER"),
        ("action_loss=200", "action_loss=200: expected 0 to 100"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_before_any_episode(typed, said):
    """One line that names what was typed."""
    env = WindyEnv()
    env.step = None
    with pytest.raises(UserError, match=said):
        measure_robustness(env, {"zero": Constant(0.0)}, [typed])


def test_wilson_interval_against_tabulated_values():
    """Newcombe (1998), table I, method 3: 81/263 gives 0.2553 to 0.3662, 0/20 gives 0 to 0.1611, 1/29 0.0061-0.1718."""
    assert wilson_interval(81, 263, 1.959964) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20, 1.959964) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29, 1.959964) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_mean_over_range_of_a_line_is_its_middle():
    """Whatever the places are; where there is no width it is the one height."""
    assert mean_over_range([0.0, 1.0, 10.0], [0.0, 1.0, 10.0]) == pytest.approx(5.0)
    assert mean_over_range([3.0], [7.0]) == 7.0
