"""Export ONNX policies with the installed release of rsl-rl-lib, and the actions that its own inference policy gives.

Run by test_onnx.py in a process of its own for every release: VERSION FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import yaml
from rsl_rl_cases import Case, cases
from write_rsl_rl_checkpoints import build, randomize, rollout

EXPORTED = {
    "3.0.1": ("normalized", "tanh", "gru_2", "lstm_1", "distilled_gru"),
    "4.0.1": ("gru_1", "heteroscedastic"),
    "5.5.1": ("two_groups", "swish", "gru_2", "lstm_2", "heteroscedastic", "beta"),
}
"""Cases of each release."""


class AsIsaacLab(torch.nn.Module):
    """What Isaac Lab exports of a policy of RSL-RL 2 and 3: normaliser, memory and actor, by its names."""

    def __init__(self, policy):
        super().__init__()
        student = hasattr(policy, "student")
        self.actor = policy.student if student else policy.actor
        self.normalizer = policy.student_obs_normalizer if student else policy.actor_obs_normalizer
        memory = getattr(policy, "memory_s" if student else "memory_a", None)
        self.rnn = None if memory is None else memory.rnn

    def forward(self, obs, *memory):
        """Act for one step."""
        x = self.normalizer(obs)
        if self.rnn is None:
            return self.actor(x)
        x, after = self.rnn(x.unsqueeze(0), memory if len(memory) == 2 else memory[0])
        return self.actor(x.squeeze(0)), *(after if isinstance(after, tuple) else (after,))


def export_as_isaac_lab(policy, path: Path, opset: int) -> None:
    """Write the file with Isaac Lab's names of inputs and outputs, batch 1, no dynamic axes."""
    module = AsIsaacLab(policy).eval()
    width = module.actor[0].in_features if module.rnn is None else module.rnn.input_size
    count = 0 if module.rnn is None else 2 if isinstance(module.rnn, torch.nn.LSTM) else 1
    given = [torch.zeros(1, width)]
    given += [torch.zeros(module.rnn.num_layers, 1, module.rnn.hidden_size) for _ in range(count)]
    torch.onnx.export(
        module,
        tuple(given),
        str(path),
        opset_version=opset,
        input_names=["obs", "h_in", "c_in"][: 1 + count],
        output_names=["actions", "h_out", "c_out"][: 1 + count],
        dynamic_axes={},
        dynamo=False,
    )


def write(version: str, case: Case, folder: Path) -> None:
    """Write one case into its own folder."""
    env, runner, cfg = build(version, case)
    if not hasattr(runner.alg, "policy"):
        runner.alg._modules_of_case = ("student", "teacher") if case.distilled else ("actor", "critic")
    randomize(runner, version, case)
    exported = folder / case.name / "exported"
    exported.mkdir(parents=True)
    (folder / case.name / "params").mkdir()
    (folder / case.name / "params" / "agent.yaml").write_text(yaml.dump(cfg))
    with torch.no_grad():
        torch.save(rollout(env, runner, version, case), folder / case.name / "expected.pt")
    if hasattr(runner, "export_policy_to_onnx"):
        runner.export_policy_to_onnx(str(exported))
    else:
        for opset in (11, 18):
            export_as_isaac_lab(runner.alg.policy, exported / f"policy_{opset}.onnx", opset)


def main() -> None:
    """Write every case of the release."""
    version, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for case in cases(version):
        if case.name in EXPORTED[version]:
            write(version, case, folder)


if __name__ == "__main__":
    main()
