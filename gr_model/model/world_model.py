"""The world model: one GPT that predicts the next frame's codes and, at the action query, a chunk of poses.

Tensors: b samples, f frames (context, then targets), n codes of a frame, l text positions, k poses of a
chunk.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...cvae_head.denoising import DenoisingHead
from ...cvae_head.head import Condition, Seen, TrajectoryHead, query_of
from ...cvae_head.inpainting import Running
from ...cvae_head.kinds import make_head
from ...cvae_head.motions import OWN, LanguageMotion
from ...cvae_head.tokens import TokensHead
from ...errors import ConfigError, ShapeError
from .config import ModelConfig
from .contacts import ContactOutlook
from .context import Context, Targets, Thought, random_ages, step_before
from .embedding import TokenEmbedding
from .gpt import GPT
from .keyposes import KeyposeOutlook
from .normalization import Standardize, Statistics
from .sequence import SequenceLayout, make_layout
from .texts import Texts, TextTable

_COPY_GATE_START = 3.0
"""What the code of the newest frame is worth at first, in logits: training begins where copying leaves off."""


class WorldModel(nn.Module):
    """GPT, embeddings, frame head and trajectory head.

    Physical numbers go in and come out; statistics and codebook are buffers, so a state dict is complete.

    texts: what it reads in training. acts: whether it was (or is being) finetuned on robot episodes; until then states
        and trajectories mean nothing to it. predicts: whether any of its trainings predicted frames. None of them is
        part of the state dict; a release records the last two.
    """

    present: Tensor

    def __init__(
        self, config: ModelConfig, *, codebook: Tensor | None = None, statistics: Statistics | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.embed = TokenEmbedding(config)
        self.gpt = GPT(
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            dropout=config.dropout,
            gradient_checkpointing=config.gradient_checkpointing,
        )
        self.frame_features = _frame_features(config)
        self.frame_codes = nn.Linear(config.head_dim, config.codebook_size)
        self.copy_gate = nn.Linear(config.width, config.codes_per_position)
        nn.init.zeros_(self.copy_gate.weight)
        nn.init.constant_(self.copy_gate.bias, _COPY_GATE_START)
        self.head = make_head(config.head, trunk=config.trunk_shape, shape=config.chunk_shape)
        self.motion = _language_motion(config, self.head)
        _expect_one_query(config, self.head)
        self.contact = ContactOutlook(config.contacts, width=config.width) if config.contacts else None
        self.keypose = KeyposeOutlook(config.slots, width=config.width) if config.keyposes else None
        shape = config.chunk_shape
        self.continuous = list(shape.continuous)
        robots = [len(config.embodiments)] * config.is_mixture
        self.action_normalizer = Standardize(*robots, config.chunk_length, len(self.continuous))
        self.register_buffer("present", config.slots.present_actions(), persistent=False)
        self.texts: Texts = TextTable.empty(config.text_dim)
        self.acts, self.predicts = False, True
        self._cached: dict[tuple[SequenceLayout, torch.device], dict[str, Tensor]] = {}
        if codebook is not None:
            self.embed.set_codebook(codebook)
        if statistics is not None:
            self.set_statistics(statistics)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.vectors.device

    def set_statistics(self, statistics: Statistics) -> None:
        """Copy normalization statistics into the buffers: from here on the model acts."""
        self.embed.state_normalizer.set(statistics.state_mean, statistics.state_std)
        self.action_normalizer.set(statistics.action_mean, statistics.action_std)
        self.acts = True

    def set_texts(self, texts: Texts) -> None:
        """Read the texts of training from `texts`; `text_id` of a batch counts them.

        Raises:
            ShapeError: another feature width, or texts longer than `text_length`.
        """
        config = self.config
        if texts.width != config.text_dim or texts.length > config.text_length:
            raise ShapeError(
                f"texts: expected features of width {config.text_dim} and at most {config.text_length} positions, "
                f"got width {texts.width} and {texts.length}; use the text encoder that the configuration names."
            )
        self.texts = texts

    def get_statistics(self) -> Statistics:
        """Return the statistics in use."""
        state, action = self.embed.state_normalizer, self.action_normalizer
        tensors = {"state_mean": state.mean, "state_std": state.std}
        tensors |= {"action_mean": action.mean, "action_std": action.std}
        return Statistics.from_dict({name: tensor.tolist() for name, tensor in tensors.items()})

    def layout(self, context: Context, *, with_frames: bool, with_action: bool) -> SequenceLayout:
        """Return the layout of a forward pass over `context`."""
        num_context = next(iter(context.codes.values())).shape[1]
        if not 1 <= num_context <= self.config.max_context:
            raise ShapeError(
                f"context: expected 1 to {self.config.max_context} frames, got {num_context}; "
                "shorten the history or raise max_context."
            )
        return make_layout(
            self.config,
            text_length=context.text.shape[1],
            num_context=num_context,
            with_frames=with_frames,
            with_action=with_action,
        )

    def constants(self, layout: SequenceLayout) -> dict[str, Tensor]:
        """Return the layout's mask, attributes and index lists as tensors on the model's device."""
        key = (layout, self.device)
        if key not in self._cached:
            arrays = {
                "mask": layout.mask,
                "attributes": layout.attributes,
                "action": layout.positions("action"),
                "target": layout.positions("target"),
            }
            self._cached[key] = {name: torch.tensor(a, device=self.device) for name, a in arrays.items()}
        return self._cached[key]

    def assemble(
        self,
        layout: SequenceLayout,
        context: Context,
        targets: Targets | None,
        queries: Float[Tensor, "b a d"] | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b 1 n n"]]:
        """Embed a sequence and derive its attention mask from the layout's rules and from what is absent."""
        constants = self.constants(layout)
        x, keep = self.embed_context(layout, context, queries)
        if targets is not None:
            frames = self.embed.targets(targets.packed, targets.masked, self.reference(context))
            x = torch.cat((x, frames.flatten(1, 2)), dim=1)
            present = self.camera_keep(context, len(x))
            keep = torch.cat((keep, present.repeat(1, layout.num_targets)), dim=1)
        x = x + self.embed.positions(layout, constants["attributes"])
        return x, constants["mask"] & keep[:, None, None, :]

    def embed_context(
        self, layout: SequenceLayout, context: Context, queries: Float[Tensor, "b a d"] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embed all but target frames, without positions; also return which keys are present.

        `queries` is what the positions of the action query read, nothing without.
        """
        frames = self.embed.frames(self.embed.drop_codes(self.embed.arrange(context.codes)))
        b, h = frames.shape[:2]
        no_text = ~context.text_mask.any(dim=1)
        if self.training and self.config.text_dropout:
            no_text = no_text | (torch.rand(b, device=frames.device) < self.config.text_dropout)
        text = self.embed.prefix(context.text, no_text)
        text_keep = context.text_mask & ~no_text[:, None]
        text_keep = torch.cat((text_keep[:, :1] | no_text[:, None], text_keep[:, 1:]), dim=1)
        states, state_keep = self._embed_states(context, b, h, frames)
        camera_keep = self.camera_keep(context, b)
        frame_keep = frames.new_ones(b, h, dtype=torch.bool) if context.frame_mask is None else context.frame_mask
        parts, keeps = [text], [text_keep]
        for step in range(h):
            parts += [frames[:, step], states[:, step : step + 1]]
            keeps += [camera_keep & frame_keep[:, step, None], state_keep[:, step : step + 1]]
        if layout.num_queries:
            nothing = frames.new_zeros(b, layout.num_queries, frames.shape[-1])
            asked = nothing if queries is None else queries
            if context.embodiment is not None and self.config.is_mixture:
                asked = asked + self.embed.rates(context.embodiment)[:, None]
            parts.append(asked)
            keeps.append(torch.ones_like(nothing[..., 0], dtype=torch.bool))
        if layout.num_targets:
            ahead, ahead_keep = self._embed_target_states(context, layout.num_targets, frames)
            parts.append(ahead)
            keeps.append(ahead_keep)
        return torch.cat(parts, dim=1), torch.cat(keeps, dim=1)

    def _embed_states(self, context: Context, b: int, h: int, like: Tensor) -> tuple[Tensor, Tensor]:
        if context.states is None:
            return like.new_zeros(b, h, like.shape[-1]), like.new_zeros(b, h, dtype=torch.bool)
        keep = like.new_ones(b, h, dtype=torch.bool) if context.state_mask is None else context.state_mask
        if context.frame_mask is not None:
            keep = keep & context.frame_mask
        if self.training and self.config.state_dropout:
            keep = keep & (torch.rand(b, 1, device=keep.device) >= self.config.state_dropout)
        return self.embed.states(context.states, context.embodiment), keep

    def _embed_target_states(self, context: Context, g: int, like: Tensor) -> tuple[Tensor, Tensor]:
        b = len(like)
        if context.target_states is None:
            return like.new_zeros(b, g, like.shape[-1]), like.new_zeros(b, g, dtype=torch.bool)
        keep = context.target_state_mask
        keep = like.new_ones(b, g, dtype=torch.bool) if keep is None else keep
        return self.embed.states(context.target_states, context.embodiment), keep

    def camera_keep(self, context: Context, b: int) -> Bool[Tensor, "b frame"]:
        """Return which positions of a frame belong to cameras that are present."""
        parts = []
        for camera, (rows, columns) in zip(self.config.cameras, self.config.packed_grids, strict=True):
            mask = torch.full((b,), camera.name in context.codes, dtype=torch.bool, device=self.device)
            if context.camera_mask is not None and camera.name in context.camera_mask:
                mask = mask & context.camera_mask[camera.name]
            parts.append(mask[:, None].expand(-1, 1 + rows * columns))
        return torch.cat(parts, dim=1)

    def reference(self, context: Context) -> Int[Tensor, "b 1 frame pp"]:
        """Return the codes of the newest frame, each at the target position that predicts it.

        Most of an image stays as it is, so targets are predicted as changes: the reference enters the target's
        embedding, and a gate adds to the score of its code.
        """
        newest = self.embed.arrange({name: codes[:, -1:] for name, codes in context.codes.items()})
        if self.config.decoding != "raster":
            return newest
        shifted = newest.roll(-1, dims=2)
        shifted[:, :, -1] = self.embed.null_code
        return shifted

    def frame_logits(
        self, features: Float[Tensor, "*n d"], reference: Int[Tensor, "*n pp"]
    ) -> Float[Tensor, "*n pp v"]:
        """Score every code of the positions whose trunk outputs and reference codes are given."""
        wide = self.frame_features(features).unflatten(-1, (self.config.codes_per_position, -1))
        logits = self.frame_codes(wide)
        gate = self.copy_gate(features) * (reference != self.embed.null_code)
        places = reference.clamp(max=self.config.codebook_size - 1)[..., None]
        return logits.scatter_add(-1, places, gate[..., None].to(logits.dtype))

    def act(
        self,
        context: Context,
        *,
        noise: Float[Tensor, "b z"] | None = None,
        running: Running | None = None,
        motion: Int[Tensor, "b 5"] | None = None,
        thought: Thought | None = None,
    ) -> Float[Tensor, "b k c"]:
        """Predict the chunk at the last context step in one forward pass without target frames.

        Args:
            context: what is seen.
            noise: standard normal numbers, `head.noise_dim` a sample, that choose among motions; None is zeros.
            running: the rest of the running chunk, normalized, which the chunk is to continue.
            motion: words of the coming motion that take the place of the model's own, see `LanguageMotion`; in place of
                -1 come the model's. The motion that is followed is written there.
            thought: an earlier one (`think`) that the head acts on, where it can; None is one of the newest frame.

        Returns:
            Numbers in `config.slots`, in physical units; binary columns are probabilities, absent ones 0.

        Raises:
            ConfigError: a running chunk, and a head that cannot continue one.
            ShapeError: a model of several robots, and nobody says which one acts.
        """
        if running is not None and not isinstance(self.head, DenoisingHead):
            raise ConfigError(
                f"WorldModel.act: expected no running chunk for the head {self.config.head.kind}, got one; only flow "
                "and diffusion continue it."
            )
        present = self.present_actions(context)
        if isinstance(self.head, TokensHead):
            layout = self.layout(context, with_frames=False, with_action=True)
            chunk = self._sample_tokens(self.head, *self.assemble(layout, context, None), noise, present)
        else:
            late = thought is not None and self.head.reads == "late"
            condition = self._read(context, thought) if late else self.predict(context, None, with_actions=True)[0]
            assert condition is not None
            if self.motion is not None:
                own = self.motion.likeliest(query_of(condition))
                said = own if motion is None else motion.copy_(torch.where(motion == OWN, own, motion))
                condition = self.motion.beside(query_of(condition), said)
            if running is None:
                chunk = self.head.sample(condition, noise, present)
            else:
                assert isinstance(self.head, DenoisingHead)
                chunk = self.head.sample(condition, noise, present, running=running)
        physical = chunk.clone()
        physical[..., self.continuous] = self.action_normalizer.invert(
            chunk[..., self.continuous], None if present is None else context.embodiment
        )
        return physical if present is None else physical * present[:, None]

    def present_actions(self, context: Context) -> Bool[Tensor, "b c"] | None:
        """Say which columns of a chunk each sample's robot has; None, all, where the model serves one robot.

        Raises:
            ShapeError: a model of several robots, and nobody says which one a sample is of.
        """
        if not self.config.is_mixture:
            return None
        return self.present[self.config.slots.expect(context.embodiment)]

    def normalize_chunk(
        self, chunk: Float[Tensor, "b k c"], embodiment: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b k c"]:
        """Normalize the continuous columns of a chunk; the head learns the result."""
        normalized = chunk.clone()
        normalized[..., self.continuous] = self.action_normalizer(chunk[..., self.continuous], embodiment)
        return normalized

    @torch.no_grad()
    def _sample_tokens(
        self,
        head: TokensHead,
        x: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b 1 n n"],
        noise: Float[Tensor, "b z"] | None,
        present: Bool[Tensor, "b c"] | None,
    ) -> Float[Tensor, "b k c"]:
        """Sample action tokens one by one, over the keys and values of what came before; absent ones are those of 0."""
        fixed = None if present is None else head.tokens_of_absent(present)
        start = x.shape[1] - head.num_tokens
        past = self.gpt.make_past(x, x.shape[1])
        tokens = torch.empty(len(x), 0, dtype=torch.long, device=x.device)
        self.gpt.extend(x[:, :start], mask[:, :, :start, :start], past, tokens.new_empty(0))
        for i in range(head.num_tokens):
            stop = start + i + 1
            here = x[:, stop - 1 : stop] + head.inputs(tokens)[:, -1:]
            y = self.gpt.extend(here, mask[:, :, stop - 1 : stop, :stop], past)[:, 0]
            token = head.sample_token(y, None if noise is None or not head.noise_dim else noise[:, i])
            if fixed is not None:
                token = torch.where(fixed[:, i] >= 0, fixed[:, i], token)
            tokens = torch.cat((tokens, token[:, None]), dim=1)
        return head.detokenize(tokens)

    def predict(
        self,
        context: Context,
        targets: Targets | None,
        *,
        with_actions: bool,
        chunk: Float[Tensor, "b k c"] | None = None,
    ) -> tuple[Condition | None, Tensor | None]:
        """Run the trunk once; `chunk` is the true one, which a head of tokens reads as it goes.

        Returns:
            What the head reads, as the action query's outputs, side by side, `[b d]`, and the outputs at the target
            positions `[b g frame d]`, None where not asked.
        """
        if with_actions and self.head.reads != "query":
            features = None if targets is None else self.predict(context, targets, with_actions=False)[1]
            return self._read(context), features
        layout = self.layout(context, with_frames=targets is not None, with_action=with_actions)
        queries = None
        if with_actions and chunk is not None and isinstance(self.head, TokensHead):
            queries = self.head.inputs(self.head.tokenize(chunk))
        x, mask = self.assemble(layout, context, targets, queries)
        constants = self.constants(layout)
        read = torch.cat((constants["action"], constants["target"]))
        y = self.gpt(x, mask, read)
        condition = y[:, : layout.num_queries].flatten(1) if with_actions else None
        if targets is None:
            return condition, None
        frames = y[:, -len(constants["target"]) :].unflatten(1, (layout.num_targets, layout.frame_length))
        return condition, frames

    def _read(self, context: Context, thought: Thought | None = None) -> Seen:
        """Return what a head reads that does without the action query, or with that of an older frame.

        Without a thought, one of a random age is made in training, and one of the newest frame otherwise.
        """
        if self.head.reads != "late":
            return self.seen(context)
        if thought is None:
            ages = random_ages(context)
            thought = self.think(step_before(context, ages if self.training else torch.zeros_like(ages)))
            thought = replace(thought, age=thought.age + ages * self.training)
        newest = self.seen(step_before(context, torch.zeros(len(thought.age), dtype=torch.long, device=self.device)))
        return replace(newest, thought=thought.output, age=thought.age)

    def think(self, context: Context) -> Thought:
        """Return the action query's output for the newest frame, for a head that acts on older ones."""
        layout = self.layout(context, with_frames=False, with_action=True)
        x, mask = self.assemble(layout, context, None)
        output = self.gpt(x, mask, self.constants(layout)["action"])[:, 0]
        return Thought(output=output, age=output.new_zeros(len(output)))

    def seen(self, context: Context) -> Seen:
        """Return all that is seen, embedded, and the trunk's keys and values of it where the head reads them."""
        layout = self.layout(context, with_frames=False, with_action=False)
        constants = self.constants(layout)
        x, keep = self.embed_context(layout, context)
        x = x + self.embed.positions(layout, constants["attributes"])
        mask = constants["mask"] & keep[:, None, None, :]
        text, layers = layout.text_length, self.head.reads == "layers"
        return Seen(
            text=x[:, :text],
            text_keep=keep[:, :text],
            tokens=x[:, text:],
            keep=keep[:, text:],
            num_steps=layout.num_context,
            layers=self.gpt.keys_values(x, mask) if layers else (),
        )


def _language_motion(config: ModelConfig, head: TrajectoryHead) -> LanguageMotion | None:
    """Make the layer of language of a model that has one.

    Raises:
        ConfigError: of several robots, or with a head that does not read the action query alone.
    """
    if not config.motions:
        return None
    if config.is_mixture or config.num_queries > 1 or head.reads != "query":
        raise ConfigError(
            "--model.motions: expected one robot and a head that reads one action query and nothing else, got another; "
            "leave it out or choose another head."
        )
    return LanguageMotion(config.motions, config.slots.codings[0], width=config.width)


def _expect_one_query(config: ModelConfig, head: TrajectoryHead) -> None:
    """Raise a ConfigError where something is said from the action query and the head does not read it alone."""
    said = [f"--{name}" for name in ("contacts", "keyposes") if getattr(config, name)]
    if said and (config.num_queries > 1 or head.reads != "query"):
        raise ConfigError(
            f"{said[0]}: expected a head that reads one action query and nothing else, got another; leave it out or "
            "choose another head."
        )


def _frame_features(config: ModelConfig) -> nn.Module:
    """Make the layers from a position to the features of its codes."""
    wide = config.codes_per_position * config.head_dim
    if not config.head_hidden:
        return nn.Linear(config.width, wide)
    return nn.Sequential(nn.Linear(config.width, config.head_hidden), nn.GELU(), nn.Linear(config.head_hidden, wide))
