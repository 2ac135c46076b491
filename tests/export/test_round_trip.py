"""Round trips: every policy file of the tests and of the package, written as RSL-RL 5 and as ONNX and read again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import foundation
from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import LoadedPolicy, Overrides
from foundation.core.errors import UserError
from foundation.export.bundle import make_bundle
from foundation.export.formats import export

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

sys.path[:0] = [str(HERE.parent / "checkpoints")]

from exported import STUDENTS, save_student, student  # noqa: E402
from rsl_rl_cases import VERSIONS, cases  # noqa: E402
from test_other_libraries import CASES, checkpoint_in  # noqa: E402
from written_once import of_library, of_release  # noqa: E402

TESTS = HERE.parent
ROOT = TESTS.parent
SHIPPED = Path(foundation.__file__).resolve().parent / "assets" / "teachers"
FOLDERS = (
    TESTS / "checkpoints" / "data", TESTS / "checkpoints" / "published-raptor", TESTS / "golden" / "fixtures", SHIPPED,
)  # fmt: skip
STEPS, ENVS = 30, 5
TOLERANCE = 1e-6


def policy_files() -> dict[str, Path]:
    """Return every policy that is kept in the repository, by its place."""
    found: dict[str, Path] = {}
    for folder in FOLDERS:
        for path in sorted(folder.rglob("*")):
            is_policy = path.suffix in (".pt", ".pth", ".zip", ".h5") and path.name not in ("expected.pt", "shard.pt")
            if is_policy and "dataset" not in path.parts:
                found[str(path.relative_to(folder.parent if folder != SHIPPED else SHIPPED.parent))] = path
    return found


FILES = policy_files()
RSL_RL = "rsl_rl"
ONNX = "onnx"
CLIPPED = "observations that are clipped as they are normalised"
SHAPED = "actions that are squashed, or bounded each by its own range"
DISCRETE = "discrete actions"
WHY_NOT = {
    "data/rl_games-1.6.5/clipped/nn/case.pth": SHAPED,
    "data/rl_games-1.6.5/discrete/nn/case.pth": DISCRETE,
    "data/rl_games-1.6.5/gru_first/nn/case.pth": CLIPPED,
    "data/rl_games-1.6.5/separate/nn/case.pth": CLIPPED,
    "data/sb3-contrib-2.9.2/ars_mlp/model.zip": SHAPED,
    "data/sb3-contrib-2.9.2/qrdqn/model.zip": DISCRETE,
    "data/sb3-contrib-2.9.2/recurrent_deep/model.zip": SHAPED,
    "data/sb3-contrib-2.9.2/sac_sde/model.zip": SHAPED,
    "data/skrl-1.4.3/normalized/checkpoints/agent_8.pt": CLIPPED,
    "data/skrl-1.4.3/shared/checkpoints/agent_8.pt": CLIPPED,
    "data/skrl-2.1.1/categorical/checkpoints/agent_8.pt": DISCRETE,
    "data/skrl-2.1.1/squashed/checkpoints/agent_8.pt": SHAPED,
    "data/skrl-2.1.1/states/checkpoints/agent_8.pt": CLIPPED,
    "data/stable-baselines3-2.9.2/dqn/model.zip": DISCRETE,
    "data/stable-baselines3-2.9.2/normalized/model.zip": SHAPED,
    "data/stable-baselines3-2.9.2/ppo/model.zip": SHAPED,
    "published-raptor/checkpoint.h5": "dense layers before the recurrent ones",
    "fixtures/student_gru.pt": "no network like student 'gru'",
    "teachers/cartpole/teacher.zip": DISCRETE,
    "teachers/half_cheetah/teacher.zip": CLIPPED,
    "teachers/pong/teacher.zip": DISCRETE,
}  # fmt: skip
"""File -> what RSL-RL's networks lack, as it is refused; all others are written."""
STUDENTS_THAT_RSL_RL_HAS = ("mlp", "gaussian")


def flown(policy: LoadedPolicy) -> torch.Tensor:
    """Return bounded actions over a flight with resets of part of the environments."""
    network = policy.network
    clip = policy.info.clip_actions
    generator = torch.Generator().manual_seed(11)
    obs = torch.randn(STEPS, ENVS, network.num_obs, generator=generator)
    resets = torch.rand(STEPS, ENVS, generator=generator) < 0.1
    resets[0] = True
    state = network.initial_state(ENVS)
    actions = []
    with torch.no_grad():
        for given, begins in zip(obs, resets, strict=True):
            state = network.reset_state(state, begins)
            output, state = network.step(given, state)
            actions.append(output.mean if clip is None else output.mean.clamp(-clip, clip))
    return torch.stack(actions)


def written(policy: LoadedPolicy, folder: Path, name: str) -> LoadedPolicy:
    """Write a policy in a format and read it again."""
    (done,) = export(make_bundle(policy), folder / name, [name])
    return load_policy(done.files[0], Overrides())


def same(policy: LoadedPolicy, other: LoadedPolicy) -> None:
    """Assert that two policies give the same actions to 1e-6, in units of the largest where that is above 1."""
    expected = flown(policy)
    limit = TOLERANCE * max(1.0, float(expected.abs().max()))
    assert float((flown(other) - expected).abs().max()) <= limit


def round_trip(policy: LoadedPolicy, folder: Path, why_not_rsl_rl: str | None) -> None:
    """Write as ONNX and as RSL-RL 5, read again, and compare; or find the one line that says why not."""
    same(policy, written(policy, folder, ONNX))
    if why_not_rsl_rl is None:
        same(policy, written(policy, folder, RSL_RL))
        return
    with pytest.raises(UserError, match=why_not_rsl_rl) as error:
        written(policy, folder, RSL_RL)
    assert "\n" not in str(error.value)
    assert not (folder / RSL_RL).exists()


@pytest.mark.parametrize("name", FILES)
def test_every_kept_policy(name, tmp_path):
    """Each file of the repository, whichever library wrote it, acts the same after a round trip."""
    round_trip(load_policy(FILES[name], Overrides()), tmp_path, WHY_NOT.get(name))


def test_the_list_of_refusals_is_of_files_that_exist():
    """A file that has gone, or a new one, is noticed."""
    assert set(WHY_NOT) <= set(FILES)
    assert len(FILES) >= 28
    libraries = {path.parts[-1] for path in (TESTS / "checkpoints" / "data").iterdir()}
    assert {name.split("/")[1] for name in FILES if name.startswith("data/")} == libraries


@pytest.mark.parametrize("case", STUDENTS)
def test_every_student(case, tmp_path):
    """Each kind of student is read again as ONNX with its initial memory, and as RSL-RL where that has the network."""
    path = save_student(student(case), tmp_path / f"{case}.pt", clip_actions=0.7 if case == "mlp" else None)
    round_trip(load_policy(path, Overrides()), tmp_path, None if case in STUDENTS_THAT_RSL_RL_HAS else "RSL-RL")


def test_a_choice_is_read_as_one(tmp_path):
    """A discrete policy's ONNX file is a discrete policy again, with its scores; the user may say they are Q-values."""
    for case, choices in (("discrete", 5), ("several-choices", [3, 1, 4])):
        network = student(case)
        policy = load_policy(save_student(network, tmp_path / f"{case}.pt"), Overrides())
        (done,) = export(make_bundle(policy), tmp_path / case, [ONNX])
        read = load_policy(done.files[0], Overrides())
        assert read.info.num_choices == choices
        obs = torch.randn(7, network.num_obs)
        assert torch.allclose(read.network.step(obs)[0].logits, network.step(obs)[0].logits, atol=1e-5)
        assert load_policy(done.files[0], Overrides(outputs="q_values")).info.distribution == "q-values"


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_every_release_of_rsl_rl(version, tmp_path_factory, tmp_path):
    """Checkpoints of every release from 2.3.3, and what it exports, become RSL-RL 5's with the same actions."""
    written_by_it = of_release(tmp_path_factory, "write_rsl_rl_checkpoints.py", version)
    for case in cases(version):
        place = written_by_it / case.name
        why_not = "RSL-RL" if case.distribution.startswith(("beta", "heteroscedastic")) else None
        round_trip(load_policy(place / "model_7.pt", Overrides()), tmp_path / case.name, why_not)
        script = place / "exported" / "policy.pt"
        if script.exists():
            round_trip(load_policy(script, Overrides()), tmp_path / f"{case.name}_script", why_not)


RSL_RL_HAS = {("skrl-1.4.3", "plain"), ("skrl-2.1.1", "plain"), ("skrl-2.1.1", "states_only"),
              ("stable-baselines3-2.9.2", "default")}  # fmt: skip
"""Cases of other libraries whose networks RSL-RL has too; the others are refused with what it lacks."""


@pytest.mark.slow
@pytest.mark.parametrize("library", CASES)
def test_every_case_of_every_library(library, tmp_path_factory, tmp_path):
    """What skrl, rl_games and Stable-Baselines3 write here and now acts the same after a round trip."""
    place = of_library(tmp_path_factory, library)
    for case in CASES[library]:
        policy = load_policy(checkpoint_in(place / case), Overrides())
        why_not = None if (library, case) in RSL_RL_HAS else r"RSL-RL has no network like this policy \(\w+"
        round_trip(policy, tmp_path / "written" / case, why_not)
