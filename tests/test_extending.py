"""The examples of docs/extending.md, run from a folder outside of the repository against the installed package."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|yaml|sh)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SHORT = "trainer.max_epochs=1 trainer.limit_batches=2 trainer.progress=none logger=none callbacks.samples=0"
# Every command in one process, which imports torch once; an exit code a line.
SCRIPT = """
import contextlib, io, os, shlex, sys
sys.path.pop(0)  # -c begins with the working directory; an installed command does not
from cnn_train.__main__ import main
for line in sys.stdin.read().splitlines():
    words = shlex.split(line)
    words += [] if any(word.startswith("logger=") for word in words) else ["logger=none"]
    out, err = io.StringIO(), io.StringIO()
    os.environ.pop("CNN_TRAIN_PATH", None)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    print(code, line, "" if code == 0 else err.getvalue())
    if "Milestones" in line or "milestones" in line:
        print(out.getvalue())
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The wheel, unpacked as pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def write_examples(folder: Path) -> list[str]:
    """Write each file that the page shows, in pieces where it shows pieces; the commands."""
    commands = []
    for kind, text in BLOCKS:
        if kind == "sh":
            commands += text.strip().splitlines()
            continue
        name, _, body = text.partition("\n")
        path = folder / name.removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(body)
    return commands


def test_every_example_of_the_page_runs_from_elsewhere(site, tmp_path):
    commands = write_examples(tmp_path)
    assert len(commands) == 9 and len(BLOCKS) == 22
    (tmp_path / "random.py").write_text("raise SystemExit('it stands for a module of Python')")
    commands.append("cnn-train trainer.fast_dev_run=true model=resnet20")
    lines = [f"{command.removeprefix('cnn-train ')} {SHORT.replace('logger=none ', '')}" for command in commands]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], input="\n".join(lines), capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)}, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    codes = [line for line in result.stdout.splitlines() if re.match(r"\d+ ", line)]
    assert len(codes) == len(lines) and all(line.startswith("0 ") for line in codes), result.stdout
    assert (tmp_path / "outputs").is_dir()


def test_a_part_that_cannot_be_put_into_a_plain_model_is_told(tmp_path, monkeypatch):
    from cnn_train.config.compose import compose
    from cnn_train.errors import ConfigError
    from cnn_train.experiment.network import build_network_and_data

    (tmp_path / "model").mkdir()
    (tmp_path / "plain_parts.py").write_text(
        "from torch import nn\n"
        "def ten():\n    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))\n"
        "def nine():\n    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 9))\n"
    )
    for name in ("ten", "nine"):
        (tmp_path / "model" / f"{name}.yaml").write_text(f"_target_: plain_parts.{name}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    network, _ = build_network_and_data(compose(["model=ten"], tmp_path))
    assert len(network) == 2
    with pytest.raises(ConfigError, match="norm=gn cannot be put into model=ten, whose builder takes no `layers`"):
        build_network_and_data(compose(["model=ten", "norm=gn"], tmp_path))
    with pytest.raises(ConfigError, match="nine gives 9 scores, but data=digits has 10 classes"):
        build_network_and_data(compose(["model=nine"], tmp_path))
