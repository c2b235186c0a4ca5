"""Let an arm draw a circle: `python examples/circle.py [ARM.urdf [q1 q2 ...]]`, from its home or from q [rad]."""

import numpy as np
from jsonargparse import ArgumentParser

from gr2.contracts import ActionTrajectory
from gr2.wbc.controller import WholeBodyController
from gr2.wbc.robot.catalog import load_robot
from gr2.wbc.robot.kinematics import Kinematics
from gr2.wbc.robot.transforms import quaternion_from_matrix
from gr2.wbc.robot.urdf_reader import UrdfOptions

RADIUS, PERIOD, STEP, REPLAN = 0.05, 4.0, 0.05, 0.2  # [m], [s] for a round, between poses, between chunks
parser = ArgumentParser(description=__doc__)
parser.add_argument("robot", nargs="?", default="kinova_gen3")
parser.add_argument("start", nargs="*", type=float)
parser.add_class_arguments(UrdfOptions, "urdf")  # how the file is read: --urdf.tool_link NAME, --urdf.velocity 2 ...
given = parser.instantiate(parser.parse_args())
robot = load_robot(given.robot, given.urdf)
print("\n".join(robot.notes))
start = np.array(given.start) if given.start else robot.home
kinematics, controller = Kinematics(robot), WholeBodyController(robot)
controller.reset(joint_positions=start, gripper=1.0, time=0.0)
home = kinematics.forward(start).tool  # [4 4], tool in the base frame


def circle(times):
    """Return the points `[k 3]` [m] at `times` `[k]` [s]: a circle that begins, at rest, where the tool is."""
    rounds = np.where(times < PERIOD, 0.5 * (times / PERIOD) ** 2, times / PERIOD - 0.5)
    x, y = RADIUS * np.cos(2 * np.pi * rounds) - RADIUS, RADIUS * np.sin(2 * np.pi * rounds)
    return home[:3, 3] + np.stack([x, y, 0.0 * x], axis=-1)


errors = []
for tick in range(int(4 * PERIOD / controller.dt)):
    now = tick * controller.dt
    if tick % round(REPLAN / controller.dt) == 0:  # a policy sends a chunk of poses, again and again
        points = circle(now + STEP * np.arange(1, 21))
        turns = np.tile(quaternion_from_matrix(home[:3, :3]), (20, 1))
        chunk = {"positions": points, "quaternions": turns, "gripper": np.ones(20), "dt": STEP}
        controller.accept(ActionTrajectory(**chunk, start_time=now))
    command = controller.step(now)  # joint positions and velocities for the arm, 200 times a second
    tool = kinematics.forward(command.positions).tool
    errors.append(np.linalg.norm(tool[:3, 3] - circle(np.array([now + controller.dt]))[0]))
print(f"{robot.name}: {len(errors)} ticks, status {command.status}, tool error {1e3 * np.max(errors):.2f} mm at most")
