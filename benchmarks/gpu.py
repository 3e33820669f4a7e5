"""Training on one GPU against hand-written loops and stock Lightning, in one run: images per second.

    python benchmarks/gpu.py [resnet50] [norms] [deeplab] [small] [decode]

Each pair sees the same synthetic images, held on the GPU as uint8; figures are medians of epochs, the first left out.
`--dry` runs everything for a moment on a CPU, to see that it works.
"""

import statistics
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn

from cnn_train.config.build import build, build_layers
from cnn_train.config.compose import compose
from cnn_train.experiment.build import prepare
from cnn_train.experiment.callbacks import build_callbacks
from cnn_train.experiment.hardware import Machine
from cnn_train.experiment.trainer import quiet_libraries
from cnn_train.training.loop import Callback, Loop

DRY = "--dry" in sys.argv
DEVICE = torch.device("cpu" if DRY else "cuda")
ROWS: list[tuple[str, ...]] = []


def wait() -> None:
    if not DRY:
        torch.cuda.synchronize()


def row(what: str, against: str, goal: str, measured: str) -> None:
    ROWS.append((what, against, goal, measured))
    print(f"{what} | {against} | {goal} | {measured}", flush=True)


class Clock(Callback):
    """Seconds per step of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[float] = []

    def on_train_epoch_start(self, trainer, loop) -> None:
        wait()
        self.start = time.perf_counter()

    def on_step(self, loop: Loop) -> None:
        if loop.progress.step_in_epoch == loop.progress.steps_per_epoch:
            wait()
            self.epochs.append((time.perf_counter() - self.start) / loop.progress.steps_per_epoch)


def synthetic(images: int, batch: int, side: int, *words: str) -> list[str]:
    """The words of synthetic data; a few small images when dry."""
    if DRY:
        images, batch, side = 4 * 8, 8, min(side, 64)
    return ["data=synthetic", f"data.samples={images}", f"data.batch_size={batch}", f"image_size={side}",
            "augment=none", "trainer.eval_every=1000", *words]  # fmt: skip


def ours(*words: str) -> float:
    """Images per second of cnn-train with its loggers, metrics and checkpoints."""
    cfg = compose([*words, f"trainer={'cpu' if DRY else 'gpu'}", "trainer.progress=plain"])
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        machine, clock = Machine.of(cfg.trainer), Clock()
        experiment = prepare(cfg, machine, Path(folder), [*build_callbacks(cfg, machine), clock])
        experiment.trainer.limit_val_batches = 0
        experiment.trainer.fit(experiment.loop)
    return cfg.data.batch_size / statistics.median(clock.epochs[1:])


def parts(words: list[str]):
    """The network, optimizer and data of the same config."""
    cfg = compose([*words, f"trainer={'cpu' if DRY else 'gpu'}"])
    machine = Machine.of(cfg.trainer)
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        loop = prepare(cfg, machine, Path(folder)).loop
    network = build(
        cfg.model, num_classes=loop.data.num_classes, in_channels=loop.data.in_channels, layers=build_layers(cfg)
    )
    train = loop.data.splits["train"]
    images, targets = train.images.to(DEVICE), train.targets.to(DEVICE)
    return cfg, network.to(DEVICE), images, targets


def plain(words: list[str], *, compiled: bool, channels_last: bool, reads: bool, network: nn.Module | None = None):
    """Images per second of a hand-written loop: batches indexed on the GPU, bf16, fused AdamW, nothing logged.

    `reads` takes loss and accuracy to the host in every step, as torchvision's reference does.
    """
    cfg, built, images, targets = parts(words)
    network = built if network is None else network.to(DEVICE)
    torch.backends.cudnn.benchmark = True
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    if compiled:
        network.compile(dynamic=False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    loss_of, batch, epochs = nn.CrossEntropyLoss(), cfg.data.batch_size, []
    network.train()
    for _ in range(cfg.trainer.max_epochs):
        order = torch.randperm(len(images), device=DEVICE)
        wait()
        start = time.perf_counter()
        for index in order.split(batch):
            x = images[index].to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
            x = x.float().div_(255).sub_(0.5).div_(0.25)
            y = targets[index].long()
            with torch.autocast(DEVICE.type, torch.bfloat16):
                out = network(x)
                if isinstance(out, dict):
                    loss = loss_of(out["out"], y) + (0.5 * loss_of(out["aux"], y) if "aux" in out else 0)
                    out = out["out"]
                elif isinstance(out, tuple):
                    loss = loss_of(out[0], y) + 0.5 * loss_of(out[1], y)
                    out = out[0]
                else:
                    loss = loss_of(out, y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if reads:
                loss.item()
                (out.argmax(1) == y).float().mean().item()
        wait()
        epochs.append((time.perf_counter() - start) / len(order.split(batch)))
    return batch / statistics.median(epochs[1:])


def peak() -> float:
    """Measured bf16 matrix rate of the card, in FLOP/s."""
    size = 512 if DRY else 8192
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    wait()
    start = time.perf_counter()
    for _ in range(10):
        a @ b
    wait()
    return 2 * size**3 * 10 / (time.perf_counter() - start)


def resnet50() -> None:
    words = ["model=resnet50", *synthetic(2048, 256, 224, "trainer.max_epochs=5", "data.num_classes=1000")]
    mine = ours(*words, f"trainer.compile={not DRY}")
    fast = plain(words, compiled=not DRY, channels_last=True, reads=False)
    row("ResNet-50, 224, bf16, channels last, compiled", "hand-written loop, the same, nothing logged", ">= 1.05",
        f"{mine / fast:.3f} ({mine:.0f} and {fast:.0f} images/s)")  # fmt: skip
    slow = plain(words, compiled=False, channels_last=False, reads=True)
    row("the same", "a reference loop as torchvision's: eager, loss and accuracy read in each step", ">= 1.05",
        f"{mine / slow:.3f} ({slow:.0f} images/s)")  # fmt: skip
    eager = ours(*words)
    row(
        "ResNet-50, not compiled, channels last", "the reference loop", "", f"{eager / slow:.3f} ({eager:.0f} images/s)"
    )
    rate = peak()
    share = mine * 3 * 2 * 4.09e9 / rate
    row("ResNet-50, share of the card's matrix rate", f"{rate / 1e12:.0f} TFLOP/s measured", "", f"{share:.3f}")


def norms() -> None:
    words = ["model=resnet50", *synthetic(2048, 256, 224, "trainer.max_epochs=4", "data.num_classes=1000")]
    rates = {}
    for norm in ("bn", "gn"):
        rates[norm] = ours(*words, f"norm={norm}", f"trainer.compile={not DRY}")
        rates[f"{norm}, eager"] = ours(*words, f"norm={norm}")
    for suffix in ("", ", eager"):
        row(f"ResNet-50 with gn{suffix}", "with bn", ">= 0.95" if not suffix else "",
            f"{rates['gn' + suffix] / rates['bn' + suffix]:.3f}")  # fmt: skip


def deeplab() -> None:
    from torchvision.models.segmentation import deeplabv3_resnet50

    words = ["model=deeplabv3_resnet50", "data.task=segmentation", "data.num_classes=21"]
    words = [*synthetic(96, 16, 512, "trainer.max_epochs=4"), *words]
    theirs = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    mine = ours(*words)
    slow = plain(words, compiled=False, channels_last=False, reads=True, network=theirs)
    row("DeepLab v3, ResNet-50, 512", "torchvision's network in its reference loop", ">= 1.1",
        f"{mine / slow:.3f} ({mine:.1f} and {slow:.1f} images/s)")  # fmt: skip


class Stock(L.LightningModule):
    """What a user of Lightning writes."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.loss, self.epochs = network, nn.CrossEntropyLoss(), []

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        loss = self.loss(self.network(images), labels)
        self.log("train/loss", loss)
        return loss

    def on_train_epoch_start(self) -> None:
        wait()
        self.start = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        wait()
        self.epochs.append((time.perf_counter() - self.start) / self.trainer.num_training_batches)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def stock(words: list[str]) -> float:
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
    from torch.utils.data import DataLoader, TensorDataset

    cfg, network, images, targets = parts(words)
    images = images.cpu().float().div_(255).sub_(0.5).div_(0.25)
    loader = DataLoader(
        TensorDataset(images, targets.cpu().long()), cfg.data.batch_size, shuffle=True, pin_memory=not DRY
    )
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        module = Stock(network)
        trainer = L.Trainer(
            accelerator="cpu" if DRY else "gpu", devices=1, precision="bf16-mixed", max_epochs=cfg.trainer.max_epochs,
            logger=[TensorBoardLogger(folder), CSVLogger(folder)], default_root_dir=folder, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, loader)
    return cfg.data.batch_size / statistics.median(module.epochs[1:])


def small() -> None:
    for model in ("lenet5", "resnet20"):
        words = [f"model={model}", *synthetic(12800, 128, 32, "trainer.max_epochs=5")]
        theirs, eager = stock(words), ours(*words)
        row(f"{model}, 32x32, batch 128, eager", "stock Lightning, two loggers", "",
            f"{eager / theirs:.2f} ({eager:.0f} and {theirs:.0f} images/s)")  # fmt: skip
        graphs = ours(*words, f"trainer.cuda_graphs={not DRY}")
        row(f"{model}, trainer.cuda_graphs=true", "stock Lightning, two loggers", ">= 3",
            f"{graphs / theirs:.2f} ({graphs:.0f} images/s)")  # fmt: skip


def decode() -> None:
    """JPEGs of 500x375 decoded on the card against one core."""
    import io

    import numpy as np
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_jpeg

    smooth = np.kron(np.random.default_rng(0).integers(0, 255, (24, 32, 3)), np.ones((16, 16, 1)))[:375, :500]
    buffer = io.BytesIO()
    Image.fromarray(smooth.astype(np.uint8)).save(buffer, "JPEG", quality=90)
    data = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    rates = []
    batch = [data] * 64
    for device in ("cpu", DEVICE.type):
        for repeat in range(5):
            if repeat == 1:
                wait()
                start = time.perf_counter()
            decode_jpeg(batch, mode=ImageReadMode.RGB, device=device)
        wait()
        rates.append(256 / (time.perf_counter() - start))
    row(
        "JPEGs of 500x375 decoded on the card (nvJPEG)", "one core", "", f"{rates[1] / rates[0]:.1f} ({rates[1]:.0f}/s)"
    )


PARTS = {"resnet50": resnet50, "norms": norms, "deeplab": deeplab, "small": small, "decode": decode}

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, {'CPU' if DRY else torch.cuda.get_device_name()}")
    for name in [word for word in sys.argv[1:] if word in PARTS] or PARTS:
        begun = time.perf_counter()
        try:
            PARTS[name]()
        except Exception:
            traceback.print_exc()
        print(f"[{name}: {time.perf_counter() - begun:.0f} s]", flush=True)
    print("\n| what | against | goal | measured |\n|---|---|---|---|")
    for cells in ROWS:
        print("| " + " | ".join(cells) + " |")
