"""Tests that need a CUDA device are collected only where there is one."""

import torch

collect_ignore = [] if torch.cuda.is_available() else ["test_sim_cuda.py"]
