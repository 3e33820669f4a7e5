"""Pages of the site that the code writes: a hook of MkDocs (`make docs`).

The start page is README.md; `groups.md` lists each group's choices with their settings, `api.md` the functions of
`cnn_train`, `explanations.md` the pages of `cnn-train explain`, which are computed as the site is built.
"""

import tempfile
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import cnn_train
from cnn_train import explain
from cnn_train.config.choices import GROUPS, Choices

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages and the explanations with their pictures."""
    pages = {
        "index.md": start(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "]("),
        "groups.md": groups(),
        "api.md": api(),
        "explanations.md": explanations(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for topic in explain.TOPICS:
        with tempfile.TemporaryDirectory() as folder:
            explain.load(topic)().write(Path(folder))
            for path in sorted(Path(folder).iterdir()):
                files.append(File.generated(config, f"explain/{topic}/{path.name}", content=path.read_bytes()))
    return files


def on_post_build(config: Any) -> None:
    """Leave out the one script that the theme would fetch: a site that works without a network asks for nothing."""
    for path in Path(config["site_dir"]).glob("*.html"):
        text = path.read_text(encoding="utf-8")
        path.write_text(
            text.replace('<script src="https://unpkg.com/iframe-worker/shim"></script>', ""), encoding="utf-8"
        )


def start() -> str:
    """The README, whose links begin at the top of the repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    return text.replace("](CONTRIBUTING.md)", "](contributing.md)").replace("](LICENSE)", "](contributing.md)")


def groups() -> str:
    """Every choice of every group with the line about it and its file."""
    choices, lines = Choices.find(), ["# Groups and settings", ""]
    lines += ["A group's choice is one word, `norm=gn`; a setting is a path, `norm.num_groups=8`.", ""]
    for group in GROUPS:
        lines += [f"## {group}", ""]
        for option in choices.options(group):
            path = choices.path(group, option)
            assert path is not None
            text = path.read_text(encoding="utf-8").strip()
            lines += [f'??? note "`{group}={option}`: {choices.describe(group, option).replace(chr(34), "")}"', ""]
            lines += ["    ```yaml", *(f"    {line}" for line in text.splitlines()), "    ```", ""]
    return "\n".join(lines)


def api() -> str:
    """What `import cnn_train` offers, from its docstrings."""
    lines = ["# Python", "", "What `import cnn_train` offers; [python.md](python.md) shows it at work.", ""]
    return "\n".join([*lines, *(f"::: {module}.{name}\n" for name, module in sorted(cnn_train.DOORS.items()))])


def explanations() -> str:
    """A line for each topic, which links to its page."""
    lines = ["# Explanations", "", "Each page was computed, and checked against torch, as this site was built.", ""]
    for topic in explain.TOPICS:
        title, _, summary = explain.summary(topic).partition(": ")
        lines.append(f"- [{title}](explain/{topic}/index.html): {summary}")
    return "\n".join([*lines, ""])
