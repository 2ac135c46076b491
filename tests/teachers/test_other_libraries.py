"""Checkpoints that the real skrl, rl_games and Stable-Baselines3 write, through TeacherPolicyWrapper."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from foundation.teachers import TeacherPolicyWrapper

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from library_versions import LIBRARIES, run_with_library  # noqa: E402

SHIPPED = HERE / "data"
SCRIPTS = {"skrl": "write_skrl_checkpoints.py", "rl_games": "write_rl_games_checkpoints.py"}
SKRL = ("plain", "normalized", "shared", "options", "squashed", "categorical")
CASES = {
    "skrl-1.4.3": SKRL,
    "skrl-2.1.1": (*SKRL, "states", "states_only"),
    "rl_games-1.6.5": (
        "normalized", "separate", "learned_sigma", "clipped", "wrapped", "deviation", "lstm", "gru_first", "gru_skips",
        "discrete",
    ),
    "stable-baselines3-2.9.2": (
        "ppo", "default", "a2c", "categorical", "dqn", "explores", "squashed", "normalized",
    ),
}  # fmt: skip
ALL = [(library, case) for library in LIBRARIES for case in CASES[library]]
KEPT = [(place.parent.name, place.name) for place in sorted(SHIPPED.glob("*/*"))]


def checkpoint_in(place: Path) -> Path:
    """Return the one checkpoint of a case's folder."""
    (found,) = [
        path for path in place.rglob("*") if path.suffix in (".pt", ".pth", ".zip") and "expected" not in path.name
    ]
    return found


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Return a function of the folder of a library's checkpoints, written on first use by that library."""
    done: dict[str, Path] = {}

    def folder(library: str) -> Path:
        if library not in done:
            place = tmp_path_factory.mktemp("libraries") / library
            script = HERE / SCRIPTS.get(library.split("-")[0], "write_sb3_checkpoints.py")
            run_with_library(library, script, place)
            done[library] = place
        return done[library]

    return folder


def compare(place: Path) -> TeacherPolicyWrapper:
    """Assert that a teacher answers as its library did, over steps with resets, and return it."""
    expected = torch.load(place / "expected.pt")
    teacher = TeacherPolicyWrapper(checkpoint_in(place))
    clip = teacher.clip_actions
    for step, obs in enumerate(expected["obs"]):
        output = teacher.output(obs)
        mean = output.mean if clip is None else output.mean.clamp(-clip, clip)
        assert (mean - expected["actions"][step]).abs().max() <= 1e-5
        for name in ("std", "value"):
            given = getattr(output, name)
            if name in expected and given is not None:
                assert torch.allclose(given, expected[name][step], rtol=1e-5, atol=1e-5), name
        if output.logits is not None:
            differ = output.logits - expected["logits"][step]
            assert (differ - differ[:, :1]).abs().max() <= 1e-5  # logits are known up to a number per row
        teacher.reset(expected["dones"][step])
    resets = torch.cat([torch.zeros_like(expected["dones"][:1]), expected["dones"][:-1]])
    whole = teacher.sequence(expected["obs"], None, resets)[0]
    mean = whole.mean if clip is None else whole.mean.clamp(-clip, clip)
    assert (mean - expected["actions"]).abs().max() <= 1e-5
    return teacher


@pytest.mark.parametrize(("library", "case"), ALL, ids=lambda value: value)
def test_same_actions_as_the_library(written, library, case):
    """Deterministic actions, deviations, values and Q-values equal those of the library itself to 1e-5."""
    compare(written(library) / case)


@pytest.mark.parametrize(("library", "case"), KEPT, ids=lambda value: value)
def test_same_actions_as_shipped(library, case):
    """Files that the libraries have written before give the actions that they gave then, with nothing installed."""
    compare(SHIPPED / library / case)
