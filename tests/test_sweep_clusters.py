"""Sweeps on clusters: jobs that know their sweep by its folder alone; SLURM and Ray where they are installed."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import slurm as loopback
from children import end
from sweeps import COMMON, begin, newest, records, results, states, stub, sweep, until
from test_sweep_real import SMALL, cnn_train, difference, workers

from cnn_train.cli.guard import guarded
from cnn_train.sweep import engines, node, remote, slurm, start
from cnn_train.sweep.workers import Fresh

ROOT = Path(__file__).parents[1]


class Threads:
    """A cluster that is this process: each job a thread, at most `most` at once; `lose` ends one without a word."""

    name = "the cluster"

    def __init__(self, most: int = 2):
        self.places = threading.Semaphore(most)
        self.submitted: list[list[str]] = []
        self.jobs: dict[int, threading.Thread] = {}
        self.cancelled: set[int] = set()
        self.lose: set[int] = set()

    def submit(self, arguments, place, token):
        number = len(self.submitted)
        self.submitted.append(list(arguments))

        def job():
            with self.places:
                if number not in self.cancelled and number not in self.lose:
                    node.run(arguments, place, token)

        self.jobs[number] = threading.Thread(target=job)
        self.jobs[number].start()
        return number

    def alive(self, handles, in_a_hurry):
        return {number for number in handles if self.jobs[number].is_alive() and number not in self.cancelled}

    def cancel(self, handle):
        self.cancelled.add(handle)

    def close(self):
        for job in self.jobs.values():
            job.join()


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    found = Threads()
    monkeypatch.setattr(node, "Fresh", lambda hidden: Fresh(stub(tmp_path), hidden))
    monkeypatch.setattr(engines, "check", lambda settings, worker=None: None)
    monkeypatch.setattr(engines, "cluster", lambda settings, sweep: found)
    monkeypatch.setattr(node, "BEAT", 0.1)
    monkeypatch.setattr(node, "PATIENCE", 5.0)  # a busy machine is late with its beats
    monkeypatch.setattr(remote, "SETTLE", 0.2)
    return found


def run(out: Path, *words: str) -> tuple[int, Path]:
    code = start.start([*COMMON, "sweep.engine=slurm", *words, f"output_dir={out}"])
    return code, newest(out)


def test_jobs_elsewhere_leave_what_jobs_here_leave(cluster, tmp_path):
    code, folder = run(tmp_path / "there", "norm=bn,gn", "seed=1,2")
    assert code == 0 and states(folder) == ["done"] * 4
    _, here = sweep(stub(tmp_path), tmp_path / "here", "norm=bn,gn", "seed=1,2")
    numbers = [[row.split(",")[1] for row in found[1].splitlines()] for found in results(folder).values()]
    assert numbers == [[row.split(",")[1] for row in found[1].splitlines()] for found in results(here).values()]
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]


def test_a_lost_job_is_tried_again_and_a_stopped_one_goes_on(cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STUB_SECONDS", "0.3")
    cluster.lose = {0}
    before = threading.Thread(target=lambda: disturb(tmp_path))
    before.start()
    code, folder = run(tmp_path, "seed=1,2", "sweep.jobs=1")
    before.join()
    assert code == 0 and states(folder) == ["done"] * 2
    told = capsys.readouterr().err
    assert "seed=1: the cluster ended it without an exit code" in told and "trying it again" in told
    assert "stopped by the cluster; it goes on" in told
    assert [words[1:] for words in cluster.submitted][-1] == ["resume=true"]


def disturb(out: Path) -> None:
    """What a time limit does to the second job, once it has saved."""
    until(lambda: list(out.glob("sweeps/*/1/last.ckpt")))
    (pid,) = workers(next(out.glob("sweeps/*/1")))
    os.kill(pid, signal.SIGTERM)


def test_jobs_save_and_end_without_their_sweep(cluster, tmp_path, monkeypatch):
    """The sign of life stays still, or is another sweep's; a job that comes out of the queue then does nothing."""
    folder = tmp_path / "sweep"
    _, made = sweep(stub(tmp_path), tmp_path, "data.batch_size=2,3")
    made.rename(folder)
    monkeypatch.setenv("STUB_SECONDS", "60")
    for name, ends in (("0", lambda: None), ("1", lambda: node.write_sign(folder / node.ALIVE, {"token": "new"}))):
        (folder / name / "last.ckpt").unlink()
        node.write_sign(folder / node.ALIVE, {"token": "old"})
        job = threading.Thread(target=node.run, args=([str(folder / name)], {}, "old"))
        job.start()
        log = folder / name / "log.txt"
        until(lambda log=log: log.read_text().count("starts") == 2)
        ends()
        job.join(20)
        assert not job.is_alive() and (folder / name / "saved").exists()
        assert '"code": 143' in (folder / name / node.ENDED).read_text()
        (folder / name / node.ENDED).unlink()
    node.run([str(folder / "0")], {}, "old")
    assert not (folder / "0" / node.ENDED).exists()


def test_a_stop_takes_jobs_out_of_the_queue_and_lets_others_save(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_SECONDS", "30")
    cluster.places = threading.Semaphore(1)
    child = begin(lambda: run(tmp_path, "seed=1,2", "sweep.jobs=2")[0], tmp_path / "out.txt")
    until(lambda: any("starts" in log.read_text() for log in tmp_path.glob("sweeps/*/?/log.txt")))
    os.kill(child, signal.SIGTERM)
    assert end(child) == 143, (tmp_path / "out.txt").read_text()
    assert states(newest(tmp_path)) == ["stopped"] * 2 and not workers(tmp_path)
    assert len(list(tmp_path.glob("sweeps/*/?/saved"))) == 1


PROGRAMS = {
    "sinfo": "echo all; echo gpus",
    "squeue": "cat $SEEN/alive",
    "scancel": "echo $1 >> $SEEN/cancelled",
    "srun": "true",
    "sbatch": 'case "$*" in *--test-only*) echo "$*" >> $SEEN/tested;; *) cat "$1" > $SEEN/script; '
    'echo "Submitted batch job 7";; esac',
}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """SLURM's programs, which note what they were asked."""
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "alive").write_text("7\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SEEN", str(tmp_path))
    return tmp_path


def settings_of(*words: str):
    from cnn_train.config.compose import compose

    return engines.resources(compose(["sweep.engine=slurm", *words]))


def test_what_is_asked_of_slurm_reaches_sbatch(programs):
    pytest.importorskip("submitit", reason="the extra slurm")
    settings = settings_of(
        "sweep.partition=gpus", "sweep.time=4:00:00", "sweep.gpus=2", "sweep.memory=1.5", "sweep.cpus=3",
        "sweep.slurm={account: mine, qos: high}",
    )  # fmt: skip
    slurm.check(settings)
    cluster = slurm.Slurm(settings, programs)
    assert cluster.submit([str(programs / "0")], {"OMP_NUM_THREADS": "3"}, "token") == "7"
    asked = {line.removeprefix("#SBATCH --") for line in (programs / "script").read_text().splitlines()}
    assert {
        "partition=gpus", "time=4:00:00", "gpus-per-node=2", "mem=1536M", "cpus-per-task=3", "account=mine",
        "qos=high", "signal=USR1@90", "nodes=1", "ntasks-per-node=1",
    } <= asked  # fmt: skip
    assert "--partition=gpus --time=4:00:00 --gpus-per-node=2" in (programs / "tested").read_text()
    assert cluster.alive(["7"], False) == {"7"}
    (programs / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert cluster.alive(["7", "8"], False) == {"7", "8"}, "a controller that is away ends no job"
    cluster.cancel("7")
    assert (programs / "cancelled").read_text() == "7\n"


def test_the_trainer_says_how_many_gpus():
    gpus = [settings_of(*words).gpus for words in (["trainer=cpu"], ["trainer=gpu"], ["trainer=gpu", "sweep.gpus=0"])]
    assert gpus == [None, 1, 0]
    assert settings_of("trainer.accelerator=gpu", "trainer.devices=4").gpus == 4


@pytest.mark.parametrize(
    ("words", "change", "code", "told"),
    [
        (["sweep.partition=gpsu"], None, 2, "sweep.partition=gpsu: SLURM has no such partition. Did you mean gpus?"),
        (["sweep.time=soon"], None, 2, "sweep.time=soon: a time is minutes, hours:minutes:seconds"),
        ([], ("sinfo", "echo 'sinfo: error: Unable to contact slurm controller' >&2; exit 1"), 4,
         "SLURM does not answer: Unable to contact slurm controller"),
        (["sweep.gpus=9"], ("sbatch", "echo 'sbatch: error: Requested node configuration is not available' >&2; "
         "exit 1"), 2, "--gpus-per-node=9): Requested node configuration is not available"),
    ],
)  # fmt: skip
def test_what_slurm_does_not_take_is_told_before_there_is_a_folder(programs, capsys, words, change, code, told):
    pytest.importorskip("submitit", reason="the extra slurm")
    if change:
        (programs / change[0]).write_text(f"#!/bin/sh\n{change[1]}\n")
    line = ["seed=1,2", "sweep.engine=slurm", *words, f"output_dir={programs / 'out'}"]
    assert guarded(lambda: start.start(line)) == code
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and "Traceback" not in error
    assert not (programs / "out").exists()


@pytest.mark.parametrize(("engine", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_extra_is_told_with_its_line(tmp_path, capsys, monkeypatch, engine, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert guarded(lambda: start.start(["seed=1,2", f"sweep.engine={engine}", f"output_dir={tmp_path / 'out'}"])) == 4
    error = capsys.readouterr().err
    assert f"the package {package} is not installed" in error and "try: pip install" in error
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_is_not_there_is_told(tmp_path, capsys, monkeypatch):
    pytest.importorskip("submitit", reason="the extra slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert guarded(lambda: start.start(["seed=1,2", "sweep.engine=slurm", f"output_dir={tmp_path / 'out'}"])) == 4
    assert "sweep.engine=slurm needs sbatch and squeue and scancel" in capsys.readouterr().err


def test_what_asks_a_cluster_is_refused_here(tmp_path, capsys):
    assert guarded(lambda: start.start(["seed=1,2", "sweep.partition=gpus", f"output_dir={tmp_path / 'out'}"])) == 2
    assert "sweep.partition=gpus asks a cluster, and this sweep runs here" in capsys.readouterr().err


# -- Real clusters ----------------------------------------------------------------------------------------------------

KILLS = int(os.environ.get("KILLS", "4"))  # of a sweep on a cluster; KILLS=20 takes a quarter of an hour
JOBS = 2 * KILLS  # enough to be killed so often
LINE = [*SMALL, "act=relu,tanh", f"seed=range(0,{KILLS})", "sweep.jobs=2", "callbacks.checkpoint.every_steps=1"]


def undisturbed(tmp_path: Path) -> Path:
    cnn_train("-m", *LINE, f"output_dir={tmp_path / 'a'}")
    return newest(tmp_path / "a")


def kill_and_continue(tmp_path: Path, engine: str, kills: int, environment: dict[str, str]) -> None:
    """kill -9 of the sweep, of a job or of both, each time continued by the same line; every job has the same bits."""
    other, out = undisturbed(tmp_path), tmp_path / "b"
    line = [
        sys.executable,
        "-m",
        "cnn_train",
        "-m",
        *LINE,
        f"sweep.engine={engine}",
        f"output_dir={out}",
        "resume=auto",
    ]
    chance, code, told = random.Random(1), None, b""
    while code != 0:
        parent = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while kills > 0 and parent.poll() is None:
            time.sleep(chance.uniform(4.0, 14.0))
            what = chance.choice(["sweep", "job", "both"])
            if what != "sweep" and (jobs := workers(out)):
                os.kill(jobs[0], signal.SIGKILL)
                kills -= 1
            if what != "job" and parent.poll() is None:
                parent.kill()
                kills -= 1
        told = parent.communicate(timeout=400)[0]
        code = parent.returncode
    (folder,) = (out / "sweeps").iterdir()
    assert states(folder) == ["done"] * JOBS, told.decode()
    assert len({" ".join(record["changes"]) for record in records(folder)}) == JOBS
    for name in (f"{number:0{len(str(JOBS - 1))}d}" for number in range(JOBS)):
        assert difference(folder / name, other / name) == ""
    assert not workers(out)
    assert kills <= 0


@pytest.fixture
def environment(tmp_path_factory):
    if loopback.WHY:
        pytest.skip(loopback.WHY)
    with loopback.cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield {**found, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.slow
def test_kills_of_a_sweep_on_slurm(environment, tmp_path):
    pytest.importorskip("submitit", reason="the extra slurm")
    kill_and_continue(tmp_path, "slurm", KILLS, environment)
    queue = subprocess.run(["squeue", "--noheader"], env=environment, capture_output=True, text=True)
    assert queue.stdout == ""


@pytest.mark.slow
def test_no_job_on_slurm_outlives_its_sweep_and_a_time_limit_ends_none(environment, tmp_path):
    """The parent is killed: within 30 s nothing runs. A time limit: the job saves, is submitted again and goes on."""
    pytest.importorskip("submitit", reason="the extra slurm")
    words = [
        *SMALL[:1],
        *SMALL[2:],
        "trainer.max_epochs=400",
        "seed=0,1",
        "sweep.engine=slurm",
        f"output_dir={tmp_path}",
    ]
    line = [sys.executable, "-m", "cnn_train", "-m", *words]
    parent = subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until(lambda: len(list(tmp_path.glob("sweeps/*/?/metrics.csv"))) == 2, 120)
    parent.kill()
    parent.wait()
    since = time.monotonic()
    until(lambda: not workers(tmp_path), 30)
    print(f"nothing runs {time.monotonic() - since:.1f} s after the sweep's end")
    folder = newest(tmp_path)
    assert all("stopped at step" in (folder / name / "log.txt").read_text() for name in "01")
    words = ["resume", str(folder), "sweep.time=2"]
    parent = subprocess.Popen([*line[:3], *words], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        for told in parent.stderr:
            if "stopped by the cluster; it goes on from its checkpoint" in told:
                break
        else:
            pytest.fail("no job was submitted again")
    finally:
        parent.terminate()
        parent.communicate(timeout=90)
    assert parent.returncode == 143 and not workers(tmp_path)


@pytest.mark.slow
def test_kills_of_a_sweep_on_ray(tmp_path):
    pytest.importorskip("ray", reason="the extra ray")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    kill_and_continue(tmp_path, "ray", KILLS, environment)


def test_a_dead_ray_address_is_told(tmp_path, capsys, monkeypatch):
    pytest.importorskip("ray", reason="the extra ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert guarded(lambda: start.start(["seed=1,2", "sweep.engine=ray", f"output_dir={tmp_path / 'out'}"])) == 4
    assert "Ray does not answer at RAY_ADDRESS=127.0.0.1:1" in capsys.readouterr().err
