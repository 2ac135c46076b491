"""Networks of any kind, run by their own runtime: ``distill.teacher.run_as_is=true``.

TorchScript is run by PyTorch and ONNX by onnxruntime. The file's own code is run, so it is an option that the user
has to set. A line of the log states how the policy is run and what it remembers.
"""

from __future__ import annotations

from foundation.checkpoints.as_is.onnx_runtime import load_onnx
from foundation.checkpoints.as_is.script import load_script
from foundation.checkpoints.as_is.trial import try_in_child
from foundation.checkpoints.onnx.file import is_onnx
from foundation.checkpoints.reading.assembler import CHECKPOINT, finish
from foundation.checkpoints.reading.loading import LoadedPolicy, Source, logger
from foundation.checkpoints.reading.script_archive import is_script
from foundation.core.errors import UserError


def load_as_is(source: Source, head: bytes) -> LoadedPolicy:
    """Prepare a policy that is run by its own runtime.

    Args:
        source: Where it is.
        head: How the file begins.
    """
    said = source.overrides
    sizes = [said.num_obs] if said.input_sizes is None and said.num_obs is not None else list(said.input_sizes or [])
    if said.num_obs is not None and sum(sizes) != said.num_obs:
        raise UserError(
            f"distill.teacher.input_sizes={sizes} are {sum(sizes)} observations and distill.teacher.num_obs is "
            f"{said.num_obs}: leave one of them out."
        )
    if is_script(source.path, head):
        runtime = "TorchScript"
        try_in_child(source.path, sizes, onnx=False)
        network = load_script(source.path, sizes)
    elif is_onnx(source.path, head):
        runtime = "onnxruntime, on the CPU"
        try_in_child(source.path, sizes, onnx=True)
        network = load_onnx(source.path, sizes)
    else:
        raise UserError(
            f"'{source.path}' is neither TorchScript nor ONNX, and nothing else can be run as it is: leave out "
            "distill.teacher.run_as_is, or export the policy."
        )
    logger.info("'%s' is run as it is by %s: %s.", source.path, runtime, network.how())
    return finish(
        source,
        f"run as it is ({runtime})",
        network,
        ("its own", CHECKPOINT),
        hidden_dims=[],
        obs_groups=source.agent.obs_groups(source.agent.role()) or network.groups(),
        clip_actions=source.agent.clip_actions(),
        recurrence=f"{network.state_size} numbers" if network.state_size else "none",
        more={"how": network.how()},
    )
