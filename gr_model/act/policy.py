"""From observations to trajectories: the model as a policy."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...contracts import Array, Chunking, Observation, Trajectory, rgb_image
from ...cvae_head.denoising import DenoisingHead
from ...cvae_head.ensemble import TemporalEnsemble
from ...cvae_head.inpainting import Running, soft_mask
from ...cvae_head.motions import UNCORRECTED
from ...cvae_head.signals import SignalCoding, place_actions
from ...embodiment import Embodiment
from ...errors import ConfigError, ShapeError
from ..model.context import Context, Thought
from ..model.world_model import WorldModel
from .thoughts import Thoughts, stack_thoughts, think_of

EncodeImages = Callable[[Array], Array]
"""uint8 `[m h w 3]` -> codes `[m n]`."""

EncodeText = Callable[[Sequence[str]], tuple[Array, Array]]
"""Instructions -> features `[b l t]` and mask `[b l]`."""


class GR2Policy:
    """One forward pass a call; frames are never predicted while acting.

    Args:
        encode_images: of the frozen image tokenizer, on images of the size it was trained for.
        encode_text: of the frozen text encoder.
        control_hz: rate of the predicted poses [Hz].
        executed_steps: poses to be executed between calls; with a context of more than one frame this is also
            the distance of the remembered frames, so give the distance the model was trained with.
        chunking: how a chunk relates to the running one, see `Chunking`.
        latency: how long after its observation a chunk becomes available [s]; inpainting freezes what is executed
            until then. Of a model at two speeds (`--head.network fast`) it is that of its slow part; chunks follow at
            once. None, for such a model, thinks in a thread, for as long as that takes.
        ensemble: averages overlapping trajectories; None executes the newest, or makes one for `chunking="ensemble"`.
        seed: of the choice among motions. The choice follows from it, the time and the state alone, so that an
            episode is the same whichever others are acted out beside it.
        embodiment: the robot to act for, where the model serves several: its name, or one that it must fit.
        frame_step: distance of the frames of training [control steps]; None takes executed_steps.

    Raises:
        ConfigError: a number out of range, a way of chunking that the head does not have, or a robot that the model
            does not know.
    """

    def __init__(
        self,
        model: WorldModel,
        *,
        encode_images: EncodeImages,
        encode_text: EncodeText,
        control_hz: float,
        executed_steps: int = 5,
        chunking: Chunking = "independent",
        latency: float | None = 0.0,
        ensemble: TemporalEnsemble | None = None,
        seed: int = 0,
        embodiment: str | Embodiment | None = None,
        frame_step: int | None = None,
    ) -> None:
        self.place_in_model = model.config.place_of(embodiment)
        if not 1 <= executed_steps <= model.config.chunk_length:
            raise ConfigError(
                f"GR2Policy.executed_steps: expected 1 to {model.config.chunk_length} (the chunk), got "
                f"{executed_steps}; "
                "execute fewer steps or train a longer chunk."
            )
        self.model = model.eval()
        self.encode_images, self.encode_text = encode_images, encode_text
        self.thoughts: Thoughts | None = None
        if model.head.reads == "late":
            self.thoughts = Thoughts(latency, (frame_step or executed_steps) / control_hz)
            latency = self.chunk_latency = 0.0
        if latency is None or not 0 <= latency < model.config.chunk_length / control_hz:
            raise ConfigError(
                f"GR2Policy.latency: expected 0 to below {model.config.chunk_length / control_hz:.3g} s (the chunk), "
                f"got {latency}; a later chunk is over when it arrives: make the policy faster or train a longer chunk."
            )
        self.dt = 1.0 / control_hz
        self.executed_steps = executed_steps
        self.chunking = _resolved(chunking, model, ensemble)
        self.ensemble = TemporalEnsemble() if self.chunking == "ensemble" and ensemble is None else ensemble
        self._frozen_steps = math.ceil(latency * control_hz - 1e-6)
        self._running: tuple[Array, float] | None = None
        self.seed = seed
        frames = model.config.max_context if self.thoughts is None else 1
        self.history: deque[tuple[dict[str, Array], Array]] = deque(maxlen=frames)
        self._correction = UNCORRECTED
        self.said = ""
        self._instruction = ""
        self._text: tuple[Tensor, Tensor] | None = None

    def reset(self) -> None:
        """Forget remembered frames, trajectories and corrections."""
        self.history.clear()
        self._correction, self.said = UNCORRECTED, ""
        if self.thoughts is not None:
            self.thoughts.reset()
        self._running = None
        if self.ensemble is not None:
            self.ensemble.reset()

    def correct(self, words: str | None) -> None:
        """Say how to move, in place of what the model would say, until None is given or the episode ends.

        Args:
            words: as "carry: move arm left, close gripper"; what they do not name (sub-step, arm or gripper) is left
                to the model. `said` has what it followed last.

        Raises:
            ConfigError: a model that says no motions, or words that name none.
        """
        if self.model.motion is None:
            raise ConfigError(
                "correction: expected a model that says its motion, got one that does not; train one with "
                "--model.motions."
            )
        self._correction = UNCORRECTED if words is None else self.model.motion.parse(words)

    def act(self, observation: Observation) -> Trajectory:
        """Encode the images, predict a chunk, place it at the present tool pose.

        Raises:
            ShapeError: none of the model's cameras is observed.
        """
        return act_together([self], [observation])[0]

    @staticmethod
    def act_together(policies: Sequence[GR2Policy], observations: Sequence[Observation]) -> list[Trajectory]:
        """Let policies over one model act in one forward pass; see the function of this name."""
        return act_together(policies, observations)

    def close(self) -> None:
        """Do nothing: a policy holds nothing open, and the model may serve others."""

    def remember(self, observation: Observation, codes: dict[str, Array]) -> Context:
        """Append a frame to the history and return what the model sees."""
        self.history.append((codes, observation.state_vector()))
        return self.context(observation.instruction)

    def noise(self, observation: Observation) -> Array:
        """Return the head's noise `[z]` for an observation."""
        content = observation.state_vector().tobytes() + repr((self.seed, float(observation.time))).encode()
        rng = np.random.default_rng(np.frombuffer(hashlib.sha256(content).digest(), np.uint32))
        return rng.standard_normal(self.model.head.noise_dim, dtype=np.float32)

    @property
    def embodiment(self) -> Embodiment:
        """The robot that the policy acts for."""
        return self.model.config.embodiments[self.place_in_model]

    @property
    def coding(self) -> SignalCoding:
        """What the policy has learned of the robot's states and actions."""
        return self.model.config.slots.codings[self.place_in_model]

    @property
    def cameras(self) -> list[str]:
        """Cameras that are read: of several robots, this one's alone."""
        names = [camera.name for camera in self.model.config.cameras]
        return [n for n in names if n in self.embodiment.cameras] if self.model.config.is_mixture else names

    def place(self, chunk: Array, observation: Observation) -> Trajectory:
        """Turn a predicted chunk `[k c]` into what is to be followed."""
        own = self.model.config.slots.own(chunk, self.place_in_model)
        actions = self.coding.decode(observation.state_vector(), own)
        if self.chunking == "inpaint":
            self._running = (actions, observation.time)
        trajectory = place_actions(self.coding, actions, dt=self.dt, start_time=observation.time)
        if self.ensemble is None:
            return trajectory
        return self.ensemble.blend(trajectory, signals=self.embodiment.action)

    def rest(self, observation: Observation) -> tuple[Array, Array] | None:
        """Return the rest of the running chunk as seen from an observation `[k c]` and how much to keep of it `[k]`.

        It stands in the model's slots. Rows past its end repeat its last action and weigh 0. None where nothing runs
        that is to be continued.
        """
        if self._running is None:
            return None
        actions, start = self._running
        passed = round((observation.time - start) / self.dt)
        left = len(actions) - passed
        if passed < 0 or left < 1:
            return None
        rows = actions[np.minimum(np.arange(len(actions)) + passed, len(actions) - 1)]
        own = self.coding.encode(observation.state_vector().astype(np.float64), rows)
        chunk = self.model.config.slots.put(own, self.place_in_model)
        return chunk, soft_mask(len(actions), frozen=self._frozen_steps, overlap=left)

    def context(self, instruction: str) -> Context:
        """Return what the model sees: the remembered frames and states and the instruction."""
        device = self.model.device
        text, text_mask = self._encode_text(instruction)
        cameras = set.intersection(*(set(codes) for codes, _ in self.history))
        codes = {
            name: torch.as_tensor(np.stack([frame[name] for frame, _ in self.history]))[None].to(device)
            for name in cameras
        }
        states = torch.as_tensor(np.stack([state for _, state in self.history]))[None].to(device)
        if not self.model.config.is_mixture:
            return Context(codes=codes, text=text, text_mask=text_mask, states=states)
        states = functional.pad(states, (0, self.model.config.slots.state_dim - states.shape[-1]))
        robot = torch.full((1,), self.place_in_model, device=device)
        return Context(codes=codes, text=text, text_mask=text_mask, states=states, embodiment=robot)

    def _encode_text(self, instruction: str) -> tuple[Tensor, Tensor]:
        if self._text is None or instruction != self._instruction:
            features, mask = self.encode_text([instruction])
            length = min(int(np.sum(mask)), self.model.config.text_length)
            device = self.model.device
            self._text = (
                torch.as_tensor(features[:, : max(length, 1)]).float().to(device),
                torch.as_tensor(mask[:, : max(length, 1)]).to(device),
            )
            self._instruction = instruction
        return self._text


def _resolved(chunking: Chunking, model: WorldModel, ensemble: TemporalEnsemble | None) -> Chunking:
    """Return what a way of chunking means for the head of a model."""
    head, can = model.config.head.kind, isinstance(model.head, DenoisingHead)
    known = get_args(Chunking)
    if chunking not in known:
        raise ConfigError(f"GR2Policy.chunking: expected one of {', '.join(known)}, got {chunking!r}; choose one.")
    if chunking == "auto":
        chunking = "inpaint" if can else "ensemble"
    if chunking == "inpaint" and not can:
        raise ConfigError(
            f"GR2Policy.chunking: expected a head that is denoised step by step (flow, diffusion) to inpaint, got "
            f"{head}; choose ensemble or auto."
        )
    if chunking == "inpaint" and ensemble is not None:
        raise ConfigError(
            "GR2Policy.ensemble: expected none beside inpainted chunks, got one; leave one of the two out."
        )
    return chunking


@torch.inference_mode()
def act_together(policies: Sequence[GR2Policy], observations: Sequence[Observation]) -> list[Trajectory]:
    """Let policies over one model act at once: images of one size are encoded, and alike contexts passed, together.

    A trajectory may differ in its last digits from the one that its policy would give alone. Where it fails, no
    policy remembers it.

    Raises:
        ShapeError: none of the model's cameras is observed.
    """
    codes = _encode_all(policies, observations)
    before = [(policy.history.copy(), policy._running) for policy in policies]
    try:
        return _pass_together(policies, observations, codes)
    except Exception:
        for policy, (history, running) in zip(policies, before, strict=True):
            policy.history, policy._running = history, running
        raise


def _pass_together(
    policies: Sequence[GR2Policy], observations: Sequence[Observation], codes: Sequence[dict[str, Array]]
) -> list[Trajectory]:
    contexts = [p.remember(o, c) for p, o, c in zip(policies, observations, codes, strict=True)]
    alike: dict[tuple[object, ...], list[int]] = {}
    for i, context in enumerate(contexts):
        frames = next(iter(context.codes.values())).shape[1]
        alike.setdefault((frames, *sorted(context.codes)), []).append(i)
    trajectories: dict[int, Trajectory] = {}
    for members in alike.values():
        model = policies[0].model
        noise = torch.as_tensor(np.stack([policies[i].noise(observations[i]) for i in members]), device=model.device)
        merged = _merge([contexts[i] for i in members])
        running = _stack_running([policies[i].rest(observations[i]) for i in members], model, merged.embodiment)
        motion = _corrections([policies[i] for i in members], model)
        thought = _thoughts(policies, observations, contexts, members)
        chunks = model.act(merged, noise=noise, running=running, motion=motion, thought=thought).float().cpu().numpy()
        if model.motion is not None and motion is not None:
            for i, said in zip(members, motion.tolist(), strict=True):
                policies[i].said = model.motion.phrase(said)
        for i, chunk in zip(members, chunks, strict=True):
            trajectories[i] = policies[i].place(chunk, observations[i])
    return [trajectories[i] for i in range(len(policies))]


def _thoughts(
    policies: Sequence[GR2Policy], observations: Sequence[Observation], contexts: Sequence[Context], members: list[int]
) -> Thought | None:
    """Let policies at two speeds that are free to think do so; return what each acts on."""
    slow = [policies[i].thoughts for i in members]
    thoughts, times = [t for t in slow if t is not None], [observations[i].time for i in members]
    if not thoughts:
        return None
    model = policies[members[0]].model
    for i, thinking, time in zip(members, thoughts, times, strict=True):
        if thinking.is_free(time):
            thinking.begin(think_of(model, contexts[i], waits=thinking.latency is not None), time)
    return stack_thoughts(thoughts, times)


def _corrections(policies: Sequence[GR2Policy], model: WorldModel) -> Tensor | None:
    """Return the words that each policy is to follow, where the model says its motion."""
    if model.motion is None:
        return None
    return torch.tensor([policy._correction for policy in policies], device=model.device)


def _stack_running(
    rests: Sequence[tuple[Array, Array] | None], model: WorldModel, robots: Tensor | None
) -> Running | None:
    """Stack the rests of running chunks, normalized; a policy without one is free beside others that have one."""
    found = [rest for rest in rests if rest is not None]
    if not found:
        return None
    free = tuple(np.zeros_like(array) for array in found[0])
    chunk, weight = (np.stack(arrays) for arrays in zip(*(rest or free for rest in rests), strict=True))
    physical = torch.as_tensor(chunk, dtype=torch.float32, device=model.device)
    return Running(
        chunk=model.normalize_chunk(physical, robots),
        weight=torch.as_tensor(weight, dtype=torch.float32, device=model.device),
    )


def _encode_all(policies: Sequence[GR2Policy], observations: Sequence[Observation]) -> list[dict[str, Array]]:
    """Encode the images of all observations, those of one size in one go."""
    places: dict[tuple[int, ...], list[tuple[int, str]]] = {}
    for i, (policy, observation) in enumerate(zip(policies, observations, strict=True)):
        names = [name for name in policy.cameras if name in observation.images]
        if not names:
            raise ShapeError(
                f"GR2Policy: expected an image of one of {policy.cameras}, got {sorted(observation.images)}; switch "
                "the cameras on."
            )
        for name in names:
            places.setdefault(np.shape(observation.images[name]), []).append((i, name))
    codes: list[dict[str, Array]] = [{} for _ in observations]
    for members in places.values():
        frames = [rgb_image(name, observations[i].images[name]) for i, name in members]
        found = policies[0].encode_images(np.stack(frames))
        for (i, name), code in zip(members, found, strict=True):
            codes[i][name] = np.asarray(code, np.int64)
    return codes


def _merge(contexts: Sequence[Context]) -> Context:
    """Stack contexts of the same frames and cameras; shorter instructions are padded."""
    if len(contexts) == 1:
        return contexts[0]
    longest = max(context.text.shape[1] for context in contexts)
    texts, masks = [], []
    for context in contexts:
        missing = longest - context.text.shape[1]
        texts.append(functional.pad(context.text, (0, 0, 0, missing)))
        masks.append(functional.pad(context.text_mask, (0, missing)))
    states = [context.states for context in contexts if context.states is not None]
    robots = [context.embodiment for context in contexts if context.embodiment is not None]
    return Context(
        codes={name: torch.cat([context.codes[name] for context in contexts]) for name in contexts[0].codes},
        text=torch.cat(texts),
        text_mask=torch.cat(masks),
        states=torch.cat(states) if states else None,
        embodiment=torch.cat(robots) if robots else None,
    )
