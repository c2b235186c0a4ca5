"""The data report: its counts are the manifests', every reason has its row, and no code in a caption runs."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gr2.cli.main import main
from gr2.data_pipeline.curation import report as report_module
from gr2.data_pipeline.curation.caption import caption
from gr2.data_pipeline.curation.caption_words import nouns_of, verb_of
from gr2.data_pipeline.curation.curate import curate
from gr2.data_pipeline.curation.endpoint_captioner import Answer
from gr2.data_pipeline.curation.ingest import write_video_shards
from gr2.data_pipeline.curation.report import collect_report, follow_stages
from gr2.data_pipeline.curation.report_clips import source_file
from gr2.data_pipeline.curation.report_page import write_data_report
from gr2.data_pipeline.store.stages import begin_stage
from gr2.data_pipeline.tokens import write_token_shards
from gr2.data_pipeline.video.reader import write_video
from gr2.errors import ConfigError, DataError

SAMPLES = Path(__file__).parents[2] / "../shared/real_samples"
HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil/x onerror=alert(2)> &amp; {{7*7}} </style>"
STAGES = ("shards", "curated", "captioned", "tokens")


def textured(seed: int, num_frames: int = 20) -> np.ndarray:
    """Draw a still image with a square that moves over it: uint8 `[f 96 128 3]`."""
    generator = np.random.default_rng(seed)
    frame = generator.integers(40, 215, (12, 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    frames = np.stack([frame] * num_frames)
    for i in range(num_frames):
        frames[i, 30:60, 4 * i : 4 * i + 30] = generator.integers(0, 255, 3)
    return frames


class FakeModel:
    """Answer by turns with an action, a refusal and something hostile."""

    at_once = 1
    answers = ("Push the red block.", "I'm sorry, I can't.", HOSTILE)

    def __init__(self) -> None:
        self.asked = 0

    def ask(self, images: Sequence[bytes], prompt: str) -> Answer:
        self.asked += 1
        return Answer(text=self.answers[self.asked % 3], finish="stop", revision="1")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all four stages on a folder with clips of every fate; `shards`, `curated`, `captioned`, `tokens`."""
    root = tmp_path_factory.mktemp("chain")
    for i in range(8):
        write_video(root / f"in/clip_{i}.mp4", textured(i), fps=10)
    shutil.copy(root / "in/clip_0.mp4", root / "in/copy.mp4")
    write_video(root / "in/static.mp4", np.full((20, 96, 128, 3), 90, np.uint8), fps=10)
    write_video(root / "in/dark.mp4", textured(9) // 12, fps=10)
    (root / "in/broken.mp4").write_bytes((root / "in/clip_0.mp4").read_bytes()[:900])
    captions = {f"clip_{i}.mp4": f"push block {i}" for i in range(8)} | {"dark.mp4": HOSTILE, "clip_3.mp4": HOSTILE}
    (root / "in/captions.json").write_text(json.dumps(captions))
    size = (root / "in/clip_0.mp4").stat().st_size / 1e6
    write_video_shards(source=str(root / "in"), out=root / "shards", shard_megabytes=3 * size)
    curate(shards=str(root / "shards"), out=root / "curated")
    model = FakeModel()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gr2.data_pipeline.curation.caption.open_captioner", lambda *_: model)
        caption(shards=str(root / "curated"), out=root / "captioned", model="fake", endpoint="http://host/v1")
    write_token_shards(
        shards=root / "captioned",
        out=root / "tokens",
        encode_images=lambda frames: frames[:, 8::16, 8::16, 0].reshape(len(frames), 16).astype(np.int64),
        encode_texts=None,
        tokenizer_facts={"codebook_size": 256, "grid": [4, 4]},
        image_size=64,
    )
    return root


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


@dataclass
class Page(HTMLParser):
    """What a browser would see: tags with attributes, headings, cells, words."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    words: str = ""
    inside: str = ""

    def __post_init__(self) -> None:
        HTMLParser.__init__(self, convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("h3", "td", "style"):
            self.inside = tag
        if tag == "h3":
            self.headings.append("")
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self.inside:
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "style":
            return
        self.words += data + "\n"
        if self.inside == "h3":
            self.headings[-1] += data
        if self.inside == "td":
            self.rows[-1][-1] += f"{data} "


def open_page(file: Path) -> Page:
    page = Page()
    page.feed(file.read_text("utf-8"))
    return page


def images(page: Page) -> list[Image.Image]:
    found = []
    for tag, attributes in page.tags:
        if tag == "img":
            head, _, data = str(attributes["src"]).partition(",")
            assert head == "data:image/jpeg;base64"
            found.append(Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=("JPEG",)))
    return found


def test_counts_are_the_manifests_and_every_reason_has_its_row(chain: Path) -> None:
    page = open_page(write_data_report(folder=chain / "tokens"))
    rows = [row for row in page.rows if row]
    assert len(rows) == 4
    wanted_headings = set()
    for row, stage in zip(rows, STAGES, strict=True):
        manifest = manifest_of(chain / stage)
        counts, dropped = manifest["counts"], manifest["counts"]["dropped"]
        metrics = [counts["records"], counts["kept"], sum(dropped.values()), counts["windows"]]
        assert [int(cell) for cell in row[1:5]] == metrics
        assert float(row[5]) == pytest.approx(counts["seconds"] / 3600, abs=6e-4)
        for reason, count in (dropped | manifest.get("unused_answers", {})).items():
            assert f"{reason.replace('_', ' ')} {count}" in " ".join(row[6].split())
            wanted_headings.add((reason.replace("_", " "), count))
    reasons = {reason for reason, _ in wanted_headings}
    assert {"static", "undecodable", "dark", "duplicate", "refused"} <= reasons
    found = {re.match(r"(.+?)(?:Written|Curated|Captioned|Encoded).* of (\d+)$", h) for h in page.headings}
    assert {(one[1], int(one[2])) for one in found if one} - wanted_headings == {
        ("kept", manifest_of(chain / "captioned")["counts"]["windows"])
    }
    assert wanted_headings <= {(one[1], int(one[2])) for one in found if one}
    for name, value in manifest_of(chain / "curated")["parameters"]["thresholds"].items():
        assert f"thresholds.{name}" in page.words and json.dumps(value) in page.words
    assert "repeats window" in page.words and "expected at least" in page.words


def test_nothing_that_a_caption_says_becomes_a_tag(chain: Path) -> None:
    page = open_page(write_data_report(folder=chain / "tokens"))
    assert page.words.count(HOSTILE) >= 2  # of the dark clip, and of a kept one
    allowed = {"html", "head", "meta", "link", "title", "style", "body", "header", "main", "section", "div", "p", "h1"}
    allowed |= {"h2", "h3", "small", "table", "thead", "tbody", "tr", "th", "td", "i", "b", "span", "figure", "img"}
    allowed |= {"figcaption", "code", "dl", "dt", "dd", "details", "summary"}
    assert {tag for tag, _ in page.tags} <= allowed
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert str(attributes.get(name) or "data:").startswith("data:")
    assert len([tag for tag, _ in page.tags if tag == "style"]) == 1
    assert all(image.size[0] > 100 for image in images(page))


def test_clips_are_chosen_the_same_way_each_time(chain: Path, tmp_path: Path) -> None:
    one = write_data_report(folder=chain / "tokens", html=tmp_path / "one.html").read_bytes()
    assert write_data_report(folder=chain / "tokens", html=tmp_path / "two.html").read_bytes() == one
    few, more = (collect_report(chain / "captioned", number) for number in (2, 3))
    for small, large in zip(few.sheets, more.sheets, strict=True):
        assert len(small.clips) == min(2, small.count) and len(large.clips) == min(3, large.count)
        assert list(large.clips[: len(small.clips)]) == list(small.clips)
    assert not any(sheet.clips for sheet in collect_report(chain / "tokens", 0).sheets)
    with pytest.raises(ConfigError, match="num_clips"):
        write_data_report(folder=chain / "tokens", num_clips=-1)


def test_strips_show_the_window(tmp_path: Path) -> None:
    levels = [20 + 8 * i for i in range(24)]
    frames = np.stack([np.full((64, 80, 3), level, np.uint8) for level in levels])
    write_video(tmp_path / "in/ramp.mp4", frames, fps=4)
    write_video_shards(source=str(tmp_path / "in"), out=tmp_path / "shards", window_seconds=3)
    report = collect_report(tmp_path / "shards", 9)
    shown = {}
    for clip in report.sheets[0].clips:
        strip = np.asarray(Image.open(io.BytesIO(clip.strip)).convert("L")).astype(float)
        assert strip.shape == (112, 4 * 142 - 2)
        shown[clip.span] = [round((float(strip[:, 142 * i : 142 * i + 140].mean()) - 20) / 8) for i in range(4)]
    assert shown == {" frames 0 to 11": [0, 4, 7, 11], " frames 12 to 23": [12, 16, 19, 23]}


def test_missing_earlier_stages_are_said(chain: Path, tmp_path: Path) -> None:
    here = tmp_path / "moved"
    shutil.copytree(chain, here)
    for name in STAGES[1:]:  # the manifests name folders that are no longer there
        path = here / name / "manifest.json"
        path.write_text(path.read_text().replace(str(chain), "/nowhere"))
    stages, missing = follow_stages(here / "tokens")
    assert [stage.folder for stage in stages] == [here / name for name in STAGES] and missing == ""

    shutil.rmtree(here / "shards")
    page = open_page(write_data_report(folder=here / "tokens"))
    assert "curated was made from /nowhere/shards, which is gone" in page.words
    assert "dark" in " ".join(page.headings) and "static" not in " ".join(page.headings)
    assert len([row for row in page.rows if row]) == 3 and images(page)

    for name in ("curated", "captioned"):
        shutil.rmtree(here / name)
    page = open_page(write_data_report(folder=here / "tokens"))
    assert "Earlier stages are missing" in page.words and not images(page)
    assert "Token shards hold no images" in page.words and "Push the red block" not in page.words
    assert "Duration [s]" in page.headings and "Verbs" in page.headings


def test_a_source_that_is_gone_leaves_words_in_place_of_images(chain: Path, tmp_path: Path) -> None:
    before = collect_report(chain / "shards", 5)
    assert any(clip.strip for sheet in before.sheets if sheet.reason == "static" for clip in sheet.clips)
    shutil.copytree(chain / "shards", tmp_path / "shards")
    path = tmp_path / "shards/manifest.json"
    path.write_text(path.read_text().replace(str(chain), "/nowhere"))
    after = collect_report(tmp_path / "shards", 5)
    lost = [clip for sheet in after.sheets if sheet.reason for clip in sheet.clips]
    assert len(lost) == sum(manifest_of(chain / "shards")["counts"]["dropped"].values())
    assert all("before it was written" in clip.missing and not clip.strip and clip.detail for clip in lost)


def test_names_from_the_shards_lead_out_of_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mp4").write_text("a")
    (tmp_path / "secret").write_text("b")
    assert source_file(str(tmp_path / "in"), "a.mp4") == tmp_path / "in/a.mp4"
    for name in ("../secret", str(tmp_path / "secret"), "", "a.mp4 0.00..2.00 s"):
        assert source_file(str(tmp_path / "in"), name) is None
    assert source_file("https://host/in", "a.mp4") is None


def test_many_shards_are_read_in_part_and_every_reason_still_has_its_row(
    chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = collect_report(chain / "tokens", 9)
    monkeypatch.setattr(report_module, "_SHARDS_READ", 1)
    part = collect_report(chain / "tokens", 9)
    assert 0 < part.clips.read < whole.clips.read
    assert [(one.stage, one.reason, one.count) for one in part.sheets] == [
        (one.stage, one.reason, one.count) for one in whole.sheets
    ]
    assert all(sheet.clips for sheet in part.sheets if not sheet.answer_only)
    assert any("not in the shards that were read" in clip.missing for sheet in part.sheets for clip in sheet.clips)


def test_rewritten_earlier_shards_are_said(chain: Path, tmp_path: Path) -> None:
    shutil.copytree(chain, tmp_path / "chain")
    for name in STAGES[1:]:
        path = tmp_path / "chain" / name / "manifest.json"
        path.write_text(path.read_text().replace(str(chain), str(tmp_path / "chain")))
    write_video_shards(source=str(chain / "in"), out=tmp_path / "chain/shards", part="0/9", overwrite=True)
    report = collect_report(tmp_path / "chain/tokens", 9)
    reasons = {clip.missing for sheet in report.sheets if sheet.stage == "curated_shards" for clip in sheet.clips}
    assert any("any more" in words or "written again" in words for words in reasons)


def test_folders_without_a_finished_stage_are_refused(chain: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write_data_report(folder=tmp_path)
    begin_stage(tmp_path / "half", "video_shards", {"source": "x"}, False)
    with pytest.raises(DataError, match="not finished"):
        write_data_report(folder=tmp_path / "half")
    shutil.copytree(chain / "captioned", tmp_path / "damaged")
    tar = sorted((tmp_path / "damaged").glob("*.tar"))[0]
    data = bytearray(tar.read_bytes())
    at = data.index(b'"windows"')
    data[at : at + 4] = b"\0\0\0\0"
    tar.write_bytes(data)
    with pytest.raises(DataError, match="checksum is wrong"):
        write_data_report(folder=tmp_path / "damaged")


def test_the_command_line_prints_the_page(chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert main(["data", "report", str(chain / "curated"), "--html", str(out), "--num-clips", "1"]) == 0
    assert capsys.readouterr().out.strip() == str(out) and out.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "verb", "nouns"),
    [
        ("holding potato next to vicks vaporub bottle", "hold", ["potato", "bottle"]),
        ("putting something on a surface", "put", ["surface"]),
        ("moving the red cups away from each other", "move", ["cup"]),
        ("#C C picks the onion from the chopping board", "pick", ["onion", "board"]),
        ("a person is cutting two tomatoes.", "cut", ["tomato"]),
        ("The robot arm presses the button, then waits", "press", ["button"]),
        ("Pick up the red cup and put it on the shelf.", "pick", ["cup", "shelf"]),
        ("She carries dishes", "carry", ["dish"]),
        ("pulling two ends of a rope", "pull", ["end", "rope"]),
        ("open drawer", "open", ["drawer"]),
        ("two men wrestle at a table", "wrestle", ["table"]),
        ("", "", []),
        ("the", "", []),
        ("123 ...", "123", []),
    ],
)
def test_verbs_and_nouns_are_found_by_rules(words: str, verb: str, nouns: list[str]) -> None:
    assert verb_of(words) == verb
    assert nouns_of(words) == nouns


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="real sample videos are not beside the checkout")
def test_real_robot_clips_are_counted(tmp_path: Path) -> None:
    write_video_shards(source=str(SAMPLES / "rt1"), out=tmp_path / "shards")
    report = collect_report(tmp_path / "shards", 12)
    assert (report.clips.read, sum(report.clips.seconds)) == (2, pytest.approx(54 / 3 + 29 / 3))
    assert dict(report.clips.sizes) == {"320 x 256": 2} and dict(report.clips.rates) == {"3": 2}
    assert dict(report.clips.verbs) == {"pick": 2}
    assert dict(report.clips.nouns) == {"can": 1, "drawer": 1, "counter": 1, "bag": 1}
    assert [len(sheet.clips) for sheet in report.sheets] == [2] and all(clip.strip for clip in report.sheets[0].clips)
