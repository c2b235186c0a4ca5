"""Text features of a corpus in which every clip has its own caption: computed when a batch asks for them.

Where token shards hold the features of their texts, a model has a `TextTable`. Shards written with
`--text-features false` hold the texts alone; the frozen text encoder takes the place of the table.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...tokenizers.text import END_OF_TEXT, UNKNOWN_ROW, TextEncoder, token_features, token_mask, tokenize

GROUP = 16
"""Texts that are encoded together; matrix products round differently for another number of rows."""

KEPT_BYTES = 256 * 2**20
"""Memory for features of recent texts [byte]: about 6,500 of twenty tokens with CLIP ViT-B/32."""

_QUOTED = 120
"""Characters of a text that a warning quotes."""

_UNCUT = 1024
"""Tokens up to which a text is read before it is cut, to know whether it is."""


class EncodedTexts:
    """Features of numbered texts by a frozen encoder; those of recent texts are kept.

    Texts are encoded in groups of one size, so that the features of a text are the same bits
    whatever stands beside it and whether they were kept or are computed again: a resumed run begins with nothing kept
    and repeats the unbroken one.

    Args:
        encoder: frozen, moved to the device that features are asked for on.
        text: returns the text of an id.
        kept_bytes: bound of the memory for features that are kept [byte].
    """

    def __init__(self, encoder: TextEncoder, text: Callable[[int], str], *, kept_bytes: int = KEPT_BYTES) -> None:
        self.encoder, self.text, self.kept_bytes = encoder, text, kept_bytes
        self.num_kept_bytes = 0
        self.num_encoded = 0
        self._kept: OrderedDict[int, Tensor] = OrderedDict()
        self._warned: set[str] = set()

    @property
    def width(self) -> int:
        """Length of a token's feature."""
        return self.encoder.width

    @property
    def length(self) -> int:
        """Positions of every text, padding included."""
        return self.encoder.context_length

    def of(self, text_ids: Sequence[int], device: torch.device) -> tuple[Float[Tensor, "b l t"], Bool[Tensor, "b l"]]:
        """Return features and mask of texts on a device, without gradients; a negative number has none."""
        self._move_to(device)
        found = self._find(text_ids)
        features = torch.zeros(len(text_ids), self.length, self.width, device=device)
        lengths = []
        for row, number in enumerate(text_ids):
            lengths.append(len(found[number]) if number >= 0 else 0)
            if number >= 0:
                features[row, : lengths[-1]] = found[number]
        ends = torch.tensor(lengths, device=device)
        return features, torch.arange(self.length, device=device) < ends[:, None]

    def _move_to(self, device: torch.device) -> None:
        if self.encoder.tower.positional_embedding.device != device:
            self.encoder.to(device)
            self._kept.clear()
            self.num_kept_bytes = 0

    def _find(self, text_ids: Sequence[int]) -> dict[int, Float[Tensor, "n t"]]:
        """Return the features of each text up to its end, kept ones or new ones."""
        wanted = list(dict.fromkeys(number for number in text_ids if number >= 0))
        found = {number: self._kept[number] for number in wanted if number in self._kept}
        missing = [number for number in wanted if number not in found]
        for start in range(0, len(missing), GROUP):
            part = missing[start : start + GROUP]
            found.update(zip(part, self._encode([self.text(number) for number in part]), strict=True))
        for number in wanted:
            if number not in self._kept:
                self.num_kept_bytes += found[number].nbytes
            self._kept[number] = found[number]
            self._kept.move_to_end(number)
        while self.num_kept_bytes > self.kept_bytes:
            self.num_kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return found

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> list[Float[Tensor, "n t"]]:
        tokens = self._tokens([*texts, *[""] * (GROUP - len(texts))])
        rows = tokens if self.encoder.vocabulary is None else self._known_rows(tokens, texts)
        device = self.encoder.tower.positional_embedding.device
        with torch.autocast(device.type, enabled=False):  # training's precision is not the encoder's
            features = token_features(self.encoder.tower, rows.to(device)).float()
        self.num_encoded += len(texts)
        ends = token_mask(tokens).sum(1).tolist()
        return [features[i, : ends[i]].clone() for i in range(len(texts))]

    def _tokens(self, texts: Sequence[str]) -> Int[Tensor, "b l"]:
        """Return byte-pair tokens, long texts cut as open_clip cuts them; warn of the first one."""
        whole = tokenize(texts, max(_UNCUT, self.length))
        tokens = whole[:, : self.length].clone()
        is_cut = (whole[:, self.length :] == END_OF_TEXT).any(1)
        tokens[is_cut, -1] = END_OF_TEXT
        if bool(is_cut.any()):
            self._warn_once(
                "cut",
                f"Text: {_first(texts, is_cut)} is longer than {self.length} tokens and is cut, and so are others "
                "from here on, unsaid; shorten the captions where their ends matter.",
            )
        return tokens

    def _known_rows(self, tokens: Int[Tensor, "b l"], texts: Sequence[str]) -> Int[Tensor, "b l"]:
        """Return rows of the encoder's own vocabulary; warn of the first text with an unknown word."""
        assert self.encoder.vocabulary is not None
        rows = self.encoder.vocabulary.rows[tokens]
        unknown = (rows == UNKNOWN_ROW).any(1)
        if bool(unknown.any()):
            self._warn_once(
                "unknown",
                f"Text: the encoder was trained without some words of {_first(texts, unknown)}, which read as an "
                "unknown word, and so do words of others from here on, unsaid; name an encoder of all words to "
                "`gr2 data tokens --text` where they matter.",
            )
        return rows

    def _warn_once(self, kind: str, message: str) -> None:
        """Warn of the first text of a kind: a long run would repeat it in every batch."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=2)


def _first(texts: Sequence[str], chosen: Bool[Tensor, " b"]) -> str:
    text = texts[int(chosen.int().argmax())]
    return repr(text if len(text) <= _QUOTED else f"{text[:_QUOTED]} ...")
