"""Labelled transitions on the compute device: preallocated, a ring of chunks over (time, env)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from foundation.core.errors import UserError
from foundation.core.text import quoted
from foundation.dataset.memory import check_memory, empty_pinned, located
from foundation.dataset.prefetch import deliver
from foundation.dataset.sampling import ActiveDraws, draw_minibatches
from foundation.dataset.spec import BufferSpec
from foundation.dataset.transition import DTYPES, TARGET_FIELDS, Batch, make_batch, with_images
from foundation.policies.output import PolicyOutput

__all__ = ["DTYPES", "TARGET_FIELDS", "Batch", "BufferSpec", "DistillationDataset"]

GATHERED_ROWS = 16384
"""Transitions that are gathered at once, for several small batches together."""
GATHERED_BYTES = 1 << 25
"""Most bytes of images, as float32, that are gathered at once; a batch may have more."""


class DistillationDataset:
    """A ring of whole chunks, each ``chunk_steps`` env steps of every environment.

    The student's observation and the teacher's targets are columns of one matrix (see :class:`BufferSpec`), so
    that a batch is one gather. A chunk never spans the write head: it is written step by step with :meth:`write` after
    :meth:`begin_chunk`, and counts from :meth:`commit_chunk` on.

    Args:
        spec: Shapes, types and size.
        device: Where the transitions live.
        compute_device: Where batches go; None: where the transitions live. Transitions on the host are then kept in
            pinned memory where there is a GPU, and the next batch is on its way while one is learned from.
        seed: Seed of the sampling.

    Raises:
        UserError: If the storage would not fit the device's free memory, or there is no such device.
    """

    def __init__(
        self,
        spec: BufferSpec,
        device: str | torch.device = "cpu",
        compute_device: str | torch.device | None = None,
        seed: int = 0,
    ):
        self.spec = spec
        self.num_obs = spec.num_obs
        self.num_envs = spec.num_envs
        self.chunk_steps = spec.chunk_steps
        self.sequence_length = spec.sequence_length
        self.dtype = spec.torch_dtype
        self.eviction = spec.eviction
        self._newest_epochs: int | None = None
        self._epoch_starts: list[int] = []
        """How many chunks had been written when each epoch began, of those that the ring may still hold."""
        self.num_teachers = spec.num_teachers
        self.columns = spec.columns
        self.images = spec.images
        self.row_size = spec.row_size
        self.rows_per_chunk = spec.rows_per_chunk
        self.max_chunks = spec.max_chunks
        self._sizes = [columns.stop - columns.start for columns in self.columns.values()]
        self.device = located(device)
        self.compute_device = self.device if compute_device is None else located(compute_device)
        check_memory(spec.num_bytes, self.device)

        shape = (self.max_chunks, spec.chunk_steps, spec.num_envs)
        # All floating-point columns in one matrix: a minibatch is one gather instead of one for each column, which is
        # what a small student's update otherwise spends its time on.
        self.rows = empty_pinned((*shape, self.row_size), self.dtype, self.device, self.compute_device)
        self.typed = {
            name: empty_pinned((*shape, *column.shape), column.torch_dtype, self.device, self.compute_device)
            for name, column in spec.typed.items()
        }
        self.resets = torch.empty(shape, dtype=torch.bool, device=self.device)
        """Whether a step begins an episode. Shape of this and of the next: (max_chunks, chunk_steps, num_envs)."""
        self.teacher_index = None
        if spec.num_teachers > 1:
            self.teacher_index = torch.empty(shape, dtype=torch.int32, device=self.device)
        self.episode = None
        if spec.track_episodes:
            self.episode = torch.full(shape, -1, dtype=torch.int32, device=self.device)
        self.weights = torch.ones(shape, device=self.device) if spec.weighted else None
        self.base_weights: torch.Tensor | None = None
        """Weights that a loaded dataset came with: the episode filter multiplies them by 0 or 1."""
        self.active: torch.Tensor | None = None
        """How often each chunk and environment is drawn, see :meth:`activate`. None: all alike."""
        self.states = None
        if spec.state_size:
            sequences = spec.chunk_steps // spec.sequence_length
            self.states = torch.empty(self.max_chunks, sequences, spec.num_envs, spec.state_size, device=self.device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.num_chunks = 0
        self.chunks_written = 0
        self.chunks_evicted = 0
        self._cursor = 0
        self._chunk = 0
        self._chunk_rows = self.rows[0].unbind(0)
        self._chunk_resets = self.resets[0].unbind(0)

    def __len__(self) -> int:
        """Return the number of stored transitions."""
        return self.num_chunks * self.rows_per_chunk

    @property
    def capacity(self) -> int:
        """Maximum number of transitions."""
        return self.max_chunks * self.rows_per_chunk

    @property
    def num_bytes(self) -> int:
        """Size of the whole storage when full [bytes]."""
        return self.spec.num_bytes

    @property
    def gathered_rows(self) -> int:
        """Most transitions that are gathered at once: those with images are large."""
        pixels = self.spec.obs_size - self.num_obs if self.images else 0
        return min(GATHERED_ROWS, max(1, GATHERED_BYTES // (4 * pixels))) if pixels else GATHERED_ROWS

    def column(self, name: str) -> torch.Tensor:
        """Return a column of the whole storage, as it is stored. Shape: (max_chunks, chunk_steps, num_envs, ...)."""
        return self.typed[name] if name in self.typed else self.rows[..., self.columns[name]]

    # -- writing ------------------------------------------------------------------------------------------------

    def begin_epoch(self) -> None:
        """Note that the chunks from here on are of another epoch than those before (see :meth:`draw_newest`)."""
        self._epoch_starts.append(self.chunks_written)
        lost = self.chunks_written - self.max_chunks
        while len(self._epoch_starts) > 1 and self._epoch_starts[1] <= lost:
            del self._epoch_starts[0]

    def begin_chunk(self) -> int:
        """Begin the next chunk and return its index in the buffer; the chunk that was there is lost."""
        if self.num_chunks < self.max_chunks:
            self._chunk = self.num_chunks
        elif self.eviction == "oldest":
            self._chunk = self.chunks_written % self.max_chunks
        else:
            self._chunk = int(torch.randint(self.max_chunks, (1,), generator=self.generator, device=self.device))
        # Views of each step, made once: to index at every step costs as much as what is written.
        self._chunk_rows = self.rows[self._chunk].unbind(0)
        self._chunk_resets = self.resets[self._chunk].unbind(0)
        # Another chunk may have been there, whose choice of environments and weights must not apply to this one.
        self.activate([self._chunk], None)
        for weights in (self.weights, self.base_weights):
            if weights is not None:
                weights[self._chunk] = 1.0
        return self._chunk

    def write(
        self,
        step: int,
        obs: torch.Tensor,
        targets: PolicyOutput | None,
        resets: torch.Tensor,
        teacher_index: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        extra: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Write one env step of the chunk begun last.

        Args:
            step: Step within the chunk.
            obs: The student's observations, images flattened behind what is flat. Shape: (num_envs, num_obs), or that
                of the column ``obs``.
            targets: The teacher's outputs at them, the observation group to predict among them (``estimate``); every
                stored field must be there. None: they follow by :meth:`write_targets`, but for ``estimate``, which is
                in ``extra``.
            resets: Whether this step begins an episode. Shape: (num_envs,).
            teacher_index: Each transition's teacher. Shape: (num_envs,).
            state: The student's memory before this step; stored if a training sequence begins here. Shape: (num_envs,
                state_size).
            extra: Further columns by name. Shape of each: (num_envs, then the shape of the column).
        """
        row = self._chunk_rows[step]
        if targets is None or self.dtype != obs.dtype or self.device != obs.device or self.typed:
            self._write_parts(row, step, obs, targets, extra or {})
        else:
            # The usual case writes the step in one kernel, straight into the storage.
            parts = [obs] + [getattr(targets, name) for name in TARGET_FIELDS if name in self.columns]
            torch.cat(parts, dim=-1, out=row)
        self._chunk_resets[step].copy_(resets)
        if self.teacher_index is not None and teacher_index is not None:
            self.teacher_index[self._chunk, step].copy_(teacher_index)
        self.write_state(step, state)

    def step_rows(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where a step of the chunk begun last is kept, (num_envs, row_size), and its resets (num_envs,)."""
        return self._chunk_rows[step], self._chunk_resets[step]

    def write_state(self, step: int, state: torch.Tensor | None) -> None:
        """Write the student's memory before a step, (num_envs, state_size), if a training sequence begins there."""
        if self.states is not None and state is not None and step % self.sequence_length == 0:
            self.states[self._chunk, step // self.sequence_length].copy_(state)

    def write_index(self, first: int, num_steps: int, index: torch.Tensor) -> None:
        """Write the same teachers for several env steps of the chunk begun last. Shape of ``index``: (num_envs,)."""
        if self.teacher_index is not None:
            self.teacher_index[self._chunk, first : first + num_steps] = index.to(torch.int32)

    def _write_parts(
        self,
        row: torch.Tensor,
        step: int,
        obs: torch.Tensor,
        targets: PolicyOutput | None,
        extra: Mapping[str, torch.Tensor],
    ) -> None:
        """Write one step part by part: for other types, another device, or targets that are written later."""
        parts = {**self._split_images(obs), **extra}
        if targets is not None:
            parts |= {name: getattr(targets, name) for name in self.spec.target_names}
        missing = set(self.typed) - set(parts) - set(self.spec.target_names)
        if missing:
            raise ValueError(f"the dataset keeps '{sorted(missing)[0]}', which this step does not have")
        for name, part in parts.items():
            if name in self.columns:
                row[:, self.columns[name]].copy_(part)
            else:
                self.typed[name][self._chunk, step].copy_(part)

    def _split_images(self, obs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the flat part of observations, if there is any, and each image in its shape."""
        if not self.images:
            return {"obs": obs}
        shapes = [self.spec.typed[name].shape for name in self.images]
        flat, *images = obs.split([self.num_obs, *(math.prod(shape) for shape in shapes)], dim=-1)
        parts = {"obs": flat} if self.num_obs else {}
        named = zip(self.images, shapes, images, strict=True)
        return parts | {name: image.unflatten(-1, shape) for name, shape, image in named}

    def write_targets(self, first: int, targets: PolicyOutput, chunk: int | None = None) -> None:
        """Write the teacher's outputs of several env steps of a chunk.

        Args:
            first: The first step within the chunk.
            targets: Shape of each field: (num_steps, num_envs, size).
            chunk: Its index in the buffer. None: the chunk begun last.
        """
        chunk = self._chunk if chunk is None else chunk
        steps = slice(first, first + len(targets.mean))
        for name in self.spec.target_names:
            if name == "estimate":
                continue  # no teacher's output: it was written with the step
            if name in self.columns:
                self.rows[chunk, steps, :, self.columns[name]].copy_(getattr(targets, name))
            else:
                self.typed[name][chunk, steps].copy_(getattr(targets, name))

    def newest_chunks(self) -> Iterator[int]:
        """Return the indices of the stored chunks, the newest first (in any order where random ones are evicted)."""
        for age in range(1, self.num_chunks + 1):
            yield (self.chunks_written - age) % self.max_chunks

    def commit_chunk(self) -> None:
        """Count the chunk written last."""
        if self.num_chunks < self.max_chunks:
            self.num_chunks += 1
        else:
            self.chunks_evicted += 1
        self.chunks_written += 1

    def draw_newest(self, num_epochs: int | None) -> None:
        """Draw minibatches from the chunks of that many epochs, the newest; None: from all. Older ones stay stored.

        All are drawn from while fewer epochs have begun, and where random chunks are evicted, whose age is not known.
        """
        self._newest_epochs = num_epochs

    def _num_drawn(self) -> int:
        """Return how many chunks, the newest, minibatches are drawn from."""
        epochs, starts = self._newest_epochs, self._epoch_starts
        if epochs is None or epochs > len(starts) or self.eviction != "oldest":
            return self.num_chunks
        return min(self.num_chunks, self.chunks_written - starts[-epochs])

    def clear(self) -> None:
        """Forget every transition (on-policy learning)."""
        # Nothing is zeroed: transitions that are not counted are not drawn, and will be overwritten.
        self.num_chunks = self.chunks_written = self._cursor = 0
        self._epoch_starts = []

    def activate(self, chunks: list[int], envs: torch.Tensor | None) -> None:
        """Choose the environments that some chunks are drawn from; transitions of the others keep their place.

        Args:
            chunks: Their indices in the buffer.
            envs: How often each environment is drawn from (0 to 255). Shape: (num_envs,). None: all alike.
        """
        if self.active is None:
            if envs is None:
                return
            self.active = torch.ones(self.max_chunks, self.num_envs, dtype=torch.uint8, device=self.device)
        index = torch.tensor(chunks, dtype=torch.int64, device=self.device)
        self.active[index] = 1 if envs is None else envs.to(self.device, torch.uint8)

    def chunk_obs(self, chunk: int) -> torch.Tensor:
        """Return a chunk's flat observations, those of weight 0 left out. Shape: (num_transitions, num_obs)."""
        if "obs" in self.columns or "obs" in self.typed:
            obs = self.column("obs")[chunk].flatten(0, 1)
        else:
            obs = self.rows[chunk, ..., :0].flatten(0, 1)
        if self.weights is not None:
            obs = obs[self.weights[chunk].flatten() > 0]
        return obs.to(self.compute_device)

    def chunk_batch(self, chunk: int, envs: slice = slice(None)) -> Batch:
        """Return a chunk as one sequence, on the compute device.

        Args:
            chunk: Its index in the buffer.
            envs: Its environments.
        """
        row = self.rows[chunk, :, envs].float()
        parts = {name: row[..., part] for name, part in self.columns.items()}
        parts |= {name: column[chunk, :, envs] for name, column in self.typed.items()}
        state = None if self.states is None else self.states[chunk, 0, envs]
        weights = None if self.weights is None else self.weights[chunk, :, envs]
        batch = make_batch(parts, weights, self.resets[chunk, :, envs], state)
        [moved] = deliver(iter([batch]), self.device, self.compute_device)
        return with_images(moved, self.images)

    # -- reading ------------------------------------------------------------------------------------------------

    def flat_minibatches(self, batch_size: int, num_batches: int, shuffle: bool = True) -> Iterator[Batch]:
        """Draw transitions uniformly from the whole dataset, without replacement until all have been drawn.

        Args:
            batch_size: Transitions per batch.
            num_batches: How many batches.
            shuffle: False goes through the transitions in order of storage, from where the last call stopped.

        Returns:
            Batches with ``obs`` of shape (batch_size, num_obs), on the compute device.
        """
        return self._delivered(self._flat(batch_size, num_batches, shuffle))

    def _delivered(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Return batches on the compute device; images are copied as bytes, and made floats there."""
        moved = deliver(batches, self.device, self.compute_device)
        return (with_images(batch, self.images) for batch in moved) if self.images else moved

    def _flat(self, batch_size: int, num_batches: int, shuffle: bool) -> Iterator[Batch]:
        weights = None if self.weights is None else self.weights.view(-1)
        # A gather of a few thousand transitions costs little more than one of 256, so that small batches share one.
        together = max(1, self.gathered_rows // batch_size)
        for index in self._draw(self.chunk_steps, batch_size, num_batches, shuffle).split(together):
            flat = index.flatten()
            parts = {name: part.unbind() for name, part in self._gather(flat, index.shape).items()}
            weight = [None] * len(index) if weights is None else weights.index_select(0, flat).view_as(index).unbind()
            for number, own in enumerate(weight):
                yield make_batch({name: part[number] for name, part in parts.items()}, own)

    def _gather(self, index: torch.Tensor, shape: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return each column of some transitions, numbered through all chunks. Shape of each: (*shape, ...)."""
        parts: dict[str, torch.Tensor] = {}
        if self.columns:
            rows = self.rows.view(-1, self.row_size).index_select(0, index).float().view(*shape, self.row_size)
            parts = dict(zip(self.columns, rows.split(self._sizes, dim=-1), strict=True))
        for name, column in self.typed.items():
            own = column.shape[3:]
            parts[name] = column.view(-1, *own).index_select(0, index).view(*shape, *own)
        return parts

    def sequence_minibatches(self, batch_size: int, num_batches: int, shuffle: bool = True) -> Iterator[Batch]:
        """Draw sequences of ``sequence_length`` consecutive steps of one environment.

        Args:
            batch_size: Sequences per batch.
            num_batches: How many batches.
            shuffle: False goes through the sequences in order of storage.

        Returns:
            Batches with ``obs`` of shape (sequence_length, batch_size, num_obs), with ``resets`` and, where the
            student's memory is stored, ``state``; on the compute device.
        """
        return self._delivered(self._sequences(batch_size, num_batches, shuffle))

    def _sequences(self, batch_size: int, num_batches: int, shuffle: bool) -> Iterator[Batch]:
        for index in self._draw(self.chunk_steps // self.sequence_length, batch_size, num_batches, shuffle):
            yield self._sequence_batch(index)

    def _sequence_batch(self, sequences: torch.Tensor) -> Batch:
        """Return some sequences, numbered by chunk, time and environment. Shape: (batch_size,)."""
        length = self.sequence_length
        envs = self.num_envs
        steps = torch.arange(length, device=self.device).unsqueeze(1) * envs
        first = torch.div(sequences, envs, rounding_mode="floor") * (length * envs) + sequences % envs
        # Time is the first dimension of a batch and environments are neighbours in storage, hence the stride.
        index = (first + steps).view(-1)
        parts = self._gather(index, (length, len(sequences)))
        resets = self.resets.view(-1).index_select(0, index).view(length, -1)
        weights = None
        if self.weights is not None:
            weights = self.weights.view(-1).index_select(0, index).view(length, -1)
        state = None
        if self.states is not None:
            state = self.states.view(-1, self.states.shape[-1]).index_select(0, sequences)
        return make_batch(parts, weights, resets, state)

    def chunk_batches(self, chunks: Sequence[int]) -> Iterator[Batch]:
        """Return all transitions of some chunks, a batch for each chunk (with images several): flat, or sequences.

        Args:
            chunks: Their indices in the buffer.

        Returns:
            Batches as of :meth:`flat_minibatches`, or of :meth:`sequence_minibatches`, on the compute device.
        """
        return self._delivered(self._chunk_batches(chunks))

    def _chunk_batches(self, chunks: Sequence[int]) -> Iterator[Batch]:
        items = self.num_envs * (self.chunk_steps // self.sequence_length)
        most = max(1, self.gathered_rows // self.sequence_length) if self.images else items
        weights = None if self.weights is None else self.weights.view(-1)
        every = [torch.arange(chunk * items, (chunk + 1) * items, device=self.device) for chunk in chunks]
        for index in (part for whole in every for part in whole.split(most)):
            if self.sequence_length > 1:
                yield self._sequence_batch(index)
            else:
                own = None if weights is None else weights.index_select(0, index)
                yield make_batch(self._gather(index, (len(index),)), own)

    def _draw(self, per_env: int, batch_size: int, num_batches: int, shuffle: bool) -> torch.Tensor:
        """Draw transitions or sequences, numbered by chunk, time and environment, in that order.

        ``per_env`` is the number of them that an environment has in a chunk.

        Shape: (num_batches, batch_size).
        """
        active = None
        num_chunks = self._num_drawn()
        first = (self.chunks_written - num_chunks) % self.max_chunks if num_chunks < self.num_chunks else 0
        num_items = num_chunks * self.num_envs * per_env
        if self.active is not None:
            rows = (torch.arange(num_chunks, device=self.device) + first) % self.max_chunks
            active = ActiveDraws(self.active[rows], per_env)
            num_items = len(active)
        if num_items == 0:
            raise ValueError("The dataset is empty: collect before learning.")
        total = batch_size * num_batches
        if shuffle:
            index = draw_minibatches(num_items, num_batches, batch_size, self.generator, self.device).view(-1)
        else:
            index = (torch.arange(total, device=self.device) + self._cursor) % num_items
            self._cursor = (self._cursor + total) % num_items
        index = index if active is None else active.indices(index)
        if first:
            items = self.num_envs * per_env
            index = (index + first * items) % (self.max_chunks * items)
        return index.view(num_batches, batch_size)

    # -- saving -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state of sampling and eviction, without the transitions."""
        return {
            "num_chunks": self.num_chunks,
            "chunks_written": self.chunks_written,
            "chunks_evicted": self.chunks_evicted,
            "epoch_starts": list(self._epoch_starts),
            "cursor": self._cursor,
            "generator": self.generator.get_state(),
            "shape": [self.max_chunks, self.chunk_steps, self.num_envs, self.row_size],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            UserError: If the dataset was of another shape.
        """
        shape = [self.max_chunks, self.chunk_steps, self.num_envs, self.row_size]
        if list(state["shape"]) != shape:
            what = ("chunks: dataset.size", "steps of a chunk: dataset.chunk_steps", "environments: --num_envs")
            what = (*what, "columns: observation groups, losses, --save_dataset")
            pairs = zip(state["shape"], shape, what, strict=True)
            differ = ", ".join(f"{old} instead of {new} {name}" for old, new, name in pairs if old != new)
            raise UserError(
                f"The run to resume had a dataset of other sizes ({differ}): resume with the same settings."
            )
        numbers = [state[name] for name in ("num_chunks", "chunks_written", "chunks_evicted", "cursor")]
        starts = state.get("epoch_starts", [])  # runs of an earlier version did not save them
        # The file may be corrupt: a cursor beyond the end would fail only much later.
        whole = all(type(number) is int and number >= 0 for number in [*numbers, *starts])
        if not whole or numbers[0] > self.max_chunks or numbers[3] > math.prod(shape[:3]):
            raise UserError(f"The run to resume has a corrupt dataset: {quoted(numbers)} of {shape[0]} chunks.")
        self.num_chunks = state["num_chunks"]
        self.chunks_written = state["chunks_written"]
        self.chunks_evicted = state["chunks_evicted"]
        self._epoch_starts = list(starts)
        self._cursor = state["cursor"]
        self.generator.set_state(state["generator"])
