"""What a sweep costs beside its jobs: warm workers, places, planning. Prints goal, measured, pass.

    python benchmarks/sweep_overhead.py [warm] [joblib] [sleep] [plan]

warm    16 one-epoch LeNet-5 jobs against 16 direct runs with one thread, in CPU seconds of the processes and all that
        they started; sixteen are estimated from `--direct N` runs (default 3)
joblib  the same jobs against Hydra's joblib launcher with two workers, in wall time (needs hydra-joblib-launcher)
sleep   64 jobs of a second, two at once: wall time
plan    `norm=glob(*) act=glob(*)`: CPU seconds a job until all configs are checked and frozen
"""

import ctypes
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path

JOBS = 16
EPOCH = ("trainer=cpu", "trainer.max_epochs=1", "trainer.progress=none")
SLEEP = (
    "import json, sys, time, pathlib; time.sleep(1); pathlib.Path(sys.argv[1], 'metrics.json').write_text('{\"a\": 1}')"
)


def spent(*command: str) -> tuple[float, float]:
    """Wall and CPU seconds of a command with all that it started, also what it does not wait for (Linux)."""
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans become children of this process
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    wall = time.monotonic() - start
    with suppress(ChildProcessError):
        while True:
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def told(name: str, goal: float, measured: float) -> bool:
    print(
        f"{name:<58} goal <= {goal:8.2f}   measured {measured:8.2f}   {'pass' if measured <= goal else 'FAIL'}",
        flush=True,
    )
    return measured <= goal


def train(*words: str) -> tuple[float, float]:
    return spent(sys.executable, "-m", "cnn_train", *words)


def warm(folder: Path, runs: int = 3) -> bool:
    direct = [train(*EPOCH, f"seed={seed}", f"output_dir={folder / 'direct'}")[1] for seed in range(runs)]
    wall, swept = train("-m", *EPOCH, f"seed=range(0,{JOBS})", "sweep.jobs=2", f"output_dir={folder / 'swept'}")
    print(f"one direct run {sum(direct) / runs:.1f} CPU-s, one of the sweep {swept / JOBS:.1f}; the sweep {wall:.0f} s")
    return told(f"CPU-s of {JOBS} jobs (half of as many direct runs)", JOBS * sum(direct) / runs / 2, swept)


def joblib(folder: Path) -> bool:
    """Hydra's launcher on a script that trains by our functions, and the same jobs by us."""
    (folder / "conf.yaml").write_text("defaults:\n  - override hydra/launcher: joblib\nseed: 0\n")
    script = folder / "script.py"
    script.write_text(
        "import hydra\n"
        "@hydra.main(config_path='.', config_name='conf', version_base='1.3')\n"
        "def main(cfg):\n"
        "    from cnn_train.config.compose import compose\n    from cnn_train.experiment.train import train\n"
        f"    train(compose([*{EPOCH!r}, f'seed={{cfg.seed}}', 'output_dir={folder / 'joblib'}']))\n"
        "main()\n"
    )
    seeds = "seed=" + ",".join(map(str, range(JOBS)))
    launcher = "hydra.launcher.n_jobs=2"
    theirs, cpu = spent(sys.executable, str(script), "-m", seeds, launcher, f"hydra.sweep.dir={folder / 'multirun'}")
    ours, own = train("-m", *EPOCH, f"seed=range(0,{JOBS})", "sweep.jobs=2", f"output_dir={folder / 'ours'}")
    print(f"CPU-s: theirs {cpu:.0f}, ours {own:.0f}")
    return told(f"wall seconds of {JOBS} jobs (Hydra's joblib launcher)", theirs, ours)


def sleep(folder: Path) -> bool:
    from cnn_train.sweep import start

    (folder / "sleep.py").write_text(SLEEP)
    since = time.monotonic()
    words = ["seed=range(0,64)", "trainer=cpu", "sweep.jobs=2", f"output_dir={folder / 'sleep'}"]
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        assert start.start(words, worker=[sys.executable, str(folder / "sleep.py")]) == 0
    return told("wall seconds of 64 jobs of 1 s, two at once", 1.15 * 32, time.monotonic() - since)


def plan(folder: Path) -> bool:
    code = (
        "import sys, time; from pathlib import Path; from cnn_train.sweep.plan import Planner, prepare\n"
        "planner = Planner(['norm=glob(*)', 'act=glob(*)'])\n"
        "planned = planner.all(planner.settings().sweep.sampler)\n"
        "for job, _ in planned: job.folder = Path(sys.argv[1], str(job.number))\n"
        "prepare(planned, (None, ''))\n"
        "print(len(planned))"
    )
    (folder / "plan").mkdir()
    _, cpu = spent(sys.executable, "-c", code, str(folder / "plan"))
    return told(
        "CPU-s a job, planned and frozen: norm=glob(*) act=glob(*)", 0.1, cpu / len(list((folder / "plan").iterdir()))
    )


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["warm", "joblib", "sleep", "plan"]
    with tempfile.TemporaryDirectory() as temporary:
        passed = [globals()[name](Path(temporary)) for name in wanted]
    sys.exit(not all(passed))
