"""What can go wrong, each situation by its command line: one line that says what to do, and the right exit code.

docs/errors.md shows the same; `python tests/test_errors.py` writes it anew from what is printed.
"""

import errno
import itertools
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image

from cnn_train.__main__ import main

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
TINY = "trainer.max_epochs=1 trainer.limit_batches=2 trainer.progress=none logger=none"
BOXES = "model=fcos data=detection_folder data.root=street"
CAR = "<object><name>car</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object>"
GREY = 128


@dataclass
class Situation:
    """`command` is run in an empty folder after `given`; the exit code is `code` and the message has `says`."""

    name: str
    command: str
    code: int
    says: str
    given: Callable[[], object] = lambda: None
    patched: Callable[[], ExitStack] = ExitStack


# -- What the situations need -----------------------------------------------------------------------------------------


def images(count: int = 8, classes: tuple[str, ...] = ("cat", "dog"), side: int = 32) -> None:
    for name in classes:
        folder = Path("pets") / name
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (side, side), (GREY, number, 0)).save(folder / f"{number}.jpg")


def damaged_image() -> None:
    images()
    path = Path("pets/cat/3.jpg")
    path.write_bytes(path.read_bytes()[:400])


def masks(value: int) -> None:
    for part in ("images", "masks"):
        (Path("fields") / part).mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (32, 32)).save(Path("fields/images") / f"{number}.png")
        Image.new("L", (32, 32), value).save(Path("fields/masks") / f"{number}.png")


def photographs(folder: str) -> None:
    (Path("street") / folder).mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (64, 48), (GREY, number, 0)).save(Path("street") / folder / f"{number}.jpg")


def labels(*lines: str) -> None:
    """Boxes as YOLO's tools write them, in one file these."""
    photographs("images")
    Path("street/labels").mkdir()
    for number in range(8):
        text = "\n".join(lines) if number == 3 else f"{number % 2} 0.5 0.5 0.2 0.2"
        Path(f"street/labels/{number}.txt").write_text(text + "\n")
    Path("street/data.yaml").write_text("names: [car, bicycle]\n")


def table(columns: str, row: str) -> None:
    photographs("images")
    rows = [f"{number}.jpg,car,{row}" for number in range(8)]
    Path("street/boxes.csv").write_text("\n".join([f"image,class,{columns}", *rows]) + "\n")


def xml(content: str, orientation: int = 1) -> None:
    photographs("JPEGImages")
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (64, 48)).save("street/JPEGImages/0.jpg", exif=exif)
    Path("street/Annotations").mkdir()
    Path("street/Annotations/0.xml").write_text(content)


def json_file(content: str) -> None:
    photographs("images")
    Path("street/boxes.json").write_text(content)


def folder_of_text() -> None:
    Path("pets").mkdir()
    Path("pets/notes.txt").write_text("no images here")


def unwritable() -> None:
    Path("taken").write_text("a file, where a folder is wanted")


def finished_run(*overrides: str) -> None:
    from omegaconf import OmegaConf

    from cnn_train.config.compose import compose
    from cnn_train.experiment.train import train
    from cnn_train.runs.folder import describe

    folder = Path("outputs/mine")
    folder.mkdir(parents=True)
    cfg = compose([*TINY.split(), *overrides])
    describe(folder, OmegaConf.to_yaml(cfg), "cnn-train")
    with redirect_stdout(StringIO()):
        train(cfg, folder)


def damaged_run() -> None:
    finished_run()
    for path in Path("outputs/mine").glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:1000])


def run_of_another_network() -> None:
    finished_run()
    path = Path("outputs/mine/config.yaml")
    path.write_text(path.read_text().replace("lenet.lenet5", "nin.nin").replace("max_epochs: 1", "max_epochs: 2"))


def patched(*patches: object) -> Callable[[], ExitStack]:
    def enter() -> ExitStack:
        stack = ExitStack()
        for patch in patches:
            stack.enter_context(patch)  # type: ignore[arg-type]
        return stack

    return enter


def gpus(count: int) -> list[object]:
    return [
        mock.patch("torch.cuda.is_available", return_value=count > 0),
        mock.patch("torch.cuda.device_count", return_value=count),
    ]


def raising(error: BaseException) -> Callable[..., object]:
    def fail(*arguments: object, **options: object) -> object:
        raise error

    return fail


def interrupting(number: int) -> object:
    """The signal comes in the middle of the first step."""
    from torch.nn.functional import cross_entropy

    def interrupt(*arguments: object, **options: object) -> object:
        os.kill(os.getpid(), number)
        return cross_entropy(*arguments, **options)  # type: ignore[arg-type]

    calls = mock.Mock(side_effect=itertools.chain([interrupt], itertools.repeat(cross_entropy)))
    return mock.patch("torch.nn.functional.cross_entropy", lambda *args, **options: calls()(*args, **options))


DENIED = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "outputs/lenet5/tensorboard")
OUT_OF_MEMORY = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB of which 1.12 GiB is free."
)
NO_FORM = RuntimeError("nll_loss2d_forward_out_cuda does not have a deterministic implementation, but you set it")

MISTAKE = IndexError("list index out of range")
SITUATIONS = [
    Situation("Unknown option", "--mutlirun norm=bn,gn", 2, "Did you mean --multirun?"),
    Situation("Unknown choice of a group", "model=resnt", 2, "Did you mean resnet18?"),
    Situation("Name of another program", "-m norm=batchnorm,gn seed=0,1", 2, "Did you mean bn?"),
    Situation("Unknown key", "norm=gn batch_sise=3", 2, "Did you mean data.batch_size (now 64)?"),
    Situation("Value that another program takes", "device=cuda", 2, "trainer.accelerator=gpu"),
    Situation("Decimal comma", "optimizer.lr=0,01", 2, "decimal point: 0.01"),
    Situation("Blanks around =", "optimizer.lr = 0.01", 2, "a setting is one word"),
    Situation("Flag or option that a command does not take", "list norm --cfg job", 2, "list takes no --cfg"),
    Situation("Run that is not there", "eval lenet6", 2, "no run at"),
    Situation("Wrong type", "optimizer.lr=abc", 2, "optimizer.lr must be a number, got 'abc'"),
    Situation("Value out of range", "data.batch_size=-4", 2, "data.batch_size must be >= 1, got -4"),
    Situation("Images too small for the model", "model=alexnet image_size=32", 2, "image_size="),
    Situation("Channels or classes that are not the data's", "model.in_channels=3", 2, "it comes from the data"),
    Situation("Model and data of different tasks", "model=fcn_resnet50 data=digits", 2, "segments images"),
    Situation("Norm and batch that do not go together", "model=resnet18 data.batch_size=1", 2, "norm=gn"),
    Situation("Missing data", "data=folder data.root=pets", 3, "no folder"),
    Situation("Data set that is not there", "data=cifar10 data.root=sets", 3, "data.download=true"),
    Situation("Empty data", "data=folder data.root=pets", 3, "1 .txt", folder_of_text),
    Situation("Label outside the classes", "model=unet data=segmentation_folder data.root=fields data.classes=2", 3,
              "masks hold 7", lambda: masks(7)),
    Situation("Damaged image", "data=folder data.root=pets", 3, "pets/cat/3.jpg", damaged_image),
    Situation("Detector and data of another task", "model=yolov3 data=digits", 2, "detects objects, but data=digits"),
    Situation("Loss of another task", "loss=fcos", 2, "loss=fcos is for detection"),
    Situation("Folder without annotations", BOXES, 3, "holds 1 folders", lambda: photographs("images")),
    Situation("Class number beyond the names", BOXES, 3, "data.classes has 2 names, 0 to 1",
              lambda: labels("2 0.5 0.5 0.2 0.2")),
    Situation("Polygon", BOXES, 3, "a polygon", lambda: labels("1 0.1 0.1 0.2 0.2 0.3 0.1")),
    Situation("Box without extent", BOXES, 3, "line 2: a box without extent",
              lambda: labels("1 0.5 0.5 0.2 0.2", "1 0.4 0.4 0.2 0")),
    Situation("Box that is not finite", BOXES, 3, "not finite", lambda: labels("1 nan 0.4 0.2 0.1")),
    Situation("Box far outside", BOXES, 3, "far outside", lambda: labels("1 1.3 0.5 0.2 0.2")),
    Situation("The same box twice", BOXES, 3, "line 2: the same box twice",
              lambda: labels("1 0.5 0.5 0.2 0.2", "1 0.5 0.5 0.2 0.2")),
    Situation("Corners expected, widths given", BOXES, 3, "they seem to be x, y, width, height",
              lambda: table("x1,y1,x2,y2", "30,20,10,12")),
    Situation("Widths expected, corners given", BOXES, 3, "they seem to be x1, y1, x2, y2",
              lambda: table("x,y,width,height", "30,20,50,40")),
    Situation("Pixels expected, parts of the image given", BOXES, 3, "are between 0 and 1",
              lambda: table("x1,y1,x2,y2", "0.2,0.2,0.5,0.7")),
    Situation("Annotation of an image that is not there", BOXES, 3, "not there",
              lambda: (table("x1,y1,x2,y2", "10,10,30,30"), Path("street/images/2.jpg").unlink())),
    Situation("Size turned against the annotation", BOXES, 3, "with its orientation applied",
              lambda: xml(f"<annotation><size><width>64</width><height>48</height></size>{CAR}</annotation>", 6)),
    Situation("Entities in XML", BOXES, 3, "declares entities",
              lambda: xml('<!DOCTYPE a [<!ENTITY b "bb">]><annotation>&b;</annotation>')),
    Situation("JSON that is cut off", BOXES, 3, "is the file cut off?", lambda: json_file('{"images": [{"id": 1')),
    Situation("Unwritable output", "output_dir=taken", 4, "output_dir", unwritable),
    Situation("Missing checkpoint", "weights=outputs/lenet5/last.ckpt", 2, "no checkpoint at"),
    Situation("Damaged checkpoint", "resume outputs/mine", 2, "is damaged", damaged_run),
    Situation("Checkpoint of another model", "resume outputs/mine", 2, "of another network", run_of_another_network),
    Situation("No GPU", "trainer=gpu", 4, "trainer=cpu", patched=patched(*gpus(0))),
    Situation("Too many devices", "trainer=gpu trainer.devices=8", 4, "trainer.devices=2", patched=patched(*gpus(2))),
    Situation("Precision that the device has not", "trainer=cpu trainer.precision=16-mixed", 4, "bf16-mixed"),
    Situation("Recorded steps on a CPU", "trainer=cpu trainer.cuda_graphs=true", 4, "needs a GPU"),
    Situation("No form that repeats its bits", TINY, 4, "repro=fast", patched=patched(
        mock.patch("torch.nn.functional.cross_entropy", raising(NO_FORM)))),
    Situation("Out of memory", "data.batch_size=512", 4, "trainer.split_batches",
              patched=patched(mock.patch("torch.nn.functional.cross_entropy", raising(OUT_OF_MEMORY)))),
    Situation("Not a number", f"optimizer=sgd optimizer.lr=1e30 act=relu {TINY}", 5,
              "diverged at step"),
    Situation("Disk full", TINY, 4, "No space left on device",
              patched=patched(mock.patch("torch.save", raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))))),
    Situation("TensorBoard's folder that cannot be written", TINY.replace(" logger=none", ""), 4, "Permission denied",
              patched=patched(mock.patch(
                  "lightning.pytorch.loggers.tensorboard.TensorBoardLogger.experiment", property(raising(DENIED))))),
    Situation("Missing package", "model=timm model.name=resnet18", 4, "pip install",
              patched=patched(mock.patch.dict(sys.modules, {"timm": None}))),
    Situation("No network", "data=cifar10 data.root=sets data.download=true", 3, "cannot fetch cifar10",
              patched=patched(mock.patch("urllib.request.urlopen", raising(OSError("Name or service not known"))))),
    Situation("Interrupted", TINY, 130, "cnn-train resume", patched=patched(interrupting(signal.SIGINT))),
    Situation("Terminated", TINY, 143, "cnn-train resume", patched=patched(interrupting(signal.SIGTERM))),
    Situation("A mistake of ours", "", 1, "traceback:",
              patched=patched(mock.patch("cnn_train.commands.train.run", raising(MISTAKE)))),
]  # fmt: skip


def run(situation: Situation) -> tuple[int, str]:
    """Exit code and what is on stderr, in the current folder."""
    situation.given()
    err = StringIO()
    with situation.patched(), redirect_stderr(err), redirect_stdout(StringIO()):
        code = main(situation.command.split())
    return code, err.getvalue()


def told(err: str) -> str:
    """The error, without the header of a run that had begun; paths as they would be at home."""
    text = err[err.index("error:") :] if "error:" in err else err
    text = text.replace(str(Path.cwd().resolve()) + "/", "").replace(str(Path.cwd().resolve()), "/home/me")
    text = re.sub(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_\d+", "2026-11-21_08-00-00_0", text)
    return re.sub(r"/\S*/cnn-train-\w+/", "/tmp/cnn-train-x/", text).strip()


def entry(situation: Situation, code: int, err: str) -> str:
    command = f"$ cnn-train {situation.command}".rstrip()
    return f"## {situation.name}\n\n```console\n{command}\n{told(err)}\n$ echo $?\n{code}\n```\n"


HEAD = """# Errors

Every error of yours or your machine's is a line that says what was got, what is allowed and what to do, sometimes with
the command to try. `--debug` or `CNN_TRAIN_DEBUG=1` shows the traceback; it is always in the run folder's `log.txt`.

| exit code | |
|---|---|
| 0 | done |
| 2 | command or config |
| 3 | data |
| 4 | environment: no GPU, no memory, no disk, a missing package |
| 5 | diverged: the loss or a gradient is not finite |
| 1 | anything else: a mistake of ours |
| 130, 143, 138, 129, 152 | Ctrl-C, SIGTERM, SIGUSR1, SIGHUP, SIGXCPU: the state is saved |

This page is what the tests print (`python tests/test_errors.py`).
"""


def entries() -> dict[str, str]:
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    return {part.partition("\n")[0]: f"## {part}".rstrip() + "\n" for part in text.split("\n## ")[1:]}


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name.replace(" ", "_"))
def test_situation(situation, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, err = run(situation)
    assert code == situation.code, err
    assert situation.says in err
    message = told(err)
    assert message.count("\n") < 6
    assert "Traceback" not in err
    if code not in (130, 143):
        assert err[err.index("error:") :].count("error:") == 1
    assert entries()[situation.name] == entry(situation, code, err), (
        "docs/errors.md is old: python tests/test_errors.py"
    )


@pytest.mark.parametrize("switch", ["", "--debug", "CNN_TRAIN_DEBUG=1"])
def test_the_traceback_is_in_the_runs_log_and_shown_on_demand(switch, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "=" in switch:
        monkeypatch.setenv(*switch.split("="))
    words = [*TINY.split(), "monitor=val/nothing", *([switch] if switch.startswith("--") else [])]
    assert main(words) == 2
    (folder,) = Path("outputs/lenet5").iterdir()
    assert "Traceback" in (folder / "log.txt").read_text()
    assert ("Traceback" in capsys.readouterr().err) == bool(switch)


def test_page_has_no_other_situation():
    assert list(entries()) == [situation.name for situation in SITUATIONS]
    assert PAGE.read_text().startswith(HEAD)


def write_page() -> None:
    """Run every situation in a folder of its own and write docs/errors.md."""
    here, parts = os.getcwd(), [HEAD]
    for situation in SITUATIONS:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
            code, err = run(situation)
            parts.append(entry(situation, code, err))
            if code != situation.code or situation.says not in err:
                print(f"{situation.name}: exit code {code}, wanted {situation.code} and {situation.says!r}\n{err}")
            os.chdir(here)
    PAGE.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    write_page()
