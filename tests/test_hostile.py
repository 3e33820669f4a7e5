"""Files and command lines that mean harm or are broken: none runs code, escapes its folder or ends in a traceback."""

import ast
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
import zlib
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kills import OPTIONS, prepare
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from PIL import Image

from cnn_train import atomic
from cnn_train.__main__ import main
from cnn_train.cli.guard import guarded, show
from cnn_train.config.compose import compose
from cnn_train.config.load import load
from cnn_train.data.images import read_image
from cnn_train.errors import ConfigError, DataError, UserError
from cnn_train.runs import checkpoint, git, secrets, signals
from cnn_train.runs import folder as run_folder
from cnn_train.sweep import workers
from cnn_train.text import csv_text, is_secret, plain

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
        patch.setattr("cnn_train.sweep.start.start", lambda *arguments, **options: 0)
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
    lambda config: OmegaConf.to_yaml(config)
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
    """By its form in command, log and differences; a value of the environment in config.yaml too, which still runs."""
    monkeypatch.setenv("MY_API_KEY", "from-the-environment-42")
    monkeypatch.setattr(sys, "argv", ["cnn-train", f"weights={secret}", "name=from-the-environment-42"])
    cfg = compose([*OPTIONS, "name=from-the-environment-42", "monitor=val/nothing", f"output_dir={tmp_path}"])
    with pytest.raises(UserError):
        from cnn_train.experiment.train import train

        train(cfg, _made(tmp_path / "run"))
    run_folder.describe(tmp_path / "run", OmegaConf.to_yaml(cfg), run_folder.command_line())
    hidden = secret.split("@")[0].split(":")[-1] if "@" in secret else secret
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert hidden.encode() not in path.read_bytes(), path
            assert b"from-the-environment-42" not in path.read_bytes(), path
    assert "name: ${oc.env:MY_API_KEY}" in (tmp_path / "run" / "config.yaml").read_text()
    assert load(tmp_path / "run") == cfg, "what runs from it is what was composed"


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
        ("+  api_key: abcdef", "+  api_key: HIDDEN"),
        ("password='two words' seed=1", "password=HIDDEN seed=1"),
        ("tokenizer=bert max_tokens=5 PGPASSWORD=abc", "tokenizer=bert max_tokens=5 PGPASSWORD=HIDDEN"),
    ],
)
def test_what_is_masked(text, masked):
    assert secrets.mask(text) == masked


@pytest.mark.parametrize(
    "value", ["sk-resnet50-baseline-gn-cosine", "/x/hf_my_segmentation_cache_dir", "ghp_" + "a" * 30]
)
def test_a_name_that_looks_like_a_secret_stays_in_the_config(value, tmp_path):
    cfg = compose([f"name={Path(value).name}", f"output_dir={value}"])
    run_folder.describe(tmp_path, OmegaConf.to_yaml(cfg), "cnn-train")
    assert load(tmp_path) == cfg


def test_masking_of_data(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "abcdefgh12345")
    data = {"api_key": "x", "jobs": [{"overrides": ["name=abcdefgh12345", "a=1"]}], "num_tokens": 3, "token": None}
    assert secrets.masked(data) == {
        "api_key": "HIDDEN", "jobs": [{"overrides": ["name=HIDDEN", "a=1"]}], "num_tokens": 3, "token": None
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["a.", "eyJ", "-eyJ", "token", "password_", "sk-", "://", "x://a:", "\n", " ", "api_key: ", "hf_"], ids=repr
)
def test_masking_takes_time_in_proportion_to_the_text(text):
    """16 kB; patterns that begin anew inside of what they have seen took 36 s."""
    text *= 16_000 // len(text)
    start = time.process_time()
    secrets.mask(text)
    secrets.mask_settings(text)
    assert time.process_time() - start < 0.3


def test_ten_runs_started_at_once_have_ten_folders(tmp_path):
    """From ten processes that wait for the same moment; ten complete results are the slow test's."""
    script = (
        "import sys, time; from pathlib import Path; from cnn_train.runs.folder import create;"
        "time.sleep(max(float(sys.argv[2]) - time.time(), 0)); print(create(Path(sys.argv[1])))"
    )
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


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_what_is_imported_is_declared():
    called = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "hydra": "hydra-core"}
    called |= {"vl_convert": "vl-convert-python", "fontTools": "matplotlib"}  # matplotlib brings fonttools
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    declared = {Requirement(line).name.lower() for line in lines} | {"cnn_train"}
    imported = set()
    for path in (ROOT / "cnn_train").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.split(".")[0] for name in names}
    missing = {called.get(name, name).lower() for name in imported - sys.stdlib_module_names} - declared
    assert missing == set()


CONSTRAINTS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]


def test_every_declared_package_is_pinned():
    pinned = dict(line.lower().replace("_", "-").split("==") for line in CONSTRAINTS)
    for line in PROJECT["dependencies"]:
        wanted = Requirement(line)
        assert pinned[wanted.name.lower().replace("_", "-")] in wanted.specifier, line


def test_the_lock_has_the_pinned_versions_and_hashes_of_their_files():
    text = (ROOT / "requirements.lock").read_text()
    hashes = r"(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+"
    blocks = re.findall(rf"^([\w.-]+)==(\S+) \\\n{hashes}", text, re.M)
    assert len(blocks) == text.count("=="), "every package has hashes"
    assert "://" not in text, "no address: pip takes its own index"
    locked = {name: version for name, version in blocks}
    pinned = dict(line.lower().replace("_", "-").split("==") for line in CONSTRAINTS)
    assert {name: pinned.get(name, version) for name, version in locked.items()} == locked
    for line in PROJECT["dependencies"]:
        assert Requirement(line).name.lower() in locked


def test_versions_with_known_holes_are_excluded():
    allowed = {Requirement(line).name: Requirement(line).specifier for line in PROJECT["dependencies"]}
    for name, version in [
        ("lightning", "2.6.2"), ("lightning", "2.6.3"), ("lightning", "2.6.5"), ("torch", "2.9.1"),
        ("hydra-core", "1.3.7"), ("pillow", "12.2.0"),
    ]:  # fmt: skip
        assert version not in allowed[name], f"{name} {version}"


# -- Folders that mean harm -------------------------------------------------------------------------------------------

GIT = {
    "fsmonitor": ("[core]\nfsmonitor = PROGRAM\n", ""),
    "external diff": ("[diff]\nexternal = PROGRAM\n", ""),
    "diff driver": ('[diff "evil"]\ncommand = PROGRAM\n', "* diff=evil\n"),
    "textconv": ('[diff "evil"]\ntextconv = PROGRAM\n', "* diff=evil\n"),
    "clean filter": ('[filter "a=b"]\nclean = PROGRAM\nrequired = true\n', "* filter=a=b\n"),
    "process filter": ('[filter "evil"]\nprocess = PROGRAM\nrequired = true\n', "* filter=evil\n"),
    "included": ("[include]\npath = evil.cfg\n", "* filter=evil\n"),
}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with one commit and one change, in which this test stands."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    folder = _made(tmp_path / "repository")
    monkeypatch.chdir(folder)
    (folder / "a.txt").write_text("before\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], check=True)
    (folder / "a.txt").write_text("after\n")
    return folder


@pytest.mark.parametrize("name", GIT)
def test_git_runs_nothing_that_a_repository_names(name, repository, tmp_path):
    mark, program = tmp_path / "mark", tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    program.chmod(0o755)
    settings, attributes = (text.replace("PROGRAM", str(program)) for text in GIT[name])
    (repository / ".git" / "evil.cfg").write_text(f'[filter "evil"]\nclean = {program}\n')
    with open(repository / ".git" / "config", "a") as file:
        file.write(settings)
    (repository / ".gitattributes").write_text(attributes)
    commit, diff = git.git_state()
    assert len(commit) == 40 and "-before\n+after\n" in diff
    assert not mark.exists()
    subprocess.run(["git", "diff", "HEAD"], capture_output=True)
    assert mark.exists(), "git itself runs it"


def test_a_large_difference_is_told_by_its_length_and_hash(repository):
    (repository / "a.txt").write_text("x" * 5000)
    _, whole = git.git_state()
    _, told = git.git_state(largest=1000)
    import hashlib

    assert f"{len(whole):,} bytes" in told and hashlib.sha256(whole.encode()).hexdigest() in told
    assert told.startswith("# ") and told.count("\n") == 1


def test_git_tells_nothing_of_another_folder(repository, tmp_path):
    other = _made(tmp_path / "other")
    (other / "a.txt").write_text("private\n")
    subprocess.run(["git", "config", "core.worktree", str(other)], check=True)
    assert "private" not in git.git_state()[1]


def test_without_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert git.git_state() == (None, "")


LINKS = [
    "log.txt",
    "config.yaml",
    "last.ckpt",
    "metrics.csv",
    "eval",
    "predictions",
    "pictures",
    "tensorboard",
    "eval/a",
]


@pytest.mark.parametrize("name", LINKS)
def test_a_link_in_a_run_folder_is_refused(name, tmp_path):
    folder, private = prepare(tmp_path / "run"), tmp_path / "private"
    if name in ("eval", "predictions", "pictures", "tensorboard"):
        private.mkdir()
    else:
        private.write_text("kept")
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(private)
    with pytest.raises(ConfigError, match=f"{name} is a link"):
        load(folder)
    with pytest.raises(ConfigError, match="is a link"), run_folder.in_use(folder):
        raise AssertionError("trains")
    if name == "log.txt":
        assert run_folder.log(folder, "ssh-rsa AAAA") is None
    assert list(private.iterdir()) == [] if private.is_dir() else private.read_text() == "kept"


def test_a_log_with_a_second_name_gets_no_lines(tmp_path):
    folder, private = prepare(tmp_path / "run"), tmp_path / "private"
    private.write_text("kept")
    (folder / "log.txt").unlink(missing_ok=True)
    os.link(private, folder / "log.txt")
    with pytest.raises(ConfigError, match=r"log\.txt is a hard link"):
        load(folder)
    assert run_folder.log(folder, "ssh-rsa AAAA") is None
    worker = workers.Fresh([sys.executable, "-c", "print('ssh-rsa')"]).start([str(folder)], {})
    while worker.poll() is None:
        time.sleep(0.01)
    assert private.read_text() == "kept"


def test_the_run_folder_itself_may_be_a_link(tmp_path):
    prepare(tmp_path / "elsewhere")
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    load(tmp_path / "run")


def test_a_pipe_in_the_place_of_the_log_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "log.txt")
    assert run_folder.log(tmp_path, "text") is None


def test_a_message_begins_no_line_of_the_log(tmp_path):
    run_folder.log(tmp_path, "one\n2026-01-01 00:00:00 [1] done\r\nssh-rsa AAAA\x1b[2K\u2028x")
    lines = (tmp_path / "log.txt").read_text().split("\n")
    assert lines[1:] == ["  2026-01-01 00:00:00 [1] done", "  ssh-rsa AAAAx", ""]


def test_temporary_files_are_new_files(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "token_hex", lambda count: "foreseen")
    (tmp_path / "private").write_text("kept")
    for name in ("a.json", "a.ckpt"):
        (tmp_path / f".{name}.foreseen.tmp").symlink_to(tmp_path / "private")
    with pytest.raises(UserError):
        atomic.write_text(tmp_path / "a.json", "{}")
    with pytest.raises(UserError):
        checkpoint.save({}, tmp_path / "a.ckpt")
    assert (tmp_path / "private").read_text() == "kept"
    monkeypatch.undo()
    names = {atomic.temporary_name(tmp_path / "a").name for _ in range(9)}
    assert len(names) == 9


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(2):
            archive.writestr(f"archive/data/{n}", bytes(20_000_000))


def overlapping(path: Path) -> None:
    """Many entries of the directory for one and the same record."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", bytes(1_000_000))
        archive.filelist += archive.filelist * 999
        archive._didModify = True


def repeated(path: Path) -> None:
    torch.save({"network": {"weight": torch.zeros(1).expand(10**12)}}, path)


@pytest.mark.parametrize(
    ("make", "told"),
    [(compressed, "compressed records"), (overlapping, "larger than the file"), (repeated, "does not hold")],
)
def test_a_small_checkpoint_is_small(make, told, tmp_path):
    make(tmp_path / "a.ckpt")
    start = time.process_time()
    with pytest.raises(ConfigError, match=told):
        checkpoint.load(tmp_path / "a.ckpt")
    assert time.process_time() - start < 1


def test_a_folder_one_stands_in_is_no_library(tmp_path):
    from cnn_train.experiment.processes import start
    from cnn_train.sweep.workers import WORKER

    mark = tmp_path / "mark"
    for name in ("random", "json", "torch", "cnn_train"):
        (tmp_path / f"{name}.py").write_text(f"open({str(mark)!r}, 'w')\nraise SystemExit(9)\n")
    path = os.pathsep.join([str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
    ended = subprocess.run(
        [*WORKER, "nowhere"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (ended.returncode, mark.exists()) == (2, False), ended.stderr
    assert "no run config nowhere" in ended.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", lambda command, **options: command)
        command = start(tmp_path, ["resume=true", "trust=mine.net"], 0, 2, 1234)
    assert command[1:] == ["-P", "-m", "cnn_train", "worker", str(tmp_path), "resume=true", "trust=mine.net"]


# -- Terminals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat", "cat"), ("\x1b[31mred\x1b[0m", "red"), ("\x1b]0;title\x07x", "x"), ("\x1b]52;c;cHduZWQ=\x1b\\x", "x"),
        ("\x9b2Jx", "x"), ("a\rb\x00\x07\x7f", "ab"), ("a\tb\nc", "a\tb\nc"), ("\u202egpj.exe", "gpj.exe"),
        ("\udc80", "\ufffd"),
        ("[red]x", "[red]x"), ("caf\u00e9 \u732b", "caf\u00e9 \u732b"), ("\x1bcx", "x"), ("\x1b(0x", "x"), (7, "7"),
    ],
)  # fmt: skip
def test_text_has_no_escape_codes(text, shown):
    assert plain(text) == shown


def test_a_class_name_is_no_formula():
    from cnn_train.tasks.pictures import confusion_picture

    counts = torch.eye(2)
    drawn = [confusion_picture(counts, [name, "b"], "of $\\frac{$") for name in ("$\\frac{$", "$x$", "x")]
    assert not (drawn[1].shape == drawn[2].shape and (drawn[1] == drawn[2]).all()), "the dollars are seen"


def test_an_error_is_shown_as_plain_text(capsys):
    def fail() -> None:
        error = DataError("no class '\x1b[2J\x1b]0;x\x07cat'")
        error.add_note("try: \x1b[31mdog")
        raise error

    assert guarded(fail) == 3
    assert capsys.readouterr().err == "error: no class 'cat'\n  try: dog\n"


def test_cells_are_not_calculated():
    rows = [
        ["class", "iou"],
        ["=1+1", -0.5],
        ["a,b", "-0.5"],
        ['say "x"', None],
        ["@SUM(A1)", 1],
        ["-cmd|' /C calc'!A0", "+a"],
    ]
    text = csv_text(rows)
    assert text == 'class,iou\n\'=1+1,-0.5\n"a,b",-0.5\n"say ""x""",\n\'@SUM(A1),1\n\'-cmd|\' /C calc\'!A0,\'+a\n'


@pytest.mark.parametrize(("name", "code"), [("SIGHUP", 129), ("SIGXCPU", 152), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_signals_that_end_a_run(name, code):
    assert guarded(lambda: signal.raise_signal(getattr(signal, name)), tell=lambda text: None) == code


def test_a_run_under_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.raised():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("state", ["none", "closed", "without a reader"])
def test_an_end_is_told_where_nobody_reads_it(state, monkeypatch):
    """The exit code is that of the error all the same."""
    if state == "none":
        stream = None
    else:
        reader, writer = os.pipe()
        stream = os.fdopen(writer, "w", buffering=1)
        os.close(reader)
        if state == "closed":
            stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    show("text")

    def fail() -> None:
        raise DataError("no")

    assert guarded(fail) == 3
    if stream is not None:
        with suppress(OSError):
            stream.close()


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_folder, "_lock", lambda folder: None)
    with run_folder.in_use(tmp_path):
        pass
    assert "has no locks: see to it that no second process trains there" in capsys.readouterr().err
    assert "has no locks" in (tmp_path / "log.txt").read_text()


def test_names_of_secrets():
    named = ["password", "MY_API_KEY", "HF_TOKEN", "secret_2", "aws_secret_access_key", "api-key", "PGPASSWORD"]
    assert [name for name in named if not is_secret(name)] == []
    others = ["num_tokens", "tokenizer", "key", "monkey", "author", "pass_through", "secretary"]
    assert [name for name in others if is_secret(name)] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_data_worker_holds_no_lock(tmp_path):
    """It outlives a killed run by seconds, in which the run is resumed."""
    ready, go = os.pipe(), os.pipe()
    trains = os.fork()
    if not trains:
        with run_folder.in_use(tmp_path):
            if not os.fork():  # the data worker
                os.read(go[0], 1)
                os._exit(0)
            os.write(ready[1], b"1")
            time.sleep(60)
    os.read(ready[0], 1)
    assert not run_folder.is_free(tmp_path)
    os.kill(trains, signal.SIGKILL)
    os.waitpid(trains, 0)
    assert run_folder.is_free(tmp_path), "although the worker lives"
    os.write(go[1], b"1")
    for descriptor in (*ready, *go):
        os.close(descriptor)


def test_a_signal_that_a_library_turns_into_an_error_of_its_own_stays_a_signal(capsys):
    """OmegaConf's context managers fail on what an interrupted constructor has not set yet."""

    def read() -> None:
        try:
            try:
                raise signals.Interrupted(signal.SIGTERM)
            finally:
                None._invalidate_flags_cache()
        except Exception as error:
            raise ConfigError("config.yaml is not valid YAML") from error

    assert guarded(read) == 143
    assert capsys.readouterr().err == "stopped by SIGTERM\n"

    def save() -> None:
        try:
            raise signals.Interrupted(signal.SIGTERM)
        finally:
            raise DataError("cannot read cat.jpg")

    assert guarded(save) == 3
