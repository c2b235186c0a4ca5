"""PlayTable under Gymnasium's ids, registered by importing this module.

import gymnasium, gr2.benchmarks.environments
env = gymnasium.make("gr2/PlayTable-v0", render_mode=None)                 # CALVIN's world, reward 0
env = gymnasium.make("gr2/PlayTableTask-v0", task="turn_on_led")           # one task, from random scenes
"""

from __future__ import annotations

from gymnasium import register

register(id="gr2/PlayTable-v0", entry_point="gr2.benchmarks.playtable.environment:PlayTable")
register(
    id="gr2/PlayTableTask-v0",
    entry_point="gr2.benchmarks.calvin.task_environment:TaskEnvironment",
    max_episode_steps=360,
)
