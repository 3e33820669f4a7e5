"""One thread per test process: there are as many processes as cores, and small networks gain nothing from threads."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Only `pytest -m gpu` sees a GPU: the other tests are for the CPU, wherever they run."""
    chosen = config.option.markexpr
    if "gpu" not in chosen.replace("not gpu", ""):
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
