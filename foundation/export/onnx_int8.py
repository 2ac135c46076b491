"""ONNX models whose products are of 8-bit numbers: weights rounded once, their inputs at each step (dynamic)."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy

from foundation.core.errors import UserError
from foundation.deploy.description import Description
from foundation.deploy.golden import FloatArray, Golden
from foundation.deploy.onnx_policy import METADATA
from foundation.deploy.program import Program
from foundation.export.onnx_file import to_onnx


def write_int8_onnx(file: BinaryIO, program: Program, description: Description) -> None:
    """Write a policy as onnxruntime quantises it; inputs, outputs and metadata are those of the float model.

    Args:
        file: Where to.
        program: Its operations.
        description: What it reads and gives.
    """
    try:
        import onnx  # optional packages
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        raise UserError(
            "format 'onnx_int8' needs the packages onnx and onnxruntime: pip install -e '.[export]'"
        ) from None
    model = to_onnx(program, description)
    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        try:
            root.setLevel(logging.ERROR)  # it recommends a preparation that small models do not need
            quantize_dynamic(source, target, weight_type=QuantType.QInt8, per_channel=True)
        finally:
            root.setLevel(level)
        quantised = onnx.load(target)
    del quantised.metadata_props[:]
    onnx.helper.set_model_props(quantised, {part.key: part.value for part in model.metadata_props})
    file.write(quantised.SerializeToString())


def int8_difference(path: Path, golden: Golden) -> float:
    """Return the largest difference of a model's actions from those recorded, with one robot's memory each.

    Args:
        path: What :func:`write_int8_onnx` wrote.
        golden: The sequence. One robot is stepped at a time: the range of 8 bits is that of the whole batch.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    initial = numpy.array(facts["initial_state"], numpy.float32)
    start: dict[str, FloatArray] = {
        part["input"]: numpy.stack([initial[a : a + size] for a, size in part["columns"]])[:, None]
        for part in facts["memory"]
    }
    worst = 0.0
    for env in range(golden.obs.shape[1]):
        memory = start
        for obs, begins, expected in zip(
            golden.obs[:, env], golden.resets[:, env], golden.actions[:, env], strict=True
        ):
            action, *after = session.run(None, {"obs": obs[None], **(start if begins else memory)})
            memory = dict(zip(start, after, strict=True))
            worst = max(worst, float(numpy.abs(numpy.asarray(action)[0] - expected).max()))
    return worst
