"""Synthetic data: any size and number, every kind of target, always the same."""

import pytest
import torch

from cnn_train.data.synthetic import synthetic
from cnn_train.errors import DataError


@pytest.mark.parametrize("task", ["classification", "multilabel", "segmentation"])
def test_sizes_and_targets(task):
    data = synthetic([8, 12], samples=40, num_classes=4, channels=5, task=task, normalize="none")
    assert [data.size(split) for split in ("train", "val", "test")] == [40, 8, 8]
    batch = next(data.eval_batches("val", device=torch.device("cpu")))
    assert batch.images.shape == (8, 5, 8, 12) and data.task == task
    again = next(synthetic([8, 12], samples=40, num_classes=4, channels=5, task=task, normalize="none", seed=7)
                 .eval_batches("val", device=torch.device("cpu")))  # fmt: skip
    assert torch.equal(batch.images, again.images) and torch.equal(batch.targets, again.targets)
    bright = batch.images.mean((1, 2, 3))
    if task == "classification":
        assert bright[batch.targets == 3].min() > bright[batch.targets == 0].max() + 60
    elif task == "segmentation":
        shown = batch.images.mean(1)
        assert shown[batch.targets == 3].mean() - shown[batch.targets == 0].mean() == pytest.approx(3 * 31, abs=5)


def test_too_few_are_told():
    with pytest.raises(DataError, match=r"data\.samples=3"):
        synthetic(samples=3)
