"""One thread per test process: there are as many processes as cores, and small networks gain nothing from threads."""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_NUM_THREADS", "1")
