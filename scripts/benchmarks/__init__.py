"""The parts of ``scripts/benchmark.py``, one measurement per file."""
