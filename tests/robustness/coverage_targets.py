"""What coverage-guided fuzzing calls: bytes in, a `DataError` of one line or nothing out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_prep.errors import DataError
from data_prep.readers import READERS, recognise
from data_prep.readers.ros1_messages import FALLBACK_DEFINITIONS, Layout
from tests.robustness.fuzz_readers import SEEDS, Seed, images_of, one_line

TARGETS = ("csv", "json", "bag", "definition")


class Recordings:
    """Whole recordings on disk, of which one file at a time is replaced by the fuzzer's bytes."""

    def __init__(self, folder: Path, target: str) -> None:
        chosen = [seed for seed in SEEDS if seed.damaged.endswith(f".{target}")]
        self._files: list[tuple[Seed, Path, Path]] = []
        for number, seed in enumerate(chosen):
            source = folder / str(number)
            source.mkdir()
            seed.write(source)
            self._files.append((seed, source, source / seed.damaged))

    def corpus(self) -> list[bytes]:
        return [bytes([k]) + path.read_bytes() for k, (_, _, path) in enumerate(self._files)]

    def check(self, data: bytes) -> None:
        """The first byte chooses the recording, the others are the file."""
        if not data:
            return
        seed, source, path = self._files[data[0] % len(self._files)]
        path.write_bytes(data[1:])
        try:
            recognise(source)
            for image in images_of(READERS[seed.reader](source, **seed.options)):
                image()
        except DataError as fault:
            one_line(fault)


def check_definition(data: bytes) -> None:
    """The text of a definition up to a zero byte, then a message of it."""
    text, _, message = data.partition(b"\0")
    try:
        layout = Layout.parse("my_msgs/Any", text.decode("utf-8", errors="replace"))
        layout.starts_with_header()
        layout.require([field.name for field in layout.fields[:3]])
        layout.read(message, [field.name for field in layout.fields])
    except DataError as fault:
        one_line(fault)


def definitions() -> list[bytes]:
    nested = (
        "Header header\nPart[] parts\n" + "=" * 80 + "\nMSG: my_msgs/Part\nstring[2] names\nfloat32 x=1\n"
    )
    return [text.encode() + b"\0" + bytes(40) for text in (*FALLBACK_DEFINITIONS.values(), nested)]


def target(name: str, folder: Path) -> tuple[Callable[[bytes], None], list[bytes]]:
    """The check of a target, and whole inputs to begin with.

    Args:
        name: one of `TARGETS`.
        folder: empty, for the recordings.
    """
    if name == "definition":
        return check_definition, definitions()
    recordings = Recordings(folder, name)
    return recordings.check, recordings.corpus()
