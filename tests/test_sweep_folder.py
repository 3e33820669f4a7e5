"""A sweep's folder is its state: continued, grown, rebuilt, locked; and no job outlives its sweep."""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import end
from sweeps import COMMON, begin, newest, processes_of, records, results, states, stub, sweep, until

from cnn_train.errors import ConfigError, EnvError
from cnn_train.runs import folder as run_folder
from cnn_train.sweep import folder as folders
from cnn_train.sweep import start, system

ROOT = Path(__file__).parents[1]


@pytest.fixture
def worker(tmp_path: Path) -> list[str]:
    return stub(tmp_path)


def changes(folder: Path) -> list[str]:
    return [" ".join(record["changes"]) for record in records(folder)]


def test_equal_configs_run_once_and_a_later_word_wins(worker, tmp_path):
    _, folder = sweep(worker, tmp_path, "seed=1,1,2", "norm=bn,bn")
    assert changes(folder) == ["seed=1 norm=bn", "seed=2 norm=bn"]
    _, folder = sweep(worker, tmp_path, "seed=1,2", "seed=3,4", "init=paper,paper")
    assert changes(folder) == ["seed=3 init=paper", "seed=4 init=paper"]


def test_a_finished_sweep_is_shown_again_and_nothing_runs(worker, tmp_path, capsys):
    _, folder = sweep(worker, tmp_path, "norm=bn,gn")
    table = capsys.readouterr().out
    assert start.resume(folder, worker=worker) == 0
    captured = capsys.readouterr()
    assert captured.out == table and "started" not in captured.err
    assert start.status(folder) == 0 and "2 done" in capsys.readouterr().out


def test_values_are_added_and_only_what_is_new_runs(worker, tmp_path):
    """To a key that did not vary, to an axis, to both; what would be another sweep is refused."""
    _, folder = sweep(worker, tmp_path, "norm=bn,gn")
    assert start.resume(folder, ["seed=range(0,3)"], worker=worker) == 0
    assert changes(folder) == ["norm=bn", "norm=gn"] + [f"norm={n} seed={s}" for n in ("bn", "gn") for s in (1, 2)]
    logs = {path: path.read_text() for path in folder.glob("*/log.txt")}
    assert start.resume(folder, ["norm=in", "seed=1,5"], worker=worker) == 0
    new = ["norm=bn seed=5", "norm=gn seed=5", *(f"norm=in seed={s}" for s in (0, 1, 2, 5))]
    assert changes(folder)[6:] == new
    assert all(path.read_text() == text for path, text in logs.items())
    assert {len(points) for points in [folders.read(folder).jobs]} == {12}
    for word in ("model=resnet18", "trainer.max_epochs=9"):
        with pytest.raises(ConfigError, match="a sweep that goes on keeps its"):
            start.resume(folder, [word], worker=worker)
    assert len(records(folder)) == 12


def test_resume_auto_continues_the_newest_sweep_of_the_same_line(worker, tmp_path, monkeypatch):
    _, first = sweep(worker, tmp_path, "data.batch_size=7,2", "resume=auto")
    assert states(first) == ["failed", "done"]
    _, other = sweep(worker, tmp_path, "data.batch_size=2,3", "resume=auto")
    assert other != first
    monkeypatch.setenv("STUB_HEALED", "1")
    code = start.start(
        [*COMMON, "sweep.jobs=1", "data.batch_size=7,2", f"output_dir={tmp_path}", "resume=auto"], worker=worker
    )
    assert code == 0 and states(first) == ["done", "done"]
    assert len(list((tmp_path / "sweeps").iterdir())) == 2


def test_a_damaged_record_is_rebuilt_from_the_jobs_folders(worker, tmp_path, capsys, monkeypatch):
    _, folder = sweep(worker, tmp_path, "data.batch_size=7,2", "seed=4")
    whole = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text('{"jobs": [{"number"')
    monkeypatch.setenv("STUB_HEALED", "1")
    capsys.readouterr()
    assert start.resume(folder, worker=worker) == 0
    assert "sweep.json was damaged and is made anew from the folders of 2 jobs" in capsys.readouterr().err
    rebuilt = json.loads((folder / "sweep.json").read_text())
    assert rebuilt["words"] == whole["words"] and rebuilt["threads"] == whole["threads"]
    assert [job["overrides"] for job in rebuilt["jobs"]] == [job["overrides"] for job in whole["jobs"]]
    (folder / "0" / "metrics.json").unlink()
    assert folders.read(folder).jobs[0].state == "waiting", "what a job's folder does not hold is not done"


def test_a_folder_that_is_no_sweep_is_refused(worker, tmp_path):
    for name in ("absent", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match="no sweep"):
            start.resume(tmp_path / name, worker=worker)
    assert list((tmp_path / "empty").iterdir()) == []
    _, folder = sweep(worker, tmp_path, "norm=bn,gn")
    with pytest.raises(ConfigError, match="the folder of one run"):
        start.status(folder / "0")


def test_a_config_from_elsewhere_may_not_name_code(worker, tmp_path):
    """Resuming checks a job's config as that of a single run, unless the line that makes it was typed just now."""
    words = ["norm=bn,gn", "data.batch_size=10"]
    folder = stopped(worker, tmp_path, *words)
    path = folder / "1" / "config.yaml"
    path.write_text(path.read_text().replace("cnn_train.layers.norm.GroupNorm", "os.system").replace(
        "_target_: cnn_train.data.digits.digits", "_target_: shutil.rmtree"))  # fmt: skip
    with pytest.raises(ConfigError, match="not allowed in a saved config"):
        start.resume(folder, worker=worker)


def test_jobs_whose_folders_a_kill_has_left_unwritten_are_made_again(worker, tmp_path, monkeypatch):
    folder = stopped(worker, tmp_path, "norm=bn,gn", "data.batch_size=10")
    before = (folder / "1" / "config.yaml").read_text()
    shutil.rmtree(folder / "1")
    monkeypatch.setenv("STUB_HEALED", "1")
    assert start.resume(folder, worker=worker) == 0
    assert (folder / "1" / "config.yaml").read_text() == before and states(folder) == ["done", "done"]


def stopped(worker: list[str], tmp_path: Path, *words: str) -> Path:
    """A sweep of jobs that wait for a signal, stopped at the first."""
    line = [*COMMON, *words, "sweep.jobs=1", f"output_dir={tmp_path / 'out'}"]
    child = begin(lambda: start.start(line, worker=worker), tmp_path / "out.txt")
    until(lambda: list(tmp_path.glob("out/sweeps/*/0/ready")))
    os.kill(child, signal.SIGTERM)
    assert end(child) == 143
    return newest(tmp_path / "out")


def test_the_git_state_is_taken_once_a_sweep(worker, tmp_path, monkeypatch):
    from cnn_train.sweep import book

    asked = []
    monkeypatch.setattr(book, "git_state", lambda: asked.append(1) or ("abc", "+a change\n"))
    _, folder = sweep(worker, tmp_path, "norm=bn,gn,in")
    assert len(asked) == 1 and (folder / "git.diff").read_text() == "+a change\n"
    assert not list(folder.glob("*/git.diff"))
    assert json.loads((folder / "2" / "environment.json").read_text())["git_commit"] == "abc"


# -- Kills ------------------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_and_a_killed_first_one_leaves_nothing_running(worker, tmp_path, capsys):
    """kill -9: the jobs save and end by themselves, and the sweep goes on from there."""
    line = [*COMMON, "data.batch_size=10,12", "seed=1,2", "sweep.jobs=2", f"output_dir={tmp_path / 'out'}"]
    child = begin(lambda: start.start(line, worker=worker), tmp_path / "out.txt")
    until(lambda: len(list(tmp_path.glob("out/sweeps/*/*/ready"))) == 2)
    folder = newest(tmp_path / "out")
    with pytest.raises(EnvError, match="another process runs the sweep"):
        start.resume(folder, worker=worker)
    assert start.status(folder) == 1 and "2 running, 2 waiting\nit runs now" in capsys.readouterr().out
    os.kill(child, signal.SIGKILL)
    assert end(child) == -signal.SIGKILL
    killed = time.monotonic()
    until(lambda: not processes_of(folder) and all(run_folder.is_free(folder / name) for name in "01"))
    assert time.monotonic() - killed < 30
    assert (folder / "0" / "saved").exists() and (folder / "1" / "saved").exists()
    start.status(folder)
    assert f"2 stopped, 2 waiting\ncontinue: cnn-train resume {folder}" in capsys.readouterr().out


def kills(worker: list[str], tmp_path: Path, count: int, seed: int) -> None:
    """Kill the sweep, a job or both at random moments; each time continue; then compare with an undisturbed one."""
    import random

    words = ["data.batch_size=1,2", "seed=0,1,2", "sweep.jobs=2", "trainer.max_epochs=6"]
    os.environ["STUB_SECONDS"] = "0"
    _, undisturbed = sweep(worker, tmp_path / "a", *words)
    os.environ["STUB_SECONDS"] = "0.08"
    chance, done, number = random.Random(seed), 0, 0
    try:
        while done < count:
            out, log = tmp_path / f"b{number}", tmp_path / f"log{number}"
            line = [*COMMON, *words, f"output_dir={out}", "resume=auto"]
            call = lambda line=line: start.start(line, worker=worker)  # noqa: E731
            code = None
            while code != 0:
                child = begin(call, log)
                if done < count:
                    time.sleep(chance.uniform(0.4, 2.0))
                    done += disturb(chance.choice(["parent", "job", "both"]), child, out)
                code = end(child)
            folders_made = list((out / "sweeps").iterdir())
            folder = next(path for path in folders_made if (path / "sweep.csv").exists())
            assert results(folder).keys() == results(undisturbed).keys()
            assert {k: bare(v) for k, v in results(folder).items()} == {
                k: bare(v) for k, v in results(undisturbed).items()
            }
            assert not processes_of(out)
            number += 1
    finally:
        del os.environ["STUB_SECONDS"]


def bare(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Results without the one thing that may differ: the folder, in the stub's chain."""
    return texts[0], texts[1], str(json.loads(texts[2])["epoch"])


def disturb(what: str, parent: int, out: Path) -> int:
    """kill -9; how many kills that were."""
    jobs = [pid for pid in processes_of(out) if pid != parent]
    killed = 0
    if what in ("parent", "both"):
        os.kill(parent, signal.SIGKILL)
        killed += 1
    if what in ("job", "both") and jobs:
        system.kill(jobs[0])
        killed += 1
    return killed


def test_three_kills(worker, tmp_path):
    kills(worker, tmp_path, 3, 0)


@pytest.mark.slow
def test_forty_kills_of_a_stub(worker, tmp_path):
    kills(worker, tmp_path, 40, 1)


# -- Other systems ----------------------------------------------------------------------------------------------------


def test_without_what_only_posix_has(worker, tmp_path):
    """A sweep runs, is stopped by Ctrl-C and goes on, with the names taken away that Windows lacks."""
    script = f"""
import os, signal, sys, threading, time, pathlib
for module, names in ((signal, ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2")), (os, ("killpg", "setsid", "fork",
        "sched_getaffinity", "sysconf"))):
    for name in names:
        delattr(module, name)
sys.modules["fcntl"] = None
from cnn_train.cli.guard import guarded
from cnn_train.sweep import start
out = pathlib.Path({str(tmp_path / "out")!r})
worker = {worker!r}
def press():
    while not list(out.glob("sweeps/*/0/ready")):
        time.sleep(0.01)
    signal.raise_signal(signal.SIGINT)
threading.Thread(target=press, daemon=True).start()
words = [*{COMMON!r}, "data.batch_size=10,2", "sweep.jobs=1", f"output_dir={{out}}"]
code = guarded(lambda: start.start(words, worker=worker))
(folder,) = (out / "sweeps").iterdir()
os.environ["STUB_HEALED"] = "1"
print("codes", code, guarded(lambda: start.resume(folder, worker=worker)))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert "codes 130 0" in done.stdout, done.stdout + done.stderr
    folder = newest(tmp_path / "out")
    assert states(folder) == ["done", "done"] and (folder / "0" / "saved").exists()


def test_what_only_posix_has_stands_in_one_module():
    names = re.compile(r"\b(SIGKILL|SIGHUP|SIGUSR1|killpg|setsid|fcntl)\b")
    for path in (ROOT / "cnn_train" / "sweep").glob("*.py"):
        code = re.sub(r'"""(?:.|\n)*?"""|#.*', "", path.read_text())
        assert path.name == "system.py" or not names.search(code), path.name


def test_folds_and_seeds_repeat_a_combination(tmp_path, capsys):
    words = ["data=folder", "data.root=photos", "data.folds=3", "data.fold=range(3)", "seed=1,2", "data.batch_size=2,3"]
    code, folder = sweep(stub(tmp_path), tmp_path, *words)
    assert code == 0 and states(folder) == ["done"] * 12
    # val/loss is the batch size and a tenth of the seed, alike in each fold: 2.1 and 2.2, three times each.
    lines = [line for line in capsys.readouterr().out.splitlines() if "12 jobs" not in line and "(6)" in line]
    assert any(f"2.1500 ± {statistics.stdev([2.1, 2.2] * 3):.4f} (6)" in line for line in lines), lines
    assert [word for line in lines[:2] for word in line.split() if word.startswith("data.")] == [
        "data.batch_size=2",
        "data.batch_size=3",
    ]
