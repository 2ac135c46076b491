"""The study of small games: sizes of students, and the page that is written from what is done."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from foundation.core.errors import UserError
from foundation.students import StudentPolicy

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import rusu  # noqa: E402
from small_games.games import num_parameters, width_of  # noqa: E402
from small_games.page import WRITTEN, draw, page, written_part  # noqa: E402


@pytest.mark.parametrize(("num_obs", "width", "num_choices"), [(4, 32, 2), (400, 7, 6), (6, 1, 3)])
def test_parameters_are_those_of_the_student(num_obs, width, num_choices):
    """The formula counts what the student has."""
    student = StudentPolicy(num_obs, 1, hidden_dims=(width, width), num_choices=num_choices)
    assert num_parameters(num_obs, width, num_choices) == sum(p.numel() for p in student.parameters())


@pytest.mark.parametrize("share", [0.25, 0.07, 0.01])
def test_a_width_comes_nearest_to_its_share(share):
    """No width one up or down is nearer to the share of a teacher of 67,586 parameters."""
    width = width_of(share, 4, 2, 67_586)
    off = [abs(num_parameters(4, w, 2) - share * 67_586) for w in (width - 1, width, width + 1)]
    assert off[1] == min(off)


def done_runs() -> dict:
    """Return what a study of two games and three seeds leaves, with one run of each kind of several games."""
    found = {"CartPole-v1": [0.9, 1.0, 0.4], "Acrobot-v1": [0.7, 0.8, 0.75]}
    done: dict = {}
    for game, values in found.items():
        done[f"teacher {game}"] = {"parameters": 1000, "num_obs": 4, "num_choices": 2}
        done[f"starts {game}"] = {"teacher_return": 480.0, "random_return": 20.0}
        for seed, value in enumerate(values):
            ordinary = {"ordinary_score": value / 2, "ordinary_teacher_return": 500.0}
            stage = {"score": value, "parameters": 70, "interval": 0.01 * (seed + 1)} | ordinary
            done[f"compression {game} 0.07 s{seed}"] = stage
            done[f"losses {game} nll s{seed}"] = stage
    for part, shown in (("multi_task", (0.9, 0.4)), ("joint", (1.0, 0.0))):
        tasks = {game: {"score": score} for game, score in zip(found, shown, strict=True)}
        done[f"{part} CartPole-v1+Acrobot-v1 s0"] = {"parameters": 90, "tasks": tasks}
    return done


def test_the_page_has_the_median_and_the_range_of_the_seeds(tmp_path):
    """Of three seeds, and a dash where nothing was run; the picture is written too."""
    done = done_runs()
    text = page(done, "rusu")
    assert "| CartPole-v1 | 4, 2 | 1,000 | - | 500.0 | 480.0 | 20.0 | ± 0.030 |" in text
    assert "| CartPole-v1 | held-out | - | 0.900 (0.400 to 1.000) | - |" in text
    assert "| CartPole-v1 | ordinary | - | 0.450 (0.200 to 0.500) | - |" in text
    cells = "70 parameters: 0.900 (0.400 to 1.000) | 70 parameters: 0.750 (0.700 to 0.800)"
    assert f"| 7 % | {cells} |" in text
    assert "| 25 % |" not in text
    draw(done, tmp_path / "rusu.png")
    assert (tmp_path / "rusu.png").stat().st_size > 1000


def test_the_page_compares_policies_of_several_games():
    """Scores, sizes and geometric means by hand: sqrt(0.9 * 0.4) = 0.6, and sqrt(1 * 0.001) where a game is failed.

    Of one game each, seed by seed: sqrt(0.9 * 0.7) = 0.794, sqrt(1.0 * 0.8) = 0.894 and sqrt(0.4 * 0.75) = 0.548.
    """
    text = page(done_runs(), "rusu")
    assert "| CartPole-v1 | 0.900 (one seed) | 0.900 (0.400 to 1.000) | 1.000 (one seed) |" in text
    assert "| Acrobot-v1 | 0.400 (one seed) | 0.750 (0.700 to 0.800) | 0.000 (one seed) |" in text
    assert "| parameters | 90 | 70 + 70 | 90 |" in text
    assert "| geometric mean | 0.600 (one seed) | 0.794 (0.548 to 0.894) | 0.032 (one seed) |" in text


def test_what_people_wrote_under_the_tables_is_kept(tmp_path):
    """The page is written anew after each run; the part from its last heading on is theirs."""
    path = tmp_path / "rusu.md"
    assert written_part(path) == ""
    path.write_text(f"# Title\n\n| old | table |\n\n{WRITTEN}\n\nNLL did worse.\n")
    assert written_part(path) == f"\n{WRITTEN}\n\nNLL did worse.\n"
    path.write_text("text" + written_part(path))
    assert written_part(path) == f"\n{WRITTEN}\n\nNLL did worse.\n"


def test_runs_of_a_study_differ_in_name_and_cover_every_game(tmp_path):
    """Two games, two seeds: losses and sizes of each, none of them twice."""
    args = rusu.parse(["--games", "CartPole-v1", "Acrobot-v1", "--seeds", "0", "1", "--folder", str(tmp_path)])
    study = rusu.Study(args)
    for game in args.games:
        study.stages.done[f"teacher {game}"] = {"num_obs": 4, "num_choices": 2, "parameters": 67_586}
    names = [name for seed in args.seeds for game in study.games for name, _ in study.runs(game, seed)]
    assert len(names) == len(set(names)) == 2 * 2 * (len(rusu.LOSSES) + len(rusu.SHARES))


def earlier_study(folder: Path, **teacher: object) -> Path:
    """Write the figures of an earlier study, whose CartPole teacher's are changed."""
    figures = done_runs()
    figures["teacher CartPole-v1"] |= teacher
    path = folder / "earlier.json"
    path.write_text(json.dumps(figures))
    return path


def adopting(folder: Path, earlier: Path, *games: str) -> rusu.Study:
    """Return a study whose teachers of some games are those of ``done_runs``, after it has taken up what it can."""
    study = rusu.Study(rusu.parse(["--games", *games, "--folder", str(folder), "--adopt", str(earlier)]))
    for game in study.games:
        for kind in ("teacher", "starts"):
            study.stages.take_up(f"{kind} {game.task}", done_runs()[f"{kind} {game.task}"] | {"sha256": "ab"})
        study.prepare(game)
    return study


def test_runs_of_the_same_teachers_are_taken_up(tmp_path):
    """Those of one game, and those of both once both teachers are known; they are not run again by a later start."""
    earlier = earlier_study(tmp_path, sha256="ab")
    one = adopting(tmp_path / "one", earlier, "CartPole-v1")
    taken = {name for name in done_runs() if " CartPole-v1 " in f"{name} "}
    assert set(one.stages.done) == taken
    assert one.stages.done["losses CartPole-v1 nll s2"]["score"] == 0.4
    adopting(tmp_path / "two", earlier, "CartPole-v1", "Acrobot-v1")
    later = rusu.Study(rusu.parse(["--folder", str(tmp_path / "two")]))
    assert set(later.stages.done) == set(done_runs())


@pytest.mark.parametrize("changed", [{"sha256": "cd"}, {"parameters": 1001}])
def test_students_of_another_teacher_are_not_taken_up(tmp_path, capsys, changed):
    """Of a game whose teacher differs nothing is, nor of several games with it; the rest is, and a line says it."""
    study = adopting(tmp_path / "study", earlier_study(tmp_path, **changed), "CartPole-v1", "Acrobot-v1")
    taken = {name for name in done_runs() if " Acrobot-v1 " in f"{name} "}
    assert set(study.stages.done) == taken | {"teacher CartPole-v1", "starts CartPole-v1"}
    assert "CartPole-v1: " in capsys.readouterr().out.partition("another teacher")[0]


def test_games_that_are_not_begun_are_on_the_page_as_they_were(tmp_path):
    """CartPole's teacher is another: of the earlier study only what is of Acrobot alone is left, on the page only."""
    study = rusu.Study(
        rusu.parse(
            ["--folder", str(tmp_path), "--out", str(tmp_path / "page"), "--adopt", str(earlier_study(tmp_path))]
        )
    )
    study.stages.take_up("teacher CartPole-v1", done_runs()["teacher CartPole-v1"] | {"parameters": 5})
    study.report()
    kept = json.loads((tmp_path / "page.json").read_text())
    assert set(kept) == {name for name in done_runs() if " Acrobot-v1 " in f"{name} "} | {"teacher CartPole-v1"}
    assert set(study.stages.done) == {"teacher CartPole-v1"}


def test_without_a_hash_the_returns_tell_teachers_apart():
    """The last bit of the mean return from held-out starts is enough; a study that has none is another."""
    earlier, done = done_runs(), done_runs()
    assert rusu.same_teacher(earlier, done, "CartPole-v1")
    done["starts CartPole-v1"]["teacher_return"] = 480.0 + 2.0**-40
    assert not rusu.same_teacher(earlier, done, "CartPole-v1")
    del earlier["starts CartPole-v1"]
    assert not rusu.same_teacher(earlier, earlier, "CartPole-v1")


def test_the_hash_is_of_the_weights():
    """Equal for a copy, other for one weight that differs by its last bit and for the same numbers in another shape."""
    layer = torch.nn.Linear(3, 2)
    first = rusu.hash_of_weights(layer)
    assert first == rusu.hash_of_weights(copy.deepcopy(layer))
    other = torch.nn.Linear(2, 3, bias=True)
    assert first != rusu.hash_of_weights(other)
    with torch.no_grad():
        layer.weight[0, 0] = torch.nextafter(layer.weight[0, 0], torch.tensor(9.0))
    assert first != rusu.hash_of_weights(layer)


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": 1}'])
def test_what_is_no_study_is_not_taken_up(tmp_path, text):
    """A file of another kind is one line that names it."""
    path = tmp_path / "earlier.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"--adopt {path}: "):
        rusu.Study(rusu.parse(["--folder", str(tmp_path / "study"), "--adopt", str(path)]))


def test_a_corrupt_file_of_what_is_done_is_one_line(tmp_path):
    """A stages.json that was cut off stops the study before anything is trained, and says what to do."""
    (tmp_path / "stages.json").write_text('{"settings": {"sha')
    with pytest.raises(UserError, match="is corrupt: use another --folder, or remove it"):
        rusu.main(["--folder", str(tmp_path), "--out", str(tmp_path / "page")])
    assert not (tmp_path / "page.md").exists()


def test_a_missing_extra_is_one_line_before_anything_is_trained(tmp_path, monkeypatch):
    """Without Stable-Baselines3 no teacher can be trained."""
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[sb3\]'"):
        rusu.main(["--folder", str(tmp_path), "--out", str(tmp_path / "page"), "--games", "CartPole-v1"])
    assert not list(tmp_path.glob("teacher*"))


def test_a_finished_study_needs_no_extra_and_runs_nothing(tmp_path, monkeypatch):
    """``--report`` writes page, picture and numbers of what is done."""
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    folder = tmp_path / "study"
    stages = {name: {"wall_seconds": 1.0, "cpu_seconds": 1.0} | stage for name, stage in done_runs().items()}
    folder.mkdir()
    (folder / "stages.json").write_text(json.dumps({"settings": {}, "stages": stages, "begun": {}}))
    rusu.main(["--folder", str(folder), "--out", str(tmp_path / "page"), "--report"])
    assert {path.suffix for path in tmp_path.glob("page.*")} == {".md", ".json", ".png"}
    kept = json.loads((tmp_path / "page.json").read_text())
    assert kept["compression CartPole-v1 0.07 s2"]["score"] == 0.4


def test_a_run_that_two_tables_share_is_made_once(tmp_path, monkeypatch):
    """The student of the losses' size with the compression's loss is taken from the losses; other sizes are run."""
    study = rusu.Study(rusu.parse(["--games", "CartPole-v1", "--folder", str(tmp_path)]))
    study.stages.done["losses CartPole-v1 kl s4"] = {"score": 0.5, "wall_seconds": 9.0, "cpu_seconds": 9.0}
    monkeypatch.setattr(study, "distil", lambda game, share, loss, seed: {"run": (share, loss, seed)})
    game = study.games[0]
    assert study.compress(game, rusu.LOSS_SHARE, 4) == {"score": 0.5}
    assert study.compress(game, rusu.LOSS_SHARE, 5) == {"run": (rusu.LOSS_SHARE, "kl", 5)}
    assert study.compress(game, 0.01, 4) == {"run": (0.01, "kl", 4)}


def test_a_score_is_between_random_choices_and_the_teacher(tmp_path):
    """From held-out starts: 0 at random choices' return, 1 at the teacher's, in Acrobot's negative returns too."""
    study = rusu.Study(rusu.parse(["--games", "Acrobot-v1", "--folder", str(tmp_path)]))
    study.stages.done["starts Acrobot-v1"] = {"teacher_return": -80.0, "random_return": -480.0}
    game = study.games[0]
    assert study.scored(game, torch.full((4,), -480.0))["score"] == 0.0
    # The standard deviation of 20 apart, half up and half down, is 10 * sqrt(4 / 3).
    found = study.scored(game, torch.tensor([-190.0, -170.0, -190.0, -170.0]))
    assert found["score"] == 0.75
    assert found["return"] == -180.0
    assert found["interval"] == pytest.approx(1.96 * 10.0 * (4 / 3) ** 0.5 / 2 / 400.0)


def test_a_game_whose_package_is_missing_is_one_line(tmp_path, monkeypatch):
    """MinAtar's games need the extra gymnasium; nothing else is begun before that is said."""
    monkeypatch.delitem(sys.modules, "minatar", raising=False)
    monkeypatch.setattr(rusu.importlib.util, "find_spec", lambda name: None if name == "minatar" else object())
    with pytest.raises(UserError, match=r"--games MinAtar/Breakout-v1: .*pip install -e '\.\[gymnasium\]'"):
        rusu.main(["--folder", str(tmp_path), "--out", str(tmp_path / "page")])
    assert not list(tmp_path.glob("teacher*"))


def test_a_study_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    """What ended before the stop is not run again; the run that was stopped is, and then the others."""
    runs: list[tuple] = []

    def distil(study, game, share, loss, seed):
        runs.append((share, loss, seed))
        if len(runs) == 3:
            raise KeyboardInterrupt
        return {"score": 1.0, "ordinary_score": 1.0, "ordinary_teacher_return": 500.0, "parameters": 70}

    sizes = {"checkpoint": "teacher.zip", "num_obs": 4, "num_choices": 2, "parameters": 67_586}
    monkeypatch.setattr(rusu.Study, "check_packages", lambda study: None)
    monkeypatch.setattr(rusu.Study, "train", lambda study, game: sizes)
    references = {"teacher_return": 480.0, "random_return": 20.0}
    monkeypatch.setattr(rusu.Study, "measure_references", lambda study, game: references)
    monkeypatch.setattr(rusu.Study, "distil", distil)
    words = ["--folder", str(tmp_path / "study"), "--out", str(tmp_path / "page"), "--games", "CartPole-v1"]
    with pytest.raises(KeyboardInterrupt):
        rusu.main([*words, "--seeds", "0"])
    assert runs == [(0.07, "q_mse", 0), (0.07, "nll", 0), (0.07, "kl", 0)]
    rusu.main([*words, "--seeds", "0"])
    assert runs[3:] == [(0.07, "kl", 0), *((share, "kl", 0) for share in rusu.SHARES if share != 0.07)]
    assert "teacher.zip" not in (tmp_path / "page.json").read_text()


def test_sizes_below_a_layer_of_one_unit_are_left_out(tmp_path):
    """Of 400 numbers one unit has at least 401 weights, 0.12 % of the teacher: smaller shares are the same."""
    study = rusu.Study(rusu.parse(["--games", "MinAtar/Breakout-v1", "--folder", str(tmp_path)]))
    study.stages.done["teacher MinAtar/Breakout-v1"] = {"num_obs": 400, "num_choices": 3, "parameters": 337_411}
    game = replace(study.games[0], smallest=0.0)
    assert study.shares(game) == [0.25, 0.07, 0.04, 0.01, 0.003, 0.001]
    assert study.shares(replace(game, smallest=0.01)) == [0.25, 0.07, 0.04, 0.01]
    assert study.width(game, 0.001) == study.width(game, 0.0002) == 1
