"""Composition, checks, what the command line wins over, saved configs, and building."""

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cnn_train.config.build import build, build_layers
from cnn_train.config.choices import GROUPS, Choices, nearest
from cnn_train.config.compose import Composer, compose
from cnn_train.config.load import load, save
from cnn_train.config.overrides import leaves
from cnn_train.config.schema import RunConfig
from cnn_train.config.signatures import NoSuchTarget, kinds, signature
from cnn_train.config.targets import check_targets
from cnn_train.errors import ConfigError

CHOICES = Choices.find()
SHIPPED = [(group, option) for group in CHOICES.groups() for option in CHOICES.options(group)]


def message(*overrides: str, config_dir: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(overrides, config_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def notes(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return "\n".join(getattr(caught.value, "__notes__", []))


def test_every_shipped_choice_composes_and_says_what_it_is():
    """Models and experiments are composed one by one elsewhere; of the other groups the i-th choices go together."""
    groups = [group for group in CHOICES.groups() if group not in ("model", "experiment")]
    columns = [[f"{group}={option}" for option in CHOICES.options(group)] for group in groups]
    lines = [[words[min(i, len(words) - 1)] for words in columns] for i in range(max(map(len, columns)))]
    for line in lines:
        config = Composer().compose(line)  # one that shares nothing with the line before
        assert [word for word in line if config.choices[word.split("=")[0]] != word.split("=")[1]] == []
        check_targets(config)
    for group, option in SHIPPED:
        assert CHOICES.describe(group, option), f"{group}/{option} has no line that says what it is"


def test_every_shipped_file_begins_with_the_command_that_runs_it():
    for group, option in SHIPPED:
        path = CHOICES.path(group, option)
        first = next(line for line in path.read_text().splitlines() if "@package" not in line)
        assert first.startswith("# cnn-train"), path


def test_defaults():
    config = compose()
    assert list(config)[:6] == ["seed", "name", "image_size", "monitor", "weights", "output_dir"]
    assert config.name == config.choices.model == "lenet5"
    assert config.choices.data == "digits"
    assert config.norm is None, "LeNet-5's file takes the norm away"
    assert set(config.choices) == set(GROUPS)
    assert set(config) == {field for field in RunConfig.__dataclass_fields__}


def test_a_model_brings_its_choices_and_the_command_line_wins():
    assert compose(["model=deeplabv3"]).choices.data == "digit_scenes"
    assert compose(["model=deeplabv3", "data=digits"]).choices.data == "digits"
    assert compose(["norm=gn"]).norm.num_groups == 32
    assert compose(["name=mine"]).name == "mine"
    assert compose(["name=123"]).name == "123"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of choices as a user would keep it."""
    files = {
        "model/toy.yaml": "# @package _global_\n# cnn-train model=toy\n# Toy\n"
        "defaults:\n  - override /optimizer: adam\n  - override /norm: gn\n"
        "model:\n  _target_: cnn_train.models.classification.lenet.lenet5\n"
        "optimizer:\n  lr: 0.5\ntrainer:\n  max_epochs: 77\n",
        "experiment/tuned.yaml": "# @package _global_\n# cnn-train experiment=tuned\n# Tuned\n"
        "defaults:\n  - override /model: toy\noptimizer:\n  lr: 0.25\n",
    }
    for name, text in files.items():
        path = tmp_path / "it's mine, conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "it's mine, conf"


def test_config_dir_adds_choices(own):
    config = compose(["model=toy"], own)
    assert (config.optimizer.lr, config.trainer.max_epochs, config.choices.norm) == (0.5, 77, "gn")
    assert "no model 'toy'" in message("model=toy")
    assert "no folder" in message(config_dir=own / "absent")


def test_what_a_model_sets_for_one_optimizer_does_not_leak_into_another(own):
    config = compose(["model=toy", "optimizer=sgd"], own)
    assert config.optimizer == compose(["optimizer=sgd"]).optimizer
    assert compose(["model=toy", "optimizer=adam"], own).optimizer.lr == 0.5
    assert compose(["model=toy", "optimizer=sgd", "optimizer.lr=0.3"], own).optimizer.lr == 0.3


def test_a_trainer_adds_its_own_lines_and_keeps_what_the_model_set(own):
    assert compose(["model=toy", "trainer=cpu"], own).trainer.max_epochs == 77
    assert compose(["model=toy", "trainer=cpu"], own).trainer.accelerator == "cpu"
    smoke = compose(["model=toy", "trainer=smoke"], own).trainer
    assert smoke.smoke and smoke.max_epochs == compose(["trainer=smoke"]).trainer.max_epochs


def test_default_below_model_below_experiment_below_command_line(own):
    assert compose(["experiment=tuned"], own).choices.model == "toy"
    assert compose(["experiment=tuned"], own).optimizer.lr == 0.25
    assert compose(["experiment=tuned", "optimizer.lr=1.0"], own).optimizer.lr == 1.0


def test_the_builders_parameters_need_no_plus_sign():
    assert compose(["optimizer.amsgrad=true"]).optimizer.amsgrad is True
    assert compose(["+optimizer.amsgrad=true"]).optimizer.amsgrad is True
    assert "amsgrad" not in compose().optimizer, "composing one run must not change the next"
    assert "eps" not in compose(["~optimizer.eps"]).optimizer


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model=resnt", "no model 'resnt'. Did you mean resnet18?"),
        ("norm=gm", "no norm 'gm'. Did you mean gn?"),
        ("batch_sise=3", "unknown setting 'batch_sise'. Did you mean data.batch_size (now 64)?"),
        ("lr=0.1", "unknown setting 'lr'. Did you mean optimizer.lr (now 0.005)?"),
        ("learning_rate=1", "Did you mean optimizer.lr"),
        ("modle=lenet5", "unknown setting 'modle'. Did you mean model (now lenet5)?"),
        ("trainer.max_epoch=3", "Did you mean trainer.max_epochs (now 40)?"),
        ("trainer.zzz=3", "unknown setting 'trainer.zzz'; trainer=auto has accelerator, "),
        ("optimizer.amsgrd=true", "Did you mean optimizer.amsgrad?"),
        ("+optimizer.foo=1", "optimizer takes no 'foo'. It takes lr, betas, "),
        ("+seeed=1", "unknown setting 'seeed'. Did you mean seed?"),
        ("data.batch_size=abc", "data.batch_size must be a whole number >= 1, got 'abc'"),
        ("data.batch_size=auto", "got 'auto'. trainer.split_batches=auto sends a batch through in as many parts"),
        ("data.batch_size=-4", "data.batch_size must be >= 1, got -4"),
        ("trainer.max_epochs=1.5", "trainer.max_epochs must be a whole number >= 1, got 1.5"),
        ("optimizer.lr=abc", "optimizer.lr must be a number, got 'abc'"),
        ("optimizer.lr=0", "optimizer.lr must be > 0, got 0"),
        ("optimizer.lr=nan", "optimizer.lr must be > 0, got nan"),
        ("optimizer.betas=3", "optimizer.betas must be a list [a, b], got 3"),
        ("seed=abc", "seed must be a whole number >= 0, got 'abc'"),
        ("seed=true", "seed must be a whole number >= 0, got true"),
        ("trainer.compile=3", "trainer.compile must be true or false, got 3"),
        ("trainer.ema=1", "trainer.ema must be >= 0 and < 1, got 1"),
        ("trainer.precision=bf16", "trainer.precision has no 'bf16'. Did you mean bf16-mixed?"),
        ("image_size=[1,2,3]", "image_size must be one side or [height, width], got [1, 2, 3]"),
        ("image_size=0", "image_size must be >= 1, got 0"),
        ("model.num_classes=3", "model.num_classes is not a setting: it comes from the data"),
        ("model._target_=torch.nn.nothing", "torch.nn has no 'nothing'"),
        ("model._target_=nowhere.at.all", "there is no package 'nowhere'"),
        ("norm.num_groups=8", "norm has no settings (norm=none)"),
        ("~norm", "a group cannot be left out; choose norm=none"),
        ("~optimizer.foo", "unknown setting 'optimizer.foo'"),
        ("choices.model=vgg16", "choose with GROUP=NAME"),
        ("model=../../../../etc/evil", "a choice is a name in conf/model, not a path"),
        ("experiment=/tmp/evil", "a choice is a name in conf/experiment, not a path"),
        ("hydra.run.dir=/tmp/x", "Hydra's own runtime is not used"),
        ("hydra/launcher=joblib", "Hydra's own runtime is not used"),
        ("optimizer.lr=0.1,0.2", "several values for optimizer.lr: 0.1,0.2"),
        ("norm=bn,gn", "several values for norm: bn,gn"),
        ("weights=a=b.ckpt", "cannot read 'weights=a=b.ckpt'"),
        ("data.batch_size=???", "data.batch_size is not set"),
        ("data.batch_size=${nowhere}", "nowhere"),
    ],
)
def test_bad_input_is_answered_in_one_line(override, expected):
    assert expected in message(override)


def test_the_command_to_try_is_the_typed_one_with_the_mistake_mended():
    assert notes("norm=gn", "batch_sise=3") == "try: cnn-train norm=gn data.batch_size=3"
    assert notes("seed=1", "norm=bn,gn") == "try: cnn-train -m seed=1 norm=bn,gn"


def test_an_existing_path_needs_no_quotes(tmp_path):
    path = tmp_path / "epoch=3,best.ckpt"
    path.touch()
    assert compose([f"weights={path}"]).weights == str(path)


def test_nearest_prefers_the_first_of_equals_and_gives_up():
    assert nearest("resnt", ["resnet50", "resnet18", "vgg16"]) == "resnet18"
    assert nearest("inc", ["inception_v3", "alexnet"]) == "inception_v3"
    assert nearest("zzz", ["resnet50"]) is None


def test_broken_yaml_names_the_file(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "broken.yaml").write_text("a: [1\n")
    assert "broken" in message("model=broken", config_dir=tmp_path)


# -- signatures -------------------------------------------------------------------------------------------------------


def test_signatures_follow_imports_bases_and_passed_on_options():
    assert "betas" in signature("torch.optim.AdamW").parameters
    assert signature("torch.nn.BatchNorm2d").parameters["eps"] == "float"
    resnet = signature("cnn_train.models.classification.resnet.resnet20")
    assert {"num_classes", "layers", "shortcut", "dropout"} <= resnet.parameters.keys()
    assert not {"depth", "block", "widths"} & resnet.parameters.keys(), "bound inside, so not free"
    for target in ("torch.nn", "torch.nn.Nothing", "nowhere.f", "cnn_train.layers.norm.Nothing", "a..b"):
        with pytest.raises(NoSuchTarget):
            signature(target)


def test_signatures_follow_options_to_the_base_class_and_write_out_aliases():
    dice = signature("cnn_train.tasks.losses.Dice").parameters
    assert set(dice) == {"smooth", "squared", "num_classes", "ignore_index", "class_weights"}
    yolo = signature("cnn_train.tasks.yolo_losses.YOLOv2").parameters
    assert yolo["box"] == "Literal['squared', 'l1', 'smooth_l1', 'iou', 'giou', 'diou', 'ciou']", "of another module"
    assert list(yolo).count("ignore") == 1 and yolo["class_weight"] == "float"


def test_null_is_a_word_for_no_experiment():
    assert compose(["experiment=null", "debug=null"]) == compose()


def test_a_closed_word_behind_an_alias_is_told_before_torch_is_imported():
    assert "loss.box must be squared, l1" in message("model=yolov2", "loss.box=foo")
    assert "data.resize must be crop, pad" in message("data=folder", "data.root=x", "data.resize=foo")
    assert "data.on_error must be fail, skip" in message("data=folder", "data.root=x", "data.on_error=foo")


def test_signatures_are_those_of_the_running_code():
    import inspect

    import torch

    for name in ("SGD", "AdamW", "RMSprop", "Adagrad"):
        real = inspect.signature(getattr(torch.optim, name)).parameters
        assert set(signature(f"torch.optim.{name}").parameters) == set(real)
    for name in ("BatchNorm2d", "PReLU", "GELU", "MaxPool2d", "AvgPool2d"):
        real = inspect.signature(getattr(torch.nn, name)).parameters
        assert set(signature(f"torch.nn.{name}").parameters) == set(real)


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [1], [1.5, "a", None, True, [1]]),
        ("float", [1, 1.5], ["a", None, True]),
        ("float | None", [1, None], ["a"]),
        ("Optional[bool]", [True, None], [1, "yes"]),
        ("int | tuple[int, int]", [3, [3, 3]], ["a", 1.5]),
        ("Literal['a', 'b']", ["a"], ["c", 1]),
        ("Literal['auto', True]", ["auto", True], [1, False, "on"]),
        ("Union[float, Tensor]", [1.0], ["a"]),
    ],
)
def test_annotations_say_which_values_fit(annotation, good, bad):
    rule = kinds(annotation)
    assert [value for value in good if not rule.accept(value)] == []
    assert [value for value in bad if rule.accept(value)] == []


def test_annotations_of_code_say_nothing_about_yaml():
    assert kinds("Callable[..., nn.Module]") is None
    assert kinds("int | nn.Module") is None


# -- saved configs ----------------------------------------------------------------------------------------------------


def test_a_saved_config_loads_as_it_was_and_takes_changes(tmp_path):
    config = compose(["norm=gn", "seed=3"])
    save(config, tmp_path / "config.yaml")
    assert load(tmp_path) == config
    changed = load(tmp_path, ["trainer.max_epochs=40", "data.eval_batch_size=8"])
    assert (changed.trainer.max_epochs, changed.data.eval_batch_size) == (40, 8)
    for override, expected in {
        "trainer.max_epochs=x": "must be a whole number",
        "lr=1": "Did you mean optimizer.lr",
        "norm=bn": "a run keeps its norm",
    }.items():
        with pytest.raises(ConfigError, match=expected):
            load(tmp_path, [override])
    with pytest.raises(ConfigError, match="no run config"):
        load(tmp_path / "absent")


def test_leaves_are_the_settings():
    found = dict(leaves(compose(["norm=gn"])))
    assert found["norm.num_groups"] == 32
    assert found["optimizer.betas"] == [0.9, 0.999]
    assert found["pool"] is None
    assert "norm._target_" not in found


# -- building ---------------------------------------------------------------------------------------------------------


def test_build_gives_arguments_to_the_builder_as_they_are():
    assert build(None) is None
    layers = build_layers(compose(["norm=gn", "act=elu", "pool=avg"]))
    network = build(compose().model, num_classes=3, in_channels=2, layers=layers)
    names = {type(module).__name__ for module in network.modules()}
    assert {"GroupNorm", "ELU", "AvgPool2d"} <= names


def test_build_answers_a_builders_refusal_in_one_line():
    with pytest.raises(ConfigError, match="unexpected keyword argument 'foo'"):
        build(OmegaConf.create({"_target_": "torch.nn.ReLU", "foo": 1}))
    with pytest.raises(ConfigError, match=r"(?s)^cannot build torch\.nn\.Nothing"):
        build(OmegaConf.create({"_target_": "torch.nn.Nothing"}))
    with pytest.raises(ConfigError, match="Invalid learning rate"):
        import torch

        build(OmegaConf.create({"_target_": "torch.optim.SGD", "lr": -1.0}), params=[torch.zeros(1)])


def test_compose_inside_a_hydra_application_leaves_it_as_it_was():
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(CHOICES.dirs[0]), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        compose()
        assert GlobalHydra.instance().hydra is before
    assert "hydra" in sys.modules


def test_a_run_of_before_a_setting_does_what_it_did(tmp_path):
    text = OmegaConf.to_yaml(compose([]))
    for line in ("\n  checkpoint_activations: false", "\n  cuda_graphs: false"):
        assert line in text
        text = text.replace(line, "")
    (tmp_path / "config.yaml").write_text(text)
    assert load(tmp_path).trainer.checkpoint_activations is load(tmp_path).trainer.cuda_graphs is False
    assert load(tmp_path, ["trainer.checkpoint_activations=true"]).trainer.checkpoint_activations is True
