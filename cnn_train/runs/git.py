"""The state of the working directory's git repository, found without running a program that the repository names.

A repository's own settings may name programs (core.fsmonitor, diff.external, filters, hooks). So the differences are
computed through an empty repository that borrows the objects and a copy of the index of this one.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

LARGEST = 1_000_000  # bytes of a diff that is kept
TIMEOUT = 10.0  # seconds for one question to git
# Settings that change what counts as a difference, and name no program.
HARMLESS = ("core.autocrlf", "core.eol", "core.filemode", "core.ignorecase", "core.precomposeunicode", "core.symlinks")
FORMAT = "extensions.objectformat"


def git_state(largest: int = LARGEST) -> tuple[str | None, str]:
    """Commit and uncommitted changes of the working directory's repository; (None, "") where there is none.

    Of changes longer than `largest` bytes, length and SHA-256 are kept instead. Filters such as Git LFS do not run.
    """
    commit = _ask("rev-parse", "--verify", "HEAD")
    if not commit:
        return None, ""
    top, objects, index = (
        _ask("rev-parse", "--path-format=absolute", *words)
        for words in (("--show-toplevel",), ("--git-path", "objects"), ("--git-path", "index"))
    )
    # A repository may say that its files are somewhere else: only those around us are ours to describe.
    if not (top and objects and index) or not Path.cwd().resolve().is_relative_to(Path(top).resolve()):
        return commit, ""
    try:
        with tempfile.TemporaryDirectory(prefix="cnn-train-git-") as folder:
            return commit, _difference(Path(folder), commit, top, objects, Path(index), largest)
    except OSError:
        return commit, ""


def _difference(folder: Path, commit: str, top: str, objects: str, index: Path, largest: int) -> str:
    git = folder / "git"
    for name in ("objects/info", "refs"):
        (git / name).mkdir(parents=True)
    (git / "HEAD").write_text(f"{commit}\n")
    (git / "objects" / "info" / "alternates").write_text(f"{objects}\n")
    if index.is_file():
        shutil.copy2(index, git / "index")  # with its time, which says whose content must be looked at
    settings = [f"{name}={value}" for name in HARMLESS if (value := _ask("config", "--get", name))]
    if form := _ask("config", "--get", FORMAT):
        (git / "config").write_text(f"[core]\nrepositoryformatversion = 1\n[extensions]\nobjectformat = {form}\n")
    command = ["git", f"--git-dir={git}", f"--work-tree={top}", "-c", "core.fsmonitor=false"]
    for setting in settings:
        command += ["-c", setting]
    command += ["diff", "--no-ext-diff", "--no-textconv", "--no-color", "--ignore-submodules=dirty", commit]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    ours |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    ours |= {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}  # an older git does not know GIT_CONFIG_GLOBAL
    with tempfile.TemporaryFile() as output:
        try:
            ended = subprocess.run(
                command, cwd=top, env=ours, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL,
                timeout=TIMEOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"# git needed more than {TIMEOUT:g} s for the uncommitted changes\n"
        if ended.returncode:
            return ""
        length = os.fstat(output.fileno()).st_size
        output.seek(0)
        if length > largest:
            digest = hashlib.file_digest(output, "sha256").hexdigest()
            return f"# {length:,} bytes of uncommitted changes, more than the {largest:,} kept; SHA-256 {digest}\n"
        return output.read().decode(errors="replace")


def _ask(*words: str) -> str | None:
    """What git answers to a question that reads settings only, and so runs nothing; None for an error."""
    try:
        ended = subprocess.run(
            ["git", *words], capture_output=True, text=True, timeout=TIMEOUT, errors="replace", stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout.strip() if ended.returncode == 0 else None
