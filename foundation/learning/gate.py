"""Fit of the gate over several teachers: rollouts that try each of them, and a regression on their returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict

from foundation.config.distillation_cfg import GateCfg
from foundation.core.errors import UserError
from foundation.engines.base import VecEnv
from foundation.rollout.evaluate import preserved_rng
from foundation.rollout.stepper import FiniteCheck, Observer, Stepper
from foundation.teachers.ensemble import TeacherEnsemble
from foundation.teachers.gate import TeacherGate

LEARNING_RATE = 1e-3
BATCH_ROWS = 512
CHECKS = 20
MIN_ROWS = 32
"""Fewest transitions of a teacher that the gate is fitted to."""


class GateRows(NamedTuple):
    """Steps of rollouts, and the returns that followed them."""

    obs: torch.Tensor
    """The teachers' observations. Shape: (num_rows, num_obs)."""
    returns: torch.Tensor
    """Sum of the next rewards. Shape: (num_rows,)."""
    teacher: torch.Tensor
    """The teacher that acted until the return was known. Shape: (num_rows,)."""
    episode: torch.Tensor
    """Number of the episode. Shape: (num_rows,)."""


def fit_gate(
    rows: GateRows,
    names: Sequence[str],
    cfg: GateCfg,
    seed: int,
    poll: Callable[[], None] | None = None,
) -> tuple[TeacherGate, float]:
    """Regress, for each transition, the output of the teacher that acted on its standardised return.

    The squared error makes the outputs conditional means. Every teacher counts the same, however few its rows are. A
    tenth of the episodes is held out: the weights that do best there, of 20 moments, are taken.

    Args:
        rows: What to learn from.
        names: The teachers' names, in order.
        cfg: Sizes, and the number of updates.
        seed: Of weights and minibatches.
        poll: Called now and then; may raise to stop.

    Returns:
        The gate, and the share of the returns' variance that it explains in what is held out.

    Raises:
        UserError: If a teacher has next to no rows.
    """
    counts = torch.bincount(rows.teacher, minlength=len(names))
    few = [name for name, count in zip(names, counts.tolist(), strict=True) if count < MIN_ROWS]
    if few:
        raise UserError(
            f"distill.teacher.gate: after {len(rows.obs)} env steps there are fewer than {MIN_ROWS} of "
            f"'{few[0]}': raise distill.teacher.gate.episodes ({cfg.episodes}) or lower distill.teacher.gate.horizon."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = TeacherGate(rows.obs.shape[1], len(names), cfg)
    gate = gate.to(rows.obs.device)
    gate.normalizer.update(rows.obs)
    targets = (rows.returns - rows.returns.mean()) / rows.returns.std().clamp_min(1e-6)
    generator = torch.Generator().manual_seed(seed)
    held = _held_out(rows.episode, generator)
    share = len(rows.obs) / (len(names) * counts.clamp_min(1).to(targets.dtype))
    rows = rows._replace(returns=targets)
    explained = _learn(gate, rows, share[rows.teacher], held, cfg.updates, generator, poll)
    return gate.requires_grad_(False).eval(), explained


def _held_out(episode: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mark the transitions of a tenth of the episodes, one at least; of a single episode all. Shape: (num_rows,)."""
    _, index = torch.unique(episode, return_inverse=True)
    number = int(index.max()) + 1
    order = torch.randperm(number, generator=generator).to(episode.device)
    return torch.isin(index, order[: max(1, number // 10)])


def _learn(
    gate: TeacherGate,
    rows: GateRows,
    share: torch.Tensor,
    held: torch.Tensor,
    updates: int,
    generator: torch.Generator,
    poll: Callable[[], None] | None,
) -> float:
    """Fit the gate in place and return the explained share of the held-out variance."""
    used = (torch.ones_like(held) if bool(held.all()) else ~held).nonzero().flatten()
    judged = held.nonzero().flatten()
    optimizer = torch.optim.Adam(gate.network.parameters(), lr=LEARNING_RATE)
    best = copy.deepcopy(gate.state_dict())
    best_error = _error(gate, rows, share, judged)
    for update in range(updates):
        picked = used[torch.randint(len(used), (BATCH_ROWS,), generator=generator).to(used.device)]
        loss = _squares(gate, rows, share, picked).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (update + 1) % max(1, updates // CHECKS) == 0 or update + 1 == updates:
            if poll is not None:
                poll()
            error = _error(gate, rows, share, judged)
            if error < best_error:
                best = copy.deepcopy(gate.state_dict())
                best_error = error
    gate.load_state_dict(best)
    variance = (share * (rows.returns - (share * rows.returns).mean()).square()).mean()
    return 1.0 - best_error / max(1e-12, float(variance))


def _squares(gate: TeacherGate, rows: GateRows, share: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:
    """Return each picked transition's squared error, weighted by its share. Shape: (num_picked,)."""
    predicted = gate.values(rows.obs[picked]).gather(1, rows.teacher[picked].unsqueeze(1)).squeeze(1)
    return share[picked] * (predicted - rows.returns[picked]).square()


@torch.no_grad()
def _error(gate: TeacherGate, rows: GateRows, share: torch.Tensor, picked: torch.Tensor) -> float:
    parts = [_squares(gate, rows, share, part).sum() for part in picked.split(65536)]
    return float(torch.stack(parts).sum()) / len(picked)


KEPT_ENVS = 1024
"""Environments, evenly spread, whose transitions are kept."""
KEPT_ROWS = 131072
"""Most transitions kept, about: every so many steps, so that all phases of the episodes are there."""


class TeacherShifts:
    """Draw the acting teacher: one from an episode's start, another one from a random step of it on.

    The second one starts from where the first has brought it: without that, a gate would never have seen what a teacher
    earns in the states that another one leads to (the roll-in of Cheng, Kolobov and Agarwal 2020).

    Args:
        num_envs: Environments.
        num_teachers: K.
        last_change: The last step of an episode at which the second one can take over.
        seed: Of all draws.
        device: Where they are drawn.
    """

    def __init__(self, num_envs: int, num_teachers: int, last_change: int, seed: int, device: torch.device | str):
        self.generator = torch.Generator(device).manual_seed(seed)
        self.num_teachers = num_teachers
        self.last_change = last_change
        self.age = torch.zeros(num_envs, dtype=torch.int64, device=device)
        """Step of the episode. Shape: (num_envs,)."""
        self.teachers = self._draw(num_teachers, 2)
        """First and second. Shape: (2, num_envs)."""
        self.change = self._draw(last_change + 1, 1)[0]
        """Step at which the second one takes over; at 0 it has the whole episode. Shape: (num_envs,)."""

    def _draw(self, below: int, number: int) -> torch.Tensor:
        size = (number, len(self.age))
        return torch.randint(below, size, generator=self.generator, device=self.age.device)

    def acting(self) -> torch.Tensor:
        """Return the teacher that acts now. Shape: (num_envs,)."""
        return torch.where(self.age < self.change, self.teachers[0], self.teachers[1])

    def step(self, ended: torch.Tensor) -> None:
        """Go one step on, and draw anew where an episode has ``ended`` (num_envs,)."""
        self.age = torch.where(ended, 0, self.age + 1)
        self.teachers = torch.where(ended, self._draw(self.num_teachers, 2), self.teachers)
        self.change = torch.where(ended, self._draw(self.last_change + 1, 1)[0], self.change)


def gate_horizon(env: VecEnv, horizon: int | None) -> int:
    """Return how many steps a gate looks ahead [env steps]: as set, else a quarter of an episode.

    Raises:
        UserError: If an episode is not longer than that.
    """
    length = int(env.max_episode_length)
    wanted = max(1, length // 4) if horizon is None else horizon
    if wanted > length - 1:
        raise UserError(
            f"distill.teacher.gate.horizon is {wanted}: it must be below the length of an episode ({length} env steps)."
        )
    return wanted


def window_returns(
    rewards: torch.Tensor, ended: torch.Tensor, timed_out: torch.Tensor, horizon: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the next ``horizon`` rewards of each step's episode; after a failure there are none to come.

    Args:
        rewards: Shape: (num_steps, num_envs).
        ended: Whether the step ended an episode. Shape: (num_steps, num_envs).
        timed_out: Whether it did so by time-out. Shape: (num_steps, num_envs).
        horizon: Length of the windows [env steps], at most num_steps.

    Returns:
        The sums of all whole windows, and which of them no time-out has cut: a time-out is no failure, what would have
        followed is unknown (Pardo et al. 2018, "Time Limits in Reinforcement Learning"). Both of shape
        (num_steps - horizon + 1, num_envs).
    """
    steps, envs = rewards.shape
    total = torch.zeros(steps + 1, envs, dtype=torch.float64, device=rewards.device)
    far = torch.full((envs,), steps + horizon + 1, device=rewards.device)
    left = torch.empty_like(ended, dtype=torch.int64)
    by_time = torch.empty_like(ended)
    ends_by_time = torch.zeros_like(ended[0])
    for t in range(steps - 1, -1, -1):
        total[t] = rewards[t] + torch.where(ended[t], 0.0, total[t + 1])
        far = torch.where(ended[t], 1, far + 1)
        ends_by_time = torch.where(ended[t], timed_out[t], ends_by_time)
        left[t] = far
        by_time[t] = ends_by_time
    whole = steps - horizon + 1
    beyond = torch.where(left[:whole] > horizon, total[horizon:], 0.0)
    known = ~(by_time[:whole] & (left[:whole] < horizon))
    return (total[:whole] - beyond).to(rewards.dtype), known


class _TeachersInTurn:
    """Let the teacher of its shift act in each environment."""

    def __init__(
        self, teachers: TeacherEnsemble, selector: Callable[[TensorDict], torch.Tensor], shifts: TeacherShifts
    ):
        self.teachers = teachers
        self.selector = selector
        self.shifts = shifts
        self.state: torch.Tensor | None = None
        self.obs = torch.empty(0)
        """The teachers' observations of the last step. Shape: (num_envs, num_obs)."""
        self.acting = torch.empty(0)
        """The teacher that acted in each environment. Shape: (num_envs,)."""
        self._envs = torch.arange(len(shifts.age), device=shifts.age.device)

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Return the acting teachers' mean actions. Shape: (num_envs, num_actions)."""
        self.obs = self.selector(obs)
        self.acting = self.shifts.acting()
        output, self.state = self.teachers.step_each(self.obs, self.state)
        return output.mean[self.acting, self._envs]

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Begin new episodes where ``dones`` (num_envs,), or everywhere."""
        if dones is None:
            self.state = None
        else:
            self.state = self.teachers.reset_state(self.state, dones)
            self.shifts.step(dones)


class _GateRecord(Observer):
    """Rewards and acting teachers of every step, observations of every ``stride``-th one."""

    def __init__(self, env: VecEnv, actor: _TeachersInTurn, steps: int, rows: int):
        kept = min(env.num_envs, KEPT_ENVS)
        self.actor = actor
        self.step = 0
        self.columns = torch.arange(kept, device=env.device) * env.num_envs // kept
        self.stride = -(-steps * kept // rows)
        self.obs = torch.empty(-(-steps // self.stride), kept, actor.teachers.num_obs, device=env.device)
        self.rewards = torch.empty(steps, kept, device=env.device)
        self.ended = torch.empty(steps, kept, dtype=torch.bool, device=env.device)
        self.timed_out = torch.empty_like(self.ended)
        self.acting = torch.empty_like(self.ended, dtype=torch.int64)
        self.age = torch.empty_like(self.acting)
        self.change = torch.empty_like(self.acting)

    def before_step(self, obs: TensorDict, actions: torch.Tensor) -> None:
        """See :class:`Observer`."""
        if self.step % self.stride == 0:
            self.obs[self.step // self.stride] = self.actor.obs[self.columns]
        self.acting[self.step] = self.actor.acting[self.columns]
        self.age[self.step] = self.actor.shifts.age[self.columns]
        self.change[self.step] = self.actor.shifts.change[self.columns]

    def after_step(self, rewards: torch.Tensor, dones: torch.Tensor, extras: dict[str, Any]) -> None:
        """See :class:`Observer`."""
        time_outs = extras.get("time_outs")
        self.rewards[self.step] = rewards[self.columns]
        self.ended[self.step] = dones[self.columns]
        self.timed_out[self.step] = False if time_outs is None else time_outs[self.columns].bool()
        self.step += 1

    def rows(self, horizon: int, length: int) -> GateRows:
        """Return the transitions whose next ``horizon`` steps are one teacher's.

        Which rows those are depends on their time and not on their outcome: leaving out only the episodes
        that a change of the teacher or the time limit cut, and keeping those that failed before, would make every
        teacher look worse than it is.
        """
        returns, known = window_returns(self.rewards, self.ended, self.timed_out, horizon)
        age = self.age[: len(returns)]
        change = self.change[: len(returns)]
        first = age + horizon <= change
        second = (age >= change) & (age + horizon <= length - 1)
        taken = (known & (first | second))[:: self.stride]
        ended_before = (self.ended.cumsum(0) - self.ended.long()) * self.ended.shape[1]
        episode = ended_before + torch.arange(self.ended.shape[1], device=ended_before.device)
        kept = slice(0, len(returns), self.stride)
        acting = self.acting[kept]
        episode = episode[kept]
        obs = self.obs[: len(taken)]
        return GateRows(obs[taken], returns[:: self.stride][taken], acting[taken], episode[taken])


def collect_gate_rows(
    env: VecEnv,
    teachers: TeacherEnsemble,
    selector: Callable[[TensorDict], torch.Tensor],
    cfg: GateCfg,
    seed: int,
    poll: Callable[[], None] | None = None,
) -> GateRows:
    """Let the teachers act in turns. Global random states are as before afterwards.

    Args:
        env: The environment; it is reset with ``seed``.
        teachers: All of them; ``step_each`` gives each one's outputs.
        selector: Selects their observations.
        cfg: How many episodes, and how far to look ahead.
        seed: Of the reset and of the acting teachers.
        poll: Called now and then; may raise to stop.

    Returns:
        Observations, and the return of the acting teacher over the next steps.

    Raises:
        UserError: If its episodes are too short, or something is not finite.
    """
    length = int(env.max_episode_length)
    horizon = gate_horizon(env, cfg.horizon)
    steps = -(-cfg.episodes // env.num_envs) * length
    with preserved_rng(env.device):
        shifts = TeacherShifts(env.num_envs, teachers.num_teachers, length - 1 - horizon, seed, env.device)
        actor = _TeachersInTurn(teachers, selector, shifts)
        record = _GateRecord(env, actor, steps, KEPT_ROWS)
        finite = FiniteCheck(env.device)
        stepper = Stepper(env, actor, [record, finite])
        stepper.reset(seed)
        stepper.run(steps, poll)
    finite.check("teacher")
    return record.rows(horizon, length)
