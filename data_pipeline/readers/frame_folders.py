"""Read folders of frames: a folder with two or more images is a clip, in the order of the last number of their names.

Images state no rate, so the user does. Captions come from tables as those of a folder of videos do, or from a text file
beside a folder, `clip1.txt` beside `clip1/`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import ConfigError
from ..files import sample_key, text_encoding
from ..video.reader import is_video
from .caption_tables import read_captions
from .corpus_files import walk_links
from .record import ImageFiles, Record, is_animated_webp

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})

GAPS = "frames missing in the numbers of the files"


def find_frame_folders(path: Path) -> list[Path]:
    """List the folders of frames at or below a folder; none where videos lie among them."""
    found = []
    for folder, _, files in walk_links(path):
        shown = [name for name in files if not name.startswith(".")]
        if any(is_video(name) for name in shown):
            return []
        if len([name for name in shown if Path(name).suffix.lower() in SUFFIXES]) > 1:
            found.append(Path(folder))
    if any(is_animated_webp(file) for folder in found for file in folder.glob("*.webp")):
        return []
    return found


def _number(file: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", file.stem)
    return (int(digits[-1]) if digits else -1, file.name)


class FrameFoldersSource:
    """Folders of frames in sorted order.

    fps: frames a second. camera: name given to the one camera of these clips.

    Raises:
        ConfigError: no rate.
    """

    kind = "frame folders"

    def __init__(self, path: Path, *, fps: float | None, camera: str = "static") -> None:
        self.path = path
        self.camera = camera
        if fps is None:
            raise ConfigError(f"{path}: folders of images state no rate; give the frames a second with --fps.")
        self.fps = fps

    def __iter__(self) -> Iterator[Record]:
        captions = read_captions(self.path)
        for folder in find_frame_folders(self.path):
            relative = folder.relative_to(self.path).as_posix()
            name = folder.resolve().name if relative == "." else relative
            files = [f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith(".")]
            files.sort(key=_number)
            beside = folder.with_name(f"{folder.name}.txt")
            text = beside.read_text(encoding=text_encoding(beside)).strip() if beside.is_file() else ""
            yield Record(
                key=sample_key(name),
                videos={self.camera: ImageFiles(files=files, fps=self.fps)},
                caption=captions.get(name, captions.get(folder.name, text)),
                source=name,
                repairs=(GAPS,) if _has_gaps([_number(file)[0] for file in files]) else (),
            )


def _has_gaps(numbers: list[int]) -> bool:
    """Return whether the numbers rise by different steps."""
    return len({after - before for before, after in itertools.pairwise(numbers)}) > 1
