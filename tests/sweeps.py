"""Sweeps of a stub that stands for training: it has epochs, a checkpoint, curves and signals, and imports no torch."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cnn_train.cli.guard import guarded
from cnn_train.sweep import start

# What happens is by data.batch_size: 7 raises, 8 kills itself, 9 gives no metrics, 10 waits for a signal, 11 diverges;
# with STUB_HEALED they do not. The state is a chain of hashes: it ends the same only if no epoch is lost or repeated.
STUB = """
import csv, hashlib, json, os, re, signal, sys, time
from pathlib import Path
from cnn_train.runs import folder as run_folder
from cnn_train.sweep import lifeline

lifeline.end_with_sweep()
folder = Path(sys.argv[1])
text = (folder / "config.yaml").read_text()
def number(name):
    return float(re.search(rf"^ *{name}: (\\\\S+)", text, re.M)[1])
seed, batch, epochs, lr = (number(name) for name in ("seed", "batch_size", "max_epochs", "lr"))
seconds = float(os.environ.get("STUB_SECONDS", "0"))
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(143))
state = {"epoch": 0, "chain": text, "rows": []}
with run_folder.in_use(folder):
    if "resume=true" in sys.argv and (folder / "last.ckpt").exists():
        state = json.loads((folder / "last.ckpt").read_text())
    print("epoch", state["epoch"], "of seed", seed, "starts")
    if "STUB_HEALED" not in os.environ:
        if batch == 7:
            print("error: no good", file=sys.stderr)
            os._exit(3)
        if batch == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        if batch == 9:
            os._exit(0)
        if batch == 10:
            (folder / "ready").touch()
            while not asked:
                time.sleep(0.01)
        if batch == 11:
            print("error: the loss is nan in conv1", file=sys.stderr)
            os._exit(5)
    while state["epoch"] < epochs:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not asked:
            time.sleep(0.005)
        if asked:
            (folder / "saved").touch()
            run_folder.log(folder, "stopped by SIGTERM")
            os._exit(asked[0])
        state["epoch"] += 1
        state["chain"] = hashlib.sha256(state["chain"].encode()).hexdigest()
        acc = (1 - 0.5 ** state["epoch"]) * (1 - abs(lr - 0.03)) + 1e-3 * seed
        state["rows"].append({"epoch": state["epoch"], "val/acc": acc, "val/loss": 1 - acc, "train/loss": 1 - acc})
        for name, content in (("last.ckpt", json.dumps(state)), ("metrics.csv", None)):
            temporary = folder / f".{name}.tmp"
            with open(temporary, "w", newline="") as file:
                if content is None:
                    writer = csv.DictWriter(file, list(state["rows"][0]))
                    writer.writeheader()
                    writer.writerows(state["rows"])
                else:
                    file.write(content)
            os.replace(temporary, folder / name)
    environment = {k: os.environ.get(k) for k in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
    (folder / "environment.txt").write_text(json.dumps(environment))
    last = state["rows"][-1]
    metrics = {"val/acc": last["val/acc"], "val/loss": batch + seed / 10, "test/acc": 0.5}
    temporary = folder / ".metrics.tmp"
    temporary.write_text(json.dumps(metrics))
    os.replace(temporary, folder / "metrics.json")
""".replace("\\\\", "\\")
COMMON = ("trainer=cpu", "trainer.max_epochs=3")


def stub(tmp_path: Path) -> list[str]:
    """The command of the stub."""
    (tmp_path / "worker.py").write_text(STUB)
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))
    return [sys.executable, str(tmp_path / "worker.py")]


def sweep(worker: list[str], out: Path, *overrides: str) -> tuple[int, Path]:
    """Run a sweep to its end; exit code and folder."""
    code = start.start([*COMMON, *overrides, f"output_dir={out}"], worker=worker)
    return code, newest(out)


def newest(out: Path) -> Path:
    return max((out / "sweeps").iterdir(), key=lambda path: path.stat().st_mtime_ns)


def records(folder: Path) -> list[dict]:
    """What each job's own folder tells of it."""
    found = [json.loads(path.read_text()) for path in folder.glob("*/job.json")]
    return sorted(found, key=lambda record: record["number"])


def states(folder: Path) -> list[str]:
    return [record["state"] for record in records(folder)]


def results(folder: Path) -> dict[str, tuple[str, ...]]:
    """Everything that jobs leave, by what they ran."""
    names = ("metrics.json", "metrics.csv", "last.ckpt")
    return {
        " ".join(record["changes"]): tuple((folder / record["folder"] / name).read_text() for name in names)
        for record in records(folder)
    }


def begin(call: Callable[[], int], out: Path) -> int:
    """Fork a process that runs `call` as the program would, its output in `out`; its id."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.setsid()
        sink = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        code = guarded(call)
    finally:
        os._exit(code)


def until(true: Callable[[], object], patience: float = 30.0) -> None:
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.01)


def processes_of(path: Path) -> list[int]:
    """Processes whose command line names a file in `path`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(path).encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found
