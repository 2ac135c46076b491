"""Replay of a saved dataset of an old task through the distillation loss, beside PPO on the new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from foundation.config.distillation_cfg import DatasetCfg, DistillationCfg
from foundation.config.finetune_cfg import FinetuneCfg
from foundation.core.errors import UserError
from foundation.dataset.build import load_offline
from foundation.dataset.dataset import Batch
from foundation.dataset.disk.reader import SavedDataset
from foundation.learning.objective import forward
from foundation.learning.terms import Term
from foundation.policies.output import PolicyOutput
from foundation.students.base import Student

DRAWN_AT_ONCE = 64
"""Minibatches that are drawn together."""


class Replay:
    """Minibatches of a saved dataset for an actor.

    Args:
        cfg: The run's configuration; ``replay.dataset`` is set.
        actor: Learns from them.
        terms: The distillation loss, whose targets are read.
        device: Where the actor is.

    Raises:
        UserError: If the dataset is missing, or of other observations or actions.
    """

    def __init__(self, cfg: FinetuneCfg, actor: Student, terms: Sequence[Term], device: torch.device):
        assert cfg.replay.dataset is not None
        self.cfg = cfg.replay
        self.actor = actor
        saved = SavedDataset(cfg.replay.dataset)
        layout = saved.layout
        if (layout.obs_size, layout.targets["mean"]) != (actor.num_obs, actor.num_actions):
            raise UserError(
                f"finetune.replay.dataset: '{saved.path}' has {layout.obs_size} observations "
                f"({', '.join(layout.obs_groups)}) and {layout.targets['mean']} actions, the actor "
                f"{actor.num_obs} and {actor.num_actions}: replay a dataset that was collected for this actor"
            )
        needed = {name for term in terms for name in term.spec.teacher}
        self._length = self.cfg.sequence_length if actor.state_size else 1
        own = DistillationCfg(
            device=str(device),
            seed=cfg.seed,
            dataset=DatasetCfg(load=cfg.replay.dataset, memory_gb=self.cfg.memory_gb, held_out=0.01),
        )
        self.dataset = load_offline(own, saved, needed, needed | {"mean"}, self._length).train
        self._batches: Iterator[Batch] = iter(())

    def draw(self) -> Batch:
        """Return the next minibatch."""
        batch = next(self._batches, None)
        if batch is None:
            dataset = self.dataset
            draw = dataset.flat_minibatches if self._length == 1 else dataset.sequence_minibatches
            self._batches = draw(self.cfg.batch_size, DRAWN_AT_ONCE)
            batch = next(self._batches)
        return batch

    def loss(self, distance: Callable[[PolicyOutput, PolicyOutput], torch.Tensor]) -> torch.Tensor:
        """Return the mean of a loss of each sample on the next minibatch.

        Args:
            distance: Takes the actor's outputs and the stored targets.
        """
        batch = self.draw()
        values = distance(forward(self.actor, batch), batch.targets)
        if batch.weights is None:
            return values.mean()
        return (values * batch.weights).sum() / batch.weights.sum().clamp_min(1e-8)

    def end_iteration(self) -> None:
        """Draw anew from here on, so that a run that is resumed draws the same."""
        self._batches = iter(())

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the sampling."""
        return self.dataset.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.dataset.load_state_dict(state)
