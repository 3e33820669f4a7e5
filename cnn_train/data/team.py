"""Data workers: processes that make batches of samples, for one pass or for as long as a split is used."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from cnn_train.errors import DataError


class Order:
    """The keys of each batch of the pass that begins: what a loader asks for anew in every pass."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Team:
    """`workers` processes, none: this one, that make batches of `samples` by their keys, joined by `join`.

    A team that `stays` keeps its processes between passes, of which there is one at a time (`busy`). `most` is the
    number of workers that the config asks for.
    """

    def __init__(
        self,
        samples: Dataset,
        join: Callable[[list[Any]], Any],
        workers: int,
        most: int,
        pins: bool = False,
        stays: bool = False,
    ):
        self.order, self.most, self.pins, self.stays = Order(), most, pins, stays
        self.busy = self.dead = False
        self.loader: Any = DataLoader(
            samples,
            batch_sampler=self.order,
            num_workers=workers,
            collate_fn=join,
            pin_memory=pins,
            generator=torch.Generator(),  # so that the global one is not used
            persistent_workers=stays,
        )

    def run(self, batches: list[list[Any]]) -> Iterator[Any]:
        """The batches of these keys; DataError of the first sample that fails, and for a worker that was killed."""
        self.order.batches, self.busy = batches, True
        made = iter(self.loader)
        try:
            for batch in made:
                if isinstance(batch, DataError):
                    raise batch
                yield batch
        except RuntimeError as error:
            self.dead = True
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"a data worker was killed, usually for memory; try data.workers={self.most // 2} or a smaller "
                "data.batch_size"
            ) from error
        finally:
            self.busy = False
            # The workers of one pass end now, not when the garbage is collected, perhaps in a child that inherited it.
            del made
            if self.dead or not self.stays:
                self.loader = None
