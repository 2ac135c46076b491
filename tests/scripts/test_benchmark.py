"""The benchmark runs at tiny sizes, and its rules do what they say."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rsl_rl.models import MLPModel
from rsl_rl.runners import DistillationRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import benchmark
from benchmarks import common, figure, last_percent, ours, race, simulator, snapshots, stock, sweep
from benchmarks.snapshots import Snapshot, SnapshotRecorder, Trace

from foundation.tasks.quadrotor.env_cfg import InitCfg, QuadcopterPointCtrlEnvCfg


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """An untrained RSL-RL checkpoint of the shipped teacher's form."""
    torch.manual_seed(0)
    obs = common.make_env(2, "cpu", seed=0).get_observations()
    distribution = {"class_name": "GaussianDistribution", "init_std": 0.1}
    actor = MLPModel(obs, {"actor": ["policy"]}, "actor", 4, [32], "elu", True, distribution)
    critic = MLPModel(obs, {"critic": ["policy"]}, "critic", 1, [32], "elu", True)
    path = tmp_path_factory.mktemp("teacher") / "model_1.pt"
    state = {"actor_state_dict": actor.state_dict(), "critic_state_dict": critic.state_dict()}
    torch.save({**state, "optimizer_state_dict": {}, "iter": 1, "infos": None}, path)
    (path.parent / "params").mkdir()
    (path.parent / "params" / "agent.yaml").write_text(
        "actor: {activation: elu}\ncritic: {activation: elu}\n", encoding="utf-8"
    )
    return path


def trace(*points: tuple[float, float]) -> Trace:
    """A run whose snapshots were taken at these times with these ratios; wall is twice CPU, 1000 env steps a second."""
    made = [Snapshot(at, 2 * at, round(1000 * at), {}, ratio) for at, ratio in points]
    return Trace("made up", 0, 10.0, made)


@pytest.mark.slow
def test_quick_run_writes_json_and_figure_and_names_no_host(teacher, tmp_path, capsys, monkeypatch):
    """``--quick`` measures its parts, writes strict JSON and a PNG, and gives away neither host nor folders.

    The sweep of students with memory, which is the other sweep with other settings, is left out: it takes a minute.
    """
    parts = [part for part in benchmark.PARTS if part != "sweep_memory"]
    few = dict(list(last_percent.CANDIDATES.items())[:3])
    monkeypatch.setattr(last_percent, "CANDIDATES", few)  # each is a training
    out = tmp_path / "docs" / "benchmark"
    arguments = ["--quick", "--seeds", "1", "--sweep_seeds", "1", "--episodes", "8", "--parts", *parts]
    assert benchmark.main([*arguments, "--teacher", str(teacher), "--out", str(out)]) == 0
    text = out.with_suffix(".json").read_text(encoding="utf-8")
    result = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert {"ours", "isaaclab_like"} < set(result["distill"]["runs"])
    assert all(run["seeds"][0]["curve"] for run in result["distill"]["runs"].values())
    assert math.isclose(sum(result["breakdown"]["shares"]["shares"].values()), 1.0, rel_tol=1e-6)
    learning = result["breakdown"]["learning"]
    assert math.isclose(learning["share"], learning["bare loop"] / learning["learner"]) and learning["learner"] > 0.0
    assert result["simulator"][0]["per_cpu_second"] > 0
    assert "ours" in result["memory"]["runs"] and len(result["memory"]["runs"]) > 1 and len(result["kinds"]) == 7
    assert next(iter(result["last_percent"]["runs"])) == "base"
    epoch = result["raptor"]["epochs"][0]
    assert epoch["transitions"] == 2 * 10 * 20 and epoch["student_parameters"] == 2084
    parts = sum(epoch[name] for name in ("rollout", "labelling", "training", "rest"))
    assert math.isclose(parts, epoch["epoch_seconds"], rel_tol=1e-6)
    assert result["dataset"]["identical_after_kill_and_resume"]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in text and str(Path(__file__).parents[2]) not in text
    assert "Simulator" in capsys.readouterr().out


def test_first_reach_and_settling():
    """A level is reached at the first snapshot on it, and settled where no later one is below."""
    hit = snapshots.reached(trace((1.0, 0.5), (2.0, 0.96), (3.0, 0.94), (4.0, 0.97), (5.0, 0.975)))
    assert hit["0.95"] == {
        "cpu_seconds": 2.0,
        "wall_seconds": 4.0,
        "env_steps": 2000,
        "settled_cpu_seconds": 4.0,
        "settled_env_steps": 4000,
    }
    assert hit["0.98"] is None


def test_a_run_that_ends_below_never_settled():
    """Whoever ends below a level has reached it but not settled."""
    hit = snapshots.reached(trace((1.0, 0.99), (2.0, 0.9)))["0.98"]
    assert hit is not None and hit["cpu_seconds"] == 1.0 and hit["settled_cpu_seconds"] is None


def test_the_median_counts_a_miss_as_later_than_all():
    """One miss in three leaves the slower of the two hits as the median; two misses leave none."""
    fast, slow, never = trace((1.0, 0.99)), trace((1.0, 0.1), (3.0, 0.99)), trace((1.0, 0.1))
    median = race.median_reached([fast, never, slow])["0.98"]
    assert median is not None and median["cpu_seconds"] == 3.0
    assert race.median_reached([fast, never, never])["0.98"] is None


def test_ratios_are_theirs_over_ours():
    """A ratio above 1 says that the other one took longer."""
    runs = {"ours": {"median": race.median_reached([trace((1.0, 0.99))])}}
    runs["other"] = {"median": race.median_reached([trace((1.0, 0.96), (4.0, 0.99))])}
    ratio = race.ratios(runs)["other"]
    assert ratio["0.95"]["cpu_seconds"] == 1.0
    assert ratio["0.98"]["cpu_seconds"] == 4.0 and ratio["0.98"]["env_steps"] == 4.0


def test_a_miss_is_worse_than_any_hit_in_the_sweep():
    """The sweep's score counts a miss as twice the budget, on both levels."""
    assert math.isclose(sweep.badness([trace((1.0, 0.1))]), 20.0)
    assert math.isclose(sweep.badness([trace((1.0, 0.96), (4.0, 0.99))]), 2.0)


def test_both_sweeps_are_of_the_same_size():
    """Each side gets as many tries as the other."""
    ours = sweep.our_axes()
    assert sum(map(len, ours.values())) == sum(map(len, sweep.STOCK_AXES.values()))
    assert len(ours) == len(sweep.STOCK_AXES)


def test_a_snapshot_is_a_copy_and_its_taking_is_free():
    """Weights that change afterwards do not change the snapshot, and the clock stands while it is taken."""
    weights = {"w": torch.zeros(1)}
    clock, run = common.Clock("cpu"), Trace("x", 0, budget=60.0)

    def burn_time() -> int:
        torch.rand(600, 600) @ torch.rand(600, 600)
        return 7

    recorder = SnapshotRecorder(run, clock, lambda: weights, burn_time)
    recorder.next = 0.0
    clock.start()
    before = clock.cpu
    recorder.next = 1e-9
    recorder()
    weights["w"] += 1.0
    assert run.snapshots[0].weights["w"].item() == 0.0 and run.snapshots[0].env_steps == 7
    assert clock.cpu - before == pytest.approx(run.snapshots[0].cpu)


def test_the_budget_ends_a_run():
    """When the training time is over, the next snapshot is the last."""
    run = Trace("x", 0, budget=0.0)
    clock = common.Clock("cpu")
    recorder = SnapshotRecorder(run, clock, dict, lambda: 0)
    recorder.next = 1e-9
    clock.start()
    with pytest.raises(snapshots.BudgetSpentError):
        recorder()
    assert len(run.snapshots) == 1


def test_rsl_rl_gets_the_student_and_teacher_that_we_get(teacher):
    """The same layers, inputs and teacher weights on both sides."""
    weights = stock.train(stock.TUNED.changed(num_envs=8), teacher, "cpu", 0, budget=0.0).snapshots[0].weights
    assert [tuple(w.shape) for n, w in weights.items() if n.endswith("weight")] == [(64, 22), (64, 64), (4, 64)]
    obs = common.make_env(16, "cpu", seed=3).get_observations()
    runner, _ = ours.build({"num_envs": 8}, teacher, "cpu", seed=0)
    assert sorted(tuple(p.shape) for p in runner.student.parameters() if p.dim() == 2) == [(4, 64), (64, 22), (64, 64)]
    theirs = DistillationRunner(common.make_env(16, "cpu", 3), stock.runner_cfg(stock.TUNED, teacher), None, "cpu")
    theirs.load(str(teacher))
    with torch.no_grad():
        torch.testing.assert_close(runner.teacher.step(obs["policy"], None)[0].mean, theirs.alg.teacher(obs))


def test_an_environment_can_be_compiled():
    """The one without the group that nobody reads has an ``observe`` of its own, which is not compiled."""
    assert common.make_env(2, "cpu", seed=0, compiled=True).num_envs == 2
    assert "l2f" not in common.make_env(2, "cpu", seed=0).get_observations()


def test_the_environment_counts_transitions_and_offers_only_what_is_read():
    """Four environments, three steps: twelve transitions; two observation groups."""
    env = common.make_env(4, "cpu", seed=0)
    for _ in range(3):
        obs = env.step(torch.zeros(4, 4))[0]
    assert env.env_steps == 12
    assert set(obs.keys()) == {"policy", "deployable"}


def test_the_figure_holds_the_last_snapshot():
    """Between snapshots the last one counts; before the first and after the last there is nothing."""
    import numpy as np

    grid = np.array([0.5, 1.0, 1.9, 2.0, 2.5])
    values = figure.curve_on_grid([trace((1.0, 0.2), (2.0, 0.6))], grid, lambda snapshot: snapshot.cpu)
    np.testing.assert_array_equal(values, [[np.nan, 0.2, 0.2, 0.6, np.nan]])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_rollout_equals_stepping():
    """A replayed CUDA graph leaves the environment where as many eager steps leave it."""
    cfg = QuadcopterPointCtrlEnvCfg(init=InitCfg(at_target=1.0, rotor_speed=(0.75, 0.85)))  # nobody ends: no new draws
    cfg.scene.num_envs, cfg.sim.device = 8, "cuda:0"
    captured, stepped = common.BenchEnv(cfg), common.BenchEnv(cfg)
    replay, steps = simulator.graph(captured)
    start = captured.state_dict()
    replay()
    stepped.load_state_dict(start)
    actions = torch.full((8, 4), simulator.HOVER, device="cuda:0")
    for _ in range(steps):
        stepped.step(actions)
    torch.testing.assert_close(captured.state, stepped.state)
    assert not torch.equal(captured.state, start["tensors"]["_state"].to("cuda:0"))


def test_quick_figures_do_not_replace_the_published_ones():
    """Unless they are asked to."""
    assert benchmark.parse([]).out == Path("docs/results/benchmark")
    assert benchmark.parse(["--quick"]).out == Path("logs/quick/benchmark")
    assert benchmark.parse(["--quick", "--out", "docs/results/benchmark"]).out == Path("docs/results/benchmark")


def test_bad_numbers_are_refused(capsys):
    """Zero seeds is one line."""
    assert benchmark.main(["--seeds", "0"]) == 2
    error = capsys.readouterr().err
    assert "at least 1" in error and len(error.splitlines()) == 1


def nothing_is_measured(*_: object) -> None:
    pytest.fail("measured before everything was checked")


def test_a_missing_matplotlib_is_said_first_with_its_extra(tmp_path, monkeypatch, capsys):
    """Without matplotlib the part that draws is refused before it measures; the others run without it."""
    find_spec = importlib.util.find_spec
    hidden = lambda name, *rest: None if name == "matplotlib" else find_spec(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    monkeypatch.setattr(benchmark.Benchmark, "measure", nothing_is_measured)
    assert benchmark.main(["--parts", "distill", "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert "matplotlib" in error and "pip install -e '.[bench]'" in error and len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    benchmark.check(benchmark.parse(["--parts", "simulator", "--out", str(tmp_path / "x")]))


def test_a_place_that_cannot_be_written_is_said_first(tmp_path, monkeypatch, capsys):
    """A file where the folder should be, or a folder where the figure should be: one line, exit code 2."""
    monkeypatch.setattr(benchmark.Benchmark, "measure", nothing_is_measured)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "x.png").mkdir()
    for out in (tmp_path / "file" / "x", tmp_path / "x"):
        assert benchmark.main(["--parts", "distill", "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert str(out) in error and "cannot write" in error and len(error.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "x.json").exists()


def test_the_check_leaves_earlier_figures(tmp_path):
    """What an earlier benchmark wrote is there until the first seed of the next one is measured."""
    out = tmp_path / "x"
    out.with_suffix(".json").write_text("{}")
    benchmark.check(benchmark.parse(["--parts", "distill", "--out", str(out)]))
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"] and out.with_suffix(".json").read_text() == "{}"


def test_a_race_that_was_cut_off_goes_on_with_the_next_run(tmp_path, monkeypatch):
    """When a run fails, the JSON has all before it; ``--resume`` runs only what is missing, and no other settings."""
    ran: list[tuple[str, int]] = []

    def fake(bench, name, setting, seed, budget, **options):
        if len(ran) == fails_at:
            raise RuntimeError("the machine went away")
        ran.append((name, seed))
        made = trace((1.0 + seed, 0.96), (2.0 + seed, 0.985))
        return Trace(name, seed, budget, made.snapshots, {"cpu": 0.1, "wall": 0.1})

    monkeypatch.setattr(race.Bench, "run", fake)
    monkeypatch.setattr(race.Bench, "warm_up", lambda *_: None)
    monkeypatch.setattr(figure, "draw", lambda traces, *_, **__: drawn.append(traces))
    drawn: list[dict[str, list[Trace]]] = []
    out = ["--out", str(tmp_path / "x"), "--swept", str(tmp_path / "none.json")]
    arguments = ["--quick", "--parts", "distill", "--seeds", "2", "--episodes", "2", *out]
    fails_at = 4
    with pytest.raises(RuntimeError, match="went away"):
        benchmark.run(benchmark.parse(arguments))
    runs = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["distill"]["runs"]
    assert {name: [seed["seed"] for seed in one["seeds"]] for name, one in runs.items()} == {
        "ours": [0, 1],
        "isaaclab_like": [0],
        "centre": [0],
    }
    fails_at = -1
    benchmark.run(benchmark.parse([*arguments, "--resume"]))
    assert ran[4:] == [("isaaclab_like", 1), ("centre", 1)]
    result = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["distill"]
    assert result["runs"]["ours"]["range"]["0.98"]["settled_env_steps"] == [2000, 3000]
    assert [one.snapshots[0].cpu for one in drawn[0]["ours"]] == [1.0, 2.0]
    benchmark.run(benchmark.parse([*arguments, "--resume"]))
    assert len(ran) == 6
    monkeypatch.setattr(stock, "ISAACLAB_LIKE", stock.ISAACLAB_LIKE.changed(num_steps=60))
    benchmark.run(benchmark.parse([*arguments, "--resume"]))
    assert ran[6:] == [("isaaclab_like", 0), ("isaaclab_like", 1)]


def test_the_rivals_are_those_that_the_sweep_found(tmp_path):
    """The settings that were first at each level, with names that say them; the same setting once."""
    row = lambda changes, low, high: {  # noqa: E731
        "changes": changes,
        "median": {"0.95": low and {"cpu_seconds": low}, "0.98": high and {"cpu_seconds": high}},
    }
    rows = [row({}, 1.0, None), row({"num_steps": 12}, 0.7, 0.9), row({"learning_rate": 2e-3}, 0.4, 1.6)]
    found = sweep.best_found((stock.TUNED, rows))
    assert found == {"0.95": stock.TUNED.changed(learning_rate=2e-3), "0.98": stock.TUNED.changed(num_steps=12)}
    assert sweep.best_found((stock.TUNED, rows[:2])) == {"0.98": stock.TUNED.changed(num_steps=12)}
    assert sweep.best_found((stock.TUNED, [row({}, None, None)])) == {}
    swept = tmp_path / "swept.json"
    swept.write_text(json.dumps({"sweep": {"rsl_rl": {"rows": rows}}}))
    args = benchmark.parse(["--parts", "distill", "--out", str(tmp_path / "x"), "--swept", str(swept)])
    rivals = benchmark.Benchmark(args, print).rivals("distill")
    assert list(rivals) == ["ours", "isaaclab_like", "best_0.95", "best_0.98"]
    assert rivals["best_0.98"].label == "RSL-RL, best found to 98 %: 256 x 12, 2 passes, rate 0.001, std 0.1"
    # A second sweep around the first one's best: what it found to 98 % is faster, and to 95 % it is not.
    centre = json.loads(json.dumps(race.describe(stock.TUNED.changed(learning_rate=2e-3))))
    refined = {"base": centre, "rows": [row({}, 0.5, 1.5), row({"num_envs": 64}, 0.6, 0.8)]}
    swept.write_text(json.dumps({"sweep": {"rsl_rl": {"rows": rows}}, "refine": refined}))
    rivals = benchmark.Benchmark(args, print).rivals("distill")
    assert rivals["best_0.95"].setting == stock.TUNED.changed(learning_rate=2e-3)
    assert rivals["best_0.98"].setting == stock.TUNED.changed(learning_rate=2e-3, num_envs=64)


def test_both_sweeps_with_memory_are_of_the_same_size():
    """Each side gets as many tries as the other, around the setting that it raced with before."""
    (base, ours_axes), (theirs, stock_axes) = sweep.sides_with_memory().values()
    assert [len(values) for values in ours_axes.values()] == [len(values) for values in stock_axes.values()]
    assert base == {"experiment": "fast_gru", "student": "gru"} and theirs == stock.TUNED_GRU
    assert all(getattr(theirs, axis) not in values for axis, values in stock_axes.items())


def test_the_candidates_for_the_last_percent_can_be_built(teacher):
    """Every change is one that the preset takes."""
    from benchmarks import last_percent

    for changes in last_percent.CANDIDATES.values():
        ours.settings(changes)


@pytest.mark.slow
def test_a_small_dataset_takes_what_it_announced_and_survives_a_kill(tmp_path):
    """A dataset of 60 MB: resident memory as announced within 5 %; killed while saving, resumed and bit-identical."""
    code = (
        "import sys, json, torch; torch.set_num_threads(1); from benchmarks import dataset; "
        "before = dataset.resident_bytes(); "
        "made = dataset.DistillationDataset(dataset.BufferSpec(26, 1024, 524_288, {'mean': 4}, chunk_steps=32)); "
        "made.rows.fill_(1.0); made.resets.fill_(True); "
        "fresh = (dataset.resident_bytes() - before) / made.num_bytes; "
        "print(json.dumps(dataset.dataset(500_000, 1024, 0.3) | {'fresh': fresh}))"
    )
    scripts = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(scripts), str(scripts / "scripts")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert 0.95 < result["fresh"] < 1.05
    assert result["identical_after_kill_and_resume"]
    assert 0 < result["chunks_listed_when_killed"] < result["chunks"]
    assert all(row["share"] > 0.4 for row in result["sampling"]), "beside other tests; the benchmark measures it"
    assert result["offline_cpu_seconds"] > 0
