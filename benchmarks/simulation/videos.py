"""Videos of test episodes, made of the images that the policy saw, and one sheet of all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...contracts import Array, Observation
from ...data_pipeline.video.reader import open_video, write_video

_HEIGHT = 128
"""Height of an image in videos and sheets [px]."""

_COLUMNS, _ROWS = 8, 40
"""Images of an episode on the sheet, and episodes on it at most."""


class Video:
    """Collects what a policy sees in one test episode; costs nothing, because the images are drawn for it anyway."""

    def __init__(self) -> None:
        self.frames: list[Array] = []

    def __call__(self, observation: Observation) -> None:
        """Append the cameras side by side, the instruction below."""
        if not observation.images:
            return
        images = [_resized(np.asarray(frame)) for frame in observation.images.values()]
        image = np.concatenate(images, axis=1)
        sheet = Image.new("RGB", (image.shape[1], _HEIGHT + 24), (24, 24, 24))
        sheet.paste(Image.fromarray(image), (0, 0))
        text = ImageDraw.Draw(sheet)
        text.text((6, _HEIGHT + 6), observation.instruction, fill=(235, 235, 235), font=ImageFont.load_default(11))
        self.frames.append(np.asarray(sheet))

    def write(self, path: Path, fps: float) -> None:
        """Write the video as a video that every browser plays."""
        if self.frames:
            write_video(path, np.stack(self.frames), fps, crf=23, pixel_format="yuv420p")


def _resized(frame: Array) -> Array:
    width = round(frame.shape[1] * _HEIGHT / frame.shape[0] / 2) * 2
    return np.asarray(Image.fromarray(frame).resize((width, _HEIGHT), Image.Resampling.NEAREST))


def write_sheet(folder: Path) -> Path | None:
    """Write `sheet.png`: a row of images for each video of a folder, its name above; None where there is no video."""
    videos = sorted(folder.glob("*.mp4"))[:_ROWS]
    rows = []
    for video in videos:
        with open_video(video) as reader:
            pick = np.linspace(0, len(reader) - 1, _COLUMNS).round().astype(int)
            frames = reader.get_batch(pick)
        row = np.concatenate(list(frames), axis=1)
        sheet = Image.new("RGB", (row.shape[1], row.shape[0] + 20), (255, 255, 255))
        sheet.paste(Image.fromarray(row), (0, 20))
        ImageDraw.Draw(sheet).text((4, 4), video.stem, fill=(20, 20, 20), font=ImageFont.load_default(11))
        rows.append(np.asarray(sheet))
    if not rows:
        return None
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    path = folder / "sheet.png"
    Image.fromarray(np.concatenate(padded)).save(path)
    return path
