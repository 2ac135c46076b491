"""Isaac Lab's own play command plays what this project writes as an RSL-RL checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from isaac_envs import TASK

from foundation.export.rsl_rl import write_rsl_rl
from foundation.students import StudentPolicy

PLAYING = "Policy playback is running"
DEADLINE = 300.0
"""[s]"""


@pytest.mark.slow
def test_isaac_labs_own_play_command_plays_it(tmp_path):
    """``python -m isaaclab play`` loads the file, plays it, and exports a policy whose actions are the student's."""
    torch.manual_seed(0)
    student = StudentPolicy(26, 4, (128, 128), "elu")  # the sizes that the task's own agent config has
    student.normalizer.update(torch.randn(200, 26) * 2 + 1)
    checkpoint = tmp_path / "run" / "model_0.pt"
    write_rsl_rl(student.eval(), checkpoint)
    command = [sys.executable, "-m", "isaaclab", "play", "--rl_library", "rsl_rl", "--task", TASK, "--num_envs", "4"]
    command += ["--device", "cpu", "--viz", "none", "--checkpoint", str(checkpoint)]
    log = tmp_path / "log"
    with log.open("wb") as said:
        variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=variables,
            # Tests that were started in the background ignore it, and so would what they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            end = time.monotonic() + DEADLINE
            while PLAYING not in log.read_text(errors="replace"):
                assert process.poll() is None, log.read_text(errors="replace")[-4000:]
                assert time.monotonic() < end
                time.sleep(0.5)
            time.sleep(5.0)  # some hundred steps of the environment, or the first of them
            assert process.poll() is None, log.read_text(errors="replace")[-4000:]
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=DEADLINE) == 0, log.read_text(errors="replace")[-4000:]
        finally:
            process.kill()
    module = torch.jit.load(str(checkpoint.parent / "exported" / "policy.pt"))
    obs = torch.randn(50, 26)
    with torch.no_grad():
        assert (module(obs) - student.step(obs)[0].mean).abs().max() <= 1e-5
    assert (checkpoint.parent / "exported" / "policy.onnx").exists()
