"""One thread per test process: the tests run in several processes, and small networks gain nothing from more threads."""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_NUM_THREADS", "1")
