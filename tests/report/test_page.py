"""The page of runs: what is in it, that nothing in it is markup of a run's files, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from torch.utils.tensorboard.writer import SummaryWriter

from foundation.cli.command import run_command
from foundation.config.distillation_cfg import DistillationCfg, ScheduleCfg
from foundation.config.plain import to_plain
from foundation.core.errors import UserError
from foundation.report.page import make_page, pareto_front
from foundation.report.run_record import RunRecord
from foundation.rsl_rl import report
from foundation.rsl_rl.distillation import compose_configs
from foundation.students import student_cfg_class

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
POINT = {"mean_return": 9.0, "return_interval": 0.5, "success_rate": 1.0, "success_interval": [0.9, 1.0]}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Run in an empty folder: logs/ is looked for there."""
    monkeypatch.chdir(tmp_path)


def make_run(name: str = "2026-01-02_03-04-05_a", student: str = "mlp", text: str = "plain") -> Path:
    """Make the folder of a run that has everything; ``text`` is put wherever a file has text."""
    folder = Path("logs/distillation/exp") / name
    (folder / "params").mkdir(parents=True)
    cfg = DistillationCfg(task="CartPole-v1", run_name=text, n_epochs=7)
    cfg.student = student_cfg_class(student)(name=student)
    cfg.optimizer.lr_schedule = ScheduleCfg("cosine", 1.0, 0.1)
    cfg.loss.auxiliary = {"huber": 0.5}
    cfg.teacher.checkpoint = "a teacher.pt"
    (folder / "params" / "distillation.yaml").write_text(yaml.safe_dump(to_plain(cfg)))
    writer = SummaryWriter(str(folder))
    for step in range(1, 8):
        writer.add_scalar("evaluation/mean_return", float(step), step)
        writer.add_scalar("training/loss", 1.0 / step, step)
    writer.close()
    worst = {"nominal_return": 9.0, "worst_return": 1.5, "worst_at": 2.0, "area_return": 5.0, "worst_success": 0.5}
    summary = {
        "task": text,
        "best_student_return": 9.0,
        "teacher_return": 10.0,
        "return_ratio": 0.9,
        "success_rate": 1.0,
        "baselines": {"teacher": {"mean_return": 10.0}, "zero": {"mean_return": 0.0}, "random": {"mean_return": -1.0}},
        "parameters": {"student": 100 if student == "mlp" else 50, "teacher": 1000},
        "teachers": {"each": {text: {"teacher_return": 10.0, "student_return": 9.0}}},
        "robustness": {"quantities": {text: {"unit": text, "policies": {text: worst, "student": worst}}}},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    curve = {"name": text, "unit": text, "values": [0.0, 2.0], "points": {text: [POINT, POINT]}}
    (folder / "robustness.json").write_text(json.dumps({"curves": [curve], "missing": [text]}))
    (folder / "best_student.pt").write_bytes(b"weights")
    return folder


class Seen(HTMLParser):
    """Collects elements, attributes and text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def page_of(*folders: Path) -> Seen:
    return Seen(make_page([RunRecord.read(folder) for folder in folders]))


def test_a_run_is_shown_whole():
    """Figures, charts, teachers, robustness, commands, configuration, and the files' checksums."""
    folder = make_run()
    seen = page_of(folder)
    for title in ("Learning", "Teachers", "Robustness", "Efficiency", "Commands", "Configuration", "Files"):
        assert title in seen.text
    assert seen.tags.count("svg") == 5
    assert hashlib.sha256(b"weights").hexdigest() in seen.text
    assert "90.00 %" in seen.text and "n_epochs: 7" in seen.text


def test_the_page_needs_no_network_and_runs_no_script():
    """No element and no attribute that loads anything, and a policy that forbids it."""
    seen = page_of(make_run())
    assert not {"script", "iframe", "img", "object", "embed", "form"} & set(seen.tags)
    links = [value for name, value in seen.attributes if name in ("src", "href")]
    assert links == ["data:,"]
    assert any(value is not None and "default-src 'none'" in value for _, value in seen.attributes)


def test_text_of_a_runs_files_is_never_markup():
    """Names of tasks, teachers, quantities, units and policies, settings and notes are shown as they are."""
    folder = make_run(text=EVIL)
    (folder / "exported").mkdir()
    (folder / "exported" / "<b>x.onnx").write_bytes(b"x")
    record = RunRecord.read(folder)
    record.notes.append(EVIL)
    for page in (make_page([record]), make_page([record, record], EVIL)):
        seen = Seen(page)
        assert not {"script", "img", "b>x.onnx"} & set(seen.tags)
        assert not any(name.startswith("on") for name, _ in seen.attributes)
        assert "alert(1)" in seen.text


def test_the_command_gives_the_same_config():
    """What is typed from the page composes to the values of ``distillation.yaml``; quotes are the shell's."""
    for student in ("mlp", "gru"):
        folder = make_run(f"2026-01-02_03-04-05_{student}", student)
        words = shlex.split(RunRecord.read(folder).commands()[0])
        assert words[:2] == ["foundation", "distill"] and "a teacher.pt" in words
        composed = compose_configs([*words[2:], "--device", "cpu"])["distill"]
        saved = yaml.safe_load((folder / "params" / "distillation.yaml").read_text())
        saved["device"] = "cpu"
        differing = {key for key in saved if composed[key] != saved[key]}
        assert differing <= {"experiment_name"}


def test_several_runs_are_compared():
    """A row each, their curves in one chart, and size against score; details of each fold away."""
    seen = page_of(make_run("2026-01-02_03-04-05_a"), make_run("2026-01-02_03-04-06_b", "gru"))
    assert "2 runs" in seen.text and "Size against score" in seen.text
    assert seen.tags.count("details") >= 2
    assert "gru" in seen.text and "1.5" in seen.text


def test_a_column_that_no_run_has_is_left_out():
    """Runs without a study of robustness have no lowest return: the table has no empty column for it."""
    folders = [make_run("2026-01-02_03-04-05_a"), make_run("2026-01-02_03-04-06_b")]
    assert "worst return" in page_of(*folders).text
    for folder in folders:
        summary = json.loads((folder / "summary.json").read_text())
        del summary["robustness"]
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "robustness.json").unlink()
    seen = page_of(*folders)
    assert "worst return" not in seen.text and "of teacher's [%]" in seen.text


def test_many_runs_stay_below_two_megabytes():
    """A sweep of 150 runs has its table; runs beyond the size have no details, and are named."""
    record = RunRecord.read(make_run())
    page = make_page([record] * 150)
    assert len(page.encode()) < 2_000_000
    assert "Without details, as the page would be too large" in page


def test_the_front_is_what_nothing_beats():
    """Small and good: (1, 1), (2, 3), (4, 5); not a worse one of the same size, nor a larger one of the same score."""
    points = [(4.0, 5.0), (1.0, 1.0), (2.0, 3.0), (2.0, 2.0), (3.0, 3.0)]
    assert pareto_front(points) == [1, 2, 0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("summary.json", b'{"task": ', "summary.json' is not readable JSON"),
        ("summary.json", b"\xff\xfe", "summary.json"),
        ("robustness.json", b"[1, ", "robustness.json' is not readable JSON"),
        ("params/distillation.yaml", b"a: [", "distillation.yaml' is not readable YAML"),
        ("events.out.tfevents.9.x", b"\x01" * 64, "is corrupt, or no event file"),
    ],
)
def test_a_damaged_file_is_one_line_and_the_rest_is_shown(name, content, said, monkeypatch):
    """On stderr and in the page; the page is written all the same."""
    folder = make_run()
    (folder / name).write_bytes(content)
    warned: list[str] = []
    monkeypatch.setattr(report.logger, "warning", lambda form, *values: warned.append(form % values))
    assert run_command(report.main, [str(folder)]) == 0
    lines = [line for line in warned if said in line]
    assert len(lines) == 1 and "\n" not in lines[0]
    assert said.split("'")[0] in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    "values", [[], 3, {"curves": 3}, {"curves": [3, {"points": [1]}]}, {"curves": [{"points": {"a": [{}]}}]}]
)
def test_files_of_another_form_are_left_out(values):
    """Whatever JSON is in the place of a study or a summary, the page is written."""
    folder = make_run()
    for name in ("summary.json", "robustness.json", "similarity.json"):
        (folder / name).write_text(json.dumps(values))
    assert "Files" in page_of(folder).text


def test_a_run_without_a_student_says_so():
    """It ended before its first evaluation: one line, and what there is."""
    folder = make_run()
    (folder / "best_student.pt").unlink()
    seen = page_of(folder)
    assert "There is no best_student.pt" in seen.text and "foundation play" not in seen.text


def test_what_is_no_run_is_refused(capsys):
    """A path that is not there, a file, an empty folder, and an output that is a folder: one line each."""
    Path("empty").mkdir()
    Path("file").write_text("x")
    folder = make_run()
    for argv, said in [
        (["nowhere"], "no run in logs/distillation matches"),
        (["file"], "'file' is a file: give the folder of a run"),
        (["empty"], "'empty' holds no run"),
        ([str(folder), "--output", "empty"], "--output empty is a folder: name a file in it"),
    ]:
        assert run_command(report.main, argv) == 2
        err = capsys.readouterr().err.strip().splitlines()
        assert said in err[-1]
    with pytest.raises(UserError, match="does not exist"):
        RunRecord.read(Path("nowhere"))


def test_the_newest_run_and_a_sweep_are_found(capsys):
    """Without a name the newest run is taken; a sweep's folder stands for its runs."""
    first, second = make_run("2026-01-02_03-04-05_a"), make_run("2026-01-02_03-04-06_b", "gru")
    assert run_command(report.main, []) == 0
    assert (second / "report.html").exists() and not (first / "report.html").exists()
    sweep = Path("logs/sweeps/x")
    sweep.mkdir(parents=True)
    for number, folder in enumerate((first, second, None)):
        values = {"number": number, "settings": [], "code": 0, "folder": folder and str(folder), "error": None}
        (sweep / f"job_{number}.json").write_text(json.dumps(values))
    assert run_command(report.main, [str(sweep), "--output", "sweep.html"]) == 0
    assert "Report of 2 runs: sweep.html" in capsys.readouterr().out
    assert Path("sweep.html").exists()


@pytest.mark.parametrize("name", [b"\xff\xfe.pt", b"params/\xff.yaml"])
def test_names_of_files_need_not_be_text(name):
    """A name that is no UTF-8 is shown escaped."""
    folder = make_run()
    Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text("a: 1")
    assert "\\udcff" in page_of(folder).text


def test_an_integer_may_be_larger_than_any_number():
    """It is no figure, and the page is written."""
    folder = make_run()
    (folder / "summary.json").write_text(
        json.dumps({"best_student_return": 10**400, "parameters": {"student": 10**400}})
    )
    assert "Files" in page_of(folder).text


def test_tables_do_not_grow_with_the_square_of_a_file():
    """Every row with a column of its own: the first columns are shown."""
    folder = make_run()
    efficiency = {f"policy{i}": {f"figure{i}": 1.0} for i in range(2000)}
    (folder / "summary.json").write_text(json.dumps({"efficiency": efficiency}))
    states = [{"states": "both", "figures": {f"figure{i}": 1.0}} for i in range(2000)]
    (folder / "similarity.json").write_text(json.dumps({"states": states}))
    seen = page_of(folder)
    assert "figure39" in seen.text and "figure40" not in seen.text and "policy1999" in seen.text
