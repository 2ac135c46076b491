"""What a filter of episodes did, in numbers: how much it left out, and what became of episodes without an outcome."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from foundation.config.distillation_cfg import EpisodeFilterCfg
from foundation.dataset.dataset import DistillationDataset
from foundation.dataset.episode_table import EpisodeTable


class Share(NamedTuple):
    """Some of the episodes of a dataset."""

    episodes: int
    rows: int


class FilterOutcome(NamedTuple):
    """The episodes that have rows in a dataset, by what the filter knows of them."""

    finished: Share
    """Whose outcome is known."""
    left_out: Share
    """Of those, the ones that do not pass: their rows have weight 0."""
    unfinished: Share
    """Whose outcome is not known, because they have not ended: they pass."""
    cut: Share
    """Of those that are finished, the ones whose beginning was another policy's: only ``success`` is asked of them."""

    def line(self, cfg: EpisodeFilterCfg) -> str:
        """Say it to people.

        Args:
            cfg: What the filter asks for.
        """
        text = (
            f"Filter: {self.left_out.episodes} of {self.finished.episodes} finished episodes are left out "
            f"({self.left_out.rows} of {self.finished.rows} rows); {self.unfinished.episodes} unfinished ones "
            f"({self.unfinished.rows} rows) are kept, as their outcome is not known"
        )
        if self.cut.episodes and (cfg.min_length is not None or cfg.return_quantile is not None):
            judged = "judged by success alone" if cfg.success else "kept"
            text += f"; {self.cut.episodes} without their beginning ({self.cut.rows} rows) are {judged}"
        return text

    @property
    def nothing_known_passes(self) -> bool:
        """Whether all that is learned from has no outcome."""
        return self.left_out.episodes == self.finished.episodes > 0 and self.unfinished.episodes > 0


def filter_outcome(datasets: Sequence[DistillationDataset], table: EpisodeTable, bad: torch.Tensor) -> FilterOutcome:
    """Count the episodes and rows of some datasets, taken together.

    Args:
        datasets: With ``track_episodes``; an episode may have rows in several.
        table: The episodes that have ended.
        bad: Numbers of those that the filter leaves out. Shape: (num_left_out,).
    """
    chunks = [dataset.episode[: dataset.num_chunks] for dataset in datasets if dataset.episode is not None]
    highest = max((int(chunk.max()) for chunk in chunks if chunk.numel()), default=-1)
    rows = torch.zeros(highest + 2, dtype=torch.int64)
    for chunk in chunks:
        for numbers in chunk:  # a chunk at a time: no second copy of everything
            rows += torch.bincount(numbers.flatten().long() + 1, minlength=highest + 2).cpu()
    rows = rows[1:]  # number -1 only fills up

    def share(chosen: torch.Tensor) -> Share:
        return Share(int((rows[chosen] > 0).sum()), int(rows[chosen].sum()))

    def marked(numbers: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(highest + 1, dtype=torch.bool)
        mask[numbers[numbers <= highest].long()] = True
        return mask

    ended = marked(table.number)
    return FilterOutcome(share(ended), share(marked(bad)), share(~ended), share(marked(table.number[~table.whole])))
