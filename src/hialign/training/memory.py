"""What a GPU holds while a stage trains, item by item: arithmetic on shapes, as in ``cost``.

Attention is taken for a fused kernel, which keeps no scores. Small things (masks, positions, the batch itself, biases'
gradients) are left out; tests/runner/test_memory.py sets the sums against what small models really take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hialign.training.cost import Asked, Pass, Shapes, Stack

GIB = 2**30
BLOCK = 512  # positions whose logits the chunked losses make at a time


@dataclass(frozen=True)
class Bytes:
    """Of one number: as products are computed, and of the residual stream and the weights of tower and LLM."""

    compute: int = 4  # 2 under bfloat16's autocast
    llm: int = 4
    vision: int = 4
    mask: int = 1  # of a number that dropout may leave out; a processor keeps 4

    def of(self, stack: Stack) -> int:
        """A weight of the stack, and its residual stream."""
        return self.llm if stack.gated else self.vision


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward pass leaves for the backward one, and what comes on top while either runs."""

    saved: float = 0.0  # there when the forward pass ends
    casts: float = 0.0  # of these, weights in half precision: they do not grow with the batch
    layer: float = 0.0  # of the largest layer, made again in the backward pass, and the gradients passing through it
    logits: float = 0.0  # all logits, or the blocks of the chunked losses with what these keep

    def __add__(self, other: Activations) -> Activations:
        """Of two passes whose graphs exist at a time; their layers and logits come one after the other."""
        layer, logits = max(self.layer, other.layer), max(self.logits, other.logits)
        return Activations(self.saved + other.saved, self.casts + other.casts, layer, logits)


def activations(shapes: Shapes, run: Pass, size: Bytes) -> Activations:
    """Of one pass; without gradients nothing stays."""
    total = Activations()
    if run.images and shapes.vision.trains and run.grad:
        reached = shapes.vision.layers if run.pooled else shapes.feature_layers
        full, tokens = shapes.vision.mode == "full", run.images * (shapes.patches + 1)
        total += _stack(replace(shapes.vision, layers=reached), run.images, shapes.patches + 1, full, size)
        pixels = run.images * shapes.patches * shapes.patch_pixels * size.compute
        total += Activations(saved=full * (pixels + _norm(shapes.vision, tokens, size.vision)))
    if run.sees and run.grad:
        total += _projector(shapes, run, size)
    if run.length:
        upstream = shapes.llm.mode == "full" or (run.sees and (shapes.projector.trains or shapes.vision.trains))
        if run.grad and (upstream or shapes.llm.trains):
            total += _stack(shapes.llm, run.rows, run.length, upstream, size, masked=run.masked)
            total += Activations(saved=_norm(shapes.llm, run.rows * run.length, size.llm))
        total += _head(shapes, run, size, trains=run.grad and shapes.llm.mode == "full")
    return total


def _stack(stack: Stack, rows: int, length: int, upstream: bool, size: Bytes, *, masked: bool = False) -> Activations:
    tokens, each = rows * length, size.of(stack)
    cells = rows * length**2 if masked else 0
    mask = cells * each
    casts = _casts(stack, size)
    kept = _layer(stack, tokens, size) + casts + (cells * size.compute if each != size.compute else 0)
    passing = tokens * (size.compute * stack.hidden + 4.0 * stack.width)
    if stack.checkpointed:
        inputs = tokens * stack.width * each * stack.layers
        return Activations(saved=inputs + mask, layer=kept + passing)
    # where nothing before the first layer trains, its norm keeps nothing, nor what dropout left out of its input
    first = 0.0 if upstream else _norm(stack, tokens, each) + 3 * bool(stack.dropout) * tokens * stack.width * size.mask
    return Activations(saved=kept * stack.layers + mask - first, casts=casts * stack.layers, layer=passing)


def _layer(stack: Stack, tokens: int, size: Bytes) -> float:
    """What a layer saves, weights apart."""
    c, each = size.compute, size.of(stack)
    reads = 3 * stack.query_width  # keys and values are repeated where heads share them
    saved = 2 * _norm(stack, tokens, each)
    saved += tokens * (reads + stack.query_width) * c + 4.0 * tokens * stack.heads  # attention, and its log-sums
    saved += tokens * stack.hidden * c * (3 if stack.gated else 2)
    if stack.mode == "full":
        copies = 2 if each == c else 5 if stack.gated else 4  # one for all matrices that read it, where none is cast
        saved += tokens * (copies * stack.width + stack.hidden) * c
    return saved + (_adapters(stack, tokens, size) if stack.mode == "lora" else 0.0)


def _adapters(stack: Stack, tokens: int, size: Bytes) -> float:
    """Their inputs, each its own copy where they are cast or some of it is dropped, and what is between the two."""
    first = 2 if stack.gated else 1
    own = size.compute != 4 or stack.dropout > 0
    inputs = (3 + first) * stack.width + stack.query_width + stack.hidden if own else 2 * stack.width + stack.hidden
    dropped = (3 + first) * stack.width + stack.query_width + stack.hidden if stack.dropout else 0
    return float(tokens * (inputs * size.compute + dropped * size.mask + (5 + first) * stack.rank * size.compute))


def _norm(stack: Stack, tokens: int, each: int) -> float:
    """Llama's keeps its input in float32, and what its weight multiplies if that trains; CLIP's its input."""
    if not stack.gated:
        return tokens * (stack.width * each + 8.0)
    return tokens * (stack.width * (4.0 + (each if stack.mode == "full" else 0)) + 4.0)


def _casts(stack: Stack, size: Bytes) -> float:
    """A layer's weights in half precision, where autocast makes them of float32."""
    reads, out, first, last = stack.matrices()
    matrices = [*reads, out, *first, last]
    found = 0 if size.of(stack) == size.compute else sum(a * b for a, b in matrices)
    found += 0 if size.compute == 4 else sum((a + b) * stack.rank for a, b in matrices)
    return float(found * size.compute)


def _projector(shapes: Shapes, run: Pass, size: Bytes) -> Activations:
    tokens, c = run.images * shapes.image_tokens, size.compute
    trains = shapes.projector.trains
    if not (trains or shapes.vision.trains):
        return Activations()
    hidden = tokens * shapes.llm.width * c
    saved = hidden + (tokens * shapes.vision.width * c + hidden if trains else 0)
    return Activations(saved=float(saved))


def _head(shapes: Shapes, run: Pass, size: Bytes, *, trains: bool) -> Activations:
    """All logits at once with their cross-entropy, or the largest of the chunked losses' blocks."""
    vocabulary, width, c = shapes.vocabulary, shapes.llm.width, size.compute
    cast = vocabulary * width * c if size.llm != c else 0
    if run.logits:
        every, targets = run.rows * run.logits * vocabulary, run.rows * run.targets * vocabulary
        saved = 4.0 * targets + run.rows * run.logits * width * c * trains + cast
        forward = every * c + targets * (c + (4 if c != 4 else 0))
        return Activations(saved=saved, casts=cast, logits=max(float(forward), 2.0 * every * c - 4.0 * targets))
    positions = run.rows * (run.scored + run.compared + run.watched)
    if not positions:
        return Activations()
    each = max(run.scored // (2 if run.masked else 1), run.compared, run.watched)  # of one answer
    block = min(BLOCK, run.rows * each) * vocabulary
    # divergences have both models' logits, their difference and its product
    scores = block * (4 if c == 4 else c + 4 + c) * (4 if run.compared or run.watched else 1)
    gradient = 4.0 * vocabulary * width if trains else 0.0
    saved = positions * width * (size.llm + (c if run.grad and not trains else 0)) if run.grad else 0
    return Activations(saved=float(saved), logits=scores + gradient + cast)


# --- a stage ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameters:
    """What a stage keeps of the model: numbers of parameters, and bytes where these differ in kind."""

    weights: float  # bytes of all weights and buffers
    reference: float  # bytes of the copy of what trains, where a loss compares with the start
    outer: int  # parameters that train, in float32, by what reaches them
    shared: int
    inner: int
    largest: int  # of the largest tensor that trains
    layer: float = 0.0  # bytes of the largest layer's weights, all that FSDP gathers at a time besides `root`
    root: float = 0.0  # bytes of the weights that are in no layer

    @property
    def trained(self) -> int:
        """Parameters that the optimiser moves."""
        return self.outer + self.shared + self.inner


@dataclass(frozen=True)
class Reading:
    """A level's largest micro-batch: what its passes leave, and how many of them a step has on a GPU."""

    activations: Activations
    micro_batches: int
    streams: int = 1  # whose gradients are made one after the other, and added


@dataclass(frozen=True)
class Layout:
    """How a stage lies on its GPUs."""

    gpus: int = 1
    sharded: bool = False
    foreach: bool = True  # the optimiser works on all tensors at a time, as it does on a GPU

    @property
    def share(self) -> float:
        """Of what is cut over the GPUs."""
        return 1 / self.gpus if self.sharded else 1.0


Items = dict[str, float]


def moments(
    held: Parameters, levels: Mapping[str, Reading], asks: Asked, layout: Layout, size: Bytes, *, diagnosed: bool
) -> dict[str, Items]:
    """Bytes by item at each moment of a step that may be the fullest: each level's passes, the joining of the gradients
    over the GPUs, and the optimiser's step."""
    share = layout.share
    copies = (asks.copies + diagnosed) * 4.0 * (held.shared + held.inner) * share
    fixed = {
        "weights": held.weights * share,
        "optimizer": optimizer_bytes(held.trained) * share,
        "reference": held.reference * share,
        "solver's copies": copies,
    }
    if layout.sharded:
        fixed["gathered for a layer"] = held.root + 2 * held.layer
    reach = {"outer": held.outer + held.shared, "inner": held.inner + held.shared}
    found: dict[str, Items] = {}
    most = sum(4.0 * reach[level] * share for level in levels) + max(0, asks.held - 2) * 4.0 * reach["inner"] * share
    for level, reading in levels.items():
        own = 4.0 * reach[level] * share
        before = (most - own if level == "inner" else 0.0) + own * (reading.streams > 1)
        cached = 0.0 if layout.sharded or size.compute == 4 else float(size.compute * held.trained)
        found |= {
            f"{level} level, {moment}": {**fixed, **items}
            for moment, items in _reading(reading, own, before, cached, 4.0 * held.largest).items()
        }
        if layout.gpus > 1 and not layout.sharded:
            found[f"{level} level, gradients added over GPUs"] = {**fixed, "gradients": before + 2 * own}
    work = 4.0 * (held.trained if layout.foreach else 2 * held.largest) * share
    found["optimizer's step"] = {**fixed, "gradients": most, "optimizer's workspace": work}
    return {moment: {item: size for item, size in items.items() if size} for moment, items in found.items()}


def _reading(reading: Reading, own: float, before: float, cached: float, largest: float) -> dict[str, Items]:
    """Of one level's forward and backward pass, over ``before`` bytes of gradients that are held meanwhile."""
    found, again = reading.activations, reading.micro_batches > 1
    begun = own if again else 0.0
    cached = max(0.0, cached - found.casts)
    return {
        "end of the forward pass": {
            "gradients": before + begun,
            "activations": found.saved,
            "logits": found.logits,
            "weights cast": cached,
        },
        "backward pass": {
            "gradients": before + begun,
            "activations": found.saved + found.layer,
            "a gradient on its way": largest if again else 0.0,
        },
        "end of the backward pass": {
            "gradients": before + own,
            "activations": found.layer,
            "a gradient on its way": largest if again else 0.0,
        },
    }


def optimizer_bytes(trained: int) -> float:
    """AdamW's two moments of every parameter, float32 as these are."""
    return 8.0 * trained


def fullest(found: Mapping[str, Items]) -> tuple[str, Items]:
    """The moment that takes most, and its items."""
    moment = max(found, key=lambda name: sum(found[name].values()))
    return moment, found[moment]
