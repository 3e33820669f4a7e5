"""Files and command lines that mean harm or are broken: none runs code, escapes its folder or ends in a traceback."""

import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
import zlib
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import requires
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kills import OPTIONS, prepare
from packaging.requirements import Requirement
from PIL import Image

from cnn_train.__main__ import main
from cnn_train.cli.guard import guarded
from cnn_train.config.compose import compose
from cnn_train.config.load import load
from cnn_train.data.images import read_image
from cnn_train.errors import ConfigError, DataError, UserError
from cnn_train.runs import checkpoint, secrets
from cnn_train.runs import folder as run_folder

ROOT = Path(__file__).parents[1]


def call(*words: str) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    return code, err.getvalue()


# -- Command lines and YAML that chance has changed -------------------------------------------------------------------

WORDS = [
    "model=resnet18", "norm=gn", "norm=none", "act=elu", "optimizer=sgd", "optimizer.lr=0.1", "data.batch_size=8",
    "trainer=cpu", "trainer.max_epochs=3", "image_size=[32,32]", "+optimizer.amsgrad=true", "~optimizer.eps", "seed=1",
    "name=a", "monitor=val/loss", "init=lsuv", "scheduler=step", "scheduler.milestones=[0.5,0.75]", "augment=shift",
    "loss.label_smoothing=0.1", "callbacks.checkpoint.every_minutes=5", "experiment=null", "data.root=x", "seed=1,2",
    "model.dropout=0.5", "weights=a.ckpt", "choices.model=x", "optimizer.betas=[0.9,0.99]", "data=folder", "--cfg=job",
    "--info=defaults", "-m", "list", "model", "resume", "eval", "run=outputs", "split=val", "resume=auto", "train",
    "schedule=keep", "hydra.run.dir=x", "output_dir=~/x",
    "model=../../x", "optimizer._target_=os.system", "${seed}", "a=${b}", "--version",
]  # fmt: skip
PIECES = [
    *"=.,[]{}()'\"\\/~+-!@#$%^&*?:;<>| \t\n\0\u00e9\u2603",
    "..",
    "???",
    "null",
    "${",
    "nan",
    "1e999",
    "-1",
    "_target_",
    "--",
]


@st.composite
def changed(draw: st.DrawFn, texts: st.SearchStrategy[str], pieces: list[str], most: int) -> str:
    """A text with up to `most` characters left out, doubled, exchanged or put in."""
    text = draw(texts)
    for _ in range(draw(st.integers(0, most))):
        at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 4))
        text = text[:at] + draw(st.sampled_from([*pieces, "", text[at : at + length] * 2])) + text[at + length :]
    return text


LINES = st.lists(changed(st.sampled_from(WORDS), PIECES, 3), min_size=1, max_size=5)


def check_line(words: list[str]) -> None:
    """A run that would start ends right there."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("cnn_train.experiment.train.train", lambda *arguments, **options: {})
        patch.setattr("cnn_train.sweep.local.run", lambda *arguments, **options: 0)
        code, err = call(*words)
        assert code in (0, 2), (words, code, err)
        assert "Traceback" not in err and err.count("\n") <= 6, (words, err)
        assert (code == 0) or err.startswith("error: "), (words, err)
        assert list(Path(folder).iterdir()) == [], words


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@settings(max_examples=80, derandomize=True, **QUIET)
@given(LINES)
@example(["=~model=resnet18"])
def test_changed_command_lines(words):
    check_line(words)


@pytest.mark.slow
@settings(max_examples=7000, **QUIET)
@given(LINES)
def test_many_changed_command_lines(words):
    check_line(words)


YAML_PIECES = [
    *":-[]{}&*!|>'\"%@`#,?\n \t\0", "  ", "null", "!!python/object/apply:os.system [id]", "_target_", ".nan", "1e999",
    "${", "<<: ",
]  # fmt: skip
SAVED = st.sampled_from([compose(list(OPTIONS)), compose(["model=resnet18", "norm=gn"])]).map(
    lambda config: __import__("omegaconf").OmegaConf.to_yaml(config)
)


def check_yaml(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
        code, err = None, io.StringIO()
        with redirect_stderr(err):
            code = guarded(lambda: load(folder) and None)
        assert code in (0, 2), (code, err.getvalue())
        assert "Traceback" not in err.getvalue() and err.getvalue().count("\n") <= 6


@settings(max_examples=40, derandomize=True, **QUIET)
@given(changed(SAVED, YAML_PIECES, 6))
def test_changed_configs(text):
    check_yaml(text)


@pytest.mark.slow
@settings(max_examples=3000, **QUIET)
@given(changed(SAVED, YAML_PIECES, 6))
def test_many_changed_configs(text):
    check_yaml(text)


# -- Hostile files ----------------------------------------------------------------------------------------------------


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (os.system, (f"touch {self.mark}",))


def torch_zip(path: Path, mark: Path) -> None:
    torch.save({"network": Bomb(mark), "progress": {"step": 1}}, path)


def torch_legacy(path: Path, mark: Path) -> None:
    torch.save({"network": Bomb(mark)}, path, _use_new_zipfile_serialization=False)


def bare_pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(mark)))


def numpy_object(path: Path, mark: Path) -> None:
    import numpy

    with open(path, "wb") as file:
        numpy.save(file, numpy.array([Bomb(mark)], dtype=object), allow_pickle=True)


def zip_of_pickle(path: Path, mark: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"network": Bomb(mark)}))
        archive.writestr("archive/version", "3")


def zip_that_escapes(path: Path, mark: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"../../{mark.name}", "escaped")


CHECKPOINTS = [torch_zip, torch_legacy, bare_pickle, numpy_object, zip_of_pickle, zip_that_escapes]


@pytest.mark.parametrize("make", CHECKPOINTS, ids=lambda make: make.__name__)
def test_a_checkpoint_runs_nothing(make, tmp_path):
    """Through each door: weights=, resume, eval, and the function itself."""
    mark = tmp_path / "mark"
    folder = prepare(tmp_path / "run")
    for name in ("last.ckpt", "best.ckpt"):
        make(folder / name, mark)
    with pytest.raises(ConfigError, match=r"last\.ckpt"):
        checkpoint.load(folder / "last.ckpt")
    commands = [
        ["resume", str(folder)], ["eval", f"run={folder}"],
        [*OPTIONS, f"weights={folder}/best.ckpt", f"output_dir={tmp_path}"],
    ]  # fmt: skip
    for words in commands:
        code, err = call(*words)
        assert code == 2 and ".ckpt" in err, err
    assert not mark.exists()


CONFIGS = {
    "target": "model: {_target_: os.system, command: 'touch MARK'}",
    "nested target": "norm: {_target_: torch.nn.GroupNorm, num_groups: {_target_: os.system, command: 'touch MARK'}}",
    "hidden target": "name: os.system\nmodel: {_target_: '${name}', command: 'touch MARK'}",
    "python tag": "name: !!python/object/apply:os.system ['touch MARK']",
    "python name": "name: !!python/name:os.system",
    "file": "model: {_target_: pathlib.Path.write_text}",
    "torch.load": "model: {_target_: torch.load, f: MARK, weights_only: false}",
    "traversal in the target": "model: {_target_: cnn_train.models..os.system}",
    "aliases without end": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "\n".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "binary": "\x00\x01\x02",
    "a list": "- 1\n- 2",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_runs_nothing(name, tmp_path):
    mark = tmp_path / "mark"
    folder = prepare(tmp_path / "run")
    text = (folder / "config.yaml").read_text()
    added = CONFIGS[name].replace("MARK", str(mark))
    keys = {line.split(":")[0] for line in added.splitlines()}
    kept = "" if name in ("binary", "a list") else "".join(
        block for block in text.splitlines(keepends=True) if block.split(":")[0] not in keys
    )  # fmt: skip
    (folder / "config.yaml").write_text(kept + added + "\n")
    checkpoint.save({"progress": {"step": 0, "epoch": 0}}, folder / "last.ckpt")
    for words in (["resume", str(folder)], ["eval", f"run={folder}"]):
        code, err = call(*words)
        assert code == 2 and err.count("\n") <= 6, err
    assert not mark.exists()


def png(width: int, height: int) -> bytes:
    """A PNG that says to be of this size and has nothing in it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(file, kind)
    return file.getvalue()


IMAGES = {
    "truncated.jpg": lambda: picture("JPEG")[:-300],
    "truncated.png": lambda: picture("PNG")[:200],
    "empty.jpg": lambda: b"",
    "text.png": lambda: b"not an image",
    "page.jpg": lambda: b"<html><script>alert(1)</script></html>",
    "pickle.png": lambda: pickle.dumps([1, 2, 3]),
    "program.jpg": lambda: Path(sys.executable).read_bytes()[:10_000],
    "vector.png": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "postscript.jpg": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "bomb.png": lambda: png(60_000, 60_000),
    "large.png": lambda: png(9_000, 9_000),
    "nothing_in_it.png": lambda: png(32, 32),
    "wrong_sum.png": lambda: picture("PNG").replace(b"IHDR\0\0\0\x40", b"IHDR\0\0\0\x41"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_refused_by_its_name(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(IMAGES[name]())
    with pytest.raises(DataError) as caught:
        read_image(path, 3)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_there_are_thirty_hostile_files():
    assert len(CHECKPOINTS) + len(CONFIGS) + len(IMAGES) >= 30


@pytest.mark.parametrize("word", ["model=../../../evil", "experiment=/etc/x", "norm=a/../../b", "name=../../evil"])
def test_a_name_is_no_path(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, err = call(word, "output_dir=runs", "trainer.fast_dev_run=true")
    assert code == 2 and err.startswith("error: "), err
    assert list(tmp_path.iterdir()) == []


# -- Secrets, folders, versions ---------------------------------------------------------------------------------------

SECRETS = {
    "a password in an address": "https://me:hunter2hunter2@example.org/data",
    "a token by its form": "ghp_" + "a1B2" * 9,
    "a key by its form": "AKIA" + "ABCD1234" * 2,
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_no_secret_reaches_the_run_folder(secret, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "from-the-environment-42")
    monkeypatch.setattr(sys, "argv", ["cnn-train", f"weights={secret}", "name=from-the-environment-42"])
    cfg = compose([*OPTIONS, "name=from-the-environment-42", f"monitor='{secret}'", f"output_dir={tmp_path}"])
    with pytest.raises(UserError):
        from cnn_train.experiment.train import train

        train(cfg, _made(tmp_path / "run"))
    run_folder.describe(tmp_path / "run", __import__("omegaconf").OmegaConf.to_yaml(cfg), run_folder.command_line())
    hidden = secret.split("@")[0].split(":")[-1] if "@" in secret else secret
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert hidden.encode() not in path.read_bytes(), path
            assert b"from-the-environment-42" not in path.read_bytes(), path
    assert load(tmp_path / "run").trainer == cfg.trainer, "what is left is a config"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("data.password=abc123xyz seed=1", "data.password=HIDDEN seed=1"),
        ("  api_key: abcdef", "  api_key: HIDDEN"),
        ("  token: null", "  token: null"),
        ("  token: ${oc.env:TOKEN}", "  token: ${oc.env:TOKEN}"),
        ("num_tokens: 5", "num_tokens: 5"),
        ("tokens=5", "tokens=5"),
        ("optimizer.lr=0.1", "optimizer.lr=0.1"),
    ],
)
def test_what_is_masked(text, masked):
    assert secrets.mask(text) == masked


def test_ten_runs_started_at_once_have_ten_folders(tmp_path):
    """From ten processes that wait for the same moment; ten complete results are the slow test's."""
    script = (
        "import sys, time; from pathlib import Path; from cnn_train.runs.folder import create;"
        "time.sleep(max(float(sys.argv[2]) - time.time(), 0)); print(create(Path(sys.argv[1])))"
    )
    import time

    moment = str(time.time() + 1.5)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "runs"), moment], stdout=subprocess.PIPE, text=True
        )
        for _ in range(10)
    ]
    folders = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert len(folders) == 10 and all(Path(folder).is_dir() for folder in folders)


@pytest.mark.slow
def test_ten_runs_started_at_once_have_ten_results(tmp_path):
    words = [*OPTIONS, f"output_dir={tmp_path}", "trainer.max_epochs=1"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "cnn_train", *words],
            stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        for _ in range(10)
    ]  # fmt: skip
    assert [process.wait(timeout=400) for process in processes] == [0] * 10
    results = [json.loads(path.read_text()) for path in tmp_path.glob("lenet5/*/metrics.json")]
    assert len(results) == 10 and all(result == results[0] for result in results)


def test_versions_with_known_holes_are_excluded():
    allowed = {Requirement(line).name: Requirement(line).specifier for line in requires("cnn-train") or []}
    for name, version in [
        ("lightning", "2.6.2"), ("lightning", "2.6.3"), ("lightning", "2.6.5"), ("torch", "2.9.1"),
        ("hydra-core", "1.3.7"),
    ]:  # fmt: skip
        assert version not in allowed[name], f"{name} {version}"
