"""The network to be looked at, on the meta device, where no weight takes memory, and the images that it is given."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from cnn_train.config.build import build, build_layers
from cnn_train.config.choices import Choices
from cnn_train.errors import ConfigError

if TYPE_CHECKING:  # torch comes after the config is checked
    from torch import nn

    from cnn_train.data.data import Data

FACTS = "# facts:"


@dataclass(frozen=True)
class Subject:
    """A network to be looked at, on the meta device; `input_size` is (channels, height, width)."""

    name: str
    cfg: DictConfig
    network: "nn.Module"
    num_classes: int
    input_size: tuple[int, int, int]
    data: "Data | None"


def describe(
    cfg: DictConfig, *, with_data: bool = False, with_images: bool = False, choices: Choices | None = None
) -> Subject:
    """Build the network of a config on the meta device.

    Without `with_data`, classes, channels and image size are those that the network was published with. With it they
    are the data's, which is loaded only where its YAML does not state them, where its images are wanted, or for a
    detector, whose priors are matched with its objects.
    """
    import torch

    choices = choices or Choices.find()
    given = cfg.data.get("published") or {} if with_data else {}
    known = {"num_classes", "in_channels", "image_size"} <= given.keys()
    data = build(cfg.data) if with_data and (with_images or not known) else None
    size: int | Sequence[int]
    if data is not None:
        num_classes, in_channels, size = data.num_classes, data.in_channels, data.image_size
    elif with_data:
        num_classes, in_channels, size = given["num_classes"], given["in_channels"], given["image_size"]
    else:
        num_classes, in_channels, size = published(cfg, choices)
    size = size if cfg.image_size is None else cfg.image_size
    height, width = (size, size) if isinstance(size, int) else size
    parts: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels, "layers": build_layers(cfg)}
    if cfg.model.get("anchors") == "auto":
        if data is None:
            raise ConfigError("model.anchors=auto needs training boxes; add data=, or give anchors")
        from cnn_train.data.box_sample import box_sizes

        parts["box_sizes"] = box_sizes(data)
    with torch.device("meta"), without_values():
        network = build(cfg.model, **parts)
    if with_data and data is None and hasattr(network, "priors"):
        data = build(cfg.data)
    if cfg.image_size is None:
        from cnn_train.models.network import min_size

        height, width = max(height, min_size(network)), max(width, min_size(network))
    return Subject(cfg.choices.model, cfg, network, num_classes, (in_channels, height, width), data)


def facts(choices: Choices, model: str) -> dict[str, int]:
    """The numbers of its paper that a model's YAML states among its first comments: `# facts: image_size=299`."""
    path = choices.path("model", model)
    lines = path.read_text(encoding="utf-8").splitlines() if path else []
    stated = next((line.removeprefix(FACTS) for line in lines if line.startswith(FACTS)), "")
    try:
        return {key: int(value) for key, _, value in (word.partition("=") for word in stated.split())}
    except ValueError:
        raise ConfigError(f"{path}: facts are whole numbers, as in '{FACTS} image_size=32', got {stated!r}") from None


def published(cfg: DictConfig, choices: Choices) -> tuple[int, int, int]:
    """Classes, channels and image side that a network was published with.

    Classes and channels are the defaults of its builder, or ImageNet's. The side is among the facts of its YAML, or it
    is 32 for one channel or for 10 or 100 classes (the small data sets), and else ImageNet's usual 224.
    """
    from hydra.utils import get_object

    parameters = inspect.signature(get_object(cfg.model._target_)).parameters

    def default(name: str, otherwise: int) -> int:
        value = parameters[name].default if name in parameters else otherwise
        return value if isinstance(value, int) else otherwise

    num_classes, in_channels = default("num_classes", 1000), default("in_channels", 3)
    small = in_channels == 1 or num_classes in (10, 100)
    side = facts(choices, cfg.choices.model).get("image_size", 32 if small else 224)
    return num_classes, in_channels, side


def without_values() -> Any:
    """A context manager that skips in-place operations that fill a meta tensor, which has no values.

    Otherwise drawing weights would run PyTorch's kernels in Python, whose import alone takes over a second.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    fills = {"normal_", "uniform_", "fill_", "zero_", "trunc_normal_", "exponential_", "bernoulli_", "copy_", "div_"}
    initializers = {name for name in vars(torch.nn.init) if name.endswith("_") and not name.startswith("_")}

    class WithoutValues(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            name = getattr(func, "__name__", "")
            if name in fills or name in initializers:
                target = args[0] if args else kwargs.get("tensor")
                if isinstance(target, torch.Tensor) and target.is_meta:
                    return target
            return func(*args, **kwargs)

    return WithoutValues()
