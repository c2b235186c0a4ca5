"""`gr2 view`: an episode of any dataset, or a policy at work, in rerun's viewer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

from ...data_pipeline.readers.record import Times
from ...errors import ConfigError
from .recording import import_rerun


def view(
    *,
    source: Path | None = None,
    episode: int = 0,
    camera: str = "static",
    spec: Path | None = None,
    times: Times = "check",
    policy: str = "",
    task: str = "open_drawer",
    scene: str = "D",
    control: Literal["wbc", "calvin"] = "wbc",
    max_steps: int = 360,
    image_size: int = 64,
    seed: int = 7,
    out: Path = Path("runs/view.rrd"),
    window: bool = False,
    serve: int = 0,
) -> Path:
    """Write a rerun recording (`.rrd`) and show it, if asked to.

    With `source` it holds an episode: cameras, states and actions signal by signal, the instruction, the tool's path.
    With `policy` it holds a task in the simulator: what the policy saw, the frames that the model had predicted from
    the first image beside it, the chunks, the arm in 3-D, its margins to the limits, and the controller's status.

    Args:
        source: a dataset in any layout that `gr2 data inspect` knows.
        episode: number of the episode, from 0.
        camera: name given to the camera of datasets that have one without a name.
        spec: where cameras, states and actions lie in a robot dataset (YAML), or libero for its HDF5 files.
        times: "order" takes the rows of a LeRobot episode for steps at its rate.
        policy: a policy, named as for `gr2 benchmark calvin`.
        task: what it is to do.
        scene: A, B, C or D.
        control: our whole-body controller or CALVIN's own control.
        max_steps: time limit in control steps.
        image_size: image side that the policy sees [px].
        seed: seed of the start.
        out: file to write.
        window: open the viewer.
        serve: port of a page on this machine that shows the recording until it is stopped; 0 for none.

    Returns:
        The file.

    Raises:
        ConfigError: neither or both of `source` and `policy`.
        EnvironmentMissing: rerun is not installed.
    """
    if (source is None) == (not policy):
        raise ConfigError("view: expected either --source DATASET or --policy POLICY; give one of them.")
    if episode < 0 or max_steps < 1 or not 0 <= serve < (1 << 16) - 1:
        raise ConfigError(
            f"view: expected --episode from 0, --max-steps from 1 and a port, got {episode}, {max_steps} and {serve}."
        )
    import_rerun()
    if source is not None:
        from .episodes import record_episode

        print(record_episode(source, episode, out, camera=camera, spec=spec, times=times))
    else:
        from .rollouts import record_rollout

        print(
            record_rollout(
                policy, task, out, scene=scene, control=control, max_steps=max_steps, image_size=image_size, seed=seed
            )
        )
    if window or serve:
        _show(out, serve)
    return out


def _show(file: Path, port: int) -> None:
    """Open the viewer on a recording, or show it on a page of this machine at a port, until it is closed."""
    place = ["--serve-web", "--web-viewer-port", str(port), "--port", str(port + 1), "--bind", "127.0.0.1"]
    if port:
        print(f"http://127.0.0.1:{port}?url=rerun%2Bhttp://127.0.0.1:{port + 1}/proxy", flush=True)
    subprocess.run([sys.executable, "-m", "rerun", str(file), *(place if port else [])], check=False)
