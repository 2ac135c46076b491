"""How commands end, and how their flags are read."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foundation.cli.cli_args import (
    CommandParser,
    add_distillation_args,
    add_launch_args,
    add_rsl_rl_args,
    distillation_flags,
    parse_command,
    refuse_other_encodings,
    say_beaten,
)
from foundation.cli.command import Interrupt, _PrintableFormatter, run_command
from foundation.cli.parser import OneLineParser
from foundation.config.overrides import parse_overrides
from foundation.core.errors import UserError
from foundation.rsl_rl import distillation, export, play, teacher_info, train

ROOT = Path(__file__).resolve().parents[2]


def full_parser() -> CommandParser:
    parser = CommandParser(prog="test")
    for add in (add_launch_args, add_rsl_rl_args, add_distillation_args):
        add(parser)
    return parser


def test_what_is_not_typed_is_not_there() -> None:
    """No flag of the config has a default of its own: nothing typed, nothing set."""
    args, tokens = parse_command(full_parser(), [])
    assert distillation_flags(args) == {} and tokens == []


def test_flags_and_overrides_may_be_mixed() -> None:
    """Override tokens may stand anywhere among the flags; switches come in both directions."""
    argv = ["a.b=1", "--n_epochs", "3", "c=2", "--no-shuffle", "--on_policy", "--teacher_checkpoint=x.pt"]
    argv += ["--learning_rate", "-1", "--teacher_min_return", "-1e3", "d=[1,2]"]
    args, tokens = parse_command(full_parser(), argv)
    assert tokens == ["a.b=1", "c=2", "d=[1,2]"]
    assert distillation_flags(args) == {
        "n_epochs": 3,
        "shuffle": False,
        "on_policy": True,
        "teacher.checkpoint": "x.pt",
        "learning_rate": -1.0,
        "teacher.min_return": -1000.0,
    }


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--n_epoch", "3"], "'--n_epochs'"),
        (["--n_epoch=3"], "'--n_epoch'"),
        (["--n_epochs"], "--n_epochs"),
        (["--n_epochs", "3.5"], "'3.5' is not an integer"),
        (["--learning_rate", "fast"], "'fast' is not a number"),
        (["--num_envs", "0"], "at least 1"),
        (["--seed", "-1"], "between 0 and"),
        (["--resume=3"], "--resume"),
    ],
)
def test_bad_flags_are_one_line(argv: list[str], says: str) -> None:
    """Unknown, abbreviated, valueless and ill-typed flags are UserErrors that name the flag or the nearest one."""
    with pytest.raises(UserError) as caught:
        parse_command(full_parser(), argv)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--shuffle", "True"], "--shuffle takes no value ('True'): write --shuffle for on, --no-shuffle for off"),
        (["--shuffle=False"], "--no-shuffle for off"),
        (["--on_policy", "0"], "--no-on_policy for off"),
        (["--no-teacher_deterministic", "yes"], "--no-teacher_deterministic takes no value ('yes')"),
        (["--video", "true", "--task", "T"], "--video takes no value ('true'): write --video alone, or leave it out"),
        (["--headless=1"], "--headless alone"),
    ],
)
def test_a_switch_that_is_given_a_value_says_how_it_is_written(argv: list[str], says: str) -> None:
    """On and off are two flags; what has no off is left out."""
    with pytest.raises(UserError) as caught:
        parse_command(full_parser(), argv, strict=False)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--device", "cpu", "env.sim.device=cuda:0"], ["--device cpu beats env.sim.device=cuda:0"]),
        (["--device", "cpu", "sim.device=cuda:0"], ["--device cpu beats sim.device=cuda:0"]),
        (["--num_envs", "4", "env.scene.num_envs=8"], ["--num_envs 4 beats env.scene.num_envs=8"]),
        (["--num_envs", "4", "scene.num_envs=8", "distill.num_envs=9"], ["scene.num_envs=8", "distill.num_envs=9"]),
        (["--seed", "1", "env.seed=2", "agent.seed=3"], ["env.seed=2", "agent.seed=3"]),
        (["--n_epochs", "1", "n_epochs=2"], ["--n_epochs 1 beats n_epochs=2"]),
        (["--no-shuffle", "distill.shuffle=true"], ["--shuffle False beats distill.shuffle=true"]),
        (["--teacher_min_return", "3", "distill.teacher.min_return=4"], ["distill.teacher.min_return=4"]),
        (["--run_name", "a", "agent.run_name=b"], ["agent.run_name=b"]),
        (["--num_envs", "4", "env.scene.num_envs=4"], []),
        (["--num_envs", "4", "env.sim.device=cpu"], []),
    ],
)
def test_an_override_that_a_flag_beats_is_named(argv: list[str], said: list[str], caplog) -> None:
    """Both were typed and only one can count: one line each, none where they agree."""
    args, tokens = parse_command(full_parser(), argv)
    say_beaten(args, parse_overrides(tokens))
    assert len(caplog.messages) == len(said)
    for words, message in zip(said, sorted(caplog.messages, reverse=True), strict=True):
        assert words in message


def test_a_flag_that_is_empty_unless_it_is_typed_is_no_mistake() -> None:
    """A simulator's own flag may have an empty default, as Isaac Lab's ``--experience`` has."""
    parser = OneLineParser()
    parser.add_argument("--experience", type=str, default="")
    assert parser.read([]).experience == ""
    assert parser.read(["--experience", "mine.kit"]).experience == "mine.kit"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--checkpoint", ""], "--checkpoint was given an empty text: write --checkpoint FILE, or leave it out"),
        (["--dataset="], "--dataset was given an empty text: write --dataset PATH, or leave it out"),
        (["--teacher_checkpoint", "a.pt", "--teacher_checkpoint", ""], "--teacher_checkpoint was given an empty text"),
        (["--device", ""], "--device was given an empty text: write --device DEVICE, or leave it out"),
        (["--save_dataset", "  "], "--save_dataset was given a blank text: write --save_dataset PATH, or leave it out"),
        (["--run_name", " "], "--run_name was given a blank text"),
        (["--task", "a\0b"], r"'a\\x00b' has a NUL character in it: leave it out"),
        (["--save_dataset", "a\nb"], r"--save_dataset is 'a\\nb': it must be a plain name or path"),
        (["--teacher_checkpoint", "a\x1bb"], "--teacher_checkpoint is .* without line breaks"),
        (["--num_envs", "9" * 5000], r"'9+\.\.\.' is not an integer"),
        (["--n_epochs", "9007199254740993"], "9007199254740993 is too large: it must be at most 9007199254740992"),
        (["--num_envs", "1000000000000"], "--num_envs: 1000000000000 is too large: it must be at most 2147483647"),
        (["--video_length", "2147483648"], "the largest integer of 32 bits"),
        (["--eval_interval", "-9007199254740993"], "is too large"),
    ],
)
def test_a_value_that_cannot_be_meant_is_one_line(argv: list[str], says: str) -> None:
    """Nothing, as by a shell's variable that is not set, a NUL, an integer that no checkpoint can hold."""
    with pytest.raises(UserError, match=says):
        parse_command(full_parser(), argv)


def test_a_name_that_no_checkpoint_could_hold_is_refused() -> None:
    """Not UTF-8: the run would end with a student that cannot be read. Names in any alphabet are fine."""
    refuse_other_encodings(["--teacher_checkpoint", "größe/模型.pt"])
    with pytest.raises(UserError, match=r"'b.udcffd\.pt' is not UTF-8, .*rename it, or give a link to it"):
        refuse_other_encodings(["--teacher_checkpoint", "b\udcffd.pt"])


def test_a_name_in_utf_8_under_another_locale_is_told_from_one_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the C locale with ``PYTHONUTF8=0`` Python reads all letters but ASCII's as if they were broken."""
    typed = "größe/模型.pt".encode().decode("ascii", "surrogateescape")
    monkeypatch.setattr("os.fsencode", lambda word: word.encode("ascii", "surrogateescape"))
    with pytest.raises(UserError, match=r"^'größe/模型.pt' cannot be read .* PYTHONUTF8=1"):
        refuse_other_encodings(["--teacher_checkpoint", typed])
    with pytest.raises(UserError, match="is not UTF-8"):
        refuse_other_encodings(["--teacher_checkpoint", "b\udcffd.pt"])


def test_a_table_whose_reader_has_gone_ends_as_any_other_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich turns a closed pipe into exit code 1; of ``| head -1`` it is that of SIGPIPE, 141."""

    def main(argv: object) -> int:
        try:
            raise BrokenPipeError
        except BrokenPipeError:
            raise SystemExit(1)  # noqa: B904  # as rich does

    monkeypatch.setattr("foundation.cli.command.reader_has_gone", lambda: 141)
    assert run_command(main, []) == 141


HELP = """
import sys
from foundation.cli.parser import ScriptParser
from foundation.cli.command import run_command
sys.exit(run_command(lambda argv: ScriptParser("What it does.\\n" * 400000).read(["--help"])))
"""
TABLE = """
import sys
from foundation.cli.command import run_command
sys.exit(run_command(lambda argv: print("a table", end="")))
"""
MISTAKE = """
import sys
from foundation.cli.command import run_command
from foundation.core.errors import UserError
def main(argv):
    raise UserError("mine")
sys.exit(run_command(main))
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("body", [HELP, TABLE], ids=["help", "table"])
def test_output_that_cannot_be_written_is_no_success(body: str, unbuffered: str) -> None:
    """On a full disk: one line, and exit code 2, for the help as for a table, however short."""
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "env": environment}
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", body], stdout=full, cwd=ROOT, **pipes)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: the output cannot be written: No space left on device; look at what standard output goes to, and at "
        "the disk"
    ]


def test_a_help_of_which_one_line_is_read_ends_quietly() -> None:
    """``--help | head -1`` prints nothing on stderr."""
    # Without a buffer Python takes a write that a closed pipe has cut short for a whole one.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HELP], cwd=ROOT, env=environment, **pipes) as command:
        assert command.stdout is not None and command.stderr is not None
        command.stdout.readline()
        command.stdout.close()
        assert command.stderr.read() == ""
    assert command.returncode == 128 + signal.SIGPIPE


def test_a_mistake_is_said_without_a_standard_output() -> None:
    """As of a process that a service has started with that closed (``>&-``): one line, no traceback."""
    line = f"exec {sys.executable} -c '{MISTAKE}' >&-"
    done = subprocess.run(["bash", "-c", line], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr == "error: mine\n"


def test_an_empty_run_name_is_no_suffix() -> None:
    """The one flag of which nothing means something."""
    assert parse_command(full_parser(), ["--run_name", ""])[0].run_name == ""


def test_an_engines_own_flags_are_left_until_it_is_known() -> None:
    """A lenient first look ignores ``--viz none``; the strict second one knows it, or refuses it."""
    parser = full_parser()
    argv = ["--viz", "none", "env.a=1"]
    assert parse_command(parser, argv, strict=False)[1] == ["env.a=1"]
    with pytest.raises(UserError, match="--viz"):
        parse_command(parser, argv)
    parser.add_argument("--viz")
    args, tokens = parse_command(parser, argv)
    assert (args.viz, tokens) == ("none", ["env.a=1"])


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 0, ""),
        (UserError("two\nlines"), 2, "error: two\\nlines\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 2, "error: No space left on device: /x/y\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: the output cannot be written: No space left"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "file/x"), 2, "error: Not a directory: file/x\n"),
        (MemoryError(), 2, "error: out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1"), 2, "error: out of memory"),
        (ModuleNotFoundError("No module named 'h5py'", name="h5py"), 2, "error: the Python package 'h5py'"),
        (KeyboardInterrupt(), 130, ""),
        (ValueError("oops"), 1, "Traceback"),
        (OSError(errno.EBADF, "bad"), 1, "Traceback"),
        (ModuleNotFoundError("No module named 'foundation.x'", name="foundation.x"), 1, "Traceback"),
    ],
)
def test_exit_codes(error: BaseException | None, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A user's mistake is one line and code 2; a bug keeps its traceback, code 1, and says that it is one."""

    def main(argv: Any) -> int:
        if error is not None:
            raise error
        return 0

    assert run_command(main, []) == code
    err = capsys.readouterr().err
    assert err.startswith(line)
    assert ("bug" in err) is (code == 1)
    assert ("Traceback" in err) is (code == 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_only_raises_a_flag(number: int) -> None:
    """Inside :class:`Interrupt` a loop goes on until it looks; handlers are put back afterwards."""
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert not interrupt.interrupted() and interrupt.exit_code == 0
        os.kill(os.getpid(), number)
        assert interrupt.interrupted() == signal.Signals(number).name
        assert interrupt.exit_code == 128 + number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("body", "signals", "code"),
    [
        ("with Interrupt(): wait()", [signal.SIGTERM, signal.SIGTERM], 143),
        ("with Interrupt(): wait()", [signal.SIGTERM, signal.SIGINT], 130),
        ("wait()", [signal.SIGTERM], 143),
        ("wait()", [signal.SIGINT], 130),
        ("wait()", [signal.SIGHUP], 129),
    ],
)
def test_processes_end_with_the_usual_codes(body: str, signals: list[int], code: int) -> None:
    """The second signal ends a loop that never looks; outside such a loop the first one unwinds through ``finally``."""
    script = (
        "import sys, time\n"
        "from foundation.cli.command import Interrupt, _PrintableFormatter, run_command\n"
        "def wait():\n"
        "    print('ready', flush=True)\n"
        "    while True: time.sleep(0.05)\n"
        "def main(argv):\n"
        f"    try:\n        {body}\n"
        "    finally: print('closed', flush=True)\n"
        "sys.exit(run_command(main, []))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whatever runs in the background of a shell inherits that SIGINT is ignored.
        preexec_fn=lambda: [signal.signal(own, signal.SIG_DFL) for own in (signal.SIGINT, signal.SIGHUP)],
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signals[0])
    for number in signals[1:]:
        while "leave at once" not in process.stderr.readline():
            pass
        process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert ("closed" in out) is (len(signals) == 1)
    assert "Traceback" not in err


def test_a_hang_up_is_no_request_to_leave_at_once() -> None:
    """A closed terminal sends it twice, and a service manager beside SIGTERM: what is being saved is saved."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with Interrupt() as interrupt:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert interrupt.interrupted() == "SIGTERM"
    signal.signal(signal.SIGHUP, before)


def test_a_hang_up_that_nohup_ignores_stays_ignored() -> None:
    """The run goes on after the terminal, as was asked for."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupt.interrupted() == ""
    assert run_command(lambda argv: os.kill(os.getpid(), signal.SIGHUP), []) == 0
    signal.signal(signal.SIGHUP, before)


AT_A_TERMINAL = """
import sys, time
from pathlib import Path
from foundation.cli.command import Interrupt, run_command
def main(argv):
    with Interrupt() as interrupt:
        print("ready", flush=True)
        while not interrupt.interrupted():
            time.sleep(0.02)
        print("saving", flush=True)
        Path(sys.argv[1]).write_text("saved")
    return interrupt.exit_code
sys.exit(run_command(main, []))
"""


def test_a_run_whose_terminal_is_closed_saves_and_leaves(tmp_path: Path) -> None:
    """A lost connection: what is printed afterwards goes nowhere, and does not stop the saving."""
    ours, theirs = os.openpty()
    script = "import fcntl, os, signal, sys, termios\n"
    script += "signal.signal(signal.SIGHUP, signal.SIG_DFL)\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n" + AT_A_TERMINAL
    command = [sys.executable, "-c", script, str(tmp_path / "saved")]
    process = subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    assert b"ready" in os.read(ours, 100)
    os.close(ours)
    assert process.wait(timeout=20) == 128 + signal.SIGHUP
    assert (tmp_path / "saved").read_text() == "saved"


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
@pytest.mark.parametrize("name", ["distillation", "play", "train", "teacher_info"])
def test_several_processes_are_refused_where_each_would_do_all_the_work(name: str, variable: str) -> None:
    """Under torchrun or mpirun: one line that names the variable, code 2; nothing is loaded."""
    command = [sys.executable, str(ROOT / "foundation" / "rsl_rl" / f"{name}.py"), "--task", "X"]
    done = subprocess.run(command, env={**os.environ, variable: "2"}, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {variable} is 2, but {name}.py runs in one process")


@pytest.mark.parametrize(("size", "rank"), [("WORLD_SIZE", "RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")])
def test_of_several_processes_the_first_one_speaks(
    size: str, rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, however many have been started; all end with code 2."""
    monkeypatch.setenv(size, "2")
    monkeypatch.setenv(rank, "1")
    with pytest.raises(SystemExit) as left:
        run_command(lambda argv: 7, [])
    assert left.value.code == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(rank, "0")
    assert run_command(lambda argv: 7, []) == 2
    assert f"{size} is 2" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["1", "", "none"])
def test_one_process_is_not_refused(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``torchrun --nproc_per_node=1`` is a run like any other, and so is a command that knows many processes."""
    monkeypatch.setenv("WORLD_SIZE", size)
    assert run_command(lambda argv: 7, []) == 7
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert run_command(lambda argv: 7, [], many_processes=True) == 7


def in_a_process(body: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command's body in a process of its own."""
    lines = ["import os, sys", "from foundation.cli.command import run_command", "def main(argv):", f"    {body}"]
    script = "\n".join([*lines, "sys.exit(run_command(main, []))"])
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={**os.environ, **environment}, capture_output=True
    )


def test_a_terminal_without_the_character_shows_its_like() -> None:
    """``PYTHONIOENCODING=ascii``: a plus-minus sign becomes +-, an unknown letter ?, on both streams."""
    body = "print('1 \\u00b1 2 \\u4e2d'); print('\\u00b1', file=sys.stderr)"
    done = in_a_process(body, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1 +- 2 ?\n", b"+-\n")
    done = in_a_process(body, PYTHONIOENCODING="utf-8")
    assert done.stdout.decode() == "1 ± 2 中\n"


def test_an_interrupt_that_a_library_made_another_error_of_is_still_one() -> None:
    """Ctrl-C in the middle of an import may surface as ImportError: code 130 and nothing is said."""
    body = "\n    ".join(
        ["try: raise KeyboardInterrupt", "except BaseException as error: raise ImportError('half loaded') from error"]
    )
    done = in_a_process(body)
    assert (done.returncode, done.stderr) == (130, b"")


def test_an_error_of_the_users_own_code_shows_the_users_line(tmp_path, capsys):
    """Whoever's code raises is named: the user's file and line without an apology; a bug of ours has one."""
    path = tmp_path / "own_env.py"
    path.write_text("import torch\n\n\ndef step():\n    return torch.ones(2, 3) @ torch.ones(2)\n")
    theirs: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), theirs)
    assert run_command(lambda argv: theirs["step"]()) == 2
    err = capsys.readouterr().err
    assert "return torch.ones(2, 3) @ torch.ones(2)" in err
    assert err.splitlines()[-1].startswith(f"error: RuntimeError in your code ({path}, line 5, in step): ")
    assert "bug in foundation" not in err
    assert run_command(lambda argv: parse_command(None, ["--x"])) == 1  # type: ignore[arg-type]
    assert "bug in foundation" in capsys.readouterr().err


def test_a_log_line_shows_no_codes_of_the_terminal() -> None:
    """A name that clears the screen, or writes over the line before, is escaped; text of other scripts is not."""
    formatter = _PrintableFormatter("[%(levelname)s] %(message)s")
    record = logging.LogRecord("x", logging.INFO, "", 0, "the group 'a\x1b[2J\rb\x9bc'\nand höhe ±\t1", (), None)
    shown = formatter.format(record)
    assert all(line.isprintable() for line in shown.split("\n"))
    assert "\\x1b[2J\\rb\\x9bc" in shown
    assert shown.split("\n")[1] == "and höhe ±    1"


@pytest.mark.parametrize("command", [distillation, train, play, export, teacher_info])
def test_no_switch_of_any_command_takes_a_value(command: Any) -> None:
    """``--shuffle True``, ``--headless 1`` and ``--video=off``: one line that writes the switch as it is to be."""
    parser = command.build_parser()
    switches = [action for action in parser._actions if action.nargs == 0 and "--help" not in action.option_strings]
    for action in switches:
        names = [name for name in action.option_strings if name.startswith("--")]
        off = next((name for name in names[1:] if name.startswith("--no-")), None)
        advice = f"write {names[0]} for on, {off} for off" if off else f"write {names[0]} alone, or leave it out"
        for value in (["True"], ["false"], ["1"], ["off"]):
            with pytest.raises(UserError) as spaced:
                parse_command(parser, [names[0], *value])
            with pytest.raises(UserError) as joined:
                parse_command(parser, [f"{names[0]}={value[0]}"])
            assert advice in str(spaced.value) and advice in str(joined.value)
