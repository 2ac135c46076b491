"""scripts/int8_study.py: what its page says of figures, and what it complains of."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "scripts")]

import int8_study  # noqa: E402

FIGURES = {
    "normalized_score": 0.96, "of_float": 0.99, "half_width_95": 0.004, "of_float_by_seed": {"1": 0.985, "2": 0.995},
    "p50_us": 6.04, "p99_us": 12.0, "file_bytes": 16000, "weight_bytes": 3300,
}  # fmt: skip


def found(seeds=(1, 2)):
    """Return figures of an MLP whose second seed is worse."""
    figures = {"baselines": {"teacher": 700.0, "random": 20.0}}
    for training in int8_study.TRAININGS:
        for seed in seeds:
            each = {name: copy.deepcopy(FIGURES) for name in int8_study.FORMATS}
            for own in each.values():
                own["of_float"] -= 0.02 * (seed - 1)
            figures[f"mlp/{training}/{seed}"] = each
    return figures


def test_the_page_has_the_mean_and_the_worst():
    """A row has the mean over the trainings and the interval of the worst one; a student without runs has no rows."""
    lines = int8_study.page(found())
    (row,) = [line for line in lines if line.startswith("| mlp | trained with rounding | 8-bit C |")]
    assert "| 0.9600 | 0.9800 | 0.9660 to 0.9740 | 0.9850 | 3,300 B | 16,000 B | 6.0 us | 12.0 us |" in row
    assert not any(line.startswith("| gru |") for line in lines)
    assert max(map(len, (line for line in lines if not line.startswith("|")))) <= 120


def test_a_score_that_is_too_low_is_named():
    """Files of students that were trained with rounding are held to 0.98; those rounded afterwards are not."""
    assert int8_study.too_low(found(seeds=(1,))) == []
    low = int8_study.too_low(found())
    assert low == ["mlp/int8/2, c_int8: 0.9700", "mlp/int8/2, onnx_int8: 0.9700"]
