"""rerun recordings: what is written of an episode and of a roll-out, with a stand-in for rerun."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from gr2.benchmarks.demonstrations.record import record
from gr2.benchmarks.view.recording import _turn_from_z
from gr2.benchmarks.view.run import view
from gr2.data_pipeline.video.reader import write_video
from gr2.errors import ConfigError, DataError, EnvironmentMissing


class Thing:
    """Takes any arguments and keeps them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options = arguments, options

    def compress(self, **_: Any) -> Thing:
        """Return itself."""
        return self


class Stream(Thing):
    """Keeps what is logged: entity -> (time, thing)."""

    logged: ClassVar[dict[str, list[tuple[float, Thing]]]] = {}
    now = 0.0

    def save(self, out: Path, **_: Any) -> None:
        """Write a file."""
        out.write_bytes(b"RRF2")
        Stream.logged = {}

    def set_time(self, timeline: str, *, duration: float) -> None:
        """Set the time of what comes next."""
        self.now = duration

    def log(self, entity: str, thing: Thing) -> None:
        """Keep a thing."""
        Stream.logged.setdefault(entity, []).append((self.now, thing))

    def flush(self) -> None:
        """Do nothing."""

    disconnect = flush


@pytest.fixture
def rerun(monkeypatch: pytest.MonkeyPatch) -> type[Stream]:
    module, blueprint = ModuleType("rerun"), ModuleType("rerun.blueprint")
    for name in ("Image", "Scalars", "TextDocument", "TextLog", "LineStrips3D", "Capsules3D"):
        setattr(module, name, type(name, (Thing,), {}))
    module.RecordingStream = Stream
    for name in ("Horizontal", "Vertical", "Blueprint", "Spatial2DView", "Spatial3DView", "TimeSeriesView",
                 "TextDocumentView", "TextLogView"):  # fmt: skip
        setattr(blueprint, name, Thing)
    module.blueprint = blueprint
    monkeypatch.setitem(sys.modules, "rerun", module)
    monkeypatch.setitem(sys.modules, "rerun.blueprint", blueprint)
    return Stream


def test_an_episode_is_cameras_signals_and_the_path_of_its_tool(rerun: type[Stream], tmp_path: Path) -> None:
    record(out=tmp_path / "record", scenes="D", chains=1, num_workers=1, seed=3, play_share=0.0)
    assert view(source=tmp_path / "record", out=tmp_path / "runs" / "one.rrd").is_file()
    logged = rerun.logged
    states, images = logged["state/tool_position"], logged["camera/static"]
    assert len(states) == len(logged["action/gripper"]) and states[1][0] == pytest.approx(1 / 30)
    assert images[1][0] == pytest.approx(5 / 30) and images[0][1].arguments[0].shape == (64, 64, 3)
    path = logged["robot/tool"][-1][1].arguments[0][0]
    assert path.shape == (len(states), 3) and np.allclose(path[-1], states[-1][1].arguments[0])
    assert logged["instruction"][0][1].arguments[0]
    with pytest.raises(DataError, match="expected a number below the episodes"):
        view(source=tmp_path / "record", episode=999, out=tmp_path / "none.rrd")


def test_a_clip_is_its_frames(rerun: type[Stream], tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", np.zeros((6, 16, 16, 3), np.uint8), 3.0)
    view(source=tmp_path / "clip.mp4", out=tmp_path / "clip.rrd")
    assert [time for time, _ in rerun.logged["camera"]] == pytest.approx([i / 3 for i in range(6)])


def test_a_rollout_has_predicted_frames_beside_real_ones_and_the_controller(
    rerun: type[Stream], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view(policy="pretrained", task="open_drawer", max_steps=11, out=tmp_path / "act.rrd")
    logged = rerun.logged
    assert [time for time, _ in logged["real/static"]] == pytest.approx([0.0, 5 / 30, 10 / 30])
    assert [time for time, _ in logged["predicted/gripper"]] == pytest.approx([5 / 30, 10 / 30, 15 / 30])
    assert len(logged["robot/arm"]) == len(logged["joints"]) == 11 and len(logged["robot/chunk"]) == 3
    arm = logged["robot/arm"][0][1].options
    assert len(arm["lengths"]) == len(arm["translations"]) == len(arm["quaternions"]) > 7
    assert [thing.arguments[0] for _, thing in logged["events"]][-1] in ("done", "time is up")
    assert "after 11 steps" in capsys.readouterr().out


def test_a_capsule_lies_along_its_segment() -> None:
    from scipy.spatial.transform import Rotation

    for direction in ([1.0, 2.0, -0.5], [0.0, 0.0, -3.0]):
        turned = Rotation.from_quat(_turn_from_z(np.array(direction))).apply([0.0, 0.0, 1.0])
        assert np.allclose(turned, np.array(direction) / np.linalg.norm(direction))
    assert np.allclose(_turn_from_z(np.zeros(3)), [0, 0, 0, 1])


def test_what_view_cannot_do_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="either --source"):
        view()
    with pytest.raises(ConfigError, match="--episode from 0"):
        view(source=tmp_path, episode=-1)
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(EnvironmentMissing, match=r"pip install gr2\[view\]"):
        view(source=tmp_path, out=tmp_path / "x.rrd")
    assert not (tmp_path / "x.rrd").exists()
