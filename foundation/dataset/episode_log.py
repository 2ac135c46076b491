"""Number the episodes of collected transitions, save the transitions, and weigh them by the episode filter."""

from __future__ import annotations

import logging
from typing import Any

import torch

from foundation.config.distillation_cfg import EpisodeFilterCfg
from foundation.core.errors import UserError
from foundation.dataset.dataset import DistillationDataset
from foundation.dataset.disk.chunks import export_chunks
from foundation.dataset.disk.writer import DatasetWriter
from foundation.dataset.episodes import (
    EpisodeTable,
    FilterOutcome,
    filter_outcome,
    is_filtering,
    left_out,
    present_in,
    weigh,
)

logger = logging.getLogger(__name__)


class EpisodeLog:
    """Follows the episodes of a dataset's transitions.

    Args:
        dataset: The transitions. Their episodes are followed only where its spec has ``track_episodes``.
        filter_cfg: Which episodes are learned from: the others' transitions get the weight 0 when a collection ends.
        writer: Saves the chunks to disk. None: they are not saved.
        first_episode: Number of the first episode, above all numbers in the dataset and on disk.
        table: The outcomes of the episodes that are in the dataset already.
    """

    def __init__(
        self,
        dataset: DistillationDataset,
        filter_cfg: EpisodeFilterCfg | None = None,
        writer: DatasetWriter | None = None,
        first_episode: int = 0,
        table: EpisodeTable | None = None,
    ):
        self.dataset = dataset
        self.filter = filter_cfg or EpisodeFilterCfg()
        self.writer = writer
        self.table = table or EpisodeTable.empty()
        self.first_episode = first_episode
        self._begun = torch.zeros(dataset.num_envs, dtype=torch.int64, device=dataset.device)
        self._envs = torch.arange(dataset.num_envs, device=dataset.device)

    def open(self) -> None:
        """Lock the folder that is saved to against other processes."""
        if self.writer is not None:
            self.writer.open()

    def begin(self, epoch: int) -> None:
        """Begin an epoch (counted from 0): remove what an interrupted run has saved of it."""
        if self.writer is not None:
            self.writer.begin_epoch(epoch + 1)

    def close(self) -> None:
        """Unlock the folder that is saved to."""
        if self.writer is not None:
            self.writer.close()

    def chunk(self, chunk: int, steps: dict[str, torch.Tensor], epoch: int) -> None:
        """Number the episodes of a chunk that was collected, record those that ended in it, and save it.

        Args:
            chunk: Its index in the buffer.
            steps: What :meth:`EpisodeTracker.chunk` returned.
            epoch: Counted from 0.

        Raises:
            UserError: If the filter asks for success and the environment does not report it.
        """
        dataset = self.dataset
        if dataset.episode is None:
            return
        # The k-th episode of environment e has the number first + k * num_envs + e: unique, and known in every
        # environment without counting over the others.
        number = self._begun + dataset.resets[chunk].cumsum(0)
        self._begun = number[-1]
        number = self.first_episode + number * dataset.num_envs + self._envs
        dataset.episode[chunk] = number.int()  # 2e9 episodes are more than anybody collects
        steps = {name: tensor.to(dataset.device) for name, tensor in steps.items()}
        ended = steps["ended"]
        if "success" not in steps and self.filter.success:
            raise UserError(
                "distill.dataset.filter.success: which episodes succeed is unknown: the environment gives neither "
                "extras['time_outs'] nor extras['episode_metrics']['success']. Leave the filter out, or use min_length."
            )
        success = steps.get("success", torch.zeros_like(ended))
        columns = (number.int(), steps["returns"], steps["lengths"].int(), success, steps["whole"])
        table = EpisodeTable(*(column[ended].cpu() for column in columns))
        self.table = EpisodeTable.join([self.table, table])
        if self.writer is not None:
            chunks = export_chunks(dataset, [chunk])
            kept = ("rows", "resets", "episode", "teacher_index", *dataset.typed)
            tensors = {name: chunks[name] for name in kept if isinstance(chunks.get(name), torch.Tensor)}
            # The line above has left tensors alone, which the type checker does not see.
            self.writer.add(tensors, table, epoch + 1)  # type: ignore[arg-type]

    def end(self, epoch: int) -> None:
        """End an epoch's collection: write what is not on disk yet, and apply the filter.

        Raises:
            UserError: If the filter leaves nothing to learn from.
        """
        if self.writer is not None:
            self.writer.flush(epoch + 1)
        self.apply_filter()

    def apply_filter(self) -> None:
        """Set the transitions' weights by the outcomes of their episodes, as far as they are known by now."""
        if not is_filtering(self.filter) or self.dataset.num_chunks == 0:
            return
        bad = left_out(self.table, self.filter, present_in(self.dataset, self.table))
        weigh(self.dataset, bad)
        log_outcome(filter_outcome([self.dataset], self.table, bad), self.filter)
        check_weights(self.dataset)

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact resume needs."""
        if self.dataset.episode is None:
            return {}
        return {"begun": self._begun.cpu(), "first_episode": self.first_episode, "table": list(self.table)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        if state and self.dataset.episode is not None:
            self._begun = state["begun"].to(self.dataset.device)
            self.first_episode = state["first_episode"]
            self.table = EpisodeTable(*state["table"])


def log_outcome(outcome: FilterOutcome, cfg: EpisodeFilterCfg) -> None:
    """Log what a filter did; warn if only episodes whose outcome is unknown pass it."""
    logger.log(logging.WARNING if outcome.nothing_known_passes else logging.INFO, "%s.", outcome.line(cfg))


def check_weights(dataset: DistillationDataset) -> None:
    """Raise if all weights are 0, so that there is nothing to learn from.

    Raises:
        UserError: Naming the filter.
    """
    assert dataset.weights is not None
    if not bool((dataset.weights[: dataset.num_chunks] > 0).any()):
        raise UserError(
            "no episode passes distill.dataset.filter, so that there is nothing to learn from: ask for less, or check "
            "the teacher's own success and return"
        )
