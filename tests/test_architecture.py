"""The direction of imports: layers <- models <- tasks <- train <- cli, and what stands alone stays alone."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cnn_train"
FRAMEWORKS = {"hydra", "omegaconf", "lightning"}
# What each part may import of the package, besides itself and `errors`.
ALLOWED = {
    "layers": set(),
    "models": {"layers"},
    "data": set(),
    "analysis": set(),
    "postprocess": set(),
}
FREE_OF_TORCH = (
    "cli.py",
    "config.py",
    "schema.py",
    "choices.py",
    "signatures.py",
    "sweep.py",
    "errors.py",
    "run_folder.py",
)


def imports(path: Path, everywhere: bool = True) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("part", ALLOWED)
def test_parts_import_only_downwards(part):
    files = list((PACKAGE / part).rglob("*.py"))
    assert files
    for file in files:
        for name in imports(file):
            top, _, rest = name.partition(".")
            assert top not in FRAMEWORKS, f"{file.name} imports {name}"
            if top == "cnn_train":
                assert rest.split(".")[0] in ALLOWED[part] | {part, "errors", "__version__"}, f"{file.name}: {name}"


def test_tasks_and_callbacks_know_nothing_of_the_config():
    for part in ("tasks", "callbacks"):
        for file in (PACKAGE / part).rglob("*.py"):
            for name in imports(file):
                assert name.split(".")[0] not in {"hydra", "omegaconf"}, f"{file.name} imports {name}"
                for above in ("config", "schema", "train", "cli", "experiment"):
                    assert not name.startswith(f"cnn_train.{above}"), f"{file.name} imports {name}"


def test_front_end_imports_no_torch():
    for name in FREE_OF_TORCH:
        tops = {found.split(".")[0] for found in imports(PACKAGE / name, everywhere=False)}
        assert not tops & {"torch", "torchvision", "lightning", "numpy", "sklearn", "matplotlib"}, name


def test_prediction_needs_no_lightning():
    """Which would be half of its time: nothing that it imports, nor what that imports in turn, is made of it."""
    paths, found = [PACKAGE / "predict.py"], set()
    for path in paths:
        names = imports(path, everywhere=path == paths[0])
        found |= {name.split(".")[0] for name in names}
        for name in names:
            of_ours = PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py")
            for module in (of_ours, of_ours.parent.with_suffix(".py")):
                if name.startswith("cnn_train.") and module.is_file() and module not in paths:
                    paths.append(module)
    assert len(paths) > 8 and not found & {"lightning", "torchmetrics", "torchvision"}
