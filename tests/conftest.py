"""Settings of all tests. This file also makes the helper modules beside it importable from every folder below."""

from __future__ import annotations

import os

import hypothesis
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")
