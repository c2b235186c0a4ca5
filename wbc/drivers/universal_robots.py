"""Universal Robots: joint positions in registers of the controller, which a program there follows with `servoj`.

The program is sent when the driver connects. It has a watchdog on the registers, so that the arm stops by itself when
no new ones come, and it writes the number of the command that it follows into a register, which the driver watches.

Source: Universal Robots, RTDE guide and URScript manual (`servoj`, `rtde_set_watchdog`, registers).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import cast

import numpy as np

from ...errors import ConfigError, ControlError
from ..robot.robots import RobotModel
from ..robot.transforms import Array
from .driver import Pacer
from .rtde import PORT, RtdeClient, Value
from .streaming import ArmState, StreamingDriver

SCRIPT_PORT = 30002
"""Port of the secondary client interface, which takes programs."""

NUM_JOINTS = 6
REGISTER = 24
"""The first of the registers that are left to clients; lower ones belong to a fieldbus."""

COUNTER_IN, COUNTER_OUT = f"input_int_register_{REGISTER}", f"output_int_register_{REGISTER}"
JOINT_REGISTERS = [f"input_double_register_{REGISTER + joint}" for joint in range(NUM_JOINTS)]
OUTPUTS = ["actual_q", "actual_qd", "robot_mode", "safety_mode", "runtime_state", COUNTER_OUT]

RUNNING, PLAYING = 7, 2
"""`robot_mode` of an arm with power and released brakes; `runtime_state` while a program runs."""

SAFETY_MODES = {
    3: "protective stop",
    4: "recovery mode",
    5: "safeguard stop",
    6: "emergency stop of the system",
    7: "emergency stop of the robot",
    8: "violation of a safety limit",
    9: "safety fault",
}
"""`safety_mode` in which the arm takes no commands."""
FREE = (1, 2)
"""`safety_mode` in which it does: normal, reduced."""

START_TIME = 5.0
"""Time [s] within which the program must have begun."""
WATCHDOG_HZ = 20
"""Updates a second below which the controller itself ends the program."""
MOST_BEHIND = 25
"""Commands by which the program may lag before it counts as stuck."""
_LARGEST_COUNT = 2**31 - 1

PROGRAM = """def gr2_follow():
  rtde_set_watchdog("{counter}", {watchdog}, "stop")
  while read_input_integer_register({register}) > 0:
    write_output_integer_register({register}, read_input_integer_register({register}))
    q = [{joints}]
    servoj(q, t={period:.4f}, lookahead_time={lookahead:.3f}, gain={gain:.0f})
  end
  stopj({deceleration:.1f})
end
"""


class UniversalRobotsEndpoint:
    """The wire to a UR arm of the CB or e series."""

    def __init__(
        self,
        host: str,
        *,
        rate_hz: float = 125.0,
        lookahead: float = 0.03,
        gain: float = 300.0,
        deceleration: float = 4.0,
        ports: tuple[int, int] = (PORT, SCRIPT_PORT),
    ) -> None:
        """Prepare.

        Args:
            host: address of the controller.
            rate_hz: commands a second, 125 for all series, up to 500 for the e series.
            lookahead: how far `servoj` smooths [s], 0.03 to 0.2; the arm hangs back by about as much.
            gain: of `servoj`, 100 to 2000.
            deceleration: with which the program's end stops the arm [rad/s^2].
            ports: of RTDE and of programs.

        Raises:
            ConfigError: numbers that `servoj` does not take.
        """
        if not (0.03 <= lookahead <= 0.2 and 100.0 <= gain <= 2000.0 and WATCHDOG_HZ < rate_hz <= 500.0):
            raise ConfigError(
                f"expected lookahead in 0.03..0.2 s, gain in 100..2000 and rate_hz in {WATCHDOG_HZ}..500, got "
                f"{lookahead}, {gain} and {rate_hz}."
            )
        self.rate_hz, self.lookahead, self.gain, self.deceleration = rate_hz, lookahead, gain, deceleration
        self._host, self._ports = host, ports
        self._rtde: RtdeClient | None = None
        self._count, self._playing = 0, False

    def open(self) -> None:
        """Connect and agree on the fields."""
        self._rtde = rtde = RtdeClient(self._host, port=self._ports[0])
        rtde.receive_fields(OUTPUTS, self.rate_hz)
        rtde.send_fields([COUNTER_IN, *JOINT_REGISTERS])
        rtde.start()
        self._count, self._playing = 0, False

    def read(self) -> ArmState:
        """Return the newest state; three periods without one count as a lost answer."""
        fields = self._connected().receive(within=3.0 / self.rate_hz + 0.01)
        return ArmState(
            positions=np.array(fields["actual_q"]), velocities=np.array(fields["actual_qd"]), fault=self._fault(fields)
        )

    def begin(self, state: ArmState) -> None:
        """Write the measured joints to the registers, then start the program that follows them."""
        rtde = self._connected()
        self._send(state.positions)
        try:
            with socket.create_connection((self._host, self._ports[1]), timeout=2.0) as connection:
                connection.sendall(self.program().encode())
                deadline = time.monotonic() + START_TIME
                while time.monotonic() < deadline:
                    fields = rtde.receive(within=0.5)
                    if fields["runtime_state"] == PLAYING and fields[COUNTER_OUT] == self._count:
                        self._playing = True
                        return
                    self._send(state.positions, advance=False)
        except OSError as error:
            raise ControlError(
                f"The controller takes no programs at {self._host}:{self._ports[1]} ({error}); enable that interface."
            ) from error
        raise ControlError(
            f"The controller did not start the program within {START_TIME:.0f} s; expected remote control (e series: "
            "switch to 'Remote' on the pendant), no other program running, and the arm powered on."
        )

    def write(self, positions: Array, gripper: float) -> None:
        """Send joint positions; a UR arm has no gripper of its own."""
        self._send(positions)

    def hold(self) -> None:
        """End the program, which stops the arm; without a connection its watchdog does so."""
        if self._playing:
            self._playing = False
            self._count = 0
            self._connected().send({COUNTER_IN: 0} | dict.fromkeys(JOINT_REGISTERS, 0.0))

    def close(self) -> None:
        """Close the connection."""
        if self._rtde is not None:
            rtde, self._rtde = self._rtde, None
            rtde.close()

    def program(self) -> str:
        """Return the program that follows the registers."""
        return PROGRAM.format(
            counter=COUNTER_IN,
            watchdog=WATCHDOG_HZ,
            register=REGISTER,
            joints=", ".join(f"read_input_float_register({REGISTER + joint})" for joint in range(NUM_JOINTS)),
            period=1.0 / self.rate_hz,
            lookahead=self.lookahead,
            gain=self.gain,
            deceleration=self.deceleration,
        )

    def _connected(self) -> RtdeClient:
        if self._rtde is None:
            raise ControlError("There is no connection to the controller; call connect first.")
        return self._rtde

    def _send(self, positions: Array, *, advance: bool = True) -> None:
        """Send joints under the next number, or again under the last one."""
        if advance:
            self._count = self._count % _LARGEST_COUNT + 1
        joints: dict[str, Value] = dict(zip(JOINT_REGISTERS, positions.tolist(), strict=True))
        self._connected().send({COUNTER_IN: self._count} | joints)

    def _fault(self, fields: Mapping[str, Value]) -> str:
        """Return why the arm takes no commands."""
        safety = int(cast(float, fields["safety_mode"]))
        if safety not in FREE:
            return f"{SAFETY_MODES.get(safety, f'safety mode {safety}')}; release it on the pendant"
        if fields["robot_mode"] != RUNNING:
            return f"robot mode {fields['robot_mode']}; expected {RUNNING}: switch the arm on and release its brakes"
        if self._playing and fields["runtime_state"] != PLAYING:
            return "the program was stopped (its watchdog, the pendant, or another client)"
        followed = int(cast(float, fields[COUNTER_OUT]))
        if self._playing and (self._count - followed) % _LARGEST_COUNT > MOST_BEHIND:
            return f"the program follows command {followed}; {self._count} was sent"
        return ""


def universal_robots_driver(
    robot: RobotModel, host: str, *, pacer: Pacer | None = None, max_lost: int = 0, rate_hz: float = 125.0
) -> StreamingDriver:
    """Return a driver of a UR arm.

    Args:
        robot: the arm's model, with its six joints from the base on.
        host: address of the controller.
        pacer: sets the rate, None for `rate_hz`.
        max_lost: answers in a row that may be missing.
        rate_hz: commands a second, up to 500 for the e series.

    Raises:
        ConfigError: a robot with another number of joints.
    """
    if robot.num_joints != NUM_JOINTS:
        raise ConfigError(f"{robot.name} has {robot.num_joints} joints; expected the {NUM_JOINTS} of a UR arm.")
    endpoint = UniversalRobotsEndpoint(host, rate_hz=rate_hz)
    return StreamingDriver(robot, endpoint, pacer=pacer, max_lost=max_lost)
