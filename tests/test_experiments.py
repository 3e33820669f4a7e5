"""Every recipe in conf/experiment: it composes, says what it does, and its first step works."""

import re
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from cnn_train.config.build import build
from cnn_train.config.choices import Choices
from cnn_train.config.compose import compose
from cnn_train.data.targets import TargetSpec
from cnn_train.experiment.build import build_task
from cnn_train.experiment.network import build_network_and_data
from cnn_train.training.recipe import Recipe
from cnn_train.training.update import make_optimizer

ROOT = Path(__file__).parents[1]
EXPERIMENTS = [name for name in Choices.find().options("experiment") if not name.startswith(("finetune", "claim/"))]
# A second each; the others have tens of millions of weights, or hundreds of layers.
SMALL = ["lenet5_1998", "lenet5_caffe", "lstm_mnist", "resnet20_cifar10", "mobilenet_v1_imagenet"]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch):
    """The scenes are composed once, into a cache of the tests' own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@cache
def config(name: str) -> DictConfig:
    """The recipe as it stands, shared by the tests that do not change it."""
    return compose([f"experiment={name}"])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_composes_with_its_own_data(name):
    cfg = config(name)
    assert cfg.name == name and cfg.choices.experiment == name
    assert cfg.choices.model in name or cfg.choices.model.startswith("deeplabv3")
    assert cfg.choices.data.removesuffix("_detection") in name or name.startswith("lenet5")
    assert Choices.find().describe("experiment", name)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_schedule_falls_and_reaches_its_last_stage(name):
    """A milestone beyond the last epoch, or one that was meant in steps, would never be passed."""
    cfg = config(name)
    schedule, epochs, steps = build(cfg.scheduler), cfg.trainer.max_epochs, 860
    factors = [schedule(epoch * steps, epochs * steps, steps) for epoch in range(epochs)]
    assert max(factors) <= 1
    assert all(0 < milestone < epochs for milestone in cfg.scheduler.get("milestones") or ())
    if cfg.choices.scheduler != "constant":
        assert factors[-1] < 0.65


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_augmentation_takes_colour_images(name):
    cfg = config(name)
    augment = build(cfg.augment)
    if augment is None:
        return
    images = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    kind, shape = {
        "voc": ("maps", (3, 40, 40)),
        "coco": ("boxes", (3, 2, 6)),
        "voc_detection": ("boxes", (3, 2, 6)),
    }.get(cfg.choices.data, ("labels", (3,)))
    targets = torch.randint(0, 10, shape)
    if kind == "boxes":
        targets = torch.tensor([10.0, 10, 30, 30, 1, 0]).expand(shape)
    spec = TargetSpec(kind, 10, 255)
    changed, labels = augment(images, targets, torch.arange(3), 0, 0, spec)
    assert changed.shape == images.shape and changed.dtype == torch.uint8 and not torch.equal(changed, images)
    assert labels.shape == targets.shape


def first_step(name: str) -> None:
    """Network, loss and optimizer of the recipe on embedded data: the loss is finite and the weights move."""
    data = {"voc": "digit_scenes", "coco": "digit_boxes", "voc_detection": "digit_boxes"}.get(config(name).choices.data)
    few = ["data.num_train=4", "data.num_val=2", "data.num_test=2"]
    small = [
        *([f"data={data}", *few] if data else ["data=digits"]),
        "data.batch_size=4",
        "data.drop_last=true",
        "augment=none",
        "image_size=null",
    ]
    cfg = compose([f"experiment={name}", "trainer=cpu", *small])
    network, batches = build_network_and_data(cfg)
    task = build_task(cfg, batches, network)
    optimizer = make_optimizer(Recipe.of(cfg), network, torch.device("cpu"))
    batch = next(batches.train_batches(0, device=torch.device("cpu")))
    before = [p.detach().clone() for p in network.parameters()]
    loss = task.learn(network.train()(batch.images), batch.targets, batch.images.shape[-2:]).loss
    loss.backward()
    if cfg.trainer.gradient_clip is not None:
        torch.nn.utils.clip_grad_norm_(network.parameters(), cfg.trainer.gradient_clip)
    optimizer.step()
    assert torch.isfinite(loss)
    after = list(network.parameters())
    assert all(torch.isfinite(p).all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("name", SMALL)
def test_first_step(name):
    first_step(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in SMALL])
def test_first_step_of_large_networks(name):
    first_step(name)


def test_trainer_of_the_recipe_survives_the_command_line():
    cfg = compose(["experiment=resnet110_cifar10", "trainer=cpu", "data=digits"])
    assert (cfg.trainer.max_epochs, cfg.trainer.decay_norm_and_bias) == (182, True)
    assert cfg.data.batch_size == 64  # the digits' own: the recipe's is for CIFAR


def test_resnet110_warms_up_and_divides_at_the_papers_steps():
    """0.01 at the start, 0.1 after 400 steps, then a tenth at 32k and 48k of 64k (section 4.2)."""
    schedule = build(config("resnet110_cifar10").scheduler)
    steps = -(-45_000 // 128)
    factors = [schedule(step, 182 * steps, steps) for step in (0, 400, 31_900, 32_100, 48_200)]
    assert 182 * steps == pytest.approx(64_000, rel=2e-3)
    assert factors == pytest.approx([0.1, 1, 1, 0.1, 0.01])


@pytest.fixture
def zoo(monkeypatch):
    """benchmarks/zoo_table.py, and the page that it writes."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield __import__("zoo_table"), (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    sys.modules.pop("zoo_table")


@pytest.mark.parametrize("model", ["lenet5", "resnet20", "googlenet"])
def test_table_of_networks_is_what_the_code_gives(model, zoo):
    table, page = zoo
    assert table.line(table.describe(model)) in page.splitlines()


@pytest.mark.slow
def test_tables_of_all_networks_are_what_the_code_gives(zoo):
    table, page = zoo
    written = table.tables([table.describe(model) for model in table.models()])
    assert written in page, "run python benchmarks/zoo_table.py --write"


def test_table_names_every_network_and_no_figure_is_of_another(zoo):
    table, page = zoo
    absent = [name for name in table.models() if f"| `{name}`" not in page]
    assert not absent, "run python benchmarks/zoo_table.py --write"
    assert table.PUBLISHED.keys() <= set(table.models())


def test_every_claim_has_its_row_and_section_on_the_page():
    root = Path(__file__).parents[1]
    page = (root / "docs" / "claims.md").read_text(encoding="utf-8")
    names = {path.stem for path in (root / "conf" / "experiment" / "claim").glob("*.yaml")}
    assert set(re.findall(r"^\| \[.*\(#(\w+)\)", page, re.MULTILINE)) == names
    assert set(re.findall(r"^    cnn-train experiment=claim/(\w+)$", page, re.MULTILINE)) == names
    assert {path.stem for path in (root / "docs" / "pictures" / "claims").glob("*.png")} == names
