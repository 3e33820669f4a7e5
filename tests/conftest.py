"""Tests share one thread count: more threads than cores make small networks slower."""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
