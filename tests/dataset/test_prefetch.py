"""Rows on the host, minibatches on the device that learns."""

from __future__ import annotations

import pytest
import torch

from foundation.dataset.build import where_it_fits
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.dataset.memory import empty_pinned
from foundation.dataset.prefetch import Prefetcher, deliver
from foundation.dataset.transition import Batch
from foundation.policies.output import PolicyOutput

CPU = torch.device("cpu")


def batches(number: int, log: list[int]):
    for i in range(number):
        log.append(i)
        yield Batch(torch.full((2, 3), float(i)), PolicyOutput(torch.full((2, 1), -float(i))), resets=torch.ones(2))


@pytest.mark.parametrize("number", [0, 1, 5])
def test_every_minibatch_comes_once_in_order_and_one_is_fetched_ahead(number):
    """While minibatch i is learned from, minibatch i + 1 is on its way, and no other."""
    log: list[int] = []
    seen = []
    for batch in Prefetcher(batches(number, log), CPU):
        seen.append(int(batch.obs[0, 0]))
        assert len(log) == min(number, len(seen) + 1)
        assert float(batch.targets.mean[0, 0]) == -seen[-1]
        assert batch.weights is None and batch.targets.std is None and batch.resets is not None
    assert seen == list(range(number)) == log


def test_nothing_is_in_the_way_where_the_rows_live_on_the_device():
    """The minibatches themselves are handed on."""
    source = batches(3, [])
    assert deliver(source, CPU, CPU) is source
    assert isinstance(deliver(source, CPU, torch.device("meta")), Prefetcher)


def test_the_same_minibatches_come_through_the_prefetcher(monkeypatch):
    """Fetching ahead changes no draw: bit for bit what the dataset draws itself."""
    drawn = []
    for prefetched in (False, True):
        dataset = DistillationDataset(BufferSpec(2, 4, 64, {"mean": 1}, chunk_steps=4, sequence_length=2), seed=3)
        dataset.rows.copy_(torch.arange(dataset.rows.numel()).view_as(dataset.rows))
        dataset.resets.zero_()
        dataset.num_chunks = dataset.max_chunks
        if prefetched:
            monkeypatch.setattr("foundation.dataset.dataset.deliver", lambda source, *_: Prefetcher(source, CPU))
        flat = list(dataset.flat_minibatches(6, 4))
        drawn.append([*flat, *dataset.sequence_minibatches(3, 2)])
    for one, two in zip(*drawn, strict=True):
        assert torch.equal(one.obs, two.obs) and torch.equal(one.targets.mean, two.targets.mean)


def test_storage_stays_on_the_host_where_the_device_is_too_small(monkeypatch, caplog):
    """A GPU with less free memory than the rows take leaves them on the host, and that is said."""
    caplog.set_level("INFO", logger="foundation")
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (10**9, 10**10))
    gpu = torch.device("cuda:0")
    assert where_it_fits(10**9, gpu) == gpu and not caplog.text
    assert where_it_fits(2 * 10**9, gpu) == CPU
    assert "kept in host memory" in caplog.text
    assert where_it_fits(10**15, CPU) == CPU


def test_without_pinned_memory_it_still_works(monkeypatch, caplog):
    """Where the system gives none, ordinary memory is taken and it is said."""

    def refuse(*_: object, **options: object) -> torch.Tensor:
        if options.pop("pin_memory", False):
            raise RuntimeError("no pinned memory here")
        return torch.zeros(3)

    monkeypatch.setattr(torch, "empty", refuse)
    assert len(empty_pinned((3,), torch.float32, CPU, torch.device("cuda:0"))) == 3
    assert "transfers are slower" in caplog.text


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_host_rows_reach_the_gpu_as_they_are():
    """Pinned rows, minibatches on the GPU, bit for bit those of a dataset on the host alone; writing works too."""
    drawn = []
    for compute in ("cpu", "cuda:0"):
        dataset = DistillationDataset(
            BufferSpec(20, 64, 8192, {"mean": 4}, chunk_steps=4), compute_device=compute, seed=1
        )
        generator = torch.Generator().manual_seed(0)
        for _ in range(dataset.max_chunks):
            dataset.begin_chunk()
            for step in range(4):
                values = torch.randn(64, 24, generator=generator).to(compute)
                dataset.write(step, values[:, :20], PolicyOutput(values[:, 20:]), values[:, 0] > 0)
            dataset.commit_chunk()
        assert dataset.rows.is_pinned() == (compute != "cpu")
        out = []
        for batch in dataset.flat_minibatches(512, 40):
            assert batch.obs.device.type == compute.partition(":")[0]
            out.append((batch.obs @ batch.obs.T).sum() * 0 + batch.obs)  # work that is still going on
        drawn.append(torch.stack(out).cpu())
    assert torch.equal(*drawn)
