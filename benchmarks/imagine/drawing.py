"""Images for people: predicted above real on one sheet, predicted beside real in one video, all of it labeled."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...contracts import Array
from ...data_pipeline.files import write_bytes
from ...data_pipeline.video.reader import write_video

_COLUMNS = 12
"""Images in a row of a sheet at most."""

_SHEET_SIDE, _VIDEO_SIDE = 96, 256
"""Side of an image on a sheet, and about that of one in a video [px]."""

_LINE, _CHARACTER = 17, 6.5
"""Height of a line and mean width of a character of the font [px]."""

_INK, _PAPER, _ABSENT = (40, 44, 52), (255, 255, 255), (128, 128, 128)


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Frames of one camera in the order of time, uint8 `[f h w 3]`, the first `num_given` of them given to the model.

    A strip that is shorter than those it is drawn with belongs to a clip that has ended.
    """

    camera: str
    kind: Literal["predicted", "real"]
    frames: Array
    num_given: int

    def image(self, index: int, side: int) -> Image.Image:
        """Draw a frame as a square of `side` [px]; gray with a word on it where the clip has ended."""
        if index < len(self.frames):
            frame = Image.fromarray(self.frames[index])
            whole = side % frame.width == 0
            return frame.resize((side, side), Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)
        gray = Image.new("RGB", (side, side), _ABSENT)
        pen = ImageDraw.Draw(gray)
        pen.text((side // 2, side // 2), "clip ended", fill=_PAPER, font=_font(), anchor="mm")
        return gray


def write_sheet(path: Path, strips: Sequence[Strip], *, text: str, frame_s: float) -> None:
    """Draw a row of images for each strip, at equal steps in time, which stands above in [s]."""
    length = max(len(strip.frames) for strip in strips)
    shown = range(0, length, math.ceil(length / _COLUMNS))
    given = strips[0].num_given
    times = [f"{index * frame_s:.2f} s" + (", given" if index < given else "") for index in shown]
    rows = [f"{strip.camera} camera,\n{strip.kind}" for strip in strips]
    left = 16 + int(max(_font().getlength(line) for row in rows for line in row.split("\n")))
    width = max(left + len(shown) * (_SHEET_SIDE + 2), 3 * _SHEET_SIDE)
    title = _quoted(text, width)
    top = 8 + _LINE * (len(title) + 1)
    sheet = Image.new("RGB", (width, top + len(strips) * (_SHEET_SIDE + 2)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((6, 4), "\n".join(title), fill=_INK, font=_font())
    for column, time in enumerate(times):
        pen.text((left + column * (_SHEET_SIDE + 2) + 2, top - _LINE), time, fill=_INK, font=_font())
    for line, (label, strip) in enumerate(zip(rows, strips, strict=True)):
        y = top + line * (_SHEET_SIDE + 2)
        pen.text((6, y + _SHEET_SIDE // 2 - _LINE), label, fill=_INK, font=_font())
        for column, index in enumerate(shown):
            sheet.paste(strip.image(index, _SHEET_SIDE), (left + column * (_SHEET_SIDE + 2), y))
    data = io.BytesIO()
    sheet.save(data, format="PNG")
    write_bytes(path, data.getvalue())


def write_strips(path: Path, strips: Sequence[Strip], *, text: str, frame_s: float) -> None:
    """Write a video of strips side by side, enlarged with square pixels; text, label and time stand above."""
    side = strips[0].frames.shape[1]
    side *= max(1, round(_VIDEO_SIDE / side))
    width = len(strips) * side
    title = _quoted(text, width)
    top = 8 + _LINE * (len(title) + 1)
    frames = []
    for index in range(max(len(strip.frames) for strip in strips)):
        sheet = Image.new("RGB", (width + width % 2, top + side + (top + side) % 2), _PAPER)
        pen = ImageDraw.Draw(sheet)
        pen.text((6, 4), "\n".join(title), fill=_INK, font=_font())
        for column, strip in enumerate(strips):
            kind = "given" if index < strip.num_given else strip.kind
            label = f"{strip.camera} camera, {kind}, {index * frame_s:.2f} s"
            pen.text((column * side + 6, top - _LINE), label, fill=_INK, font=_font())
            sheet.paste(strip.image(index, side), (column * side, top))
        frames.append(np.asarray(sheet))
    write_video(path, np.stack(frames), 1 / frame_s, pixel_format="yuv420p")


def _quoted(text: str, width: int) -> list[str]:
    """Break text, in quotation marks, into lines that fit `width` [px]."""
    return textwrap.wrap(f"“{text}”", int((width - 12) / _CHARACTER)) if text else []


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(12)
