"""Make the images of the README from the reference run and the shipped policy: `make images`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gr2.data_pipeline.video.reader import open_video

RUN = Path(sys.argv[1])
IMAGES = Path(__file__).parent / "images"
INK, PAPER = (40, 44, 52), (255, 255, 255)


def read(path: Path) -> np.ndarray:
    """Return all frames of a video, uint8 `[f h w 3]`."""
    with open_video(path) as reader:
        return reader.get_batch(np.arange(len(reader)))


def animate(frames: np.ndarray, out: Path, *, width: int, fps: float) -> None:
    """Write an animated WebP that repeats for ever."""
    height = round(frames.shape[1] * width / frames.shape[2])
    images = [Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS) for frame in frames]
    images[0].save(
        out, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0, quality=60, method=6
    )


def strips(folder: Path, out: Path, *, episodes: int = 4, columns: int = 8, side: int = 96) -> None:
    """Draw predicted above real frames of the static camera, one pair of rows for each instruction."""
    rows = [row for row in json.loads((folder / "episodes.json").read_text()) if row["camera"] == "static"][:episodes]
    font, left, title, gap = ImageFont.load_default(13), 78, 22, 10
    height = len(rows) * (title + 2 * side + gap)
    sheet = Image.new("RGB", (left + columns * (side + 2), height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = number * (title + 2 * side + gap)
        pen.text((left, top + 3), f"“{row['instruction']}”", fill=INK, font=font)
        videos = [read(folder / row[kind]) for kind in ("predicted", "real")]
        shown = np.unique(np.linspace(0, min(map(len, videos)) - 1, columns).round().astype(int))
        for line, (name, video) in enumerate(zip(("imagined", "simulated"), videos, strict=True)):
            y = top + title + line * side
            pen.text((4, y + side // 2 - 8), name, fill=INK, font=font)
            for column, index in enumerate(shown):
                image = Image.fromarray(video[index]).resize((side, side - 2), Image.Resampling.LANCZOS)
                sheet.paste(image, (left + column * (side + 2), y))
    sheet.save(out, optimize=True)


def main() -> None:
    """Write docs/images/rollout.webp and docs/images/imagined.png."""
    IMAGES.mkdir(exist_ok=True)
    video = RUN / "rollout.mp4"
    subprocess.run(
        [Path(sys.executable).with_name("gr2"), "rollout", "--pretrained", "--seed", "3", "--video", video], check=True
    )
    animate(read(video)[::2], IMAGES / "rollout.webp", width=560, fps=10)
    strips(RUN / "imagine", IMAGES / "imagined.png")


main()
