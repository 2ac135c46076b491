"""ONNX models whose products are of 8-bit numbers: weights rounded once, their inputs at each step (dynamic)."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import BinaryIO

from foundation.core.errors import UserError
from foundation.deploy.description import Description
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
    model = to_onnx(program, description, products=True)
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
    for tensor in quantised.graph.initializer:  # as bytes, each of one kind
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    del quantised.metadata_props[:]
    onnx.helper.set_model_props(quantised, {part.key: part.value for part in model.metadata_props})
    file.write(quantised.SerializeToString())
