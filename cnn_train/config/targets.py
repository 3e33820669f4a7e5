"""What a config that this command line did not compose may name: default deny.

A `_target_` is a call. Allowed are, each in its own place, what a file of conf/ names there, and subclasses of
nn.Module and of Optimizer from the libraries that we use. All is decided from source text: nothing is imported.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cnn_train.config.choices import Choices, read_yaml
from cnn_train.config.frozen import CODE
from cnn_train.config.schema import first_line
from cnn_train.config.signatures import NoSuchTarget, is_subclass, signature
from cnn_train.errors import ConfigError

MODULE, OPTIMIZER = "torch.nn.modules.module.Module", "torch.optim.optimizer.Optimizer"
# Where subclasses of nn.Module and of Optimizer may be defined, and the packages that also export them.
LAYERS = ("torch.nn.modules", "torchvision.ops", "timm.layers", "cnn_train.layers", "cnn_train.models")
OPTIMIZERS = ("torch.optim", "timm.optim", "cnn_train.training.optim")
EXPORTED = ("torch.nn", "torch.optim", "torchvision.ops", "timm.layers", "timm.optim", "cnn_train.layers")
SUBCLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(("model", "norm", "act", "pool", "global_pool", "upsample"), (MODULE, LAYERS)),
    "loss": (MODULE, ("torch.nn.modules.loss", "cnn_train.tasks.losses")),
    "optimizer": (OPTIMIZER, OPTIMIZERS),
}
# Lightning's callbacks that write no file, open no connection and take no code. ModelCheckpoint, for one, writes where
# it is told to, and a logger sends what it is given to any address.
CALLBACKS = frozenset(
    f"lightning.pytorch.callbacks.{name}"
    for name in (
        "DeviceStatsMonitor", "EarlyStopping", "GradientAccumulationScheduler", "LearningRateMonitor", "ModelSummary",
        "RichModelSummary", "RichProgressBar", "StochasticWeightAveraging", "TQDMProgressBar", "Timer",
    )
)  # fmt: skip

# Settings by which a builder fetches weights or data, or opens a file of weights of its own.
FETCHES = re.compile(r"download|pretrained\w*|checkpoint_path|hf_\w+|\w*(url|uri|endpoint)s?")
LOCAL_ONLY = "cnn_train.data.webdataset.webdataset"  # whose urls are files of this machine
WEIGHTS = re.compile(r"weights|weights_\w+")  # of a network: torchvision's words, such as DEFAULT
REMOTE = re.compile(r"\s*(hf[-_]hub|local-dir|https?|ftp|file|s3|gs|ssh)\s*:", re.IGNORECASE)
# Settings by which a callback or logger writes elsewhere than in the run's folder.
ELSEWHERE = re.compile(r"\w*(dir|dirpath|path|filename|location|host|server|address)s?")


def check_targets(config: Any, trust: Sequence[str] = (), typed: Sequence[str] = ()) -> None:
    """Refuse a config from a saved run or a downloaded file that names other code than it may, or that downloads.

    `trust` are packages, modules or things of the user's own that may be named anywhere; `typed` are keys that this
    command line set, which it may set to anything. Raises ConfigError.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    except OmegaConfBaseException as error:
        raise ConfigError(f"config: {first_line(error)}") from error
    for path, node in _mappings(plain, ""):
        if "_target_" in node and not is_within(f"{path}._target_", typed):
            _check_call(path, node, trust)
        for name, told in _faults(path, node) if path else ():
            if not is_within(name, typed):
                raise ConfigError(f"{told}; {name}=... on this command line may")


def is_within(path: str, keys: Sequence[str]) -> bool:
    """Whether a dotted path is one of these keys or below one; `data.augment` is `augment`."""
    return any(name == key or name.startswith((f"{key}.", f"{key}[")) for name in (path, _own(path)) for key in keys)


def _own(path: str) -> str:
    return path.removeprefix("data.") if path.startswith("data.augment") else path


def _mappings(node: Any, path: str) -> Iterator[tuple[str, dict[Any, Any]]]:
    if isinstance(node, dict):
        yield path, node
        for key, inner in node.items():
            yield from _mappings(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for index, inner in enumerate(node):
            yield from _mappings(inner, f"{path}[{index}]")


def _check_call(path: str, node: dict[Any, Any], trust: Sequence[str]) -> None:
    target = node["_target_"]
    if is_trusted(target, trust):
        return
    if not is_allowed(target, path):
        package = target.split(".")[0] if isinstance(target, str) else ""
        word = f"; --trust {package} lets in that package, if its code is yours" if package.isidentifier() else ""
        raise ConfigError(f"{path}._target_: {target!r} is not allowed in a saved config{word}")
    others = [key for key in CODE if key in node and key not in ("_target_", "_partial_")]
    if others or not isinstance(node.get("_partial_", False), bool):
        raise ConfigError(f"{path}.{(others or ['_partial_'])[0]} is not allowed in a saved config")


def is_trusted(target: Any, trust: Sequence[str]) -> bool:
    """Whether a target lies in one of these packages or modules, or is one of these things."""
    if not isinstance(target, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", target):
        return False
    return any(target == name or target.startswith(f"{name}.") for name in trust if name)


def is_allowed(target: Any, path: str) -> bool:
    """Whether the node at this path may name this target."""
    if not isinstance(target, str) or not re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", target):
        return False
    place = _place(path)
    group = place.split(".")[0]
    if place not in shipped():
        return False  # nothing nests here
    names = frozenset().union(*(found for at, found in shipped().items() if at.split(".")[0] == group))
    if target in names or (group == "callbacks" and target in CALLBACKS):
        return True
    if group not in SUBCLASSES:
        return False
    ancestor, packages = SUBCLASSES[group]
    if not target.startswith(tuple(f"{package}." for package in (*packages, *EXPORTED))):
        return False  # its package is not even looked for
    try:
        found = signature(target)
    except (NoSuchTarget, SyntaxError):
        return False
    inside = any(found.module == package or found.module.startswith(f"{package}.") for package in packages)
    # By its own name only: a way through other modules' imports could end elsewhere when it runs.
    direct = target in (f"{found.module}.{found.name}", *(f"{package}.{found.name}" for package in EXPORTED))
    return inside and direct and is_subclass(found, ancestor)


def _place(path: str) -> str:
    """A path without numbers; the nodes of `callbacks` and `logger` have names that are free."""
    place = re.sub(r"\[\d+\]", "[]", _own(path))
    group, _, inner = place.partition(".")
    return f"{group}.*" if group in ("callbacks", "logger") and inner and "." not in inner else place


@cache
def shipped() -> dict[str, frozenset[str]]:
    """What the files of conf/ name, by place: {"augment.augments[]": {...}, ...}."""
    found: dict[str, set[str]] = {"callbacks.*": set()}
    choices = Choices.find()
    for group in choices.groups():
        for option in choices.options(group):
            path = choices.path(group, option)
            assert path is not None
            text = path.read_text(encoding="utf-8")
            if "_target_" not in text:
                continue
            body = read_yaml(path)
            for place, node in _mappings(body if text.startswith("# @package _global_") else {group: body}, ""):
                if "_target_" in node:
                    found.setdefault(_place(place), set()).add(node["_target_"])
    return {place: frozenset(names) for place, names in found.items()}


def _faults(path: str, node: dict[Any, Any]) -> Iterator[tuple[str, str]]:
    """Settings of a node, with what is wrong, that fetch or send something, or write elsewhere."""
    group = path.split(".")[0]
    if str(node.get("_target_")).endswith(".WandbLogger") and node.get("offline") is not True:
        yield f"{path}.offline", f"{path}.offline is not true: a saved config may not send anything"
    for key, value in node.items():
        name = f"{path}.{key}"
        texts = [inner for inner in (value if isinstance(value, list) else [value]) if isinstance(inner, str)]
        fetches = (FETCHES.fullmatch(str(key)) and node.get("_target_") != LOCAL_ONLY) or (
            group == "model" and WEIGHTS.fullmatch(str(key))
        )
        if any(map(REMOTE.match, texts)) or (fetches and value not in (None, False, "")):
            yield name, f"{name}={value!r}: a saved config may not fetch anything"
        place = ELSEWHERE.fullmatch(str(key)) and group in ("callbacks", "logger") and any(texts)
        named = (group == "logger" or path.startswith("trainer.lightning")) and any(map(_is_path, texts))
        if place or named:
            yield name, f"{name}={value!r}: a saved config may not write elsewhere"


def _is_path(text: str) -> bool:
    return bool(re.search(r"[/\\]|^~|^\.\.?$", text))


def grants(config: Any) -> list[str]:
    """Words for the command line of a process that trains this very config, which was composed or checked here.

    They name what such a process would refuse to a file: code of the user's own, and downloads.
    """
    plain = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    words = []
    for path, node in _mappings(plain, ""):
        if "_target_" in node and _refused(_check_call, path, node, ()):
            words.append(f"trust={node['_target_']}")
        words += [f"may={name}" for name, _ in (_faults(path, node) if path else ())]
    return list(dict.fromkeys(words))


def _refused(check: Callable[..., None], *arguments: Any) -> bool:
    try:
        check(*arguments)
    except ConfigError:
        return True
    return False
