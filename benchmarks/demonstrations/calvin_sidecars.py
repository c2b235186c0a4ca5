"""What CALVIN's own code reads beside the frames of a split: embeddings of instructions, and the simulator's settings.

Source: what calvin_agent's `DiskDataset`, `SharedMemoryLoader` and `MCIL` load (mees/calvin fa03f01), and what
calvin_env's `get_env` instantiates (mees/calvin_env 797142c).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts import Array
from ..playtable import cameras
from ..playtable.calvin_assets import block_file, calvin_assets
from ..playtable.environment import CONTROL_HZ, SIM_HZ
from ..playtable.instructions import evaluation_instructions
from ..playtable.robot import REST_JOINTS
from ..playtable.scenes import ROBOT_BASE, scene

EMBEDDING_WIDTH = 384
"""Width of the vectors that CALVIN's configurations expect; narrower ones are filled up with zeros."""


def embed_instructions(texts: Sequence[str]) -> Array:
    """Return a vector of each text by the shipped text tower, float32 `[n 1 d]`: the feature at its end of text."""
    from ...tokenizers.text_weights import load_text_encoder

    encoder = load_text_encoder("small")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unknown words are told where a policy is trained or tested
        features, mask = encoder.encode(list(texts))
    ends = features[np.arange(len(features)), mask.sum(1) - 1]
    return np.pad(ends, ((0, 0), (0, max(0, EMBEDDING_WIDTH - ends.shape[1])))).astype(np.float32)[:, None]


def evaluation_embeddings(calvin_root: Path | None) -> dict[str, Any]:
    """Return the content of `embeddings.npy`: of each task the instruction that an evaluation gives, and its vector."""
    instructions = evaluation_instructions(calvin_root)
    vectors = embed_instructions(list(instructions.values()))
    return {
        task: {"emb": vector[None], "ann": [text]}
        for (task, text), vector in zip(instructions.items(), vectors, strict=True)
    }


def simulator_settings(scene_name: str, calvin_root: Path | None) -> dict[str, Any]:
    """Return the content of `.hydra/merged_config.yaml`, from which `get_env` makes the simulator of a split."""
    static, gripper = cameras.CALVIN_PX
    views = {
        "static": _camera("static_camera.StaticCamera", 10, cameras.STATIC_RANGE, static)
        | {
            "look_at": list(cameras.STATIC_TARGET),
            "look_from": list(cameras.STATIC_EYE),
            "up_vector": list(cameras.STATIC_UP),
        },
        "gripper": _camera("gripper_camera.GripperCamera", 75, cameras.GRIPPER_RANGE, gripper),
    }
    for name, view in views.items():
        view["name"] = name
    environment = {
        "_target_": "calvin_env.envs.play_table_env.PlayTableSimEnv", "_recursive_": False, "cameras": "${cameras}",
        "seed": 0, "bullet_time_step": float(SIM_HZ), "use_vr": "${use_vr}", "show_gui": False,
        "robot_cfg": "${robot}", "scene_cfg": "${scene}", "use_scene_info": True, "use_egl": False,
        "control_freq": CONTROL_HZ,
    }  # fmt: skip
    return {
        "cameras": views, "env": environment, "scene": _scene(scene_name, calvin_root), "robot": _robot(), "seed": 0,
        "use_vr": False, "data_path": "data", "save_dir": "/tmp", "record": False,
    }  # fmt: skip


def _camera(target: str, angle: int, planes: tuple[float, float], side: int) -> dict[str, Any]:
    return {
        "_target_": f"calvin_env.camera.{target}", "fov": angle, "aspect": 1, "nearval": planes[0],
        "farval": planes[1], "width": side, "height": side,
    }  # fmt: skip


def _scene(name: str, calvin_root: Path | None) -> dict[str, Any]:
    spec = scene(name)
    if calvin_root is not None:
        surfaces = {
            key: [list(corner) for corner in box] for key, box in calvin_assets(calvin_root, spec).surfaces.items()
        }
    else:
        (low, high), (left, right) = spec.spawn_x, spec.cabinet_x
        half = (right - left) / 2
        surfaces = {
            "table": [[low, -0.15, 0.46], [high, -0.03, 0.46]],
            "slider_left": [[left + 0.05, 0.05, 0.46], [left + half - 0.1, 0.12, 0.46]],
            "slider_right": [[left + half + 0.05, 0.05, 0.46], [right - 0.05, 0.12, 0.46]],
        }
    lights = {"lightbulb": ("light_link", [1, 1, 0, 1]), "led": ("led_link", [0, 1, 0, 1])}
    table = {
        "file": f"calvin_table_{name}/urdf/calvin_table_{name}.urdf", "initial_pos": [0, 0, 0],
        "initial_orn": [0, 0, 0], "joints": {f"base__{one}": {"initial_state": 0} for one in ("slide", "drawer")},
        "buttons": {"base__button": {"initial_state": 0, "effect": "led"}},
        "switches": {"base__switch": {"initial_state": 0, "effect": "lightbulb"}},
        "lights": {one: {"link": link, "color": color} for one, (link, color) in lights.items()},
    }  # fmt: skip
    blocks = {
        f"block_{color}": {"file": f"blocks/{block_file(color, length)}", "initial_pos": "any", "initial_orn": "any"}
        for color, length in zip(spec.blocks, spec.block_lengths, strict=True)
    }
    return {
        "_target_": "calvin_env.scene.play_table_scene.PlayTableScene", "_recursive_": False,
        "data_path": "${data_path}", "global_scaling": 0.8, "euler_obs": "${robot.euler_obs}",
        "robot_base_position": list(ROBOT_BASE), "robot_base_orientation": [0, 0, 0],
        "robot_initial_joint_positions": list(REST_JOINTS), "surfaces": surfaces,
        "objects": {"fixed_objects": {"table": table}, "movable_objects": blocks},
    }  # fmt: skip


def _robot() -> dict[str, Any]:
    lower = [-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973]
    upper = [2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973]
    return {
        "_target_": "calvin_env.robot.robot.Robot", "filename": "franka_panda/panda_longer_finger.urdf",
        "base_position": "${scene.robot_base_position}", "base_orientation": "${scene.robot_base_orientation}",
        "initial_joint_positions": "${scene.robot_initial_joint_positions}", "max_joint_force": 200.0,
        "gripper_force": 200, "arm_joint_ids": list(range(7)), "lower_joint_limits": lower,
        "upper_joint_limits": upper, "gripper_joint_ids": [9, 11], "gripper_joint_limits": [0, 0.04],
        "tcp_link_id": 15, "end_effector_link_id": 7, "gripper_cam_link": 12, "use_nullspace": True,
        "max_velocity": 2, "use_ik_fast": False, "magic_scaling_factor_pos": 1, "magic_scaling_factor_orn": 1,
        "use_target_pose": True, "euler_obs": True,
    }  # fmt: skip
