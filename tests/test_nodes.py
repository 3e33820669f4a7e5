"""One run on several machines: two launchers on this one, which know each other by address alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm
from kills import unequal

from cnn_train.runs import checkpoint

ROOT = Path(__file__).parents[1]
OPTIONS = (
    "trainer=ddp", "trainer.accelerator=cpu", "trainer.limit_batches=5", "data.batch_size=16", "norm=none",
    "trainer.progress=plain", "logger=none", "callbacks.samples=0",
)  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def launcher(node: int, port: int, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}"]
    command += ["--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}", "-m", "cnn_train"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, *OPTIONS, "trainer.devices=1", *words], stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT
    )


@pytest.mark.slow
def test_two_launchers_train_one_run_with_the_bits_of_two_devices(tmp_path):
    words = ["trainer.max_epochs=2", "trainer.num_nodes=2", f"output_dir={tmp_path / 'nodes'}"]
    nodes = [launcher(node, 29531, *words) for node in range(2)]
    outputs = [node.communicate(timeout=300) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert "test/acc" in outputs[0][0] and outputs[1] == ("", "")  # one process speaks
    here = ["trainer.max_epochs=2", "trainer.devices=2", f"output_dir={tmp_path / 'devices'}"]
    subprocess.run([sys.executable, "-m", "cnn_train", *OPTIONS, *here], check=True, env=ENVIRONMENT, timeout=300)
    (a,), (b,) = ((tmp_path / name / "lenet5").iterdir() for name in ("nodes", "devices"))
    assert (a / "metrics.csv").read_bytes() == (b / "metrics.csv").read_bytes()
    states = [checkpoint.load(folder / "last.ckpt") for folder in (a, b)]
    for part in ("network", "optimizer", "progress", "metrics", "best", "callbacks"):
        assert unequal(states[0][part], states[1][part], part) == ""


@pytest.mark.slow
def test_a_lost_machine_ends_the_other_and_the_same_command_goes_on(tmp_path):
    words = ["trainer.max_epochs=40", "trainer.num_nodes=2", f"output_dir={tmp_path}", "resume=auto"]
    nodes = [launcher(node, 29541, *words) for node in range(2)]
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("lenet5/*/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    for child in subprocess.run(["pgrep", "-P", str(nodes[1].pid)], capture_output=True, text=True).stdout.split():
        os.kill(int(child), signal.SIGKILL)
    nodes[1].send_signal(signal.SIGKILL)
    nodes[1].communicate(timeout=60)
    start = time.monotonic()
    nodes[0].communicate(timeout=120)
    assert nodes[0].returncode != 0 and time.monotonic() - start < 60
    nodes = [launcher(node, 29551, *words) for node in range(2)]
    outputs = [node.communicate(timeout=300) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    (folder,) = (tmp_path / "lenet5").iterdir()
    assert (folder / "metrics.json").is_file() and "resume" in outputs[0][1]


@pytest.mark.slow
def test_a_wrong_number_of_processes_is_told_with_the_right_one(tmp_path):
    node = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "cnn_train",
         *OPTIONS, "trainer.devices=3", f"output_dir={tmp_path}"],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=200,
    )  # fmt: skip
    assert node.returncode != 0
    assert "the launcher started 2 processes, but trainer.devices=3 on trainer.num_nodes=1 makes 3" in node.stderr


@pytest.mark.slow
@pytest.mark.skipif(bool(slurm.WHY), reason=slurm.WHY)
def test_srun_starts_the_processes_of_one_run(tmp_path_factory, tmp_path):
    folder = tmp_path_factory.mktemp("slurm")
    words = ["trainer.max_epochs=1", "trainer.devices=2", f"output_dir={tmp_path / 'srun'}"]
    command = [sys.executable, "-m", "cnn_train", *OPTIONS, *words]
    with slurm.cluster(folder) as environment:
        environment |= {k: v for k, v in ENVIRONMENT.items() if k != "PATH"}
        run = subprocess.run(
            ["srun", "--nodes=1", "--ntasks-per-node=2", *command],
            env=environment, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("test/acc") == 1
        (result,) = (tmp_path / "srun" / "lenet5").iterdir()
        wrong = subprocess.run(
            ["srun", "--nodes=1", "--ntasks=2", *command], env=environment, capture_output=True, text=True, timeout=200
        )
        assert "give it --nodes=1 --ntasks-per-node=2" in wrong.stderr
    here = ["trainer.max_epochs=1", "trainer.devices=2", f"output_dir={tmp_path / 'devices'}"]
    subprocess.run([sys.executable, "-m", "cnn_train", *OPTIONS, *here], check=True, env=ENVIRONMENT, timeout=300)
    (other,) = (tmp_path / "devices" / "lenet5").iterdir()
    assert (result / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
