"""Images and labels in tar shards, as WebDataset keeps them: read by an index, in any order, without unpickling."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from numpy.typing import NDArray

from cnn_train.data.cache import remember
from cnn_train.data.checking import OnError, look_over, settle
from cnn_train.data.data import Data, DataSet
from cnn_train.data.decode import MAX_PIXELS, Header, decode_bytes
from cnn_train.data.disk import OnDisk, num_workers, warn_of_absent
from cnn_train.data.folder import SIDE, chosen_size, reader_notes
from cnn_train.data.images import Reader
from cnn_train.data.shards import MOST_LABEL, Entry, Member, expand, index
from cnn_train.data.source import Held, Source, shared
from cnn_train.data.splits import UNDIVIDED, check_fractions, cut_by_name, missing_splits, shares, undivided
from cnn_train.data.survey import Survey, extremes_of
from cnn_train.data.targets import TargetSpec
from cnn_train.errors import DataError

KEYS = ("label", "cls", "class", "class_name", "category")  # of a label in JSON, the first that is there


@dataclass(frozen=True)
class ShardReader(Reader):
    """As `Reader`, of members of shards."""

    def values(self, path: Any) -> NDArray:
        return decode_bytes(path.read(), str(path), self.max_pixels)


@dataclass
class InShards(OnDisk):
    """A split in shards: as `OnDisk`, with members in place of paths, which name no files of their own."""

    def paths(self) -> list[str]:
        return []

    def files(self) -> list[str]:
        members: list[Any] = [member for member, _ in self.samples]
        return sorted({member.shard for member in members})


def webdataset(
    urls: str | Sequence[str] | None = None,
    val_urls: str | Sequence[str] | None = None,
    test_urls: str | Sequence[str] | None = None,
    image_size: int | Sequence[int] | None = None,
    *,
    label: str | None = None,
    classes: Sequence[str] | None = None,
    val_fraction: float | None = 0.1,
    test_fraction: float = 0.1,
    channels: int | Sequence[int] | Literal["auto"] = "auto",
    range: Sequence[float] | Literal["auto"] = "auto",
    resize: Literal["crop", "pad", "stretch"] = "crop",
    in_memory: bool = False,
    verify: bool = False,
    on_error: OnError = "fail",
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    cache_dir: str | None = None,
    **batching: Any,
) -> Data:
    """Samples of local tar files: the members key.jpg (or another image) and key.cls, key.json or key.txt.

    `urls` are file names, in which {000..099}, {a,b} and * are written out; splits without shards of their own are cut
    from train by the samples' names. A label is a number or a name; in JSON it stands under `label` (None: label, cls,
    class, class_name or category). `classes` are the names in the order of the numbers. `verify` decodes every image
    once before the first training, otherwise at most 1,000 are looked at. The rest is as in `image_files`. Raises
    DataError, which names the shard and the member.
    """
    count = num_workers(workers)
    urls_of = {"train": urls, "val": val_urls, "test": test_urls}
    fractions = shares(val_fraction, test_fraction)
    samples, names, notes = list_shards(urls_of, label, classes, fractions, count, cache_dir)
    found = _survey(samples, max_pixels, count, verify, on_error, cache_dir)
    if on_error != "fail":
        found = found.without(found.unfit(channels, range))
    settle(found.faults, len({member for part in samples.values() for member, _ in part}), on_error, cache_dir)
    if found.faults:
        samples = {split: [s for s in part if str(s[0]) not in found.faults] for split, part in samples.items()}
        notes.append(f"{len(found.faults)} bad left out (data.on_error)")
    size = chosen_size(image_size, found.common_size, SIDE, notes)
    reader = ShardReader(**vars(found.reader(channels, range, max_pixels)))
    notes += reader_notes(reader)
    warn_of_absent({split: _counts(part, len(names)) for split, part in samples.items()}, names, "image")
    common = InShards([], size, resize, reader, TargetSpec("labels", len(names)), workers=count, cache_dir=cache_dir)

    def source_of(part: list[Any]) -> Source:
        source = replace(common, samples=part)
        return Held(source, exact=False) if in_memory else source

    sources = shared(samples, source_of)
    data_set = DataSet(
        "shards", "labels", sources, names, reader.num_channels, size, resize=resize, reading=reader.reading(),
        notes=notes, skipped=found.faults,
    )  # fmt: skip
    return Data(data_set, **batching)


def list_shards(
    urls: Mapping[str, str | Sequence[str] | None], label: str | None, classes: Sequence[str] | None,
    fractions: dict[str, float], workers: int, cache_dir: str | None,
) -> tuple[dict[str, list[tuple[Any, int]]], list[str], list[str]]:  # fmt: skip
    """Each split's members and class numbers, the names of the classes, and remarks. Raises DataError."""
    given = {split: expand(own, f"data.{_SETTING[split]}") for split, own in urls.items() if own or split == "train"}
    entries: dict[str, list[Entry]] = {}
    passed: Counter[str] = Counter()
    for split, shards in given.items():
        entries[split], others = index(shards, workers, cache_dir)
        passed.update(others)
        if not entries[split]:
            raise DataError(f"{shards[0]} and the other shards of {split} hold no images")
    splits, notes = _divided(entries, fractions)
    if passed:
        left = ", ".join(f"{n:,} {kind}" for kind, n in sorted(passed.items()))
        notes.append(f"left out of the shards: {left}")
    labels, names = _labels(entries, label, classes, cache_dir)
    samples: dict[str, list[tuple[Any, int]]] = {
        split: [(entry.image, labels[entry.image]) for entry in part] for split, part in splits.items()
    }
    return samples, names, notes


_SETTING = {"train": "urls", "val": "val_urls", "test": "test_urls"}


def _divided(entries: dict[str, list[Entry]], fractions: dict[str, float]) -> tuple[dict[str, list[Entry]], list[str]]:
    """Train, val and test, cut by the samples' names where they have no shards, and a remark."""
    if not fractions:
        return undivided(entries), [UNDIVIDED]
    splits = dict(entries)
    missing = missing_splits(entries)
    if missing:
        check_fractions({split: fractions[split] for split in missing})
        train = entries["train"]
        if len(train) <= len(missing):
            raise DataError(f"the shards hold {len(train)} image(s), too few to split; add some, or data.val_urls")
        parts = cut_by_name([entry.key for entry in train], [fractions[split] for split in missing])
        splits |= {s: [train[i] for i in part] for s, part in zip([*missing, "train"], parts, strict=True)}
    splits.setdefault("test", splits["val"])
    words = [f"{' and '.join(missing)} cut from train by name"] if missing else ["splits by shards"]
    return splits, words


def _counts(samples: Sequence[tuple[Any, int]], classes: int) -> list[int]:
    return torch.bincount(torch.tensor([label for _, label in samples]), minlength=classes).tolist()


def _labels(
    entries: dict[str, list[Entry]], key: str | None, classes: Sequence[str] | None, cache_dir: str | None
) -> tuple[dict[Member, int], list[str]]:
    """Every image's class number, and the names of the classes. Raises DataError."""
    every = [entry for part in entries.values() for entry in part]
    without = next((entry for entry in every if entry.label is None), None)
    if without is not None:
        raise DataError(f"{without.image} has no label; a sample is key.jpg with key.cls, key.json or key.txt")

    def compute() -> list[int | str]:
        return [_label(entry.label, key) for entry in every if entry.label is not None]

    files = sorted({entry.image.shard for entry in every})
    read = remember(cache_dir, "shard_labels", files, f"{key} {[(s, len(p)) for s, p in entries.items()]}", compute)
    words = [value for value in read if isinstance(value, str)]
    if words and len(words) < len(read):
        raise DataError(f"some labels are numbers and others words, as {words[0]!r}; use one of both")
    names: list[str] = sorted(set(words)) if words else []
    if words and len(names) > max(len(read) // 2, 2):
        raise DataError(
            f"{len(names):,} different labels for {len(read):,} images, as {names[0][:40]!r}: are they captions?"
        )
    if classes is not None:
        names = list(classes)
    elif not words:
        names = [str(number) for number in range(max(read) + 1)]
    number = {name: k for k, name in enumerate(names)}
    found = {}
    for entry, value in zip(every, read, strict=True):
        k = number.get(value, -1) if isinstance(value, str) else value
        if not 0 <= k < len(names):
            raise DataError(f"{entry.label} says {value!r}, which is none of {len(names)} classes; see data.classes")
        found[entry.image] = k
    if len(names) < 2:
        raise DataError(f"the shards hold one class, {names[0]}, with {len(read)} images; two are needed")
    return found, names


def _label(member: Member, key: str | None) -> int | str:
    if member.size > MOST_LABEL:
        raise DataError(f"{member} has {member.size:,} bytes; a label is small")
    try:
        text = member.read().decode("utf-8").strip()
        value: Any = json.loads(text) if member.name.lower().endswith(".json") else text
    except (ValueError, RecursionError) as error:
        raise DataError(f"cannot read the label {member}: {str(error)[:80]}") from error
    if isinstance(value, dict):
        chosen = key if key is not None else next((name for name in KEYS if name in value), None)
        if chosen is None or chosen not in value:
            raise DataError(
                f"{member} has the keys {', '.join(map(str, value))[:80]}; data.label names that of the label"
            )
        value = value[chosen]
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DataError(f"{member} holds {str(value)[:40]!r}; a label is a number from 0 or a word")
    return value


def _survey(
    samples: Mapping[str, Sequence[tuple[Any, int]]],
    max_pixels: int,
    workers: int,
    verify: bool,
    on_error: str,
    cache_dir: str | None,
) -> Survey:
    """What the images hold, decoded once and remembered."""
    if on_error != "fail" and not verify:
        raise DataError(f"data.on_error={on_error} needs data.verify=true: bad images are left out before training")
    members = list(dict.fromkeys(member for part in samples.values() for member, _ in part))
    chosen = members if verify else members[:: max(len(members) // 1000, 1)]

    def look(member: Member) -> tuple[Header, tuple[float, float] | None]:
        values = decode_bytes(member.read(), str(member), max_pixels)
        height, width, channels = values.shape
        return Header(height, width, channels, values.dtype.name), extremes_of(str(member), values)

    def compute() -> dict[str, Any]:
        found = Survey()
        for member, looked in look_over(look, chosen, workers, "check images"):
            found.add(str(member), looked)
        return found.plain()

    files = sorted({member.shard for member in members})
    return Survey.of_plain(remember(cache_dir, "shard_survey", files, f"{max_pixels} {len(chosen)}", compute))
