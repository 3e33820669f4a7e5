"""Fine-tuning: which parameters move, by which rate and from when; running statistics that stay the same bits."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from cnn_train.config.compose import compose
from cnn_train.experiment.build import prepare
from cnn_train.experiment.callbacks import build_callbacks
from cnn_train.experiment.hardware import Machine
from cnn_train.experiment.trainer import quiet_libraries
from cnn_train.models.classification import builder
from cnn_train.models.segmentation.deeplab_v3 import deeplabv3
from cnn_train.training.finetune import Finetune, parts_of
from cnn_train.training.loop import Callback

DOCS = Path(__file__).parents[1] / "docs"
NARROW = ["model=resnet18", "model.stem=small", "+model.widths=[4,4,8,8]", "trainer=cpu", "optimizer=momentum",
          "optimizer.lr=0.1", "scheduler=constant", "trainer.limit_batches=2", "trainer.progress=none", "logger=none",
          "data.batch_size=32", "image_size=16"]  # fmt: skip


class Watch(Callback):
    """Which parts moved in each epoch, and what each group's rate was."""

    def on_train_start(self, trainer, loop) -> None:
        self.before = {name: value.clone() for name, value in loop.network.state_dict().items()}
        self.moved: list[set[str]] = []
        self.rates: list[list[float]] = []

    def on_epoch_end(self, loop) -> None:
        now = {name: value.clone() for name, value in loop.network.state_dict().items()}
        changed = {name for name in now if not torch.equal(now[name], self.before[name])}
        self.moved.append(changed)
        self.rates.append([group["lr"] for group in loop.optimizer.param_groups])
        self.before = now


def trained(tmp_path, *options: str, epochs: int = 1) -> Watch:
    cfg = compose([*NARROW, f"trainer.max_epochs={epochs}", f"output_dir={tmp_path}", *options])
    machine, watch = Machine.of(cfg.trainer), Watch()
    with quiet_libraries():
        experiment = prepare(cfg, machine, tmp_path, [*build_callbacks(cfg, machine), watch])
        experiment.trainer.fit(experiment.loop)
    return watch


def layers(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    ("trains", "moves"), [("head", {"fc"}), ("last_stage", {"fc", "layer4"}), ("all", {"conv1", "bn1", "layer1", "fc"})]
)
def test_only_the_chosen_parts_move_and_the_statistics_of_others_are_the_same_bits(trains, moves, tmp_path):
    watch = trained(tmp_path, f"finetune={trains}")
    assert (layers(watch.moved[0]) == moves) if trains != "all" else (moves <= layers(watch.moved[0]))


@pytest.mark.parametrize(
    ("held", "statistics"), [("true", set()), ("false", {"bn1", "layer1", "layer2", "layer3", "layer4"})]
)
def test_norms_can_be_held_or_let_go_by_themselves(held, statistics, tmp_path):
    watch = trained(tmp_path, f"finetune={'all' if held == 'true' else 'head'}", f"finetune.frozen_norm={held}")
    moved = {name for name in watch.moved[0] if name.endswith(("running_mean", "running_var", "tracked"))}
    assert layers(moved) == statistics
    assert "fc.weight" in watch.moved[0] and ("conv1.weight" in watch.moved[0]) == (held == "true")


def test_gradual_adds_a_stage_every_few_epochs(tmp_path):
    watch = trained(
        tmp_path, "finetune=gradual", "finetune.epochs_per_stage=2", "+finetune.layer_decay=0.5".lstrip("+"), epochs=5
    )
    assert [layers(moved) for moved in watch.moved] == [
        {"fc"}, {"fc"}, {"fc", "layer4"}, {"fc", "layer4"}, {"fc", "layer4", "layer3"}
    ]  # fmt: skip
    assert sorted(set(watch.rates[0])) == [0.0, pytest.approx(0.1)]
    assert sorted(set(watch.rates[4])) == pytest.approx([0.0, 0.025, 0.05, 0.1])


def test_layer_decay_multiplies_the_rate_once_for_each_part_towards_the_head(tmp_path):
    watch = trained(tmp_path, "finetune.layer_decay=0.5")
    assert sorted(set(watch.rates[0])) == pytest.approx([0.1 * 0.5**k for k in (4, 3, 2, 1, 0)])
    assert watch.rates[0][0] == pytest.approx(0.1)  # the curve's learning rate is the head's


def test_groups_keep_decay_and_the_decoders_own_rate():
    network = deeplabv3(3, encoder_widths=[4, 4, 4, 4], aspp_channels=4)
    encoder = {id(p) for p in network.backbone.parameters()}
    groups = [
        {"params": [p for p in network.parameters() if id(p) in encoder], "weight_decay": 0.1},
        {"params": [p for p in network.parameters() if id(p) not in encoder], "weight_decay": 0.1, "lr": 10.0},
    ]
    divided = Finetune(layer_decay=0.5).groups(groups, network, 1.0)
    assert [group["lr"] for group in divided][:3] == [10.0, 0.5, 0.25] and {g["weight_decay"] for g in divided} == {0.1}
    assert sum(len(group["params"]) for group in divided) == len(list(network.parameters()))
    assert {id(p) for p in divided[0]["params"]} == {id(p) for p in network.parameters()} - encoder


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "vgg11", "densenet_bc_100_12", "mobilenet_v2"])
def test_every_parameter_is_of_one_part_and_the_head_is_last(name):
    with torch.device("meta"):
        network = builder(name)()
    parts = parts_of(network)
    every = [p for part in parts for p in part.parameters]
    assert len(every) == len(set(every)) == len(list(network.parameters()))
    last = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    assert last.weight in set(parts[-1].parameters) and len(parts) >= 3


def test_the_librarys_networks_are_cut_by_their_children():
    from torchvision.models import resnet18, vit_b_16

    with torch.device("meta"):
        assert [part.name for part in parts_of(resnet18())] == [
            "conv1",
            "bn1",
            "layer1",
            "layer2",
            "layer3",
            "layer4",
            "fc",
        ]
        vit = vit_b_16()
    assert vit.class_token in set(parts_of(vit)[0].parameters)
    assert parts_of(vit)[-1].name.startswith("heads")


def test_the_header_says_every_rate():
    with torch.device("meta"):
        network = builder("resnet18")(widths=[4, 4, 4, 4])
    assert Finetune().describe(network, 0.1) == ""
    told = Finetune("last_stage", layer_decay=0.5).describe(network, 0.1)
    assert told.startswith("head 0.1, stage 5 0.05, stage 4 frozen")
    assert "stage 5 0.1 from epoch 2" in Finetune("gradual").describe(network, 0.1)


@pytest.mark.parametrize("name", ["finetune_folder", "finetune_masks"])
def test_the_recipes_compose_and_their_weights_have_a_name(name):
    from cnn_train.models.pretrained import names_of, resolve

    cfg = compose([f"experiment={name}"])
    found = resolve(cfg.weights, names_of(cfg.model, cfg.choices.model, cfg.norm is not None))
    assert found.title.startswith("torchvision:") and cfg.finetune.frozen_norm is True and cfg.finetune.layer_decay < 1


def test_the_pages_command_lines_compose():
    lines = re.findall(
        r"^    cnn-train (.*?)(?: {2,}#.*)?$", (DOCS / "finetuning.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(lines) >= 7
    for line in lines:
        compose(shlex.split(line))
