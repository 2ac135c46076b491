"""Outcomes of episodes, and the filter that decides which of them are learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from foundation.config.distillation_cfg import EpisodeFilterCfg
from foundation.dataset.dataset import DistillationDataset


class EpisodeTable(NamedTuple):
    """Outcomes of the episodes that have ended, on the host. Each column: (num_episodes,)."""

    number: torch.Tensor
    """The episode's number, as in the transitions' ``episode``. int32."""
    returns: torch.Tensor
    """Sum of its rewards. float32."""
    lengths: torch.Tensor
    """Its length [env steps]. int32."""
    success: torch.Tensor
    """Whether it succeeded: the task's own metric, or else whether it ended by time-out. bool."""
    whole: torch.Tensor
    """Whether one policy acted in all of it, from its beginning on: only then are return and length that policy's.
    bool."""

    @classmethod
    def empty(cls) -> EpisodeTable:
        """Return a table of no episodes."""
        types = (torch.int32, torch.float32, torch.int32, torch.bool, torch.bool)
        return cls(*(torch.empty(0, dtype=kind) for kind in types))

    @staticmethod
    def join(tables: list[EpisodeTable]) -> EpisodeTable:
        """Put tables together."""
        return EpisodeTable(*(torch.cat(columns) for columns in zip(EpisodeTable.empty(), *tables, strict=True)))


def is_filtering(cfg: EpisodeFilterCfg) -> bool:
    """Return whether a filter can leave anything out."""
    return cfg.success or cfg.min_length is not None or cfg.return_quantile is not None


def left_out(table: EpisodeTable, cfg: EpisodeFilterCfg, present: torch.Tensor | None = None) -> torch.Tensor:
    """Return the numbers of the episodes that the filter leaves out.

    Episodes that have not ended are kept, as their outcome is not known yet. For an episode that is not whole only
    ``success`` is checked.

    Args:
        table: The episodes that have ended.
        cfg: The conditions on an episode.
        present: Which of them have transitions in the dataset; the quantile is over those. Shape: (num_episodes,).

    Returns:
        Numbers of episodes. Shape: (num_left_out,).
    """
    bad = torch.zeros_like(table.success)
    if cfg.success:
        bad |= ~table.success
    if cfg.min_length is not None:
        bad |= table.whole & (table.lengths < cfg.min_length)
    compared = table.whole if present is None else table.whole & present
    if cfg.return_quantile is not None and bool(compared.any()):
        # torch.quantile takes no more than 16 million values; sorting has no such limit.
        ordered = table.returns[compared].sort().values
        bad |= table.whole & (table.returns < ordered[int(cfg.return_quantile * (len(ordered) - 1))])
    return table.number[bad]


def weigh(dataset: DistillationDataset, bad: torch.Tensor) -> None:
    """Set the sampling weights: 0 for some episodes and for padding (episode -1), the own weight for all others.

    Args:
        dataset: With ``track_episodes`` and ``weighted``.
        bad: Numbers of the episodes. Shape: (num_left_out,).
    """
    assert dataset.episode is not None and dataset.weights is not None
    chunks = slice(0, dataset.num_chunks)
    episode = dataset.episode[chunks]
    if episode.numel() == 0:
        return
    highest = int(torch.maximum(episode.max(), bad.max() if len(bad) else episode.max()))
    weight = torch.ones(highest + 2, device=dataset.device)  # number -1 is the last
    weight[bad.long().to(dataset.device)] = 0.0
    weight[-1] = 0.0
    for chunk in range(dataset.num_chunks):  # a chunk at a time: no second copy of everything
        numbers = dataset.episode[chunk].flatten()
        numbers = torch.where(numbers < 0, highest + 1, numbers)
        dataset.weights[chunk] = weight.index_select(0, numbers).view_as(dataset.weights[chunk])
    if dataset.base_weights is not None:
        dataset.weights[chunks] *= dataset.base_weights[chunks]


def present_in(dataset: DistillationDataset, table: EpisodeTable) -> torch.Tensor:
    """Return which episodes of the table still have transitions. Shape: (num_episodes,)."""
    assert dataset.episode is not None
    if len(table.number) == 0 or dataset.num_chunks == 0:
        return torch.zeros(len(table.number), dtype=torch.bool)
    highest = int(max(dataset.episode[: dataset.num_chunks].max(), table.number.max()))
    seen = torch.zeros(highest + 2, dtype=torch.bool, device=dataset.device)
    for chunk in range(dataset.num_chunks):
        seen[dataset.episode[chunk].long()] = True  # number -1 marks the last entry, which belongs to no episode
    return seen.cpu()[table.number.long()]


class Share(NamedTuple):
    """Number of episodes and of transitions of a part of a dataset."""

    episodes: int
    rows: int


class FilterOutcome(NamedTuple):
    """Counts of the episodes that have transitions in a dataset, by the filter's outcome."""

    finished: Share
    """Episodes that have ended."""
    left_out: Share
    """Finished episodes that do not pass: their transitions have weight 0."""
    unfinished: Share
    """Episodes that have not ended; they pass."""
    cut: Share
    """Ended episodes in whose start another policy acted: only ``success`` is checked for them."""

    def line(self, cfg: EpisodeFilterCfg) -> str:
        """Format as one log line.

        Args:
            cfg: The filter's conditions.
        """
        text = (
            f"Filter: {self.left_out.episodes} of {self.finished.episodes} finished episodes are left out "
            f"({self.left_out.rows} of {self.finished.rows} transitions); {self.unfinished.episodes} unfinished ones "
            f"({self.unfinished.rows} transitions) are kept, as their outcome is not known"
        )
        if self.cut.episodes and (cfg.min_length is not None or cfg.return_quantile is not None):
            judged = "judged by success alone" if cfg.success else "kept"
            text += f"; {self.cut.episodes} without their beginning ({self.cut.rows} transitions) are {judged}"
        return text

    @property
    def nothing_known_passes(self) -> bool:
        """Whether every finished episode is left out, so that only unfinished ones are learned from."""
        return self.left_out.episodes == self.finished.episodes > 0 and self.unfinished.episodes > 0


def filter_outcome(datasets: Sequence[DistillationDataset], table: EpisodeTable, bad: torch.Tensor) -> FilterOutcome:
    """Count the episodes and transitions of some datasets, taken together.

    Args:
        datasets: With ``track_episodes``; an episode may have transitions in several.
        table: The episodes that have ended.
        bad: Numbers of those that the filter leaves out. Shape: (num_left_out,).
    """
    chunks = [dataset.episode[: dataset.num_chunks] for dataset in datasets if dataset.episode is not None]
    highest = max((int(chunk.max()) for chunk in chunks if chunk.numel()), default=-1)
    rows = torch.zeros(highest + 2, dtype=torch.int64)
    for chunk in chunks:
        for numbers in chunk:  # a chunk at a time: no second copy of everything
            rows += torch.bincount(numbers.flatten().long() + 1, minlength=highest + 2).cpu()
    rows = rows[1:]  # number -1 is padding

    def share(chosen: torch.Tensor) -> Share:
        return Share(int((rows[chosen] > 0).sum()), int(rows[chosen].sum()))

    def marked(numbers: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(highest + 1, dtype=torch.bool)
        mask[numbers[numbers <= highest].long()] = True
        return mask

    ended = marked(table.number)
    return FilterOutcome(share(ended), share(marked(bad)), share(~ended), share(marked(table.number[~table.whole])))
