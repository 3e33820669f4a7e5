"""What a `_target_` takes, read from its source: a misspelt parameter is found without importing torch."""

import ast
import importlib.util
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path


class NoSuchTarget(LookupError):
    """The dotted path leads to nothing; the message says where it ended."""


@dataclass(frozen=True)
class Signature:
    """Parameters by name with the source text of their annotation ("" if none); a default of None adds `| None`."""

    module: str
    kind: str  # "class", "function" or "other": an assigned name, whose parameters are not known
    parameters: dict[str, str]
    open_ended: bool  # takes **kwargs, or its parameters are not known
    name: str = ""  # of the class or function where it is defined
    bases: tuple[str, ...] = ()  # of a class, as its source spells them


def signature(target: str) -> Signature:
    """Follow a dotted path through source files and their imports to the class or function that it names.

    Raises NoSuchTarget if it names nothing.
    """
    module, names = _split(target)
    if names and _source(module) is None:  # built in, or compiled: there is nothing to read
        return Signature(module, "other", {}, True)
    if not names:
        raise NoSuchTarget(f"{target} is a module, not a class or function")
    return _find(module, names, target, 0)


def is_subclass(found: Signature, ancestor: str, depth: int = 0) -> bool:
    """Whether a class has `ancestor`, a dotted path to a class's definition, among its bases or is it itself."""
    if found.kind != "class" or depth > 20:
        return False
    if f"{found.module}.{found.name}" == ancestor:
        return True
    for base in found.bases:
        try:
            inherited = _find(found.module, base.split("."), base, 0)
        except (NoSuchTarget, SyntaxError):
            continue
        if is_subclass(inherited, ancestor, depth + 1):
            return True
    return False


def _split(target: str) -> tuple[str, list[str]]:
    """The longest part that is a module, and the attribute names after it."""
    parts = target.split(".")
    if not all(part.isidentifier() for part in parts):
        raise NoSuchTarget(f"{target!r} is not a dotted path")
    for end in range(len(parts), 0, -1):
        if _source(".".join(parts[:end])) is not None:
            return ".".join(parts[:end]), parts[end:]
    if importlib.util.find_spec(parts[0]) is not None:
        return parts[0], parts[1:]
    raise NoSuchTarget(f"there is no package {parts[0]!r}")


@cache
def _root(package: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(package)  # a top-level name: looked for, not imported
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.has_location:
        return None
    origin = Path(spec.origin)
    return origin.parent if origin.name == "__init__.py" else origin


@cache
def _source(module: str) -> Path | None:
    first, *rest = module.split(".")
    root = _root(first)
    if root is None or (rest and root.is_file()):
        return None
    if root.is_file():
        return root if root.suffix == ".py" else None
    folder = root.joinpath(*rest)
    for path in (folder / "__init__.py", folder.with_suffix(".py")):
        if path.is_file() and path.name != f"{root.name}.py":
            return path
    return None


@cache
def _statements(path: Path) -> tuple[ast.stmt, ...]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return tuple(_flatten(tree.body))


def _flatten(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        for part in ("body", "orelse", "handlers", "finalbody"):
            if isinstance(statement, (ast.If, ast.Try)):
                for inner in getattr(statement, part, []):
                    yield from _flatten(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])


def _find(module: str, names: list[str], target: str, depth: int) -> Signature:
    path = _source(module)
    missing = NoSuchTarget(f"{module} has no {names[0]!r}")
    if path is None or depth > 8:
        raise missing
    name, *inner = names
    stars = []
    for statement in reversed(_statements(path)):
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)) and statement.name == name:
            found = _definition(module, statement, inner, target, depth)
            bases = [ast.unparse(base) for base in getattr(statement, "bases", ()) if not inner]
            return replace(found, name=".".join([name, *inner]), bases=tuple(bases))
        if isinstance(statement, ast.ImportFrom):
            source = _absolute(module, path, statement)
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    if _source(f"{source}.{alias.name}") is not None:
                        return _through_module(f"{source}.{alias.name}", inner, target, depth)
                    return _find(source, [alias.name, *inner], target, depth + 1)
                if alias.name == "*":
                    stars.append(source)
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                if alias.asname == name or (alias.asname is None and alias.name.split(".")[0] == name):
                    return _through_module(alias.name if alias.asname else name, inner, target, depth)
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if any(isinstance(node, ast.Name) and node.id == name for node in targets):
                return Signature(module, "other", {}, True)
    for source in stars:
        try:
            return _find(source, names, target, depth + 1)
        except NoSuchTarget:
            continue
    raise missing


def _through_module(module: str, names: list[str], target: str, depth: int) -> Signature:
    if not names:
        raise NoSuchTarget(f"{target} is a module, not a class or function")
    inner_module, inner = _split(".".join([module, *names]))
    if not inner:
        raise NoSuchTarget(f"{target} is a module, not a class or function")
    return _find(inner_module, inner, target, depth + 1)


def _absolute(module: str, path: Path, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - statement.level + (path.name == "__init__.py")]
    return ".".join([*parts, *([statement.module] if statement.module else [])])


def _definition(
    module: str, node: ast.FunctionDef | ast.ClassDef, inner: list[str], target: str, depth: int
) -> Signature:
    if inner:
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef) and statement.name == inner[0] and len(inner) == 1:
                return Signature(module, "method", _parameters(module, statement, 1), statement.args.kwarg is not None)
        raise NoSuchTarget(f"{module}.{node.name} has no {inner[0]!r}")
    if isinstance(node, ast.FunctionDef):
        return _with_passed_on(module, "function", node, None, target, depth)
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return _with_passed_on(module, "class", statement, node, target, depth)
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list) and not node.bases:
        fields = {
            statement.target.id: ast.unparse(statement.annotation)
            for statement in node.body
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        }
        return Signature(module, "class", fields, False)
    for base in node.bases:
        if isinstance(base, (ast.Name, ast.Attribute)):
            try:
                found = _find(module, ast.unparse(base).split("."), target, depth + 1)
            except NoSuchTarget:
                continue
            return Signature(module, "class", found.parameters, found.open_ended)
    return Signature(module, "class", {}, bool(node.bases))


def _with_passed_on(
    module: str, kind: str, function: ast.FunctionDef, owner: ast.ClassDef | None, target: str, depth: int
) -> Signature:
    """The signature of a function, or of the class `owner` by its constructor, with what its `**options` may hold."""
    passed_on = _passed_on(module, function, owner, target, depth) if function.args.kwarg else {}
    own = _parameters(module, function, 0 if owner is None else 1)
    parameters = own | {name: text for name, text in (passed_on or {}).items() if name not in own}
    return Signature(module, kind, parameters, passed_on is None)


def _passed_on(
    module: str, function: ast.FunctionDef, owner: ast.ClassDef | None, target: str, depth: int
) -> dict[str, str] | None:
    """What `**options` may hold: the parameters left free in the call that takes them; None if that is not clear."""
    assert function.args.kwarg is not None
    for call in ast.walk(function):
        if not isinstance(call, ast.Call):
            continue
        passed = [k for k in call.keywords if k.arg is None and isinstance(k.value, ast.Name)]
        if any(isinstance(k.value, ast.Name) and k.value.id == function.args.kwarg.arg for k in passed):
            callee = ast.unparse(call.func)
            if callee == "super().__init__" and owner is not None and owner.bases:
                callee = ast.unparse(owner.bases[0])
            try:
                found = _find(module, callee.split("."), target, depth + 1)
            except NoSuchTarget:
                return None
            if found.open_ended:
                return None
            given = {keyword.arg for keyword in call.keywords}
            names = [name for name in list(found.parameters)[len(call.args) :] if name not in given]
            return {name: found.parameters[name] for name in names}
    return None


def _parameters(module: str, function: ast.FunctionDef, skip: int) -> dict[str, str]:
    arguments = function.args
    positional = arguments.posonlyargs + arguments.args
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    defaults += arguments.defaults
    pairs = list(zip(positional, defaults, strict=True))[skip:]
    pairs += list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    parameters = {}
    for argument, default in pairs:
        text = ast.unparse(_Aliases(module).visit(deepcopy(argument.annotation))) if argument.annotation else ""
        nullable = isinstance(default, ast.Constant) and default.value is None
        if text and nullable and not text.endswith("None"):
            text += " | None"
        parameters[argument.arg] = text
    return parameters


class _Aliases(ast.NodeTransformer):
    """Writes out the type aliases (`Resize = Literal[...]`) of a module, and of its package, in an annotation."""

    def __init__(self, module: str):
        self.module = module

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return node if node.id in _SIMPLE else _alias(self.module, node.id) or node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return node


@cache
def _alias(module: str, name: str) -> ast.expr | None:
    """What a module assigns to the name of a type; None for classes, functions and what other packages define."""
    path = _source(module)
    for statement in () if path is None else reversed(_statements(path)):
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            typed = isinstance(statement.value, (ast.Subscript, ast.BinOp))
            return _Aliases(module).visit(deepcopy(statement.value)) if typed else None
        if isinstance(statement, ast.ImportFrom) and path is not None:
            source = _absolute(module, path, statement)
            for alias in statement.names:
                if (alias.asname or alias.name) == name and source.split(".")[0] == module.split(".")[0]:
                    return _alias(source, alias.name)
    return None


@dataclass(frozen=True)
class Kinds:
    """What an annotation lets in from YAML: kinds of value, the words of a Literal, the length of a list if fixed."""

    names: frozenset[str]
    words: tuple[object, ...] = ()
    length: int | None = None

    def describe(self) -> str:
        spoken = {
            "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word",
            "list": "a list [a, b]", "dict": "a mapping", "none": "null",
        }  # fmt: skip
        if self.length not in (None, 2):
            spoken["list"] = f"a list of {self.length}"
        parts = [text for name, text in spoken.items() if name in self.names]
        if "int" in self.names and "float" in self.names:
            parts.remove(spoken["int"])
        if self.words:
            parts = [
                ", ".join(str(w).lower() if isinstance(w, bool) else str(w) for w in self.words),
                *(p for p in parts if p != spoken["str"]),
            ]
        return " or ".join(parts)

    def accept(self, value: object) -> bool:
        if any(type(word) is type(value) and word == value for word in self.words):
            return True
        if value is None:
            return "none" in self.names
        if isinstance(value, bool):
            return "bool" in self.names
        if isinstance(value, int):
            return bool(self.names & {"int", "float"})
        if isinstance(value, float):
            return "float" in self.names
        if isinstance(value, str):
            return "str" in self.names and not self.words
        if isinstance(value, list) and self.length not in (None, len(value)):
            return False
        return ("dict" if isinstance(value, dict) else "list") in self.names


@cache
def kinds(annotation: str) -> Kinds | None:
    """Translate an annotation's text; None where it says nothing about YAML values."""
    return _kinds(ast.parse(annotation, mode="eval").body) if annotation else None


_SIMPLE = {
    "int": "int", "float": "float", "bool": "bool", "str": "str", "Path": "str", "None": "none", "list": "list",
    "tuple": "list", "Sequence": "list", "List": "list", "Tuple": "list", "Iterable": "list", "dict": "dict",
    "Mapping": "dict", "Tensor": "",
}  # fmt: skip


def _kinds(node: ast.expr) -> Kinds | None:
    if isinstance(node, ast.BinOp):
        return _union([node.left, node.right])
    if isinstance(node, ast.Constant):
        return _kinds(ast.parse(str(node.value), mode="eval").body) if node.value else Kinds(frozenset({"none"}))
    if isinstance(node, ast.Subscript):
        outer = ast.unparse(node.value).rsplit(".", 1)[-1]
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if outer == "Literal":
            words = tuple(item.value for item in items if isinstance(item, ast.Constant))
            return Kinds(frozenset({"str"}), words)
        if outer in ("Optional", "Union"):
            found = _union(items)
            return Kinds(found.names | {"none"}, found.words, found.length) if found and outer == "Optional" else found
        found = _kinds(node.value)
        fixed = outer in ("tuple", "Tuple") and not any(ast.unparse(item) == "..." for item in items)
        return Kinds(found.names, (), len(items)) if found and fixed else found
    if isinstance(node, (ast.Name, ast.Attribute)):
        kind = _SIMPLE.get(ast.unparse(node).rsplit(".", 1)[-1])
        return None if kind is None else Kinds(frozenset({kind} if kind else set()))
    return None


def _union(items: list[ast.expr]) -> Kinds | None:
    parts = [_kinds(item) for item in items]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    lengths = {part.length for part in known if "list" in part.names}
    length = lengths.pop() if len(lengths) == 1 else None
    return Kinds(frozenset().union(*(part.names for part in known)), sum((part.words for part in known), ()), length)
