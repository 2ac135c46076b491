"""The same vehicle, the same commands, two engines."""

from __future__ import annotations

import pytest
import torch

FREE = {"terminations__position": 1e6, "terminations__velocity": 1e6, "terminations__body_rate": 1e6}


def _attitude_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Angle between row-major rotation matrices [rad]. Shape: (num_envs, 9) -> (num_envs,)."""
    relative = a.double().view(-1, 3, 3).transpose(1, 2) @ b.double().view(-1, 3, 3)
    skew = relative - relative.transpose(1, 2)
    sine = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], -1).norm(dim=-1) / 2
    return torch.atan2(sine, (relative.diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2)


def _fly(open_environment, engine: str, state: dict | None, **values) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Fly one second of random commands. Returns the initial state, world-frame observations and rewards."""
    with open_environment(engine, num_envs=16, seed=3, **FREE, **values) as env:
        env.reset(3)
        inner = env.unwrapped
        if state is None:
            names = ("_position", "_velocity", "_body_rates", "_quaternion", "_speeds")
            state = {name: getattr(inner, name).clone() for name in names}
            state["_force"] = torch.cat([inner._outer_force, inner._outer_torque])
        else:
            inner._state = torch.cat([state[n] for n in ("_position", "_velocity", "_body_rates", "_quaternion")])
            inner._state = torch.cat([inner._state, state["_speeds"]])
            inner._action = 2 * state["_speeds"] - 1
            if state["_force"].any():
                inner._forces = state["_force"]
                inner._disturbance = inner.dynamics.disturb(state["_force"][:3], state["_force"][3:])
        generator = torch.Generator().manual_seed(1)
        seen, rewards = [], []
        for _ in range(100):
            obs, reward, _, _ = env.step(torch.rand(16, 4, generator=generator) * 2 - 1)
            seen.append(obs["l2f"].clone())
            rewards.append(reward.clone())
    return state, torch.stack(seen), torch.stack(rewards)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"sim__dt": 0.01, "decimation": 1},
        {"vehicles": "sampled:16:5", "init__max_velocity": 0.5, "init__max_body_rate": 3.0},
    ],
    ids=["crazyflie", "crazyflie-one-step", "sampled-vehicles-moving-and-pushed"],
)
def test_one_second_of_random_commands_ends_in_the_same_place(values, open_environment):
    """Isaac Lab and the RK4 simulator differ by less than 5 mm and 0.5 degrees after 1 s of random motor commands.

    Vehicles of the sampled family spin up to hundreds of rad/s under random commands, where no step of 10 ms (the
    built-in simulator's) is exact: they are compared after 0.3 s.
    """
    state, isaac, isaac_rewards = _fly(open_environment, "isaaclab", None, **values)
    others = {k: v for k, v in values.items() if k not in ("sim__dt", "decimation")}
    _, built_in, rewards = _fly(open_environment, "torch", state, **others)
    end = 29 if "vehicles" in values else 99
    distance = (isaac[: end + 1, :, :3] - built_in[: end + 1, :, :3]).norm(dim=-1)
    angle = torch.rad2deg(_attitude_error(isaac[end, :, 3:12], built_in[end, :, 3:12]))
    print(f"largest distance {1000 * distance.max():.3f} mm, angle {angle.max():.3f} degrees")
    assert distance.max() < 5e-3
    assert angle.max() < 0.5
    assert (isaac[end, :, :3] - isaac[0, :, :3]).norm(dim=-1).min() > 0.02, "the bodies must have moved"
    torch.testing.assert_close(isaac_rewards[: end + 1], rewards[: end + 1], atol=2e-2, rtol=0)


def test_a_falling_body_falls_as_it_should(open_environment):
    """With motors off from rest, the height after 0.5 s is that of closed-form fall under the idle thrust 4 c0."""
    values = {"init__at_target": 1.0, "init__rotor_speed": (0.0, 0.0)}
    with open_environment("isaaclab", num_envs=2, **FREE, **values) as env:
        env.reset(0)
        for _ in range(50):
            obs = env.step(-torch.ones(2, 4))[0]["l2f"]
        acceleration = 4 * 0.00352526 / 0.0306 - 9.81
        torch.testing.assert_close(obs[:, 2], torch.full((2,), 0.5 * acceleration * 0.25), atol=2e-4, rtol=0)
        torch.testing.assert_close(obs[:, 14], torch.full((2,), acceleration * 0.5), atol=1e-3, rtol=0)
