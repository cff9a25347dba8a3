"""A run over labelled images: the same steps as for drives, to Parquet shards of encoded images."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from data_prep import quality
from data_prep.causes import MOST_LABELS, encode_causes
from data_prep.decoding import Dropped, read_ahead
from data_prep.errors import DataError
from data_prep.geometry import Geometry, decode_image, encode_jpeg, read_bytes
from data_prep.jobs import SourceState, check_visible, provenance, versions
from data_prep.policy import Policy
from data_prep.schema import ImageItem, ImageSet, RenderedImages
from data_prep.shards.atomic import replacing
from data_prep.shards.manifest import FOLDER, Manifest, ShardEntry, canonical_json
from data_prep.shards.parquet import LabelledImage, image_index, write_images

_ITEMS = "\0items\0"
"""Where a plan's items stand, in a text that names no file and no option."""
JPEG_QUALITY = 95
"""Of images that were resized or rendered; OpenCV's default, stated so that it cannot change."""


@dataclass(frozen=True, kw_only=True)
class ImageUnit:
    """Some items of the set, and where they go: a worker gets these and not the whole set."""

    start: int
    """Of the first item in the set."""
    items: Sequence[ImageItem]
    path: str
    """Relative to the output."""


class _Checked(NamedTuple):
    """One image ready to store, or why it cannot be."""

    position: int
    image: LabelledImage | None
    fault: DataError | None


@dataclass(frozen=True, kw_only=True)
class ImageWork:
    """Writes units; sent to each worker once."""

    name: str
    """Of the set."""
    label_names: Sequence[str]
    rendered: RenderedImages | None
    geometry: Geometry | None
    policy: Policy
    root: Path
    scratch: Path
    threads: int

    def __call__(self, unit: ImageUnit) -> ShardEntry:
        """Checks, perhaps resizes, and writes one shard, whole or not at all.

        Raises:
            DataError: the source is not there, or an image cannot be used and the policy refuses that.
        """
        check_visible((item.key, str(item.path)) for item in unit.items if item.path is not None)
        dropped = Dropped(self.policy)
        with ThreadPoolExecutor(self.threads) as pool:
            numbered = enumerate(unit.items, start=unit.start)
            checked = read_ahead(pool, self._check, numbered, ahead=4 * self.threads)
            with replacing(self.root / unit.path, scratch=self.scratch) as temporary:
                rows = write_images(
                    temporary,
                    _usable(checked, dropped),
                    self.label_names,
                    with_causes=self.rendered is not None,
                )
        return ShardEntry.of(self.root, unit.path, rows=rows, drive=self.name, dropped=dropped.by_reason)

    def _check(self, numbered: tuple[int, ImageItem]) -> _Checked:
        """Decodes every image, also those stored as they are: a cut file must not hide in a shard."""
        position, item = numbered
        if self.rendered is not None:
            return _Checked(position, self._rendered(self.rendered, position, item), None)
        assert item.path is not None
        try:
            data = read_bytes(item.path)
            image = decode_image(data, name=item.key)
            if self.geometry is not None:
                data = encode_jpeg(self.geometry.apply(image), quality=JPEG_QUALITY)
        except DataError as fault:
            return _Checked(position, None, fault)
        return _Checked(position, LabelledImage(data, item.key, item.labels, item.split, item.group), None)

    def _rendered(self, rendered: RenderedImages, position: int, item: ImageItem) -> LabelledImage:
        image, bits = rendered.read(position)
        if self.geometry is not None:
            masks = (bits & (1 << label) != 0 for label in range(len(item.labels)))
            on_grid = (self.geometry.apply_mask(mask).astype(np.uint8) << k for k, mask in enumerate(masks))
            image, bits = self.geometry.apply(image), np.bitwise_or.reduce(list(on_grid))
        data = encode_jpeg(image, quality=JPEG_QUALITY)
        return LabelledImage(data, item.key, item.labels, item.split, item.group, encode_causes(bits))


def _usable(checked: Iterable[_Checked], dropped: Dropped) -> Iterator[LabelledImage]:
    for position, image, fault in checked:
        if image is not None:
            yield image
        elif fault is not None:
            dropped.add(position, fault)


@dataclass(frozen=True, kw_only=True)
class ImageJob:
    """An image set to Parquet shards."""

    config: dict[str, Any]
    images: ImageSet
    units: Sequence[ImageUnit]
    geometry: Geometry | None
    policy: Policy

    @classmethod
    def plan(
        cls,
        images: ImageSet,
        *,
        config: dict[str, Any],
        geometry: Geometry | None,
        policy: Policy,
        images_per_shard: int,
    ) -> ImageJob:
        """Cuts the set into units.

        Raises:
            DataError: the set is empty or contradicts itself, or the policy refuses a reason for which
                the reader left rows out.
        """
        _check_set(images)
        policy.check(images.name, {}, images.left_out)
        units = [
            ImageUnit(
                start=start,
                items=images.items[start : start + images_per_shard],
                path=f"{FOLDER}/{images.name}-{part:05d}.parquet",
            )
            for part, start in enumerate(range(0, len(images), images_per_shard))
        ]
        return cls(config=config, images=images, units=units, geometry=geometry, policy=policy)

    @property
    def unit_paths(self) -> list[str]:
        return [unit.path for unit in self.units]

    @property
    def sources(self) -> int:
        return 1

    @cached_property
    def source(self) -> SourceState:
        return SourceState.of((i.key, str(i.path)) for i in self.images.items if i.path is not None)

    @property
    def fingerprint(self) -> str:
        told = [dict(self.images.provenance), self.source.files]
        plan = [self.config, versions(), self.unit_paths, list(self.images.label_names), _ITEMS, told]
        items = ([i.key, list(i.labels), i.split, i.group] for i in self.images.items)
        return _sha256_with_items(plan, items)

    def work(self, *, root: Path, scratch: Path, threads: int) -> ImageWork:
        return ImageWork(
            name=self.images.name,
            label_names=self.images.label_names,
            rendered=self.images.rendered,
            geometry=self.geometry,
            policy=self.policy,
            root=root,
            scratch=scratch,
            threads=threads,
        )

    def index(self, entries: Mapping[str, ShardEntry]) -> tuple[pd.DataFrame, pa.Schema]:
        """Every image that was written, with its labels.

        Raises:
            DataError: no image could be used.
        """
        written = [_without(unit, entries[unit.path].dropped) for unit in self.units]
        counts = [len(items) for items in written]
        items = list(itertools.chain.from_iterable(written))
        if not items:
            raise DataError(
                f"{self.images.name}: none of its {len(self.images)} images can be decoded; check them"
            )
        names = self.images.label_names
        labels = np.array([item.labels for item in items], dtype=np.int64).reshape(len(items), len(names))
        columns = {
            "shard": np.repeat(np.array(self.unit_paths, dtype=object), counts),
            "row": np.concatenate([np.arange(count) for count in counts]),
            "key": [item.key for item in items],
            "split": [item.split for item in items],
            "group": [item.group for item in items],
        }
        rows = pd.concat([pd.DataFrame(columns), pd.DataFrame(labels, columns=list(names))], axis=1)
        return rows, image_index(names)

    def manifest(
        self, shards: list[ShardEntry], index: Sequence[ShardEntry], rows: pd.DataFrame, *, fingerprint: str
    ) -> Manifest:
        images = self.images
        dropped: dict[str, int] = {}
        for shard in shards:
            for reason, positions in shard.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + len(positions)
        report = quality.of_images(
            rows, images.label_names, images_read=len(images), left_out=images.left_out, dropped=dropped
        )
        return Manifest(
            kind="images",
            config=self.config,
            vehicle=None,
            geometry=None if self.geometry is None else asdict(self.geometry),
            drives=[
                {
                    "name": images.name,
                    "source": images.source,
                    "camera": "",
                    "provenance": dict(images.provenance),
                }
            ],
            shards=shards,
            index=list(index),
            signals={"labels": list(images.label_names)},
            quality={images.name: report},
            provenance=provenance(self.config, fingerprint),
        )


def _without(unit: ImageUnit, dropped: Mapping[str, Sequence[int]]) -> Sequence[ImageItem]:
    """The items of a unit that were written."""
    bad = {position for positions in dropped.values() for position in positions}
    return [item for position, item in enumerate(unit.items, start=unit.start) if position not in bad]


def _sha256_with_items(plan: list[Any], items: Iterator[list[Any]]) -> str:
    """The hash of `canonical_json(plan)` with a list of all items in the place of `_ITEMS`, some at a time."""
    before, after = canonical_json(plan).decode().split(json.dumps(_ITEMS, ensure_ascii=False))
    digest = hashlib.sha256(f"{before}[\n  ".encode())
    for number, item in enumerate(items):
        text = canonical_json(item).decode().rstrip("\n").replace("\n", "\n  ")
        digest.update(f",\n  {text}".encode() if number else text.encode())
    digest.update(f"\n ]{after}".encode())
    return digest.hexdigest()


def _check_set(images: ImageSet) -> None:
    if not images.items:
        reasons = ", ".join(f"{len(rows)} {reason}" for reason, rows in images.left_out.items()) or "empty"
        raise DataError(f"{images.name}: no image is left ({reasons}); check the source")
    keys = [item.key for item in images.items]
    if len(set(keys)) < len(keys):
        twice = Counter(keys).most_common(1)[0][0]
        raise DataError(f"{images.name}: several images have the key {twice}; keys must differ")
    assert images.rendered is None or len(images.label_names) <= MOST_LABELS
    for item in images.items:
        if len(item.labels) != len(images.label_names):
            raise DataError(
                f"{images.name}: {item.key} has {len(item.labels)} labels, expected {len(images.label_names)}; "
                "correct its annotation"
            )
