"""The networks of conf/model in Markdown tables, from the code: paper, size, receptive field, published error.

    python benchmarks/zoo_table.py [--write] [model ...]

Networks are built and followed on the meta device, which computes nothing. `--write` puts the tables between the
markers of docs/zoo.md; without it, and for chosen models, they are printed.
"""

import argparse
import importlib
import inspect
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from cnn_train.analysis import trace
from cnn_train.analysis.graph import Graph
from cnn_train.config.build import build, build_layers
from cnn_train.config.choices import Choices
from cnn_train.config.compose import compose
from cnn_train.inspection.subject import published

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
BEGIN, END = "<!-- tables: benchmarks/zoo_table.py --write -->", "<!-- end of tables -->"
LIBRARIES = {"timm", "torchvision"}

# A recipe's settings, where the YAML of a network has others for a CPU.
RECIPES = {
    "deeplabv3plus": "deeplabv3plus_voc",
    "pspnet": "pspnet_voc",
    "yolov2": "yolov2_voc",
    "yolov3": "yolov3_coco",
}
# The same where no recipe has them: the form for large images, and the paper's encoder.
PAPERS = {
    **{f"fcn{stride}s": ["model.pad_input=true"] for stride in (16, 32)},
    "fcn8s": ["model.pad_input=true", "model.width=64", "norm=none"],
    "unet_encoder": [
        "model.encoder=resnet34", "model.encoder_options=null", "model.decoder_channels=[256,128,64,32,16]",
    ],
    "gcn": ["model.encoder=resnet152", "model.encoder_options=null"],
    "refinenet": ["model.encoder=resnet101", "model.encoder_options=null", "model.channels=256"],
    "deeplabv2": [
        "model.encoder=resnet101", "model.encoder_options=null", "model.stride_in_1x1=true", "model.output_stride=8",
        "model.atrous_rates=[6,12,18,24]",
    ],
}  # fmt: skip

# Top-1 error (segmentation: mean IoU; detection: mean average precision) in percent as the authors published it, on
# what, and where: a table or figure of the paper in the same row, or their release. Of one model and one view of each
# image, unless it says otherwise.
PUBLISHED = {
    "lenet5": ("0.95", "MNIST; Fig. 9, where C3 sees only some of the maps"),
    "alexnet_2012": ("40.7", "ImageNet, 10 crops; Table 2"),
    "nin": ("8.81", "CIFAR-10; Table 1"),
    "inception_v2": ("25.2", "ImageNet; Fig. 4"),
    "vgg11": ("29.6", "ImageNet, whole images; Table 3, trained at scale 256"),
    "vgg13": ("28.7", "ImageNet, whole images; Table 3, trained at scale 256"),
    "vgg16": ("27.0", "ImageNet, whole images; Table 3, trained at scale 256"),
    "vgg19": ("27.3", "ImageNet, whole images; Table 3, trained at scale 256"),
    "resnet20": ("8.75", "CIFAR-10; Table 6"),
    "resnet32": ("7.51", "CIFAR-10; Table 6"),
    "resnet44": ("7.17", "CIFAR-10; Table 6"),
    "resnet56": ("6.97", "CIFAR-10; Table 6"),
    "resnet110": ("6.43", "CIFAR-10; Table 6, best of 5 runs whose mean is 6.61"),
    "resnet50": ("24.7", "ImageNet; README of deep-residual-networks, `model.stride_in_1x1=true`"),
    "resnet101": ("23.6", "ImageNet; README of deep-residual-networks, `model.stride_in_1x1=true`"),
    "resnet152": ("23.0", "ImageNet; README of deep-residual-networks, `model.stride_in_1x1=true`"),
    "preact_resnet110": ("6.37", "CIFAR-10; Table 3"),
    "preact_resnet164": ("5.46", "CIFAR-10; Table 3"),
    "preact_resnet152": ("21.1", "ImageNet at 320 pixels; Table 5, `model.stride_in_1x1=true`"),
    "inception_v3": ("21.2", "ImageNet without its blacklisted images; Table 3"),
    "inception_v4": ("20.0", "ImageNet without its blacklisted images; Table 2"),
    "inception_resnet_v2": ("19.6", "ImageNet; README of TF-Slim, the release (19.9 in Table 2 with half the blocks)"),
    "wrn_16_8": ("4.27", "CIFAR-10; Table 5"),
    "wrn_28_10": ("4.00", "CIFAR-10; Table 5"),
    "wrn_40_4": ("4.53", "CIFAR-10; Table 5"),
    "wide_resnet50_2": ("21.9", "ImageNet; Table 8"),
    "xception": ("21.0", "ImageNet; Table 1"),
    "xception65": ("20.19", "ImageNet; Table 4"),
    "densenet121": ("25.0", "ImageNet; README of DenseNet"),
    "densenet161": ("22.2", "ImageNet; README of DenseNet"),
    "densenet169": ("23.6", "ImageNet; README of DenseNet"),
    "densenet201": ("22.5", "ImageNet; README of DenseNet"),
    "densenet_bc_100_12": ("4.51", "CIFAR-10; Table 2"),
    "densenet_bc_190_40": ("3.46", "CIFAR-10; Table 2"),
    "resnext50_32x4d": ("22.2", "ImageNet; README of ResNeXt"),
    "resnext29_8x64d": ("3.65", "CIFAR-10; Table 7, mean of 10 runs"),
    "seresnet50": ("22.37", "ImageNet; README of SENet, `model.variant=release`"),
    "seresnext50_32x4d": ("20.97", "ImageNet; README of SENet, `model.variant=release`"),
    "senet154": ("18.68", "ImageNet; README of SENet"),
    "mobilenet_v1": ("29.4", "ImageNet; Table 6"),
    "mobilenet_v2": ("28.0", "ImageNet; Table 4"),
    "mobilenet_v3_large": ("24.8", "ImageNet; Table 3"),
    "mobilenet_v3_small": ("32.6", "ImageNet; Table 3"),
    "fcn32s": ("63.6", "VOC 2011 val less SBD's training images; README of fcn.berkeleyvision.org"),
    "fcn16s": ("65.0", "VOC 2011 val less SBD's training images; README of fcn.berkeleyvision.org"),
    "fcn8s": ("65.5", "VOC 2011 val less SBD's training images; README of fcn.berkeleyvision.org"),
    "segnet": ("60.1", "CamVid test, trained on 3.5 thousand images"),
    "deeplabv1": ("62.25", "VOC 2012 val; Table 1, without CRF"),
    "deeplabv2_vgg16": ("68.96", "VOC 2012 val; Table 3, without CRF"),
    "deeplabv2": ("76.35", "VOC 2012 val; Table 4, ResNet-101 without CRF, `model.scales=[0.5,0.75]`, COCO before"),
    "deeplabv3plus": ("79.79", "VOC 2012 val; Table 5"),
    "pspnet": ("77.05", "VOC 2012 val; README of semseg, whose encoder has a stem of three 3x3 convolutions"),
    "refinenet": ("82.4", "VOC 2012 test; Table 5, several scales, COCO before"),
    "gcn": ("82.2", "VOC 2012 test; abstract, COCO before"),
    "yolov2": ("76.8", "VOC 2007 test, IoU 0.5, trained on 07+12; Table 3"),
    "yolov3": ("31.0", "COCO test-dev; Table 3"),
    "ssd300": ("77.2", "VOC 2007 test, IoU 0.5, trained on 07+12; README of the release"),
    "ssd512": ("79.8", "VOC 2007 test, IoU 0.5, trained on 07+12; README of the release"),
    "ssd300_vgg16": ("25.1", "COCO val 2017; torchvision"),
    "retinanet_resnet50_fpn": ("36.4", "COCO val 2017; torchvision"),
    "fcos_resnet50_fpn": ("39.2", "COCO val 2017; torchvision"),
}


@dataclass(frozen=True)
class Row:
    """One network at the classes and the image size that it was published for."""

    model: str
    title: str
    paper: str
    year: int
    task: str
    size: int
    parameters: int
    multiply_adds: int
    receptive_field: int | None
    published: tuple[str, str]


def models() -> list[str]:
    choices = Choices.find()
    return [name for name in choices.options("model") if name not in LIBRARIES]


def describe(model: str) -> Row:
    """Build and follow one network."""
    choices = Choices.find()
    words = [f"experiment={RECIPES[model]}"] if model in RECIPES else [f"model={model}"]
    cfg = compose([*words, *PAPERS.get(model, [])])
    module_name = cfg.model._target_.rpartition(".")[0]
    module = importlib.import_module(module_name)
    task = module_name.split(".")[2]
    title = choices.describe("model", model)
    paper, year = reference(inspect.getdoc(module) or "", title)
    num_classes, channels, size = published(cfg, choices)
    if model in RECIPES and task == "detection":
        num_classes, size = (20 if cfg.choices.data == "voc_detection" else 80), cfg.image_size
    if task == "segmentation":  # all of them by the same data
        voc = choices.body("data", "voc")["published"]
        num_classes, size = voc["num_classes"], voc["image_size"]
    with torch.device("meta"):
        network = build(cfg.model, num_classes=num_classes, in_channels=channels, layers=build_layers(cfg))
    graph = trace(network, (channels, size, size))
    return Row(
        model=model,
        title=re.split(r" \(|;", title)[0],
        paper=paper,
        year=year,
        task=task,
        size=size,
        parameters=graph.parameters,
        multiply_adds=graph.multiply_adds,
        receptive_field=last_field(graph),
        published=published_error(model),
    )


def reference(docstring: str, description: str) -> tuple[str, int]:
    """The authors, linked to their paper, and its year: as the YAML's description names them, else the docstring."""
    named = re.search(r"\(([^()]+?) ((?:19|20)\d\d)\b", description)
    if named is None:
        named = re.search(r':\s+([^"]+?),\s+".*?\b((?:19|20)\d\d)\b', docstring, re.DOTALL)
    assert named is not None, f"no authors and year in {description!r}, nor in {docstring[:80]!r}"
    authors, year = " ".join(named[1].split()), named[2]
    # The address that stands right behind the year, which may be that of two venues.
    url = re.search(rf"\b{year}\b.{{0,30}}?(https?://[^\s,()]+[^\s,().])", docstring, re.DOTALL)
    return (f"[{authors}]({url[1]})" if url else authors), int(year)


def last_field(graph: Graph) -> int | None:
    """Side in pixels of what a unit of the last map sees, global operations left out; None without sliding windows.

    A detector's is that of the level which sees most. The last map is the scores' for segmentation, and for
    classification what global pooling or a dense layer reads.
    """
    if not any(row.kernel_size for row in graph.rows):
        return None
    if len(graph.levels) > 1:
        return max(graph.nodes[level].sights[0].size for level in graph.levels)
    maps = [
        row
        for row in graph.rows
        if row.node is not None
        and row.output_shape is not None
        and len(row.output_shape) == 3
        and not any(sight.collapsed for sight in graph.nodes[row.node].sights)
    ]
    return maps[-1].local_receptive_field[0] if maps and maps[-1].local_receptive_field else None


def published_error(model: str) -> tuple[str, str]:
    """Top-1 error or mean IoU in percent and where it stands; where only torchvision has one, its first weights'."""
    from torchvision.models import get_model_weights, list_models

    if model in PUBLISHED or model not in list_models():
        return PUBLISHED.get(model, ("-", "-"))
    first = min(get_model_weights(model), key=lambda weights: weights.name)
    ((data, figures),) = first.meta["_metrics"].items()
    if "miou" in figures:
        return f"{figures['miou']:.1f}", "COCO val 2017, the classes of VOC; torchvision"
    assert data == "ImageNet-1K"
    return f"{100 - figures['acc@1']:.1f}", "ImageNet; torchvision"


def line(row: Row) -> str:
    """One row of a table."""
    field = "-" if row.receptive_field is None else f"{row.receptive_field:,}"
    recipe = f", `experiment={RECIPES[row.model]}`" if row.model in RECIPES else ""
    cells = [f"`{row.model}`{recipe}", row.title, f"{row.paper} {row.year}", f"{row.size}", f"{row.parameters:,}"]
    cells += [amount(row.multiply_adds), field, *row.published]
    return f"| {' | '.join(cells)} |"


def amount(number: int) -> str:
    """Three digits with M (1e6) or G (1e9)."""
    unit, letter = (1e9, "G") if number >= 1e9 else (1e6, "M")
    value = number / unit
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f} {letter}"


def tables(rows: list[Row]) -> str:
    """A table for each task, by year."""
    parts = []
    heads = {"classification": "top-1 error, %", "segmentation": "mean IoU, %", "detection": "mAP, %"}
    for task, head in heads.items():
        chosen = sorted((r for r in rows if r.task == task), key=lambda r: (r.year, r.paper, r.parameters))
        if not chosen:
            continue
        names = ["`model=`", "network", "paper", "pixels", "parameters", "multiply-adds", "receptive field"]
        names += [head, "on; published in"]
        rules = ["---"] * 3 + ["---:"] * 5 + ["---"]
        parts.append(f"## {task.title()}\n\n| {' | '.join(names)} |\n| {' | '.join(rules)} |")
        parts[-1] += "".join(f"\n{line(row)}" for row in chosen)
    return "\n\n".join(parts) + "\n"


def write(text: str) -> None:
    """Put the tables between the markers of the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The networks in Markdown tables, from the code.")
    parser.add_argument("models", nargs="*", help="names of conf/model; none: all")
    parser.add_argument("--write", action="store_true", help="put the tables of all models into docs/zoo.md")
    arguments = parser.parse_args()
    if arguments.write and arguments.models:
        parser.error("--write is for all models; leave the names out")
    result = tables([describe(model) for model in arguments.models or models()])
    if arguments.write:
        write(result)
    else:
        print(result, end="")
