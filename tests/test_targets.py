"""A config from a file: what it may name, what it may compute and fetch, and that what was checked is what is built."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cnn_train.config.build import build
from cnn_train.config.choices import Choices
from cnn_train.config.compose import compose
from cnn_train.config.load import load, save, text
from cnn_train.config.schema import OPEN_GROUPS
from cnn_train.config.signatures import signature
from cnn_train.config.targets import CALLBACKS, check_targets, grants, is_allowed, shipped
from cnn_train.errors import ConfigError

CHOICES = Choices.find()

# By what they do: code, files, network, and ways around a list.
CODE_FILES_NETWORK = """
os.system os.popen os.execv os.remove os.rename os.symlink os.chmod os.kill os.putenv os.makedirs posix.system
subprocess.run subprocess.Popen subprocess.call subprocess.check_output pty.spawn multiprocessing.Process
builtins.open builtins.eval builtins.exec builtins.compile builtins.__import__ builtins.getattr builtins.setattr
builtins.map builtins.print io.open codecs.open pathlib.Path.write_text pathlib.Path.unlink pathlib.Path shutil.copy
shutil.move shutil.rmtree shutil.unpack_archive tarfile.open zipfile.ZipFile tempfile.mkdtemp
urllib.request.urlretrieve urllib.request.urlopen http.server.test socket.create_connection webbrowser.open
smtplib.SMTP ftplib.FTP requests.get pickle.loads pickle.load pickle.Unpickler marshal.loads shelve.open dill.loads
cloudpickle.loads joblib.load joblib.dump numpy.load numpy.save numpy.fromfile numpy.memmap numpy.loadtxt
pandas.read_pickle runpy.run_path runpy.run_module importlib.import_module importlib.reload code.interact
timeit.timeit pdb.run logging.config.fileConfig logging.FileHandler logging.os.system ctypes.CDLL functools.partial
functools.reduce operator.attrgetter operator.methodcaller types.FunctionType types.CodeType sys.exit sys.settrace
atexit.register signal.signal threading.Thread asyncio.run gc.get_objects yaml.load yaml.unsafe_load site.addsitedir
distutils.core.run_setup pip.main pip._internal.main pytest.main torch.load torch.save torch.hub.load
torch.hub.load_state_dict_from_url torch.hub.download_url_to_file torch.utils.model_zoo.load_url torch.jit.load
torch.jit.script torch.classes.load_library torch.ops.load_library torch.utils.cpp_extension.load
torch.utils.cpp_extension.load_inline torch.compile torch.export.load torch.distributed.init_process_group
torch.multiprocessing.spawn torch.serialization.add_safe_globals torch.package.PackageImporter
torch.utils.data.DataLoader torch.utils.data.TensorDataset torch.from_file torch.nn.Module.load_state_dict
torch.nn.modules.module.torch.load torch.nn.modules.module.os.system torch.nn.init.warnings.warn torch.nn.init.normal_
torch.nn.parallel.DistributedDataParallel torch.nn.DataParallel torch.nn.modules.module.register_module_forward_hook
torch.nn.modules.lazy.torch.load torch.nn.utils.parametrize.cached torch.nn.functional.relu
torch.nn.modules.activation.torch.nn.ReLU torch.nn.Parameter torch.optim.optimizer.torch.load
torch.optim.optimizer.register_optimizer_step_pre_hook torch.optim.lr_scheduler.StepLR
torch.optim.swa_utils.AveragedModel torch.optim.swa_utils.update_bn torchvision.models.resnet18
torchvision.models.get_model torchvision.models.get_weight torchvision.models._api.importlib.import_module
torchvision.models.resnet.load_state_dict_from_url torchvision.datasets.utils.download_url
torchvision.datasets.CIFAR10 torchvision.io.write_file torchvision.io.write_png torchvision.transforms.Lambda
torchvision.extension.os.system timm.create_model timm.models.load_state_dict timm.models.load_checkpoint
timm.models.hub.download_cached_file timm.models.load_state_dict_from_hf timm.models.push_to_hf_hub
timm.models.save_for_hf timm.models.resnet18 timm.models.resnet.resnet50 timm.models.build_model_with_cfg
timm.layers.create_act_layer timm.optim.create_optimizer timm.models._hub.download_from_hf timm.utils.CheckpointSaver
huggingface_hub.hf_hub_download huggingface_hub.snapshot_download
lightning.pytorch.LightningModule.load_from_checkpoint lightning.pytorch.Trainer
lightning.pytorch.callbacks.ModelCheckpoint lightning.pytorch.callbacks.LambdaCallback
lightning.pytorch.callbacks.BasePredictionWriter lightning.pytorch.callbacks.OnExceptionCheckpoint
lightning.pytorch.callbacks.ModelPruning lightning.pytorch.loggers.CometLogger
lightning.pytorch.plugins.io.TorchCheckpointIO lightning.pytorch.profilers.PyTorchProfiler hydra.utils.instantiate
hydra.utils.get_method hydra.utils.call hydra.utils.get_class hydra.main omegaconf.OmegaConf.register_new_resolver
omegaconf.OmegaConf.save cnn_train.config.build.build cnn_train.config.load.load cnn_train.config.load.save
cnn_train.experiment.train.train cnn_train.__main__.main cnn_train.atomic.write_text cnn_train.atomic.append
cnn_train.runs.checkpoint.save cnn_train.tasks.pictures.save_picture cnn_train.data.files.remember
cnn_train.data.files.read_image cnn_train.data.public.load cnn_train.data.digits.torch.load
cnn_train.models.classification.builder cnn_train.models.weights.torch.load
cnn_train.models.classification.lenet.nn.Module.load_state_dict cnn_train.layers.factory.__init__
cnn_train.layers.init._hidden cnn_train.layers.norm.math.gcd cnn_train.layers..norm.GroupNorm cnn_train.layers
cnn_train.layers.factory.LayerFactory cnn_train.models.classification.lenet.nn.ReLU
"""
DANGEROUS = CODE_FILES_NETWORK.split()
SHIPPED = sorted((place, target) for place, targets in shipped().items() for target in targets)
PLACES = [*OPEN_GROUPS, "callbacks.mine", "logger.mine", "augment.augments[0]", "loss.losses[1]", "trainer.plugins[0]"]


def test_227_targets_each_in_every_place():
    assert len({target for _, target in SHIPPED}) + len(set(DANGEROUS)) >= 227
    assert [(place, target) for target in DANGEROUS for place in PLACES if is_allowed(target, place)] == []
    assert [pair for pair in SHIPPED if not is_allowed(pair[1], pair[0].replace("[]", "[0]").replace("*", "any"))] == []


@pytest.mark.parametrize("target", ["", "not a path", 7, None, ["os.system"], {"a": 1}, "os", "os.system()", "ös.x"])
def test_what_is_no_dotted_path_is_refused(target):
    with pytest.raises(ConfigError, match="not allowed in a saved config"):
        check_targets({"norm": {"_target_": target}})


def test_every_shipped_model_is_let_in_from_a_saved_run():
    """Of the other groups test_config checks what is composed."""
    for option in CHOICES.options("model"):
        body = CHOICES.body("model", option)
        check_targets(body if "model" in body else {"model": body})


@pytest.mark.parametrize(
    ("place", "target", "allowed"),
    [
        ("act", "torch.nn.ReLU", True), ("act", "torch.nn.modules.activation.CELU", True),
        ("act", "torch.nn.CELU", True),
        ("norm", "torch.nn.GroupNorm", True), ("loss", "torch.nn.HuberLoss", True), ("loss", "torch.nn.Linear", False),
        ("optimizer", "torch.optim.NAdam", True), ("optimizer", "torch.nn.ReLU", False),
        ("act", "torch.optim.SGD", False),
        ("optimizer", "torch.optim.Optimizer", True), ("model", "cnn_train.layers.init.he_normal", False),
        ("init", "cnn_train.models.classification.lenet.lenet5", False), ("data", "torch.nn.ReLU", False),
        ("augment", "cnn_train.data.augment.Flip", True), ("data.augment", "cnn_train.data.augment.Flip", True),
        ("data.augment.augments[3]", "cnn_train.data.augment.Flip", True), ("norm.inner", "torch.nn.ReLU", False),
        ("model.encoder", "cnn_train.models.classification.lenet.lenet5", False), ("seed", "torch.nn.ReLU", False),
        ("augment.augments[0].augments[0]", "cnn_train.data.augment.Flip", False),
        ("callbacks.stop", "lightning.pytorch.callbacks.EarlyStopping", True),
        ("callbacks.stop.inner", "lightning.pytorch.callbacks.EarlyStopping", False),
        ("norm", "lightning.pytorch.callbacks.EarlyStopping", False),
    ],
)  # fmt: skip
def test_each_thing_has_its_place(place, target, allowed):
    assert is_allowed(target, place) is allowed


def test_the_callbacks_that_are_let_in_are_lightnings():
    import lightning.pytorch as pl

    for name in CALLBACKS:
        assert issubclass(getattr(pl.callbacks, name.rpartition(".")[2]), pl.callbacks.Callback)
        assert signature(name).kind == "class"


# -- Checked is what is built -----------------------------------------------------------------------------------------


def saved(folder: Path, *overrides: str, **changes: object) -> Path:
    """A run's config.yaml with some keys set to what a stranger would write."""
    config = compose(["data=digits", *overrides])
    OmegaConf.set_struct(config, False)
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    save(config, folder / "config.yaml")
    return folder


@pytest.mark.parametrize(
    "target",
    [
        "${choices.${oc.env:KMP_DUPLICATE_LIB_OK,safe}}", "${choices.safe}", "${oc.env:X,torch.nn.ReLU}",
        "${oc.decode:${oc.env:X}}", "torch.nn.${act.name}",
    ],
)  # fmt: skip
def test_what_is_called_is_not_computed(target, tmp_path):
    saved(tmp_path, act={"_target_": target, "name": "ReLU"}, choices__safe="torch.nn.ReLU")
    with pytest.raises(ConfigError, match=r"act\._target_.* computed"):
        load(tmp_path)


@pytest.mark.parametrize(
    "value", ["${oc.create:{a:1}}", "${oc.decode:'1'}", "${oc.env:${name}}", "${${name}}", "${now:%Y}", "${hydra:job}",
              "${oc.select:name}", "${oc.dict.keys:model}", "\\${oc.env:X}"],
)  # fmt: skip
def test_only_references_and_the_environment_are_interpolated(value, tmp_path):
    saved(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(re.sub(r"(?m)^monitor: .*$", lambda _: f"monitor: {value!r}", path.read_text()))
    with pytest.raises(ConfigError, match="monitor"):
        load(tmp_path)


@pytest.mark.parametrize("key", ["_args_", "_recursive_", "_convert_", "_partial_"])
def test_hydras_other_words_of_code_are_refused(key, tmp_path):
    saved(tmp_path, act={"_target_": "torch.nn.ReLU", key: ["x"]})
    with pytest.raises(ConfigError, match=key):
        load(tmp_path)


def test_the_environment_is_read_once(tmp_path, monkeypatch):
    """What was checked is what is built, though the environment changes in between, as an import may do."""
    saved(tmp_path, monitor="${oc.env:SAFETY_MONITOR,val/acc}", act={"_target_": "torch.nn.ELU", "alpha": "${seed}"})
    config = load(tmp_path)
    monkeypatch.setenv("SAFETY_MONITOR", "val/loss")
    assert config.monitor == "val/acc"
    assert build(config.act)().alpha == 0
    assert load(tmp_path).monitor == "val/loss"
    assert load(tmp_path, ["seed=3"]).act.alpha == 3, "references follow what the command line sets"


def test_a_value_of_the_environment_is_no_interpolation(tmp_path, monkeypatch):
    saved(tmp_path, monitor="${oc.env:SAFETY_MONITOR}")
    monkeypatch.setenv("SAFETY_MONITOR", "${oc.env:HOME}")
    with pytest.raises(ConfigError, match="gives an interpolation"):
        load(tmp_path)


def test_references_cannot_fill_the_memory(tmp_path):
    levels = {f"l{i}": {"a": f"${{choices.l{i + 1}}}", "b": f"${{choices.l{i + 1}}}"} for i in range(40)}
    saved(tmp_path, choices={**levels, "l40": "x", "model": "lenet5"})
    with pytest.raises(ConfigError, match="grows beyond"):
        load(tmp_path)
    saved(tmp_path, choices={"a": "${choices.b}", "b": "${choices.a}"})
    with pytest.raises(ConfigError, match="refers to itself"):
        load(tmp_path)


def test_the_file_of_a_resumed_run_keeps_its_words(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFETY_MONITOR", "val/acc")
    saved(tmp_path, "data=cifar10", monitor="${oc.env:SAFETY_MONITOR}", data__download=True)
    path = tmp_path / "config.yaml"
    before = path.read_text()
    config = load(tmp_path)
    assert (config.monitor, config.data.download) == ("val/acc", False)
    assert text(config, path) == before
    config.trainer.max_epochs = 99
    assert text(config, path) == before.replace(f"max_epochs: {compose().trainer.max_epochs}", "max_epochs: 99")
    config.monitor = "val/loss"
    assert "monitor: val/loss" in text(config, path)


def test_checking_does_not_write_into_what_is_checked():
    from cnn_train.config.schema import check

    config = compose(["name=a"])
    config.name = 123
    assert check(config).name == "123" and config.name == 123
    OmegaConf.set_struct(config, False)
    config.act = {"_target_": "${choices.mine}"}
    config.choices.mine = "torch.nn.ReLU"
    kept = OmegaConf.to_container(check(config), resolve=False)
    assert kept["act"]["_target_"] == "torch.nn.ReLU", "so that the run's own file can be loaded"


# -- One's own code, workers, downloads -------------------------------------------------------------------------------


def test_ones_own_code_takes_a_word(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "raise SystemExit('imported')\ndef net(num_classes, in_channels, layers, dropout): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "run").mkdir()
    saved(tmp_path / "run", model={"_target_": "mine.net"})
    with pytest.raises(
        ConfigError, match=r"^model\._target_: 'mine\.net' is not allowed .*--trust mine lets"
    ) as caught:
        load(tmp_path / "run")
    assert "\n" not in str(caught.value)
    for word in ("mine", "mine.net"):
        assert load(tmp_path / "run", trust=[word]).model._target_ == "mine.net"
    for word in ("min", "mine.other", "", "mine.net.x", "torch"):
        with pytest.raises(ConfigError, match="not allowed"):
            load(tmp_path / "run", trust=[word])


def test_a_worker_may_what_its_parent_composed_and_no_more(tmp_path):
    composed = compose(["data=cifar10", "data.download=true", "act=relu", "+act._args_=[]"])
    assert grants(composed) == ["may=data.download", "trust=torch.nn.ReLU"]
    assert grants(compose(["model=deeplabv3", "augment=imagenet"])) == []
    saved(tmp_path, act={"_target_": "os.system", "command": "x"})
    with pytest.raises(ConfigError, match=r"os\.system"):
        load(tmp_path, trust=["torch.nn.ReLU"], may=["data.download"])
    save(composed, tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="_args_"):
        load(tmp_path)
    loaded = load(tmp_path, trust=["torch.nn.ReLU"], may=["data.download"])
    assert loaded == composed and loaded.data.download is True


def test_what_a_worker_sees_otherwise_is_checked_there(tmp_path, monkeypatch):
    saved(tmp_path, "model=timm", model__name="${oc.env:LOCAL_RANK,resnet18}")
    assert load(tmp_path).model.name == "resnet18"
    monkeypatch.setenv("LOCAL_RANK", "hf-hub:evil/net")
    with pytest.raises(ConfigError, match=r"model\.name='hf-hub:evil/net': a saved config may not fetch"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("timm", {"model__pretrained": True}), ("timm", {"model__pretrained": "yes"}),
        ("timm", {"model__name": "hf-hub:evil/net"}), ("timm", {"model__name": " hf_hub:evil/net"}),
        ("timm", {"model__name": "local-dir:/tmp/x"}), ("timm", {"model__checkpoint_path": "/tmp/x.pth"}),
        ("timm", {"model__pretrained_cfg": {"url": "x"}}), ("timm", {"model__pretrained_cfg_overlay": {"file": "x"}}),
        ("torchvision", {"model__weights": "DEFAULT"}), ("torchvision", {"model__weights_backbone": "DEFAULT"}),
        ("unet_encoder", {"model__encoder_options": {"pretrained": True}}),
        ("lenet5", {"data__root": "https://evil.example/data"}),
    ],
)  # fmt: skip
def test_a_saved_config_fetches_nothing(model, changes, tmp_path):
    saved(tmp_path, f"model={model}", **changes)
    with pytest.raises(ConfigError, match=r"may not fetch anything; [\w.]+=\.\.\. on this command line may"):
        load(tmp_path)


def test_the_command_line_may_fetch(tmp_path):
    saved(tmp_path, "model=timm", model__pretrained=True)
    assert load(tmp_path, ["model.pretrained=true"]).model.pretrained is True
    assert load(tmp_path, ["model.pretrained=false"]).model.pretrained is False
    with pytest.raises(ConfigError, match="fetch"):
        load(tmp_path, ["model.name=resnet26"])
    saved(tmp_path, "data=cifar10", data__download=True)
    assert load(tmp_path).data.download is False, "what a run downloaded is there"
    assert load(tmp_path, ["data.download=true"]).data.download is True


CSV, WANDB = "lightning.pytorch.loggers.CSVLogger", "lightning.pytorch.loggers.WandbLogger"


@pytest.mark.parametrize(
    ("group", "node"),
    [
        ("callbacks", {"_target_": "lightning.pytorch.callbacks.Timer", "dirpath": "x"}),
        ("callbacks", {"_target_": "lightning.pytorch.callbacks.Timer", "filename": "x"}),
        ("logger", {"_target_": CSV, "save_dir": "x"}), ("logger", {"_target_": CSV, "version": "../../.ssh"}),
        ("logger", {"_target_": CSV, "name": "/home/me"}), ("logger", {"_target_": CSV, "name": ".."}),
        ("logger", {"_target_": WANDB, "offline": False}), ("logger", {"_target_": WANDB}),
        ("logger", {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "tracking_uri": "http://evil.example"}),
    ],
)  # fmt: skip
def test_callbacks_and_loggers_send_nothing_and_write_nowhere_else(group, node):
    with pytest.raises(ConfigError, match=rf"^{group}\.mine\.\w+.* on this command line may$"):
        check_targets({group: {"mine": node}})
    check_targets({group: {"mine": node}}, typed=[f"{group}.mine"])
    assert [word for word in grants({group: {"mine": node}}) if word.startswith(f"may={group}.mine.")]


def test_lightnings_own_arguments_are_no_paths():
    with pytest.raises(ConfigError, match="default_root_dir"):
        check_targets({"trainer": {"lightning": {"default_root_dir": "/home/me"}}})
    check_targets({"trainer": {"lightning": {"limit_val_batches": 3}}, "callbacks": {"a": {"monitor": "val/loss"}}})


# -- Secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "refused"),
    [
        ("+model.api_key=abc", True), ("+model.password=abc", True), ("monitor=https://me:pw@example.org", True),
        ("+model.api_key='${oc.env:HOME}'", False), ("monitor='https://me:${oc.env:HOME}@example.org'", False),
        ("name=sk-resnet50-baseline-gn-cosine", False), ("output_dir=/x/hf_my_segmentation_cache_dir", False),
    ],
)  # fmt: skip
def test_a_secret_is_not_spelled_out(word, refused, tmp_path):
    from cnn_train.config.schema import check

    config = compose()
    OmegaConf.set_struct(config, False)
    config.model._target_ = "cnn_train.models.classification.library.timm"  # takes any parameter
    key, _, value = word.lstrip("+").partition("=")
    OmegaConf.update(config, key, value.strip("'"), force_add=True)
    if not refused:
        check(config)
        return
    with pytest.raises(ConfigError, match="kept in the run's files; put it into an environment variable") as caught:
        check(config)
    assert caught.value.__notes__ == [f"try: {key}='${{oc.env:NAME}}'"]
