"""An SO-100 or SO-101: six Feetech STS3215 servos on one serial bus, with lerobot's calibration file.

The file is the one that `lerobot-calibrate` writes, for each joint `id`, `drive_mode`, `homing_offset`, `range_min`,
`range_max` [ticks]. A joint is at zero in the middle of its range, as in `so101_new_calib.urdf`, and 4096 ticks are a
turn. The gripper is closed at `range_min` and open at `range_max`.

Source: lerobot (`robots/so_follower`, `motors/feetech`), Feetech's memory table of the STS3215.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...errors import ConfigError, ControlError, EnvironmentMissing
from ..robot.robots import RobotModel
from ..robot.transforms import Array
from .driver import Pacer
from .feetech import BAUD_RATE, ERROR_NAMES, FeetechBus, Port, from_register, to_register
from .streaming import ArmState, StreamingDriver

MODEL_NUMBER = 777
"""What an STS3215 calls itself."""

TICKS_A_TURN = 4096
RAD_A_TICK = 2.0 * math.pi / TICKS_A_TURN

MODEL, HOMING_OFFSET, OPERATING_MODE, TORQUE_ENABLE, ACCELERATION = 3, 31, 33, 40, 41
GOAL_POSITION, GOAL_VELOCITY, TORQUE_LIMIT, PRESENT = 42, 46, 48, 56
"""Addresses of registers; from `PRESENT` on position, velocity, load (two bytes each), voltage and temperature."""

_PRESENT_SIZE = 8
_OFFSET_SIGN, _SIGN = 11, 15
FASTEST_ACCELERATION = 254
GRIPPER_TORQUE = 500
"""Torque limit [0.1 %] of the gripper, whose motor burns out where it squeezes with all of it."""
TIMEOUT = 0.02
"""How long [s] the bus waits for an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServoCalibration:
    """One servo: id, and its range and offset [ticks]; inverted: counts against the joint's axis."""

    id: int
    homing_offset: int
    range_min: int
    range_max: int
    inverted: bool = False

    @property
    def middle(self) -> float:
        """Where the joint is at zero [ticks]."""
        return (self.range_min + self.range_max) / 2

    @property
    def sign(self) -> float:
        """1, or -1 for a servo that counts against the joint."""
        return -1.0 if self.inverted else 1.0


def read_calibration(path: str | os.PathLike[str]) -> dict[str, ServoCalibration]:
    """Read a calibration file of lerobot: servos by the name of their joint.

    Raises:
        ConfigError: no such file, another form, numbers that cannot be, or two servos with one id.
    """
    place = Path(path)
    hint = "write one with `lerobot-calibrate` (it is kept under ~/.cache/huggingface/lerobot/calibration)"
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"calibration file {place}: {error.strerror}; {hint}.") from error
    except ValueError as error:
        raise ConfigError(f"calibration file {place} is no JSON ({error}); {hint}.") from error
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"calibration file {place}: expected joints by name, got {type(content).__name__}; {hint}.")
    servos = {}
    for name, row in content.items():
        try:
            numbers = {key: int(row[key]) for key in ("id", "homing_offset", "range_min", "range_max")}
            servo = ServoCalibration(**numbers, inverted=bool(row.get("drive_mode", 0)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"calibration file {place}, '{name}': expected id, homing_offset, range_min and range_max as numbers, "
                f"got {row}; {hint}."
            ) from error
        if not (0 <= servo.range_min < servo.range_max < TICKS_A_TURN and 0 <= servo.id < 254):
            raise ConfigError(
                f"calibration file {place}, '{name}': expected 0 <= range_min < range_max < {TICKS_A_TURN} and an id "
                f"below 254, got {row}; calibrate again."
            )
        servos[name] = servo
    if len({servo.id for servo in servos.values()}) != len(servos):
        raise ConfigError(f"calibration file {place}: two servos have one id; expected one each; set the ids apart.")
    return servos


class So101Endpoint:
    """The wire to an SO-100 or SO-101."""

    rate_hz = 100.0

    def __init__(self, robot: RobotModel, calibration: str | os.PathLike[str], port: str | Port) -> None:
        """Read the calibration; `port` is a device (`/dev/ttyACM0`, `COM3`) or an open port.

        Raises:
            ConfigError: a calibration that cannot be read or lacks joints of the robot.
            EnvironmentMissing: pyserial is not installed.
        """
        servos = read_calibration(calibration)
        missing = [name for name in robot.joint_names if name not in servos]
        others = [name for name in servos if name not in robot.joint_names]
        if missing or len(others) > 1:
            raise ConfigError(
                f"calibration file {calibration}: expected the joints {list(robot.joint_names)} of {robot.name} and at "
                f"most a gripper, got {list(servos)}; give the file of this arm, or its URDF with the same names."
            )
        self.joints = [servos[name] for name in robot.joint_names]
        self.gripper = servos[others[0]] if others else None
        self._names = [*robot.joint_names, *others]
        self._port = port
        self._bus: FeetechBus | None = None
        if isinstance(port, str):
            _serial()

    @property
    def _servos(self) -> list[ServoCalibration]:
        return [*self.joints, *([self.gripper] if self.gripper else [])]

    def open(self) -> None:
        """Find every servo and compare it with its calibration."""
        if isinstance(self._port, str):
            serial = _serial()
            try:
                port = cast(Port, serial.Serial(self._port, BAUD_RATE, timeout=TIMEOUT, write_timeout=TIMEOUT))
            except (OSError, ValueError) as error:
                raise ControlError(
                    f"serial port {self._port} cannot be opened ({error}); check the name, and that you may use it."
                ) from error
        else:
            port = self._port
        self._bus = bus = FeetechBus(port)
        for name, servo in zip(self._names, self._servos, strict=True):
            model = int.from_bytes(bus.read(servo.id, MODEL, 2), "little")
            if model != MODEL_NUMBER:
                raise ControlError(f"Servo {servo.id} ({name}) is model {model}; expected {MODEL_NUMBER} (STS3215).")
            offset = from_register(bus.read(servo.id, HOMING_OFFSET, 2), _OFFSET_SIGN)
            if offset != servo.homing_offset:
                raise ControlError(
                    f"Servo {servo.id} ({name}) has homing offset {offset}, the calibration file "
                    f"{servo.homing_offset}; expected the same: the file is of another arm, or older than the last "
                    "calibration. Give the right file or calibrate again."
                )
            mode = bus.read(servo.id, OPERATING_MODE, 1)[0]
            if mode != 0:
                raise ControlError(f"Servo {servo.id} ({name}) is in mode {mode}; expected 0, position control.")

    def read(self) -> ArmState:
        """Read all servos by one frame."""
        bus = self._connected()
        identities = [servo.id for servo in self._servos]
        rows = bus.sync_read(identities, PRESENT, _PRESENT_SIZE)
        ticks = np.array([float(from_register(row[:2], _SIGN)) for row in rows])
        speeds = np.array([float(from_register(row[2:4], _SIGN)) for row in rows])
        count = len(self.joints)
        middles, signs = (np.array([getattr(s, key) for s in self.joints]) for key in ("middle", "sign"))
        opening = None
        if self.gripper is not None:
            opening = (ticks[-1] - self.gripper.range_min) / (self.gripper.range_max - self.gripper.range_min)
            opening = 1.0 - opening if self.gripper.inverted else opening
        return ArmState(
            positions=(ticks[:count] - middles) * signs * RAD_A_TICK,
            velocities=speeds[:count] * signs * RAD_A_TICK,
            gripper=opening,
            fault="; ".join(self._faults()),
        )

    def begin(self, state: ArmState) -> None:
        """Set the goals where the servos are, then switch on their torque."""
        bus = self._connected()
        self._write_goals(state.positions, state.gripper)
        for servo in self._servos:
            bus.write(servo.id, ACCELERATION, bytes([FASTEST_ACCELERATION]))
            bus.write(servo.id, GOAL_VELOCITY, b"\x00\x00")
        if self.gripper is not None:
            bus.write(self.gripper.id, TORQUE_LIMIT, to_register(GRIPPER_TORQUE, _SIGN))
        # A servo whose torque is switched on goes for its goal; written again, it is where the arm is.
        self._write_goals(state.positions, state.gripper)
        for servo in self._servos:
            bus.write(servo.id, TORQUE_ENABLE, b"\x01")

    def write(self, positions: Array, gripper: float) -> None:
        """Send the goals of all servos by one frame."""
        self._write_goals(positions, gripper)

    def hold(self) -> None:
        """Send nothing more: the servos go to their last goal, at most one command away, and hold it by themselves."""

    def close(self) -> None:
        """Close the port; the servos keep their torque and hold."""
        if self._bus is not None:
            bus, self._bus = self._bus, None
            bus.close()

    def _connected(self) -> FeetechBus:
        if self._bus is None:
            raise ControlError("The serial port is closed; call connect first.")
        return self._bus

    def _write_goals(self, positions: Array, gripper: float | None) -> None:
        """Write goals [rad], and the gripper's opening unless it is None, within the calibrated ranges."""
        values = {}
        for servo, position in zip(self.joints, positions.tolist(), strict=True):
            values[servo.id] = _within(servo, servo.middle + servo.sign * position / RAD_A_TICK)
        if self.gripper is not None and gripper is not None:
            servo = self.gripper
            share = 1.0 - gripper if servo.inverted else gripper
            values[servo.id] = _within(servo, servo.range_min + share * (servo.range_max - servo.range_min))
        self._connected().sync_write(GOAL_POSITION, values)

    def _faults(self) -> list[str]:
        """Return what the servos' last answers complain of."""
        bus = self._connected()
        found = []
        for name, servo in zip(self._names, self._servos, strict=True):
            bits = bus.errors.get(servo.id, 0)
            named = [text for bit, text in ERROR_NAMES.items() if bits & bit]
            rest = bits & ~sum(ERROR_NAMES)
            named += [f"error bits {rest:#x}"] if rest else []
            found += [f"servo {servo.id} ({name}): {text}" for text in named]
        return found


def _within(servo: ServoCalibration, ticks: float) -> bytes:
    """Return the goal register for a position [ticks], kept within the servo's range."""
    return to_register(round(min(max(ticks, servo.range_min), servo.range_max)), _SIGN)


def _serial() -> Any:
    """Import pyserial.

    Raises:
        EnvironmentMissing: it is not installed.
    """
    try:
        return importlib.import_module("serial")
    except ImportError as error:
        raise EnvironmentMissing("The SO-101 driver needs pyserial: pip install 'gr2[so101]'.") from error


def so101_driver(
    robot: RobotModel,
    calibration: str | os.PathLike[str],
    port: str | Port = "/dev/ttyACM0",
    *,
    pacer: Pacer | None = None,
    max_lost: int = 2,
) -> StreamingDriver:
    """Return a driver of an SO-100 or SO-101.

    Args:
        robot: the arm's model; its joints are named as in the calibration file.
        calibration: the file that `lerobot-calibrate` wrote for this arm.
        port: device of the serial adapter, or an open port.
        pacer: sets the rate, None for 100 Hz.
        max_lost: answers in a row that may be missing; USB adapters lose one now and then.
    """
    return StreamingDriver(robot, So101Endpoint(robot, calibration, port), pacer=pacer, max_lost=max_lost)
