"""Read a plain folder of videos, with captions from a table, or from a text file beside each video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..files import sample_key, text_encoding
from ..video.reader import is_video
from .caption_tables import find_captions, names_of, read_captions
from .corpus_files import VIDEO_MISSING, unusable, walk_links
from .record import AnimatedImage, Record, is_animated_webp


class FolderSource:
    """Videos anywhere below a folder (or one video file), in sorted order.

    camera: name given to the one camera of these videos.
    """

    kind = "folder"

    def __init__(self, path: Path, camera: str = "static") -> None:
        self.path = path
        self.camera = camera

    def __iter__(self) -> Iterator[Record]:
        root = self.path.parent if self.path.is_file() else self.path
        captions, used = read_captions(root), set[str]()
        videos = [self.path] if self.path.is_file() else list(_walk(root))
        others = {} if captions else find_captions(root, [video.relative_to(root) for video in videos])
        for video in videos:
            relative = video.relative_to(root)
            found = next((name for name in names_of(relative) if name in captions), None)
            used |= {found} if found is not None else set()
            yield Record(
                key=sample_key(relative.as_posix()),
                videos={self.camera: AnimatedImage(file=video) if video.suffix.lower() == ".webp" else video},
                caption=captions[found] if found is not None else _text_beside(video) or others.get(relative, ""),
                source=relative.as_posix(),
            )
        for name in [] if self.path.is_file() else sorted(captions.keys() - used):
            yield unusable(f"{name} (row)", name, {}, VIDEO_MISSING)


def _walk(root: Path) -> Iterator[Path]:
    for folder, _, files in walk_links(root):
        for name in sorted(files):
            file = Path(folder, name)
            if not name.startswith(".") and (
                is_video(name) or (file.suffix.lower() == ".webp" and is_animated_webp(file))
            ):
                yield file


def _text_beside(video: Path) -> str:
    file = video.with_suffix(".txt")
    return file.read_text(encoding=text_encoding(file)).strip() if file.is_file() else ""
