"""Names of public weights: what `weights=torchvision`, `timm:NAME`, `hf:ORG/NAME` and an address stand for.

Nothing here touches the network: each name becomes an address, the beginning of a checksum where one is published, and
the preprocessing that the weights were trained with.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from cnn_train.errors import ConfigError, EnvError

HUB = "https://huggingface.co"
# torchvision's two Inceptions are built with `transform_input`, which is this normalization (Google's).
HALVES = {"GoogLeNet_Weights", "Inception_V3_Weights"}


@dataclass(frozen=True)
class Pretrained:
    """Published weights; `mean`, `std` (per channel, of [0, 1]), `image_size` and `resize` are None where unknown."""

    title: str
    address: str
    file: str
    sha256: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: tuple[int, int] | None = None
    resize: int | None = None  # the shorter side before the middle is cut out


def is_name(text: str) -> bool:
    """Whether `weights=` names public weights; otherwise it is a path."""
    return text in ("torchvision", "timm") or re.match(r"(torchvision|timm|hf):|\w+://", text) is not None


def names_of(model: Mapping[str, Any], choice: str, has_norm: bool) -> list[str]:
    """What libraries may call a config's network, or else its encoder: `model` is the node that builds it."""
    builder = str(model["_target_"]).rpartition(".")[2]
    if builder in ("timm", "torchvision"):
        return [str(model["name"])]
    names = dict.fromkeys([choice, builder, *([str(model["encoder"])] if "encoder" in model else [])])
    if has_norm:
        return [other for name in names for other in ([f"{name}_bn", name] if name.startswith("vgg") else [name])]
    return list(names)


def resolve(text: str, names: Sequence[str]) -> Pretrained:
    """The weights that `weights=` names. `names` are what the network and its encoder are called, best first.

    Raises ConfigError for a name that there is not.
    """
    if "://" in text:
        return from_address(text)
    library, _, name = text.partition(":")
    if library == "torchvision":
        return from_torchvision(name, names)
    if library == "hf":
        return from_hugging_face(name)
    return from_timm(name or next(iter(names), ""))


def from_torchvision(name: str, networks: Sequence[str]) -> Pretrained:
    """DEFAULT, a member (`IMAGENET1K_V2`) or `ResNet50_Weights.IMAGENET1K_V2` of torchvision's enums."""
    weights = _member(name, networks)
    enum = type(weights).__name__
    how = weights.transforms()
    size = getattr(how, "crop_size", None)
    half = (0.5, 0.5, 0.5)
    file = weights.url.rpartition("/")[2]
    return Pretrained(
        title=f"torchvision:{enum}.{weights.name}",
        address=weights.url,
        file=file,
        sha256=_published_hash(file),
        mean=half if enum in HALVES else tuple(how.mean),
        std=half if enum in HALVES else tuple(how.std),
        image_size=None if size is None else (size[0], size[-1]),
        resize=how.resize_size[0],
    )


def _member(name: str, networks: Sequence[str]) -> Any:
    from torchvision import models

    if "." in name:
        try:
            return models.get_weight(name)
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"torchvision has no weights {name}; try weights=torchvision") from error
    enums = torchvision_enums()
    enum = next((enums[network] for network in networks if network in enums), None)
    if enum is None:
        close = get_close_matches(next(iter(networks), ""), enums)
        some = f" (it has some of {', '.join(close)})" if close else ""
        raise ConfigError(
            f"torchvision has no weights of {' or '.join(networks)}{some}; give a file, timm:NAME or hf:NAME"
        )
    member = name or "DEFAULT"
    if member not in enum.__members__:
        raise ConfigError(f"weights=torchvision:{name}: {enum.__name__} has {', '.join(enum.__members__)}")
    return enum[member]


def torchvision_enums() -> dict[str, Any]:
    """The enum of weights of each classification and segmentation network of torchvision."""
    from torchvision import models

    modules: tuple[ModuleType, ...] = (models, models.segmentation)
    return {name: models.get_model_weights(name) for module in modules for name in models.list_models(module=module)}


def from_timm(name: str) -> Pretrained:
    """timm's weights by the name that `timm.list_pretrained()` gives, `resnet50.a1_in1k`, or of a network's default."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise EnvError("weights=timm needs the package timm: pip install 'cnn-train[timm]'") from error
    try:
        config = timm.models.get_pretrained_cfg(name, allow_unregistered=False) if timm.is_model(name) else None
    except RuntimeError:  # a network that timm knows, with a tag that it does not
        config = None
    if config is None or not (config.url or config.hf_hub_id):
        known = timm.list_pretrained()
        close = get_close_matches(name, known) or [other for other in known if other.startswith(name.partition(".")[0])]
        meant = f"; there are {', '.join(close[:4])}" if close else "; timm.list_pretrained() lists them"
        raise ConfigError(f"timm has no weights {name!r}{meant}")
    if config.hf_hub_id:
        hub = str(config.hf_hub_id)
        hub = hub if hub.count("/") else f"timm/{hub}"
        found = from_hugging_face(f"{hub}/{config.hf_hub_filename}" if config.hf_hub_filename else hub)
        address, file, sha256 = found.address, found.file, None
    else:
        address = str(config.url)
        file = address.rpartition("/")[2]
        sha256 = _published_hash(file)
    size = tuple(config.input_size[1:])
    return Pretrained(
        title=f"timm:{name}" if config.tag is None or "." in name else f"timm:{name}.{config.tag}",
        address=address,
        file=file,
        sha256=sha256,
        mean=tuple(config.mean),
        std=tuple(config.std),
        image_size=(size[0], size[1]),
        resize=round(size[0] / config.crop_pct),
    )


def from_hugging_face(name: str) -> Pretrained:
    """`org/name[@revision][/path/to/file]` on the Hugging Face hub; without a file its model.safetensors."""
    match = re.fullmatch(r"([\w.-]+)/([\w.-]+)(?:@([\w.-]+))?(?:/([\w./-]+))?", name)
    if match is None:
        raise ConfigError(f"weights=hf:{name}: it is hf:ORG/NAME, perhaps with @REVISION and /FILE")
    organization, repository, revision, file = match.groups()
    file = file or "model.safetensors"
    local = "--".join([organization, repository, *([revision] if revision else []), file.replace("/", "--")])
    address = f"{HUB}/{organization}/{repository}/resolve/{revision or 'main'}/{file}"
    return Pretrained(f"hf:{name}", address, local)


def from_address(text: str) -> Pretrained:
    """An https address that ends in `#sha256=` and the file's checksum."""
    match = re.fullmatch(r"(https://[^#\s]+/([^/#?\s]+)(?:\?[^#\s]*)?)(?:#sha256[=:]([0-9a-fA-F]{8,64}))?", text)
    if match is None:
        raise ConfigError(f"weights={text}: an address is https://HOST/FILE#sha256=CHECKSUM")
    address, file, sha256 = match.groups()
    if sha256 is None:
        raise ConfigError(
            f"weights={text} needs #sha256= and the file's checksum: what comes over the network is checked"
        )
    return Pretrained(address, address, f"{sha256[:8].lower()}-{file}", sha256.lower())


def _published_hash(file: str) -> str | None:
    """The beginning of the sha256 that torch's convention puts into a name, as in resnet50-11ad3fa6.pth."""
    match = re.search(r"-([a-f0-9]{8,})\.", file)
    return match[1] if match else None
