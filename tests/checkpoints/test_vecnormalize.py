"""VecNormalize's statistics beside a model of Stable-Baselines3: found in every layout, read without running them."""

from __future__ import annotations

import os
import pickle
import random
import resource
import shutil
import struct
import sys
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from small_teacher import write_teacher

from foundation.checkpoints.reading.inert_pickle import as_array, read_inert
from foundation.checkpoints.reading.vecnormalize import VecNormalizeStatistics
from foundation.core.errors import UserError
from foundation.teachers import TeacherPolicyWrapper

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from test_mutated_checkpoints import Evil, flip_bits, truncate  # noqa: E402
from written_once import of_library  # noqa: E402

CASE = HERE / "data" / "stable-baselines3-2.9.2" / "normalized"
PICKLE, NPZ = CASE / "model_vecnormalize.pkl", CASE / "model_vecnormalize.npz"
LAYOUTS = {
    "rl_zoo": ("Pend-v1_1/Pend-v1.zip", "Pend-v1_1/Pend-v1/vecnormalize"),
    "rl_zoo_best": ("Pend-v1_12/best_model.zip", "Pend-v1_12/Pend-v1/vecnormalize"),
    "rl_zoo_step": ("Pend-v1_1/rl_model_500_steps.zip", "Pend-v1_1/rl_model_vecnormalize_500_steps"),
    "hub": ("a2c-Pend-v1/a2c-Pend-v1.zip", "a2c-Pend-v1/vec_normalize"),
    "hub_folder": ("repo/a2c-Pend-v1.zip", "repo/a2c-Pend-v1/vec_normalize"),
    "beside": ("run/model.zip", "run/model_vecnormalize"),
}


def place(folder: Path, model: str, statistics: str | None, source: Path = PICKLE) -> Path:
    """Copy the model and its statistics into a layout; return the model's path."""
    path = folder / model
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(CASE / "model.zip", path)
    if statistics is not None:
        target = folder / f"{statistics}{source.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    return path


def assert_as_the_library(path: Path) -> None:
    """Assert that a teacher acts as the library did on observations that its own VecNormalize had normalised."""
    expected = torch.load(CASE / "expected.pt")
    teacher = TeacherPolicyWrapper(path)
    for step, obs in enumerate(expected["obs"]):
        assert (teacher.act(obs) - expected["actions"][step]).abs().max() <= 1e-5


@pytest.mark.parametrize("source", [PICKLE, NPZ], ids=["pkl", "npz"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_found_in_every_layout(layout, source, tmp_path):
    """Statistics of rl-zoo's, the hub's and our own layouts, pickled or not, give the library's own actions."""
    path = place(tmp_path, *LAYOUTS[layout], source)
    assert_as_the_library(path)
    assert TeacherPolicyWrapper(path).describe()["obs_normalization"] is True


def test_a_model_without_its_statistics_acts_otherwise(tmp_path):
    """The comparison can fail: without statistics the same weights give other actions."""
    path = place(tmp_path, "run/model.zip", None)
    with pytest.raises(AssertionError):
        assert_as_the_library(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_the_real_library(written_pickles, protocol):
    """A VecNormalize pickled by any protocol has the moments that the library itself says."""
    statistics = VecNormalizeStatistics.read(written_pickles / f"protocol_{protocol}.pkl", 7)
    told = numpy.load(written_pickles.parent / "model_vecnormalize.npz")
    assert torch.equal(statistics.mean, torch.from_numpy(told["mean"]).float())
    assert torch.equal(statistics.var, torch.from_numpy(told["var"]))
    assert (statistics.epsilon, statistics.clip_obs) == (float(told["epsilon"]), float(told["clip_obs"]))


@pytest.mark.parametrize("of_another", ["run/vecnormalize_1000_steps", "run/ppo_vecnormalize_1000_steps"])
def test_statistics_of_the_models_own_step(of_another, tmp_path):
    """Among the statistics of several steps, those of the model's own are taken, whatever stands before the number."""
    path = place(tmp_path, "run/ppo_2000_steps.zip", "run/vecnormalize_2000_steps")
    (tmp_path / f"{of_another}.pkl").write_bytes(b"not read")
    assert_as_the_library(path)


@pytest.mark.parametrize(
    ("model", "statistics"),
    [
        ("run/ppo_2000_steps.zip", "run/ppo_vecnormalize_1000_steps"),
        ("run/models/model.zip", "run/vecnormalize"),
        ("run/model.zip", "run/vec_env"),
        ("run/model.zip", "run/stats/vecnormalize"),
    ],
    ids=["another_step", "folder_above", "another_name", "folder_below"],
)
def test_statistics_that_may_be_the_models(model, statistics, tmp_path):
    """Statistics whose place or step leaves doubt are neither taken nor passed over, and the advice helps."""
    path = place(tmp_path, model, statistics)
    advised = f"{path.stem}_vecnormalize.pkl"
    with pytest.raises(UserError, match=f"copy them to '{advised}'"):
        TeacherPolicyWrapper(path)
    shutil.copy(tmp_path / f"{statistics}.pkl", path.with_name(advised))
    assert_as_the_library(path)


def test_rewards_alone(written_pickles, tmp_path):
    """A VecNormalize that leaves observations alone is no normaliser, and is said to be there."""
    path = place(tmp_path, "run/model.zip", "run/vecnormalize", written_pickles / "rewards_alone.pkl")
    described = TeacherPolicyWrapper(path).describe()
    assert described["obs_normalization"] is False
    assert "rewards alone" in described["normalizer"]


def test_dictionary_of_observations(written_pickles, tmp_path):
    """Statistics of a dictionary of observations are refused in one line."""
    path = place(tmp_path, "run/model.zip", "run/vecnormalize", written_pickles / "dictionary.pkl")
    with pytest.raises(UserError, match="dictionary of observations"):
        TeacherPolicyWrapper(path)


@pytest.fixture(scope="module")
def written_pickles(tmp_path_factory):
    """Return a folder of pickles that the real library has written."""
    return of_library(tmp_path_factory, "stable-baselines3-2.9.2") / "normalized" / "pickles"


def test_statistics_of_another_model_are_not_taken(tmp_path):
    """Where another model's folder holds statistics, a model without any is refused, not taken for a plain one."""
    place(tmp_path, "models/walker.zip", "models/walker/vecnormalize")
    assert_as_the_library(tmp_path / "models" / "walker.zip")
    other = place(tmp_path, "models/runner.zip", None)
    with pytest.raises(UserError, match=r"walker/vecnormalize\.pkl"):
        TeacherPolicyWrapper(other)
    (tmp_path / "models" / "runner").mkdir()  # its own folder says that it has none
    assert TeacherPolicyWrapper(other).describe()["obs_normalization"] is False


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"normalize": True}, True),
        ({"normalize": "{'norm_obs': True, 'norm_reward': False}"}, True),
        ({"normalize": "{'norm_obs': False, 'norm_reward': True}"}, False),
        ({"normalize": {"norm_obs": False}}, False),
        ({"normalize": False}, False),
        ({"n_envs": 4}, False),
        ("!!python/object/apply:collections.OrderedDict\n- - - n_envs\n    - 4\n  - - normalize\n    - true\n", True),
    ],
)
def test_rl_zoos_config_says_that_there_are_statistics(config, refused, tmp_path):
    """A ``config.yml`` of rl-zoo that says ``normalize`` without the statistics is refused, in every form it has."""
    path = place(tmp_path, "Pend-v1_1/Pend-v1.zip", None)
    folder = tmp_path / "Pend-v1_1" / "Pend-v1"
    folder.mkdir()
    (folder / "config.yml").write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    if refused:
        with pytest.raises(UserError, match=r"config\.yml"):
            TeacherPolicyWrapper(path)
    else:
        assert TeacherPolicyWrapper(path).describe()["obs_normalization"] is False


HOSTILE = {
    "ndarray_itself": b"cnumpy\nndarray\n((I100000\nI1000000\ntS'f8'\ntR.",
    "huge_memo": b"\x80\x04N" + b"r" + struct.pack("<I", 0xFFFFFFF0) + b".",
    "huge_bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "huge_bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
    "huge_text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.",
    "huge_frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "many_names": b"\x80\x04" + b"".join(b"cm\nn%d\n0" % index for index in range(5000)) + b"N.",
    "many_lists": b"\x80\x04" + b"]" * 3_000_000 + b".",
    "range": b"cbuiltins\nrange\n(I1000000000000\ntRcbuiltins\nlist\n\x85R.",
    "extension": b"\x80\x04\x82\x01.",
    "persistent": b"Psomewhere\n.",
    "stack": b"\x80\x04.",
    "nothing": b"",
    "text": b"any bytes: only its presence counts",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles(name, tmp_path):
    """A pickle that asks for more than it holds, or for anything else, is one line and takes no memory."""
    path = place(tmp_path, *LAYOUTS["rl_zoo"])
    (tmp_path / "Pend-v1_1" / "Pend-v1" / "vecnormalize.pkl").write_bytes(HOSTILE[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"vecnormalize\.pkl") as refusal:
        TeacherPolicyWrapper(path)
    assert "\n" not in str(refusal.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # [KiB]


@pytest.mark.parametrize("call", [os.mkdir, os.system, eval])
def test_nothing_that_a_pickle_names_runs(call, tmp_path):
    """Code in place of the whole pickle, of its moments or of its numbers does not run."""
    marker = tmp_path / "marker"
    argument = {os.mkdir: str(marker), os.system: f"touch {marker}", eval: f"open({str(marker)!r}, 'w')"}[call]
    path = place(tmp_path, *LAYOUTS["rl_zoo"])
    statistics = tmp_path / "Pend-v1_1" / "Pend-v1" / "vecnormalize.pkl"
    bomb = pickle.dumps(Evil(call, argument), 2)[2:-1]  # without its head and its end
    whole = statistics.read_bytes()
    for content in (b"\x80\x04" + bomb + b".", whole[:-1] + bomb + b"0.", b"\x80\x04" + bomb + b"0" + whole[2:]):
        statistics.write_bytes(content)
        try:
            assert_as_the_library(path)
        except UserError as error:
            assert "\n" not in str(error)
        assert not marker.exists()


@pytest.mark.parametrize("damage", [truncate, flip_bits])
@pytest.mark.parametrize("seed", range(60))
def test_damaged_pickles(damage, seed, tmp_path):
    """Damaged statistics are refused in one line, or change no more than numbers."""
    path = place(tmp_path, *LAYOUTS["beside"])
    (tmp_path / "run" / "model_vecnormalize.pkl").write_bytes(damage(PICKLE.read_bytes(), random.Random(seed)))
    try:
        teacher = TeacherPolicyWrapper(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert teacher.act(torch.zeros(1, 7)).isfinite().all()


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", ">f2", "<i4", "|b1", "|u1"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_are_numpys_own(dtype, order, protocol, tmp_path):
    """Arrays of any plain type, byte order and layout, and scalars, equal those that NumPy itself unpickles."""
    array = numpy.asarray(numpy.arange(12).reshape(3, 4) % 7, dtype=dtype, order=order)
    (tmp_path / "array.pkl").write_bytes(pickle.dumps([array, array[1, 2]], protocol))
    whole, one = read_inert(tmp_path / "array.pkl")
    assert numpy.array_equal(as_array(whole), array.astype(float))
    assert as_array(one) == float(array[1, 2])


@pytest.mark.parametrize(
    "array",
    [
        numpy.array([None, 1]),
        numpy.array(["text"]),
        numpy.array([1j]),
        numpy.zeros(2, dtype=[("a", "f4")]),
        numpy.array(["2020-01-01"], dtype="M8[D]"),
        numpy.longdouble([1]),
    ],
    ids=str,
)
def test_other_arrays_are_refused(array, tmp_path):
    """Objects, text, complex numbers, records, dates and types that differ by machine are no statistics."""
    (tmp_path / "array.pkl").write_bytes(pickle.dumps(array))
    with pytest.raises(ValueError, match="array"):
        as_array(read_inert(tmp_path / "array.pkl"))


def test_shapes_that_the_bytes_do_not_fill(tmp_path):
    """An array that says it is larger than its bytes is refused before anything is allocated."""
    content = pickle.dumps(numpy.zeros((3, 4)), 4)
    forged = content.replace(b"K\x03K\x04\x86", b"K\xffJ\xff\xff\xff\x7f\x86")
    assert forged != content
    (tmp_path / "array.pkl").write_bytes(forged)
    with pytest.raises(ValueError, match="shape"):
        as_array(read_inert(tmp_path / "array.pkl"))


@pytest.mark.parametrize("kind", ["link to nothing", "pipe", "folder", "device", "the kernel's messages"])
def test_statistics_that_cannot_be_read_are_not_left_out(kind, tmp_path):
    """A model beside a link to nothing, as in a cache of which a part was fetched, is refused: it would act raw."""
    path = place(tmp_path, "run/model.zip", None)
    statistics = path.parent / "vecnormalize.pkl"
    if kind == "pipe":
        os.mkfifo(statistics)
    elif kind == "folder":
        statistics.mkdir()
    else:
        statistics.symlink_to({"device": "/dev/zero", "link to nothing": "/nowhere"}.get(kind, "/proc/kmsg"))
    with pytest.raises(UserError, match=r"vecnormalize\.pkl'"):
        TeacherPolicyWrapper(path)


@pytest.mark.parametrize("left_out", [("epsilon",), ("clip_obs",), ("epsilon", "clip_obs")])
def test_options_that_an_npz_does_not_state(left_out, tmp_path, caplog):
    """The library's own epsilon 1e-8 and bound 10 are taken, which is said; the case was trained with those."""
    path = place(tmp_path, "run/model.zip", None)
    with numpy.load(NPZ) as archive:
        held = {name: archive[name] for name in archive.files if name not in left_out}
        own = {"epsilon": 1e-8, "clip_obs": 10.0}
        differs = any(float(archive[name]) != own[name] for name in left_out)
    numpy.savez(tmp_path / "run" / "model_vecnormalize.npz", **held)
    teacher = TeacherPolicyWrapper(path)
    said = " and ".join(f"{name}={own[name]:g}" for name in left_out)
    assert f"taking {said}, which are the library's own" in caplog.text
    statistics = VecNormalizeStatistics.read(tmp_path / "run" / "model_vecnormalize.npz", teacher.num_obs)
    assert all(getattr(statistics, name) == own[name] for name in left_out)
    if not differs:
        assert_as_the_library(path)


class RunningMeanStd:
    """Moments as older libraries keep them: pickled under the name of their own class."""

    def __init__(self, mean: numpy.ndarray, var: numpy.ndarray) -> None:
        self.mean, self.var, self.count = mean, var, 1e-4


def write_moments(path: Path, mean: numpy.ndarray, var: numpy.ndarray) -> None:
    """Write ``obs_rms.pkl`` as ``save_running_average`` of Stable Baselines did."""
    text = pickle.dumps(RunningMeanStd(mean, var), protocol=2)
    own = f"c{RunningMeanStd.__module__}\nRunningMeanStd\n".encode()
    assert own in text
    path.write_bytes(text.replace(own, b"cstable_baselines.common.running_mean_std\nRunningMeanStd\n"))


@pytest.mark.parametrize("name", ["obs_rms.pkl", "ob_rms.pkl", "model/obs_rms.pkl"])
def test_moments_alone(name, tmp_path, caplog):
    """Moments in a file of their own normalise the observations; that their options are the library's is said."""
    path = place(tmp_path, "run/model.zip", None)
    with numpy.load(NPZ) as archive:
        mean, var = archive["mean"], archive["var"]
    target = tmp_path / "run" / name
    target.parent.mkdir(exist_ok=True)
    write_moments(target, mean, var)
    obs = torch.randn(6, len(mean), generator=torch.Generator().manual_seed(3)) * 3
    given = TeacherPolicyWrapper(path).act(obs)
    assert "taking epsilon=1e-08 and clip_obs=10" in caplog.text
    target.unlink()
    normalized = ((obs.double() - torch.from_numpy(mean)) / (torch.from_numpy(var) + 1e-8).sqrt()).clamp(-10, 10)
    assert (given - TeacherPolicyWrapper(path).act(normalized.float())).abs().max() <= 1e-5


def test_moments_alone_that_cannot_be_read(tmp_path):
    """Of another size, of another class, running code or leading nowhere: one line, and nothing runs."""
    path = place(tmp_path, "run/model.zip", None)
    target = tmp_path / "run" / "obs_rms.pkl"
    write_moments(target, numpy.zeros(3), numpy.ones(3))
    with pytest.raises(UserError, match="belongs to another model"):
        TeacherPolicyWrapper(path)
    marker = tmp_path / "marker"
    for value in ({"mean": 1}, Evil(os.mkdir, str(marker))):
        target.write_bytes(pickle.dumps(value))
        with pytest.raises(UserError, match="cannot be read as the pickle"):
            TeacherPolicyWrapper(path)
    assert not marker.exists()
    target.unlink()
    target.symlink_to("gone.pkl")
    with pytest.raises(UserError, match=r"is a link to 'gone\.pkl'"):
        TeacherPolicyWrapper(path)


def test_moments_beside_a_checkpoint_that_has_no_place_for_them(tmp_path, caplog):
    """A policy of PyTorch tensors without a normaliser beside moments: refused, or a warning when not strict."""
    path = write_teacher(tmp_path / "model_5.pt")
    acts = TeacherPolicyWrapper(path).act(torch.ones(2, 26))
    write_moments(tmp_path / "obs_rms.pkl", numpy.zeros(26), numpy.ones(26))
    with pytest.raises(UserError, match=r"has no observation normaliser, but 'obs_rms\.pkl' lies beside it"):
        TeacherPolicyWrapper(path)
    assert torch.equal(TeacherPolicyWrapper(path, strict=False).act(torch.ones(2, 26)), acts)
    assert "lies beside it" in caplog.text
