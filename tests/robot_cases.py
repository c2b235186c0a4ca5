"""A robot that nobody named before, and token shards of any robot: random codes beside smooth motions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gr2.data_pipeline.embodiments import EmbodimentTally
from gr2.data_pipeline.files import array_bytes
from gr2.data_pipeline.store.shards import ShardWriter, finished_shards
from gr2.data_pipeline.store.stages import Tally, begin_stage
from gr2.data_pipeline.tokens import finish_token_shards
from gr2.embodiment import Embodiment, Signal
from gr2.gr_model.train.tokenizer_stages import tokenizer_facts
from gr2.tokenizers.text_weights import load_text_encoder
from gr2.tokenizers.weights import load_vqgan

CAMERAS = ("front", "wrist", "overhead")
JOINTS = (
    Signal(name="joint_positions", width=5, kind="joint_position", unit=""),
    Signal(name="gripper", width=1, kind="gripper", unit="as stored", binary=False),
)
SO101 = Embodiment(name="so101", cameras=CAMERAS, state=JOINTS, action=JOINTS, control_hz=5)
SIX_JOINTS = Embodiment(
    name="six_joints",
    cameras=CAMERAS,
    state=(
        Signal(name="joint_positions", width=6, kind="joint_position"),
        Signal(name="gripper", width=1, kind="gripper", binary=False),
    ),
    action=(
        Signal(name="joint_positions", width=6, kind="joint_position"),
        Signal(name="gripper", width=1, kind="gripper", binary=True),
    ),
    control_hz=5,
)
STEPS: dict[str, Any] = {"steps": 2, "batch_size": 4, "threads": 1, "device": "cpu"}


def write_tokens(out: Path, robot: Embodiment, num_episodes: int = 40) -> Path:
    """Token shards that the shipped tokenizers might have made, of random codes and smooth motions."""
    encoder, rng = load_text_encoder("small"), np.random.default_rng(0)
    facts = tokenizer_facts(load_vqgan("small"), encoder)
    num_codes = facts["grid"][0] * facts["grid"][1]
    begin_stage(out, "token_shards", {}, overwrite=False)
    robots = EmbodimentTally()
    description = f'{{"fps": {robot.control_hz}, "frame_stride": 1, "control_hz": {robot.control_hz}}}'.encode()
    with ShardWriter(out, max_bytes=1 << 30) as writer:
        for number in range(num_episodes):
            path = np.cumsum(rng.normal(0, 0.02, (21, robot.state_dim)), axis=0).astype(np.float32)
            for signals, slices in ((robot.state, robot.state_slices()), (robot.action, robot.action_slices())):
                if signals is robot.state:
                    for signal in signals:
                        if signal.kind == "rotation":
                            path[:, slices[signal.name]] = [0, 0, 0, 1]
            states = path[:-1]
            wanted = [path[1:, robot.state_slices()[signal.name]] for signal in robot.action]
            actions = np.concatenate(wanted, axis=1)
            robots.add(robot, robot.cameras, states, actions)
            codes = rng.integers(0, facts["codebook_size"], (20, num_codes)).astype(np.uint16)
            members = {f"codes.{camera}.npy": array_bytes(codes) for camera in robot.cameras}
            members |= {"states.npy": array_bytes(states), "actions.npy": array_bytes(actions), "json": description}
            row = {"frames": 20, "stride": 1, "steps": 20, "cameras": list(robot.cameras), "embodiment": 0}
            row |= {"state_dim": robot.state_dim, "action_dim": robot.action_dim, "code_bytes": num_codes * 2}
            writer.write(f"episode_{number}", members, row | {"text": 0, "video": f"v{number}"})
        writer.finish_shard({"sentences": ["fold it"], "embodiments": robots.to_list()})
    finish_token_shards(out, {}, Tally(), [tar.name for tar in finished_shards(out)], facts, encoder.encode)
    return out
