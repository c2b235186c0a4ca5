"""The wire to a Kinova arm in the arm's own units, and the adapter of the vendor's package to it.

Source: Kinova Kortex API 2.6 documentation (sessions, servoing modes, BaseCyclic messages, fault banks).
"""

from __future__ import annotations

import importlib
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from ...errors import ControlError, EnvironmentMissing

TCP_PORT, UDP_PORT = 10000, 10001
"""Ports of configuration and of cyclic frames."""

SERVOING_LOW_LEVEL, IN_FAULT = 6, 4
"""States of the arm (`ArmState`) that matter here."""

SERVO_ENABLE = 1
"""Flag of an actuator that follows the position it is sent (`CommandFlags`)."""

FAULT_NAMES = {
    0x1: "following error",
    0x2: "maximum velocity",
    0x4: "upper joint limit",
    0x8: "lower joint limit",
    0x20: "maximum torque",
    0x200000: "emergency line",
    0x400000: "communication tick lost",
    0x800000: "watchdog",
}
"""Bits of an actuator's fault bank A that have a name here (`SafetyIdentifierBankA`)."""

_SESSION_TIMEOUT_MS, _CONNECTION_TIMEOUT_MS, _CLOSE_TIMEOUT_MS = 10000, 2000, 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A cyclic command.

    frame_id: 0 to 65535, counting up and wrapping; actuators drop frames that are older than the last one.
    positions: `j` actuator positions in [0, 360) [deg].
    gripper_position: 0 open to 100 closed [%], None for an arm without a gripper.
    gripper_speed, gripper_force: [%].
    """

    frame_id: int
    positions: tuple[float, ...]
    gripper_position: float | None
    gripper_speed: float = 100.0
    gripper_force: float = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """A cyclic answer.

    positions: `j` in [0, 360) [deg]; velocities: `j` [deg/s].
    gripper_position: 0 open to 100 closed [%], None for an arm without a gripper.
    arm_state: number of the vendor's `ArmState`.
    faults: what is wrong, one phrase each.
    """

    positions: tuple[float, ...]
    velocities: tuple[float, ...]
    gripper_position: float | None
    arm_state: int
    faults: tuple[str, ...] = ()


class KortexEndpoint(Protocol):
    """The calls of the arm's base that the driver needs."""

    def open(self) -> None:
        """Open the sessions; after an error nothing stays open."""

    def num_actuators(self) -> int:
        """Return the number of joints."""

    def set_low_level(self, enabled: bool) -> None:
        """Choose low-level servoing (cyclic frames) or the base's own control."""

    def feedback(self) -> Feedback:
        """Read the state without commanding anything."""

    def exchange(self, frame: Frame) -> Feedback:
        """Command one cycle and read the state; raises `ControlError` when no answer comes in time."""

    def clear_faults(self) -> None:
        """Ask the base to clear its faults."""

    def close(self) -> None:
        """Close the sessions; may be called twice."""


def describe_faults(name: str, bank_a: int, bank_b: int) -> tuple[str, ...]:
    """Return phrases for the fault banks of one device, none where both are 0."""
    named = [f"{name}: {text}" for bit, text in FAULT_NAMES.items() if bank_a & bit]
    rest = bank_a & ~sum(FAULT_NAMES)
    if rest or bank_b:
        named.append(f"{name}: fault banks {rest:#x} {bank_b:#x}")
    return tuple(named)


class _Session:
    """A transport, its router and a login on one port."""

    def __init__(self, transport: Any, host: str, port: int, user: str, password: str) -> None:
        self.transport = transport
        router = _vendor("RouterClient").RouterClient
        self.router = router(transport, router.basicErrorCallback)
        self._login: Any = None
        transport.connect(host, port)
        try:
            info = _vendor("autogen.messages.Session_pb2").CreateSessionInfo()
            info.username, info.password = user, password
            info.session_inactivity_timeout = _SESSION_TIMEOUT_MS
            info.connection_inactivity_timeout = _CONNECTION_TIMEOUT_MS
            login = _vendor("SessionManager").SessionManager(self.router)
            login.CreateSession(info)
            self._login = login
        except BaseException:
            transport.disconnect()
            raise

    def close(self) -> None:
        """Log out and disconnect, the latter whatever happens."""
        try:
            if self._login is not None:
                self._login.CloseSession(_options(_CLOSE_TIMEOUT_MS))
        finally:
            self._login = None
            self.transport.disconnect()


class _VendorEndpoint:
    """The endpoint of a real arm, by way of the package `kortex_api`."""

    def __init__(self, host: str, user: str, password: str, *, timeout_ms: int = 3) -> None:
        """Check that the vendor's package is there; `timeout_ms` bounds a cyclic exchange [ms].

        Raises:
            EnvironmentMissing: the package is not installed.
        """
        _vendor("RouterClient")
        self._address = (host, user, password)
        self._timeout_ms = timeout_ms
        self._sessions: list[_Session] = []
        self._base: Any = None
        self._cyclic: Any = None
        self._command: Any = None

    def open(self) -> None:
        """Log in for configuration and for cyclic frames."""
        host, user, password = self._address
        transports = (
            (_vendor("TCPTransport").TCPTransport, TCP_PORT),
            (_vendor("UDPTransport").UDPTransport, UDP_PORT),
        )
        try:
            for transport, port in transports:
                self._sessions.append(_Session(transport(), host, port, user, password))
        except BaseException:
            self.close()
            raise
        stubs = "autogen.client_stubs"
        self._base = _vendor(f"{stubs}.BaseClientRpc").BaseClient(self._sessions[0].router)
        self._cyclic = _vendor(f"{stubs}.BaseCyclicClientRpc").BaseCyclicClient(self._sessions[1].router)
        self._command = None

    def num_actuators(self) -> int:
        """Ask the base."""
        return int(self._base.GetActuatorCount().count)

    def set_low_level(self, enabled: bool) -> None:
        """Set the servoing mode of the base."""
        messages = _vendor("autogen.messages.Base_pb2")
        mode = messages.ServoingModeInformation()
        mode.servoing_mode = messages.LOW_LEVEL_SERVOING if enabled else messages.SINGLE_LEVEL_SERVOING
        self._base.SetServoingMode(mode)

    def feedback(self) -> Feedback:
        """Read one cyclic feedback."""
        return self._answer(self._cyclic.RefreshFeedback)

    def exchange(self, frame: Frame) -> Feedback:
        """Fill the command message, send it, and read the answer."""
        if self._command is None:
            self._command = self._new_command(frame)
        command = self._command
        command.frame_id = frame.frame_id
        for actuator, position in zip(command.actuators, frame.positions, strict=True):
            actuator.command_id, actuator.flags, actuator.position = frame.frame_id, SERVO_ENABLE, position
        if frame.gripper_position is not None:
            motor = command.interconnect.gripper_command.motor_cmd[0]
            motor.position, motor.velocity = frame.gripper_position, frame.gripper_speed
            motor.force = frame.gripper_force
        return self._answer(self._cyclic.Refresh, command, 0)

    def clear_faults(self) -> None:
        """Ask the base to clear them."""
        self._base.ClearFaults()

    def close(self) -> None:
        """Close the cyclic session, then the other one, each whatever happens to the other."""
        if not self._sessions:
            return
        try:
            self._sessions.pop().close()
        finally:
            self.close()

    def _new_command(self, frame: Frame) -> Any:
        command = _vendor("autogen.messages.BaseCyclic_pb2").Command()
        for _ in frame.positions:
            command.actuators.add()
        if frame.gripper_position is not None:
            command.interconnect.command_id.identifier = 0
            command.interconnect.gripper_command.command_id.identifier = 0
            command.interconnect.gripper_command.motor_cmd.add()
        return command

    def _answer(self, call: Any, *arguments: Any) -> Feedback:
        """Call the cyclic service and convert what it returns."""
        vendor_error = _vendor("Exceptions.KException").KException
        try:
            feedback = call(*arguments, options=_options(self._timeout_ms))
        except (FutureTimeoutError, TimeoutError, OSError, vendor_error) as error:
            raise ControlError(
                f"The arm did not answer a cyclic frame within {self._timeout_ms} ms: {error!r}"
            ) from error
        faults = describe_faults("base", 0, feedback.base.fault_bank_b)
        if feedback.base.fault_bank_a:
            faults += (f"base: fault bank A {feedback.base.fault_bank_a:#x}",)
        for number, actuator in enumerate(feedback.actuators, start=1):
            faults += describe_faults(f"actuator {number}", actuator.fault_bank_a, actuator.fault_bank_b)
        motors = feedback.interconnect.gripper_feedback.motor
        return Feedback(
            positions=tuple(float(a.position) for a in feedback.actuators),
            velocities=tuple(float(a.velocity) for a in feedback.actuators),
            gripper_position=float(motors[0].position) if len(motors) else None,
            arm_state=int(feedback.base.active_state),
            faults=faults,
        )


def _options(timeout_ms: int) -> Any:
    options = _vendor("RouterClient").RouterClientSendOptions()
    options.timeout_ms = timeout_ms
    return options


def _vendor(module: str) -> ModuleType:
    """Import a module of the vendor's package.

    Raises:
        EnvironmentMissing: the package is not installed.
    """
    try:
        return importlib.import_module(f"kortex_api.{module}")
    except ImportError as error:
        raise EnvironmentMissing(
            "The Kinova driver needs the vendor's package kortex_api, which is not on PyPI: download the wheel named "
            "in api_python/examples/readme.md of https://github.com/Kinovarobotics/kortex and install it with "
            f"`pip install <wheel>` ({error})."
        ) from error


def vendor_endpoint(host: str, user: str, password: str) -> KortexEndpoint:
    """Return the endpoint of a real arm.

    Raises:
        EnvironmentMissing: the vendor's package is not installed.
    """
    return _VendorEndpoint(host, user, password)
