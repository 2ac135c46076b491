"""Replay of saved datasets of old tasks through the distillation loss, beside PPO on the new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from foundation.config.distillation_cfg import DatasetCfg, DistillationCfg
from foundation.config.finetune_cfg import FinetuneCfg
from foundation.core.errors import UserError
from foundation.dataset.build import load_offline
from foundation.dataset.dataset import Batch, DistillationDataset
from foundation.dataset.disk.reader import SavedDataset
from foundation.learning.objective import forward
from foundation.learning.terms import Term
from foundation.policies.output import PolicyOutput
from foundation.students.base import Student

DRAWN_AT_ONCE = 64
"""Minibatches that are drawn together."""


class Replay:
    """Minibatches of saved datasets for an actor.

    Args:
        cfg: The run's configuration; ``replay.dataset`` is set.
        actor: Learns from them.
        terms: The distillation loss, whose targets are read.
        device: Where the actor is.

    Raises:
        UserError: If a dataset is missing, or of other observations or actions.
    """

    def __init__(self, cfg: FinetuneCfg, actor: Student, terms: Sequence[Term], device: torch.device):
        self.cfg = cfg.replay
        self.actor = actor
        needed = {name for term in terms for name in term.spec.teacher}
        self._length = self.cfg.sequence_length if actor.state_size else 1
        paths = cfg.replay_datasets()
        self.datasets = [self._load(path, cfg, device, needed, len(paths)) for path in paths]
        self._batches: list[Iterator[Batch]] = [iter(()) for _ in paths]
        self._next = 0

    def _load(
        self, path: str, cfg: FinetuneCfg, device: torch.device, needed: set[str], number: int
    ) -> DistillationDataset:
        """Read one dataset, which gets an equal part of the memory."""
        actor = self.actor
        saved = SavedDataset(path)
        layout = saved.layout
        if (layout.obs_size, layout.targets["mean"]) != (actor.num_obs, actor.num_actions):
            raise UserError(
                f"finetune.replay.dataset: '{saved.path}' has {layout.obs_size} observations "
                f"({', '.join(layout.obs_groups)}) and {layout.targets['mean']} actions, the actor "
                f"{actor.num_obs} and {actor.num_actions}: replay a dataset that was collected for this actor"
            )
        own = DistillationCfg(
            device=str(device),
            seed=cfg.seed,
            dataset=DatasetCfg(load=path, memory_gb=self.cfg.memory_gb / number, held_out=0.01),
        )
        return load_offline(own, saved, needed, needed | {"mean"}, self._length).train

    def draw(self) -> Batch:
        """Return the next minibatch, of one dataset after the other."""
        index = self._next
        self._next = (index + 1) % len(self.datasets)
        batch = next(self._batches[index], None)
        if batch is None:
            dataset = self.datasets[index]
            draw = dataset.flat_minibatches if self._length == 1 else dataset.sequence_minibatches
            self._batches[index] = draw(self.cfg.batch_size, DRAWN_AT_ONCE)
            batch = next(self._batches[index])
        return batch

    def loss(self, distance: Callable[[PolicyOutput, PolicyOutput], torch.Tensor]) -> torch.Tensor:
        """Return the mean of a loss of each sample on the next minibatch of every dataset.

        Args:
            distance: Takes the actor's outputs and the stored targets.
        """
        parts = [self._loss_on(self.draw(), distance) for _ in self.datasets]
        return parts[0] if len(parts) == 1 else torch.stack(parts).mean()

    def _loss_on(self, batch: Batch, distance: Callable[[PolicyOutput, PolicyOutput], torch.Tensor]) -> torch.Tensor:
        values = distance(forward(self.actor, batch), batch.targets)
        if batch.weights is None:
            return values.mean()
        return (values * batch.weights).sum() / batch.weights.sum().clamp_min(1e-8)

    def end_iteration(self) -> None:
        """Draw anew from here on, so that a run that is resumed draws the same."""
        self._batches = [iter(()) for _ in self.datasets]
        self._next = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the sampling."""
        states = [dataset.state_dict() for dataset in self.datasets]
        return states[0] if len(states) == 1 else {"datasets": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        states = state["datasets"] if len(self.datasets) > 1 else [state]
        for dataset, own in zip(self.datasets, states, strict=True):
            dataset.load_state_dict(own)
