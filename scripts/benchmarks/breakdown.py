"""Where our own time goes, beside a bare loop of environment step and forward passes."""

from __future__ import annotations

import copy
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import ours
from benchmarks.common import STUDENT_GROUP, TEACHER_GROUP, Clock
from foundation.learning.optimizers import FUSED, OPTIMIZERS

LEARNED_EPOCHS = 4
"""Epochs after which the student flies whole episodes."""


class Meter:
    """Adds up the CPU seconds (wall on a GPU) spent inside wrapped calls."""

    def __init__(self, device: str):
        self.clock = Clock(device)
        self.spent: dict[str, float] = {}

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Time every call of a method of this one object."""
        function = getattr(owner, attribute)
        self.spent.setdefault(name, 0.0)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = self.now()
            result = function(*args, **kwargs)
            self.spent[name] += self.now() - begin
            return result

        setattr(owner, attribute, timed)

    def now(self) -> float:
        """Return the present time."""
        self.clock.synchronize()
        return time.perf_counter() if self.clock.is_cuda else time.process_time()


def shares(teacher: Path, device: str, values: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Run epochs of ``experiment=fast`` with a stopwatch on its parts.

    Args:
        teacher: The teacher's checkpoint.
        device: Torch device.
        values: Changes to ``experiment=fast``.
        epochs: How many, after one that does not count.

    Returns:
        Seconds per epoch and shares of it, for epochs in which the student acts.
    """
    runner, env = ours.build({**values, "epoch_teacher_forcing": 0}, teacher, device, seed=0)
    runner.run_epoch(0)
    meter = Meter(device)
    meter.wrap(env, "step", "environment")
    meter.wrap(runner.collector.teacher, "output", "teacher")
    meter.wrap(runner.collector.teacher, "outputs", "teacher")  # labels of many steps at once
    meter.wrap(runner.collector.student, "output", "student")
    meter.wrap(runner.dataset, "write", "storing")
    meter.wrap(runner.collector, "collect", "collection")
    meter.wrap(runner.learner, "learn", "training")
    begin = meter.now()
    for epoch in range(1, 1 + epochs):
        runner.run_epoch(epoch)
    total = meter.now() - begin
    spent = dict(meter.spent)
    collection = spent.pop("collection")
    inside = sum(spent[name] for name in ("environment", "teacher", "student", "storing"))
    spent["rest of collection"] = collection - inside
    spent["rest of the epoch"] = total - collection - spent["training"]
    return {
        "num_envs": env.num_envs,
        "seconds_per_epoch": total / epochs,
        "shares": {name: seconds / total for name, seconds in spent.items()},
    }


class CountOperations(TorchDispatchMode):
    """Counts the tensor operations inside it, by name: the same on every machine, however busy."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation and run it."""
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operations(teacher: Path, device: str, num_envs: int, steps: int) -> dict[str, dict[str, float]]:
    """Count the tensor operations of a batched env step: in collection, and in the environment and networks alone.

    Args:
        teacher: The teacher's checkpoint.
        device: Torch device.
        num_envs: Environments.
        steps: Batched env steps, about; no episode ends in the bare loop's own share of them.
    """
    values = {"num_envs": num_envs, "num_episodes": max(1, num_envs * steps // 500)}
    runner, env = ours.build(values, teacher, device, seed=0)
    for epoch in range(2):
        runner.run_epoch(epoch)
    out: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        for phase, beta in (("teacher acts", 1.0), ("student acts", 0.0)):
            runner.collector.collect(0, beta)
            before = env.env_steps
            with CountOperations() as whole:
                runner.collector.collect(1, beta)
            made = (env.env_steps - before) / num_envs
            obs = env.get_observations()
            with CountOperations() as bare:
                for _ in range(steps):
                    action = runner.teacher.step(obs[TEACHER_GROUP], None)[0].mean
                    if beta == 0.0:
                        action = runner.learner.policy.step(obs[STUDENT_GROUP], None)[0].mean
                    obs = env.step(action)[0]
            counted = {"collection": whole.counts.total() / made, "bare loop": bare.counts.total() / steps}
            out[phase] = {**counted, "more": counted["collection"] - counted["bare loop"]}
    return out


def first_touch(dataset: Any, clock: Meter) -> float:
    """Write to all of a new dataset's memory twice, as step-sized rows, and return how much longer the first took.

    Returns:
        Milliseconds per batched env step, once in the life of that memory.
    """
    spent = []
    for _ in range(2):
        begin = clock.now()
        for chunk in dataset.rows:
            for row in chunk:
                row.zero_()
        spent.append(clock.now() - begin)
    return (spent[0] - spent[1]) / (dataset.max_chunks * dataset.chunk_steps) * 1e3


def overhead(teacher: Path, device: str, num_envs: int, steps: int, rounds: int) -> dict[str, Any]:
    """Compare collection with a loop that does nothing but step the environment and run the networks.

    The dataset's memory has been written to before, and the student has learned for some epochs, so that episodes are
    as long as in most of a run. What the first write to fresh memory costs more, once, is told apart.

    Args:
        teacher: The teacher's checkpoint.
        device: Torch device.
        num_envs: Environments.
        steps: Batched env steps per measurement, about.
        rounds: Measurements of each, alternating; medians count.

    Returns:
        Milliseconds per batched env step.
    """
    values = {"num_envs": num_envs, "num_episodes": max(1, num_envs * steps // 500)}
    runner, env = ours.build(values, teacher, device, seed=0)
    collector, clock = runner.collector, Meter(device)
    policy, teacher_policy = runner.learner.policy, runner.teacher
    touch = first_touch(runner.dataset, clock)
    for epoch in range(LEARNED_EPOCHS):
        runner.run_epoch(epoch)

    def bare(with_student: bool) -> None:
        obs = env.get_observations()
        for _ in range(steps):
            action = teacher_policy.step(obs[TEACHER_GROUP], None)[0].mean
            if with_student:
                action = policy.step(obs[STUDENT_GROUP], None)[0].mean
            obs = env.step(action)[0]

    def per_step(function: Callable[[], Any], prepare: Callable[[], Any]) -> float:
        prepare()
        before, begin = env.env_steps, clock.now()
        function()
        return (clock.now() - begin) / (env.env_steps - before) * num_envs * 1e3

    out: dict[str, Any] = {"num_envs": num_envs, "unit": "ms per batched env step", "first touch": touch}
    with torch.no_grad():
        for phase, beta in (("teacher acts", 1.0), ("student acts", 0.0)):
            prepare = lambda beta=beta: collector.collect(0, beta)  # noqa: E731
            pairs = [
                (
                    per_step(lambda beta=beta: bare(beta == 0.0), prepare),
                    per_step(lambda beta=beta: collector.collect(1, beta), prepare),
                )
                for _ in range(rounds)
            ]
            loop, ours_ms = (statistics.median(values) for values in zip(*pairs, strict=True))
            out[phase] = {"bare loop": loop, "collection": ours_ms, "overhead": ours_ms - loop}
    return out


def learning(teacher: Path, device: str, values: dict[str, Any], rounds: int) -> dict[str, float]:
    """Compare an update of the learner with a bare loop of gather, forward pass, loss, backward pass and step.

    Both have the student, the size of the minibatch and the optimiser of ``experiment=fast``; the bare loop has no
    average of the weights, schedule, checks or bookkeeping.

    Args:
        teacher: The teacher's checkpoint.
        device: Torch device.
        values: Changes to ``experiment=fast``.
        rounds: Measurements of each, alternating; the fastest of each counts.

    Returns:
        Microseconds of an update of each, and the bare loop's share of the learner's.
    """
    runner, env = ours.build(values, teacher, device, seed=0)
    for epoch in range(LEARNED_EPOCHS):
        runner.run_epoch(epoch)
    learner, cfg, meter = runner.learner, runner.cfg, Meter(device)
    num_new = env.num_envs * runner.dataset.chunk_steps
    updates = learner.num_updates(num_new)
    policy = copy.deepcopy(learner.student).train()
    fused = {"fused": True} if cfg.optimizer.name in FUSED else {}
    optimizer = OPTIMIZERS[cfg.optimizer.name](policy.parameters(), lr=1e-6, **fused)
    obs = torch.cat([runner.dataset.chunk_obs(chunk) for chunk in runner.dataset.newest_chunks()])
    targets = policy(obs).detach()

    def bare() -> None:
        for _ in range(updates):
            index = torch.randint(len(obs), (learner.batch_size,), device=obs.device)
            loss = functional.huber_loss(policy(obs[index]), targets[index], delta=cfg.loss.huber_delta)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    spent: dict[str, list[float]] = {"bare loop": [], "learner": []}
    for _ in range(rounds):
        for name, function in (
            ("bare loop", bare),
            ("learner", lambda: learner.learn(runner.dataset, num_new, LEARNED_EPOCHS)),
        ):
            begin = meter.now()
            function()
            spent[name].append((meter.now() - begin) / updates * 1e6)
    loop, own = (min(spent[name]) for name in ("bare loop", "learner"))
    return {"bare loop": loop, "learner": own, "share": loop / own}
