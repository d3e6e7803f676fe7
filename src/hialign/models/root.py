"""The one way into the model: every loss goes through ``Root.forward``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from hialign.batch import Tokens
from hialign.models.heads import Alignment
from hialign.models.shared import share, shared_mask
from hialign.solvers import put

B = TypeVar("B")
T = TypeVar("T")


class Root(nn.Module):
    """A standard Llava with the alignment modules beside it.

    Sharding hooks sit on this module, so a loss calls ``root(objective, batch)`` and never a module inside: the
    objective then finds every parameter gathered. What objectives may call are the methods below.
    """

    def __init__(self, llava: LlavaForConditionalGeneration, alignment: Alignment) -> None:
        super().__init__()
        self.llava = llava
        self.alignment = alignment
        self._reference: dict[str, Tensor] | None = None  # no part of the state: it is made anew from the start
        self._reference_head: dict[str, Tensor] = {}  # what the output layer was, where it trains
        self._adapters_off = False

    def forward(self, objective: Callable[[Root, B], T], batch: B) -> T:
        """``objective(self, batch)``; an objective for training, any other reader for evaluation."""
        return objective(self, batch)

    @property
    def temperature(self) -> Tensor:
        """The contrastive temperature, shape (1,)."""
        return self.alignment.temperature

    def next_token_logits(self, pixel_values: Tensor, text: Tokens) -> Tensor:
        """Logits (batch, length, vocabulary). ``pixel_values`` holds the images of all rows in order, or none.

        Here and below they may also be what ``image_features`` made of them.
        """
        what = {"input_ids": text.ids, "pixel_values": pixel_values}
        if not len(pixel_values) or _are_features(pixel_values):
            what = {"inputs_embeds": self._embedded(pixel_values, text.ids)}
        logits: Tensor = self.llava(**what, attention_mask=text.mask, use_cache=False, return_dict=True).logits
        return logits

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """What the projector reads of images, (images, patches, vision width)."""
        return self._selected(self.llava.model.vision_tower(pixel_values, output_hidden_states=True))

    def answer_states(
        self, pixel_values: Tensor, chosen: Tokens, rejected: Tokens, starts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Last hidden states (batch, 1 + longest answer, width) of two answers behind one prompt, as ``tail`` has them.

        Image and prompt, the first ``starts`` ids of both sides, are read once. Position encodings and attention are
        those of the two rows by themselves.
        """
        rows = share(chosen, rejected, starts)
        embeddings = self._embedded(pixel_values, rows.ids)
        states = self.llava.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=shared_mask(rows.segments, embeddings.dtype),
            position_ids=rows.positions,
            use_cache=False,
        ).last_hidden_state
        return _taken(states, rows.chosen), _taken(states, rows.rejected)

    def text_states(self, pixel_values: Tensor, text: Tokens) -> Tensor:
        """Last hidden states (batch, length, width) of rows of text with their images."""
        states: Tensor = self.llava.model.language_model(
            inputs_embeds=self._embedded(pixel_values, text.ids), attention_mask=text.mask, use_cache=False
        ).last_hidden_state
        return states

    def _embedded(self, pixel_values: Tensor, ids: Tensor) -> Tensor:
        """The embeddings of ``ids``, image features in the places of their placeholders, in row order.

        Rows without image have zero times a blank image's features added. Tower and projector then take part in every
        batch: they get a gradient of zero instead of none, and a rank whose batch has no image does what the others do.
        """
        embeddings: Tensor = self.llava.get_input_embeddings()(ids)
        images = pixel_values if len(pixel_values) else pixel_values.new_zeros(1, *pixel_values.shape[1:])
        read = images if _are_features(images) else self.image_features(images)
        features: Tensor = self.llava.model.multi_modal_projector(read)
        if not len(pixel_values):
            return embeddings + 0 * features.sum().to(embeddings.dtype)
        here = (ids == self.llava.config.image_token_index).unsqueeze(-1)
        return embeddings.masked_scatter(here, features.to(embeddings.dtype))

    @property
    def head(self) -> tuple[Tensor, Tensor | None]:
        """The language model's output layer: weight (vocabulary, width), and bias where it has one."""
        layer: nn.Linear = self.llava.lm_head
        return layer.weight, layer.bias

    def keep_reference(self, trained: Collection[str], *, whole: bool = True) -> None:
        """Keeps what the parameters ``trained`` are now, for ``reference`` to go back to.

        Adapters that add nothing yet are not copied: to leave them off is the same. Without ``whole`` the output layer
        alone is kept, for batches that bring along what the model says now.
        """
        untouched = all(not p.any() for name, p in self.named_parameters() if ".lora_B." in name)
        self._adapters_off = untouched
        head = {id(p): which for which, p in zip(("weight", "bias"), self.head, strict=True)}
        kept = {
            name: p.detach().clone()
            for name, p in self.named_parameters()
            if name in trained and not (untouched and ".lora_" in name) and (whole or id(p) in head)
        }
        self._reference_head = {head[id(p)]: kept[n] for n, p in self.named_parameters() if n in kept and id(p) in head}
        self._reference = kept if whole else None

    @property
    def reference_head(self) -> tuple[Tensor, Tensor | None]:
        """``head`` of the model that ``keep_reference`` found, without gradients."""
        weight, bias = self.head
        kept = self._reference_head
        bias = kept.get("bias", bias)
        return kept.get("weight", weight).detach(), None if bias is None else bias.detach()

    @contextmanager
    def reference(self) -> Iterator[Root]:
        """Within it, and without gradients or dropout, the model is what it was when ``keep_reference`` was called.

        Leave it before the backward pass of anything that was computed outside.
        """
        if self._reference is None:
            raise ValueError(
                "reference: none is kept, or its output layer alone; an objective that compares with the starting "
                "model has needs_reference = True, and outside of hialign train keep_reference comes first"
            )
        before, parameters = self.training, dict(self.named_parameters())
        with torch.no_grad(), put(parameters, self._reference), _without_adapters(self, self._adapters_off):
            self.eval()
            try:
                yield self
            finally:
                self.train(before)

    def image_embeddings(self, pixel_values: Tensor, pairs: tuple[str, ...]) -> dict[str, Tensor]:
        """For each pair, the images' embeddings (batch, embed_dim), not normalised; the tower runs once for all."""
        pooled, tokens = self._image_states(pixel_values, projected=pairs != ("clip",))
        read = {
            "clip": lambda: pooled,
            "projector": lambda: tokens.mean(dim=1),
            "llm": lambda: self._read_image(tokens),
        }
        return {pair: self.alignment.head(pair, "image", read[pair]()) for pair in pairs}

    def text_embeddings(
        self, caption: Tokens, clip_caption: Tokens | None, pairs: tuple[str, ...]
    ) -> dict[str, Tensor]:
        """For each pair, the captions' embeddings (batch, embed_dim), not normalised."""
        read = {
            "clip": lambda: self.alignment.embed_text(clip_caption),
            "projector": lambda: self._mean_embedding(caption),
            "llm": lambda: self._read_caption(caption),
        }
        return {pair: self.alignment.head(pair, "text", read[pair]()) for pair in pairs}

    def _image_states(self, pixel_values: Tensor, *, projected: bool) -> tuple[Tensor, Tensor]:
        """The tower's pooled state (batch, vision width) and the projected tokens (batch, patches, llm width).

        The tower runs once for both. Without ``projected`` the second is empty.
        """
        inner = self.llava.model
        states = inner.vision_tower(pixel_values, output_hidden_states=True)
        if not projected:
            return states.pooler_output, pixel_values.new_empty(0)
        return states.pooler_output, inner.multi_modal_projector(self._selected(states))

    def _selected(self, states: Any) -> Tensor:
        """The layer that the language model reads, of what the tower gives out."""
        layer: Tensor = states.hidden_states[self.llava.config.vision_feature_layer]
        first = 1 if self.llava.config.vision_feature_select_strategy == "default" else 0  # drops the class token
        return layer[:, first:].contiguous()  # as features from a cache are: the projector then adds up alike

    def _mean_embedding(self, caption: Tokens) -> Tensor:
        embeddings = self.llava.get_input_embeddings()(caption.ids)
        mask = caption.mask.unsqueeze(-1).to(embeddings.dtype)
        mean: Tensor = (embeddings * mask).sum(dim=1) / mask.sum(dim=1)
        return mean

    def _read_image(self, tokens: Tensor) -> Tensor:
        """The language model's last state after the image tokens and the end token that closes every caption."""
        ends = self.llava.config.get_text_config().eos_token_id  # some models have several
        end_id = torch.tensor(ends[0] if isinstance(ends, list) else ends, device=tokens.device)
        end = self.llava.get_input_embeddings()(end_id).to(tokens.dtype).expand(len(tokens), 1, -1)
        states = self.llava.model.language_model(inputs_embeds=torch.cat([tokens, end], dim=1), use_cache=False)
        last: Tensor = states.last_hidden_state[:, -1]
        return last

    def _read_caption(self, caption: Tokens) -> Tensor:
        states = self.llava.model.language_model(input_ids=caption.ids, attention_mask=caption.mask, use_cache=False)
        return _last(states.last_hidden_state, caption.mask)


def _are_features(images: Tensor) -> bool:
    """Whether the tower has read them: pixels have four dimensions."""
    return images.dim() == 3


def _taken(states: Tensor, places: Tensor) -> Tensor:
    """The states at ``places`` (batch, some) of each row, (batch, some, width)."""
    return states.gather(1, places.unsqueeze(-1).expand(-1, -1, states.shape[-1]))


@contextmanager
def _without_adapters(module: nn.Module, off: bool) -> Iterator[None]:
    """Within it, LoRA layers compute what lies under them, if ``off``."""
    layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer)] if off else []
    for layer in layers:
        layer._disable_adapters = True  # enable_adapters would also stop them from training
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def _last(rows: Tensor, mask: Tensor) -> Tensor:
    """Each row's (width,) entry at its last token, (batch, width)."""
    places = mask.sum(dim=1) - 1
    return rows[torch.arange(len(rows), device=rows.device), places]
