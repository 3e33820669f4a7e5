"""What would make a GPU wait in a training step, looked for on a CPU: operations whose result the host must know."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cnn_train.config.compose import compose
from cnn_train.errors import ConfigError
from cnn_train.experiment.build import check_recordable, prepare
from cnn_train.experiment.hardware import Machine
from cnn_train.experiment.trainer import quiet_libraries
from cnn_train.training.loop import Callback, Loop

ANSWERS = {
    "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "bincount", "_unique2", "unique_consecutive",
    "equal",
}  # fmt: skip


class Answers(TorchDispatchMode):
    """Names of the operations that give the host an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        by_mask = name in ("index", "index_put_", "_index_put_impl_") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if name in ANSWERS or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Watched(Callback):
    """A step of the second epoch, without the update: on a CPU that is tested at once."""

    def on_train_start(self, trainer, loop: Loop) -> None:
        with Answers() as answers:
            batch = next(loop.data.train_batches(1, device=loop.device))
            loop._begin_group()
            loop.sums.add(loop.add_gradient(loop.to_network(batch.images), batch.targets, 1))
            loop.gradient.settle(loop.parameters_in_order, loop.over_processes, 1)
        self.found = answers.found
        trainer.should_stop = True


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        (["augment=shift", "model.dropout=0.3"], []),
        (["augment=flip_crop", "loss=focal"], []),
        (["model=resnet20", "norm=gn", "augment=random_erasing"], []),
        (["model=deeplabv3", "norm=gn", "data.num_train=8", "data.num_val=2", "data.num_test=2"], []),
        # The positive priors, once for the overlap and the parts of the loss.
        (["model=fcos", "norm=gn", "data.num_train=8", "data.num_val=2", "data.num_test=2"], ["nonzero"]),
    ],
    ids=lambda value: value[0] if value else "",
)
def test_a_step_asks_the_device_for_nothing(words, answers, tmp_path):
    cfg = compose([*words, "trainer=cpu", "trainer.limit_batches=2", "trainer.max_epochs=1", "logger=none"])
    watched = Watched()
    with quiet_libraries():
        experiment = prepare(cfg, Machine.of(cfg.trainer), tmp_path, [watched])
        experiment.trainer.fit(experiment.loop)
    assert watched.found == answers


def test_the_count_sees_what_it_is_for():
    with Answers() as answers:
        values = torch.arange(4.0)
        values[values > 1].sum().item()
    assert answers.found == ["index", "_local_scalar_dense"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["trainer.accumulate=2"], "trainer.accumulate=2"),
        (["trainer.split_batches=auto"], "trainer.split_batches=auto"),
        (["callbacks=health"], "callbacks=health"),
        (["trainer.checkpoint_activations=true"], "trainer.checkpoint_activations=true"),
    ],
)
def test_what_recorded_steps_do_not_go_with(words, what):
    cfg = compose(["trainer.cuda_graphs=true", *words])
    with pytest.raises(ConfigError, match=f"trainer.cuda_graphs=true does not go with {what}; use false"):
        check_recordable(cfg, Machine("gpu", 1, "bf16-mixed"), torch.nn.Module(), [])
    check_recordable(compose(["trainer.cuda_graphs=true"]), Machine("gpu", 1, "bf16-mixed"), torch.nn.Module(), [])
