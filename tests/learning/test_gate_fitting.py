"""A gate learns from flights which teacher is good where."""

from __future__ import annotations

import pytest
import torch
from toy_env import CountingEnv, RegulatorEnv

from foundation.config.distillation_cfg import GateCfg
from foundation.core.errors import UserError
from foundation.learning.gate import GateRows, TeacherShifts, collect_gate_rows, fit_gate, window_returns
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import ObsSelector
from foundation.policies.output import PolicyOutput
from foundation.rollout.evaluate import evaluate
from foundation.teachers.ensemble import TeacherEnsemble, load_ensemble
from foundation.teachers.manifest import find_teachers

POLICY = ObsSelector(["policy"])
QUICK = GateCfg(episodes=128, updates=300)


class ConstantTeachers:
    """K teachers without memory; teacher k plays k."""

    state_size = 0

    def __init__(self, number: int, num_obs: int, num_actions: int = 2):
        self.num_teachers, self.num_obs = number, num_obs
        self.plays = torch.arange(float(number)).reshape(number, 1, 1).expand(number, 1, num_actions)

    def step_each(self, obs: torch.Tensor, state: None) -> tuple[PolicyOutput, None]:
        return PolicyOutput(self.plays.expand(-1, obs.shape[0], -1)), None

    def reset_state(self, state: None, dones: torch.Tensor) -> None:
        return None


class HazardEnv(CountingEnv):
    """Every step earns 1 and fails with probability 0.1, whatever is done; 20 steps end by time-out."""

    def __init__(self, num_envs: int):
        self.generator = torch.Generator().manual_seed(0)
        super().__init__([[1]] * num_envs, 20)

    def step(self, actions: torch.Tensor):
        self.episode_length_buf = self.episode_length_buf + 1
        failed = torch.rand(self.num_envs, generator=self.generator) < 0.1
        time_outs = (self.episode_length_buf >= 20) & ~failed
        dones = failed | time_outs
        self.episode_length_buf = self.episode_length_buf * ~dones
        return self.get_observations(), torch.ones(self.num_envs), dones.long(), {"time_outs": time_outs}


def write_half(path, good: str):
    """Write a teacher of the regulator that drives s_1 to 0 on one side of it and away on the other."""
    left, right = {"right": (-0.4, -0.8), "left": (0.8, 0.4)}[good]
    state = {
        "actor.0.weight": torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]),
        "actor.0.bias": torch.zeros(4),
        "actor.2.weight": torch.tensor([[right, left, 0.0, 0.0], [0.0, 0.0, -0.8, 0.8]]),
        "actor.2.bias": torch.zeros(2),
        "std": torch.full((2,), 0.1),
    }
    torch.save({"model_state_dict": state, "iter": 1}, path)
    (path.parent / "params").mkdir(exist_ok=True)
    (path.parent / "params" / "agent.yaml").write_text("policy:\n  activation: relu\n")
    return str(path)


@pytest.fixture
def halves(tmp_path):
    return find_teachers([write_half(tmp_path / f"{side}.pt", side) for side in ("right", "left")])


def fitted(entries, cfg: GateCfg = QUICK, seed: int = 0) -> tuple[TeacherEnsemble, float]:
    ensemble = load_ensemble(entries, mode="gate", gate=cfg)
    before = torch.get_rng_state()
    rows = collect_gate_rows(RegulatorEnv(64), ensemble, POLICY, cfg, seed)
    gate, explained = fit_gate(rows, ensemble.names, cfg, seed)
    assert torch.equal(before, torch.get_rng_state()), "torch's own random state is as before"
    assert ensemble.gate is not None
    ensemble.gate.load_state_dict(gate.state_dict())
    return ensemble, explained


def grid() -> torch.Tensor:
    """States with |s_1| from 0.5 to 2 on either side. Shape: (num_states, 2)."""
    one = torch.cat([torch.linspace(-2.0, -0.5, 8), torch.linspace(0.5, 2.0, 8)])
    return torch.cartesian_prod(one, torch.linspace(-1.5, 1.5, 7))


def test_each_half_of_the_states_goes_to_the_teacher_that_is_good_there(halves):
    """Everywhere on a grid the right teacher has more than 0.8; the share of variance explained says that it knows."""
    ensemble, explained = fitted(halves)
    weights, states = ensemble.gate(grid()), grid()  # type: ignore[misc]  # mode gate has one
    right = states[:, 0] > 0
    assert float(weights[right, 0].min()) > 0.8 and float(weights[~right, 1].min()) > 0.8
    assert 0.7 < explained < 1.0


def test_the_gated_target_beats_the_mean(halves):
    """It is ten times nearer to the good action -0.8 s than the mean is, and earns what a good teacher earns."""
    ensemble, mean, states = fitted(halves)[0], load_ensemble(halves, mode="mean"), grid()
    error, naive = ((policy(states) + 0.8 * states).square().mean().sqrt() for policy in (ensemble, mean))
    assert float(error) < 0.1 * float(naive)
    gated, meant, best = (
        evaluate(RegulatorEnv(64), PolicyActor(policy, POLICY), 256, 9).mean_return
        for policy in (ensemble, mean, _Regulator())
    )
    assert meant < 0.75 * best and gated > 0.98 * best


class _Regulator:
    num_obs, num_actions, state_size = 2, 2, 0

    def step(self, obs, state):
        return PolicyOutput(-0.8 * obs), None

    def initial_state(self, num_envs, device=None):
        return None

    def reset_state(self, state, dones):
        return None


def test_equal_teachers_count_about_alike(tmp_path):
    """Of two copies of one teacher neither gets more than 0.7 on average: noise is not made a preference."""
    entries = find_teachers([write_half(tmp_path / f"{name}.pt", "right") for name in ("a", "b")])
    ensemble, _ = fitted(entries)
    share = float(ensemble.gate(grid()).mean(0)[0])  # type: ignore[misc]  # mode gate has one
    assert 0.3 < share < 0.7


def test_a_fit_is_the_seeds(halves):
    """The same seed gives the same bits, another seed others."""
    one, again, other = (fitted(halves, seed=seed)[0].gate.state_dict() for seed in (0, 0, 1))  # type: ignore[union-attr]
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_windows_are_summed_as_by_hand():
    """Random rewards and ends: every window equals a loop over its steps, and is known unless a time-out cut it."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(40, 6, generator=generator)
    ended = torch.rand(40, 6, generator=generator) < 0.12
    timed_out = ended & (torch.rand(40, 6, generator=generator) < 0.5)
    for horizon in (1, 4, 9):
        sums, known = window_returns(rewards, ended, timed_out, horizon)
        assert sums.shape == (41 - horizon, 6)
        for t in range(41 - horizon):
            for env in range(6):
                total, cut = 0.0, False
                for step in range(t, t + horizon):
                    total += float(rewards[step, env])
                    if ended[step, env]:
                        cut = bool(timed_out[step, env]) and step < t + horizon - 1
                        break
                assert float(sums[t, env]) == pytest.approx(total, abs=1e-5)
                assert bool(known[t, env]) is not cut


def test_rows_are_of_one_teacher_and_of_its_own_rewards(monkeypatch):
    """Each row's teacher is who acted then and for the next 3 steps, and its return is the sum of those rewards.

    The actions that the environment got say who acted; rewards of 1 + step say what a window of 3 is worth.
    """
    env, teachers = CountingEnv([[12]] * 8, 12), ConstantTeachers(3, 3)
    rows = collect_gate_rows(env, teachers, POLICY, GateCfg(episodes=32, horizon=3), seed=5)
    acted = torch.stack(env.actions)[..., 0]
    mixed = 0
    for obs, total, teacher, flight in zip(*rows, strict=True):
        place, episode, step = (int(value) for value in obs)
        assert flight == 8 * episode + place
        window = acted[12 * episode + step : 12 * episode + step + 3, place]
        assert window.tolist() == [float(teacher)] * 3
        assert float(total) == 3 * (step + 1) + 3
        mixed += len(set(acted[12 * episode : 12 * episode + step, place].tolist()) - {float(teacher)})
    assert torch.bincount(rows.teacher).min() > 20
    assert mixed > 20, "teachers are seen in states that others led to"
    assert rows.obs[:, 2].max() == 8, "later windows would reach the time limit, or a step before it"


def test_failures_are_not_favoured_near_the_time_limit():
    """With 10 % failures a step, windows of 5 are worth 1 + 0.9 + ... + 0.9^4 on average, early and late in episodes.

    Keeping late windows that end in a failure, and not those that the limit cuts, would bring late ones down.
    """
    expected = sum(0.9**k for k in range(5))
    teachers = ConstantTeachers(2, 3)
    rows = collect_gate_rows(HazardEnv(512), teachers, POLICY, GateCfg(episodes=4096, horizon=5), seed=1)
    step = rows.obs[:, 2]
    for part in (step < 5, (step >= 5) & (step < 11), step >= 11):
        returns = rows.returns[part]
        assert float(returns.mean()) == pytest.approx(
            expected, abs=4.0 * float(returns.std()) / (len(returns) / 5) ** 0.5
        )
    assert abs(float(rows.returns.mean()) - expected) < 0.05


def test_shifts_change_once_and_start_anew_with_each_episode():
    """Before its step of change an environment has its first teacher, then its second; an end draws both again."""
    shifts = TeacherShifts(500, 4, 6, seed=0, device="cpu")
    first, second = shifts.teachers
    change = shifts.change
    assert set(change.tolist()) == set(range(7)) and set(first.tolist()) == set(range(4))
    for age in range(7):
        assert torch.equal(shifts.acting(), torch.where(age < change, first, second))
        shifts.step(torch.zeros(500, dtype=torch.bool))
    shifts.step(torch.arange(500) < 250)
    assert torch.equal(shifts.teachers[:, 250:], torch.stack([first, second])[:, 250:])
    assert not torch.equal(shifts.teachers[:, :250], torch.stack([first, second])[:, :250])
    assert shifts.age[:250].max() == 0 and shifts.age[250:].min() == 8


def test_many_rows_are_thinned_over_all_of_the_episode(monkeypatch):
    """Beyond the limits, environments are spread evenly and steps left out; what is kept is as right as ever."""
    monkeypatch.setattr("foundation.learning.gate.KEPT_ENVS", 3)
    monkeypatch.setattr("foundation.learning.gate.KEPT_ROWS", 160)
    env = CountingEnv([[11]] * 9, 11)
    rows = collect_gate_rows(env, ConstantTeachers(2, 3), POLICY, GateCfg(episodes=180, horizon=2), seed=0)
    assert set(rows.obs[:, 0].tolist()) == {0.0, 3.0, 6.0} and 80 < len(rows.obs) <= 160
    assert torch.equal(rows.returns, 2.0 * (rows.obs[:, 2] + 1.0) + 1.0)
    acted = torch.stack(env.actions)[..., 0]
    at = (11 * rows.obs[:, 1] + rows.obs[:, 2]).long(), rows.obs[:, 0].long()
    assert torch.equal(acted[at], rows.teacher.float()) and torch.equal(acted[at[0] + 1, at[1]], rows.teacher.float())


def test_a_horizon_that_no_episode_holds_is_refused():
    """One line with the horizon and the length of an episode."""
    says = r"gate.horizon is 12: it must be below the length of an episode \(12 env steps\)"
    with pytest.raises(UserError, match=says):
        collect_gate_rows(CountingEnv([[12]], 12), ConstantTeachers(2, 3), POLICY, GateCfg(horizon=12), seed=0)


def test_a_teacher_that_hardly_flew_is_refused_by_name():
    """31 rows of the second teacher are too few."""
    teacher = torch.cat([torch.zeros(500), torch.ones(31)]).long()
    rows = GateRows(torch.randn(531, 3), torch.randn(531), teacher, torch.arange(531) // 10)
    with pytest.raises(UserError, match="fewer than 32 of 'b'"):
        fit_gate(rows, ["a", "b"], QUICK, 0)


def test_nan_is_traced_to_who_began_it():
    """NaN actions of a teacher stop the fit, in one line that says whose they were."""
    teachers = ConstantTeachers(2, 3)
    teachers.plays = teachers.plays * float("nan")
    with pytest.raises(UserError, match="The teacher returned NaN or infinite actions"):
        collect_gate_rows(CountingEnv([[12]] * 4, 12), teachers, POLICY, GateCfg(episodes=4), seed=0)


def test_a_single_episode_is_fitted_too():
    """With one episode nothing is held out; the fit still tells teachers apart."""
    obs = torch.rand(400, 2, generator=torch.Generator().manual_seed(0))
    teacher = torch.arange(400) % 2
    rows = GateRows(obs, teacher.float(), teacher, torch.zeros(400, dtype=torch.int64))
    gate, explained = fit_gate(rows, ["a", "b"], QUICK, 0)
    assert explained > 0.9 and float(gate(obs)[:, 1].min()) > 0.9
