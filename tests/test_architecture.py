"""The law of imports: floors, wings that do not know each other, no circles, and where frameworks may be imported."""

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cnn_train"
# A wing imports only wings on lower floors.
FLOORS = (
    {"errors", "text"},
    {"atomic", "boxes"},
    {"layers", "analysis", "postprocess"},
    {"models", "data", "config", "runs", "explain"},
    {"tasks", "sweep", "report", "cli"},
    {"training", "inspection"},
    {"experiment"},
    {"commands"},
    {"__main__"},
)
FLOOR = {wing: number for number, wings in enumerate(FLOORS) for wing in wings}
MODULES = {
    ".".join(("cnn_train", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
HEAVY = {"torch", "torchvision", "torchmetrics", "lightning", "timm", "numpy", "scipy", "sklearn", "matplotlib", "PIL"}
# Modules whose import, with all that it imports in turn, brings nothing heavy: answers come at once.
LIGHT = ("text", "cli", "config", "runs.folder", "runs.find", "runs.secrets", "runs.signals", "sweep", "commands")
LONGEST = 400  # lines of a module outside of models, unless its docstring says why it is longer
LONGEST_FUNCTION = 60


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Dotted names that a module imports: everywhere, also in functions, or when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree)) if everywhere else at_import(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def at_import(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements that run when a module is imported, those under TYPE_CHECKING left out."""
    found: list[ast.stmt] = []
    for node in body:
        found.append(node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            found += at_import([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            found += at_import([*node.body, *(line for handler in node.handlers for line in handler.body)])
    return found


def module_of(name: str) -> str | None:
    """The module of ours that an imported name is, or is in."""
    while name:
        if name in MODULES:
            return name
        name = name.rpartition(".")[0]
    return None


def wing(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def edges() -> dict[str, set[str]]:
    """Which modules of ours each module imports."""
    found = defaultdict(set)
    for module, path in MODULES.items():
        for name in imports(path):
            other = module_of(name)
            if other is not None and other != module:
                found[module].add(other)
    return found


EDGES = edges()


def test_every_wing_has_a_floor():
    wings = {wing(module) for module in MODULES} - {""}
    assert wings <= FLOOR.keys(), f"without a floor: {wings - FLOOR.keys()}"


def test_imports_go_down():
    wrong = [
        f"{module} imports {other}"
        for module, others in EDGES.items()
        for other in others
        if wing(other) and wing(module) != wing(other) and (FLOOR[wing(module)] <= FLOOR[wing(other)])
    ]
    assert not wrong, "\n".join(sorted(wrong))


def test_no_wing_has_a_circle():
    for name in FLOOR:
        inside = {m: {o for o in EDGES[m] if wing(o) == name} for m in MODULES if wing(m) == name}
        try:
            TopologicalSorter(inside).prepare()
        except CycleError as error:
            pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("frameworks", "wings"),
    [
        ({"hydra"}, {"config", "inspection"}),
        (
            {"omegaconf"},
            {"config", "sweep", "cli", "training", "inspection", "experiment", "commands"},
        ),
        ({"lightning"}, {"training", "experiment"}),
    ],
)
def test_frameworks_are_imported_only_where_they_belong(frameworks, wings):
    for module, path in MODULES.items():
        found = {name.split(".")[0] for name in imports(path)} & frameworks
        assert not found or wing(module) in wings, f"{module} imports {found}"


@pytest.mark.parametrize("start", LIGHT)
def test_answers_need_nothing_heavy(start):
    """Nothing that the module imports, nor what that imports in turn, is heavy."""
    beginning = [m for m in MODULES if m == f"cnn_train.{start}" or m.startswith(f"cnn_train.{start}.")]
    assert beginning
    seen = set()
    while beginning:
        module = beginning.pop()
        seen.add(module)
        for name in imports(MODULES[module], everywhere=False):
            assert name.split(".")[0] not in HEAVY, f"{module} imports {name}"
            other = module_of(name)
            if other is not None and other not in seen:
                beginning.append(other)


def test_prediction_needs_no_lightning():
    """Lightning would be half of its time: nothing that prediction imports, nor what that imports, is made of it."""
    modules, found = ["cnn_train.experiment.predict"], set()
    for module in modules:
        names = imports(MODULES[module], everywhere=module == modules[0])
        found |= {name.split(".")[0] for name in names}
        modules += [m for name in names if (m := module_of(name)) is not None and m not in modules]
    assert len(modules) > 8 and not found & {"lightning", "torchmetrics", "torchvision"}


def test_one_call_of_instantiate():
    calls = [
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "instantiate"
    ]
    assert calls == ["cnn_train.config.build"]


def test_modules_and_functions_are_short():
    long = []
    for module, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        reason = "lines, because" in (ast.get_docstring(tree) or "")
        if wing(module) != "models" and text.count("\n") > LONGEST and not reason:
            long.append(f"{module}: {text.count(chr(10))} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    long.append(f"{module}.{node.name}: {length} lines")
    assert not long, "\n".join(long)
