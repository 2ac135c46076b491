"""Several processes: what one tells the others arrives in all of them, and so does what stops one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks

from foundation.core.distributed import ALONE, ProcessGroup, Ranks, current, joined
from foundation.core.errors import RunInterrupted, UserError


def stops(ranks: Ranks, error: Exception | None) -> str:
    """Return what stops a process where one has raised an error, or nothing."""

    def work() -> int:
        if error is not None:
            raise error
        return ranks.rank

    try:
        return str(ranks.together(work))
    except (UserError, RunInterrupted) as raised:
        return f"{type(raised).__name__}: {raised}"


def exchange(ranks: Ranks) -> dict[str, Any]:
    """Do once whatever processes can do together."""
    rank = ranks.rank
    last = rank == ranks.world_size - 1
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, float(rank + 1))
    own = {"number": rank, "tensor": torch.arange(rank + 1), "none": None, "list": [1.5, "x"]}
    found: dict[str, Any] = {
        "joined": current() is ranks,
        "gathered": ranks.gather(own),
        "to_first": ranks.gather_to_first(rank),
        "first": ranks.from_first(lambda: f"from {rank}"),
        "any": [ranks.any_of(""), ranks.any_of("SIGTERM" if last else "")],
        "total": ranks.total([1, rank]),
        "mean": ranks.mean_(torch.tensor([2.0 * rank])),
        "speaks": [ranks.speaks("one"), ranks.speaks("one"), ranks.speaks(f"own {rank}"), ranks.speaks("")],
        "fine": stops(ranks, None),
        "one error": stops(ranks, UserError("no disk") if last else None),
        "same error": stops(ranks, UserError("no teacher")),
        "interrupted": stops(ranks, RunInterrupted("SIGTERM") if last else None),
        "error and signal": stops(ranks, UserError("no disk") if last else RunInterrupted("SIGINT")),
    }
    ranks.share_modules([layer])
    found["shared"] = layer.weight.detach()
    try:
        ranks.from_first(lambda: 1 // 0 if rank else _raise())
    except UserError as error:
        found["first's error"] = str(error)
    return found


def _raise() -> int:
    raise UserError("no folder")


def test_what_one_process_tells_arrives_in_all(tmp_path: Path) -> None:
    """Values, sums and means are the same in all; what stops one stops all, an error before a signal."""
    results = on_ranks(exchange, 2, tmp_path)
    for rank, found in enumerate(results):
        assert found["joined"]
        assert [part["number"] for part in found["gathered"]] == [0, 1]
        assert [part["tensor"].tolist() for part in found["gathered"]] == [[0], [0, 1]]
        assert all(part["none"] is None and part["list"] == [1.5, "x"] for part in found["gathered"])
        assert found["to_first"] == ([0, 1] if rank == 0 else [])
        assert found["first"] == "from 0"
        assert found["any"] == ["", "SIGTERM"]
        assert found["total"] == [2.0, 1.0]
        assert found["mean"].tolist() == [1.0]
        assert found["fine"] == "[0, 1]"
        assert found["one error"] == "UserError: process 1: no disk"
        assert found["same error"] == "UserError: no teacher"
        assert found["interrupted"] == "RunInterrupted: SIGTERM"
        assert found["error and signal"] == "UserError: process 1: no disk"
        assert found["shared"].tolist() == [[1.0, 1.0], [1.0, 1.0]]
        assert found["first's error"] == "no folder"
        assert found["speaks"][1:] == [False, True, False]
    assert sorted(found["speaks"][0] for found in results) == [False, True]


def test_a_run_in_one_process_has_nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torchrun --nproc_per_node=1`` joins nobody; tensors stay the same objects and nothing is sent."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined() as ranks:
        assert ranks is ALONE and current() is ALONE
        tensor = torch.ones(2)
        assert ranks.sum_(tensor) is tensor and ranks.mean_(tensor) is tensor
        assert ranks.gather(tensor)[0] is tensor
        assert (ranks.share_of(7), Ranks(1, 4).share_of(9)) == (7, 3)
        with pytest.raises(RunInterrupted):
            ranks.together(lambda: (_ for _ in ()).throw(RunInterrupted("SIGINT")))


@pytest.mark.parametrize(
    ("variables", "message"),
    [({}, "WORLD_SIZE is not set"), ({"WORLD_SIZE": "2", "RANK": "x"}, "RANK is 'x', it must be a number")],
)
def test_variables_that_torchrun_did_not_set(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says which is missing or wrong."""
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        ProcessGroup()


def test_each_process_takes_its_own_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is for all; of CUDA devices each takes that of its number, and too few are one line."""
    group = ProcessGroup.__new__(ProcessGroup)
    group.local_rank = 1
    group.local_world_size = 2
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (group.place("cpu"), group.place("cuda:0")) == ("cpu", "cuda:1")
    assert chosen == [1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"2 processes on this machine and 1 CUDA devices.*--nproc_per_node=1"):
        group.place("cuda:0")
