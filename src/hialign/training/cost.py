"""What training costs, as arithmetic on counts and shapes: no model is built or run here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hialign.solvers import Alternating, DynamicBarrier, ImplicitTangent, Sequential, Single, Solver, ValuePenalty

DISK_RATE = 1e9  # bytes a second: of one good disk, or of a shared one under load


@dataclass(frozen=True)
class Flops:
    """Operations of matrix products, a multiplication and an addition each counted; all else is left out."""

    forward: float = 0.0
    backward: float = 0.0
    recomputed: float = 0.0  # forward once more, in the backward pass

    def __add__(self, other: Flops) -> Flops:
        """Of both."""
        return Flops(self.forward + other.forward, self.backward + other.backward, self.recomputed + other.recomputed)

    def times(self, factor: float) -> Flops:
        """Of so many."""
        return Flops(self.forward * factor, self.backward * factor, self.recomputed * factor)

    @property
    def total(self) -> float:
        """Of everything."""
        return self.forward + self.backward + self.recomputed


@dataclass(frozen=True)
class Stack:
    """Transformer layers of one kind, and how they train.

    ``gated``: Llama's layer (gate, up and down; RMS norms), else CLIP's (two matrices; layer norms). ``mode`` is how
    the part trains in this stage; adapters of ``rank`` may be there and frozen.
    """

    layers: int
    width: int
    hidden: int  # of the feed-forward
    heads: int
    query_width: int
    key_width: int  # of keys, and of values
    gated: bool
    mode: str = "frozen"  # frozen | full | lora
    rank: int = 0  # of adapters on every matrix; 0: there are none
    dropout: float = 0.0  # of the adapters
    checkpointed: bool = False

    @property
    def trains(self) -> bool:
        """Whether anything here does."""
        return self.mode != "frozen"

    def matrices(self) -> tuple[list[tuple[int, int]], tuple[int, int], list[tuple[int, int]], tuple[int, int]]:
        """(inputs, outputs) of query, key, value; of what follows attention; of the feed-forward's first; its last."""
        reads = [(self.width, self.query_width), (self.width, self.key_width), (self.width, self.key_width)]
        first = [(self.width, self.hidden)] * (2 if self.gated else 1)
        return reads, (self.query_width, self.width), first, (self.hidden, self.width)


@dataclass(frozen=True)
class Shapes:
    """A Llava and what lies beside it, in numbers."""

    vision: Stack
    patches: int  # of an image, without the class token
    patch_pixels: int  # numbers in a patch: channels x height x width
    image_tokens: int  # that the projector gives for an image
    feature_layers: int  # of the tower's layers, those that the projected features went through
    projector: Stack  # its mode and adapters alone are read
    llm: Stack
    vocabulary: int
    tied: bool = False  # the output layer is the embedding matrix
    fixed_second: bool = False  # the projector's second layer is the identity and never trains
    text: Stack | None = None  # CLIP's text tower
    embed: int = 0  # width of the contrastive embeddings
    heads_train: bool = False


@dataclass(frozen=True)
class Pass:
    """What one reader runs of the model for a micro-batch."""

    name: str
    rows: int
    images: int = 0  # that the tower reads, over all rows
    pooled: bool = False  # the loss reads the tower's last layer too
    projected: bool = True
    length: int = 0  # of the language model's rows; 0: it is not run
    clip_length: int = 0  # of the CLIP text tower's rows; 0: it is not run
    logits: int = 0  # positions of a row whose logits are made, all at a time
    targets: int = 0  # of these, those that a token is predicted at
    scored: int = 0  # positions of a row whose log-probabilities are made, a block at a time
    compared: int = 0  # the same of divergences, which need the reference's logits too
    watched: int = 0  # the same of divergences that the loss reads as numbers, without their gradient
    summed: bool = False  # the blocks' losses are added up inside, which saves a pass over the head that trains
    embedded: tuple[str, ...] = ()  # pairs whose head is applied to a state of each row
    masked: bool = False  # by a mask of its own for every pair of positions, which shared rows need
    grad: bool = True
    adapters: bool = True

    @property
    def sees(self) -> bool:
        """Whether the language model's rows hold images."""
        return bool(self.images) and self.projected


def flops(shapes: Shapes, run: Pass) -> dict[str, Flops]:
    """Operations of a pass by part: vision, projector, llm, head, text, heads."""
    found: dict[str, Flops] = {}
    if run.images:
        found["vision"] = _tower(shapes, run)
        if run.projected:
            found["projector"] = _projector(shapes, run)
    if run.length:
        begins = _llm_upstream(shapes, run)
        found["llm"] = _stack(shapes.llm, run.rows, run.length, upstream=begins, run=run)
        found["head"] = _head(shapes, run, upstream=begins or shapes.llm.trains)
    if run.clip_length and shapes.text is not None:
        upstream = shapes.text.mode == "full"
        found["text"] = _stack(shapes.text, run.rows, run.clip_length, upstream=upstream, run=run)
    if run.embedded:
        found["heads"] = _pair_heads(shapes, run)
    return {part: cost for part, cost in found.items() if cost.total}


def added(costs: Sequence[Mapping[str, Flops]]) -> dict[str, Flops]:
    """Part by part."""
    total: dict[str, Flops] = {}
    for cost in costs:
        for part, one in cost.items():
            total[part] = total.get(part, Flops()) + one
    return total


def scaled(costs: Mapping[str, Flops], factor: float) -> dict[str, Flops]:
    """Every part ``factor`` times."""
    return {part: cost.times(factor) for part, cost in costs.items()}


def _llm_upstream(shapes: Shapes, run: Pass) -> bool:
    """Whether what enters the language model's layers has a gradient."""
    sees = run.sees and (shapes.projector.trains or shapes.vision.trains)
    return shapes.llm.mode == "full" or sees


def _tower(shapes: Shapes, run: Pass) -> Flops:
    vision = shapes.vision
    grad = run.grad and vision.trains
    convolution = 2.0 * run.images * shapes.patches * shapes.patch_pixels * vision.width
    begins = vision.mode == "full"
    cost = Flops(convolution, convolution if grad and begins else 0.0)  # pixels have no gradient
    reached = vision.layers if run.pooled else shapes.feature_layers
    length = shapes.patches + 1
    read = _stack(replace(vision, layers=reached), run.images, length, upstream=begins, run=run)
    beyond = replace(vision, layers=vision.layers - reached)
    return cost + read + _stack(beyond, run.images, length, upstream=False, run=replace(run, grad=False))


def _projector(shapes: Shapes, run: Pass) -> Flops:
    tokens, upstream = run.images * shapes.image_tokens, shapes.vision.trains
    first = _product(shapes.projector, tokens, (shapes.vision.width, shapes.llm.width), upstream=upstream, run=run)
    fixed = replace(shapes.projector, mode="frozen", rank=0) if shapes.fixed_second else shapes.projector
    upstream = upstream or shapes.projector.trains
    return first + _product(fixed, tokens, (shapes.llm.width, shapes.llm.width), upstream=upstream, run=run)


def _stack(stack: Stack, rows: int, length: int, *, upstream: bool, run: Pass) -> Flops:
    """All layers; behind the first that trains every one has a gradient to pass on."""
    if not stack.layers:
        return Flops()
    first = _layer(stack, rows, length, upstream=upstream, run=run)
    later = _layer(stack, rows, length, upstream=upstream or stack.trains, run=run)
    return first + later.times(stack.layers - 1)


def _layer(stack: Stack, rows: int, length: int, *, upstream: bool, run: Pass) -> Flops:
    tokens, full, trains = rows * length, stack.mode == "full", stack.trains
    reads, out, first, last = stack.matrices()
    attention = 4.0 * rows * length**2 * stack.query_width  # the whole square: what causality leaves out is counted
    inside = upstream or trains
    cost = Flops(attention, 2 * attention if run.grad and inside else 0.0)
    for matrix in reads:
        cost += _product(stack, tokens, matrix, upstream=upstream or full, run=run)
    cost += _product(stack, tokens, out, upstream=inside, run=run)
    for matrix in first:
        cost += _product(stack, tokens, matrix, upstream=inside, run=run)
    cost += _product(stack, tokens, last, upstream=inside, run=run)
    if not (run.grad and inside and stack.checkpointed):
        return cost
    adapted = stack.rank > 0 and run.adapters
    # recomputation stops before the last product, whose result no gradient needs
    spared = 2.0 * tokens * (stack.rank * last[1] if adapted else last[0] * last[1])
    return replace(cost, recomputed=cost.forward - spared)


def _product(stack: Stack, tokens: float, matrix: tuple[int, int], *, upstream: bool, run: Pass) -> Flops:
    """One linear layer with its adapter; ``upstream``: its input has a gradient."""
    inputs, outputs = matrix
    plain = 2.0 * tokens * inputs * outputs
    rank = stack.rank if run.adapters else 0
    down, up = 2.0 * tokens * rank * inputs, 2.0 * tokens * rank * outputs
    if not run.grad:
        return Flops(plain + down + up)
    full, lora = stack.mode == "full", stack.mode == "lora"
    backward = plain * (upstream + full) + down * (upstream + lora) + up * ((upstream or lora) + lora)
    return Flops(plain + down + up, backward)


def _head(shapes: Shapes, run: Pass, *, upstream: bool) -> Flops:
    """The output layer: all logits, log-probabilities by blocks, divergences by blocks."""
    each = 2.0 * run.rows * shapes.llm.width * shapes.vocabulary
    trains = shapes.llm.mode == "full"
    slopes = float(upstream) + float(trains) if run.grad else 0.0
    whole = Flops(run.logits * each, run.logits * each * slopes)
    again = 1.0 if run.grad and trains and not run.summed else 0.0
    blocks = Flops(each, each * slopes, each * again)
    both = Flops(2 * each, each * slopes, 2 * each * again)  # the policy's logits and the reference's
    # a head that is frozen has its states' gradients made with the logits, asked for or not
    idle = Flops(2 * each, each * float(upstream) if run.grad and not trains else 0.0)
    return whole + blocks.times(run.scored) + both.times(run.compared) + idle.times(run.watched)


def _pair_heads(shapes: Shapes, run: Pass) -> Flops:
    total = Flops()
    for pair in run.embedded:
        tower = shapes.vision if run.images else shapes.text
        width = shapes.llm.width if pair != "clip" else tower.width if tower is not None else 0
        each = 2.0 * run.rows * width * shapes.embed
        slopes = _state_has_gradient(shapes, run, pair) + shapes.heads_train
        total += Flops(each, each * slopes if run.grad else 0.0)
    return total


def _state_has_gradient(shapes: Shapes, run: Pass, pair: str) -> bool:
    if pair == "clip":
        return shapes.vision.trains if run.images else shapes.text is not None and shapes.text.trains
    inputs = shapes.projector.trains or shapes.vision.trains if run.images else shapes.llm.mode == "full"
    return inputs or (pair == "llm" and shapes.llm.trains)


# --- what an objective runs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """Tokens of a row's text: before the answer, and of the answer; a caption is an answer."""

    prompt: int
    answer: int
    images: int = 1  # of a row


def language_passes(shapes: Shapes, rows: int, tokens: Lengths) -> list[Pass]:
    """Of ``NextToken``: logits at every position."""
    length = tokens.images * shapes.image_tokens + tokens.prompt + tokens.answer
    return [Pass("policy", rows, rows * tokens.images, length=length, logits=length, targets=tokens.answer)]


def preference_passes(
    shapes: Shapes,
    rows: int,
    tokens: Lengths,
    *,
    shared: bool,
    reference: bool,
    corrupted: bool,
    divergences: bool,
    adapters_off: bool,
) -> list[Pass]:
    """Of ``Preference``: the reference first, then the policy; each reads both answers, and the corrupted image.

    Every loss takes the chosen answer's divergence as a number, and the gradient of the rejected one's alone.
    """
    prompt, images = tokens.images * shapes.image_tokens + tokens.prompt, rows * tokens.images
    kept = {"grad": False, "adapters": not adapters_off}
    found = []
    for name, settings in ([("reference", kept)] if reference else []) + [("policy", {})]:
        compared = tokens.answer if divergences and name == "policy" else 0
        if shared:
            length = prompt + 2 * tokens.answer
            both = Pass(name, rows, images, length=length, scored=2 * tokens.answer, masked=True)
            found.append(replace(both, watched=compared, compared=compared, **settings))  # type: ignore[arg-type]
        else:
            one = Pass(name, rows, images, length=prompt + tokens.answer, scored=tokens.answer)
            found.append(replace(one, watched=compared, **settings))  # type: ignore[arg-type]
            found.append(replace(one, compared=compared, **settings))  # type: ignore[arg-type]
        if corrupted:
            other = Pass(f"{name}, corrupted image", rows, images, length=prompt + tokens.answer)
            found.append(replace(other, scored=tokens.answer, **settings))  # type: ignore[arg-type]
    return found


def anchor_passes(shapes: Shapes, rows: int, tokens: Lengths, *, vocabulary: bool, adapters_off: bool) -> list[Pass]:
    """Of HALVA's reference stream: both models' states, then the divergence or the targets' log-probabilities."""
    length = tokens.images * shapes.image_tokens + tokens.prompt + tokens.answer
    row = Pass("anchor", rows, rows * tokens.images, length=length)
    kept = replace(row, name="anchor's reference", grad=False, adapters=not adapters_off)
    if vocabulary:
        return [kept, replace(row, compared=tokens.answer)]
    return [replace(kept, scored=tokens.answer), replace(row, scored=tokens.answer)]


def contrastive_passes(
    shapes: Shapes, rows: int, caption: int, clip_caption: int, pairs: tuple[str, ...], *, hallucinated: bool
) -> list[Pass]:
    """Of ``Contrastive`` and ``Hacl``: images, captions, and hallucinated captions."""
    pooled, projected = "clip" in pairs, pairs != ("clip",)
    read = shapes.image_tokens + 1 if "llm" in pairs else 0  # and the end token
    images = Pass("images", rows, rows, pooled=pooled, projected=projected, length=read, embedded=pairs)
    texts = Pass(
        "captions",
        rows,
        length=caption if "llm" in pairs else 0,
        clip_length=clip_caption if pooled else 0,
        embedded=pairs,
    )
    return [images, texts] + ([replace(texts, name="hallucinated captions")] if hallucinated else [])


def similarity(rows: int, columns: int, embed: int, pairs: int, *, hallucinated: bool) -> Flops:
    """The contrastive scores of one process's rows against those of all, both ways: one product if they are all."""
    each = 2.0 * rows * columns * embed * pairs
    once = each * (2 if columns > rows else 1) + (2.0 * rows * embed * pairs if hallucinated else 0.0)
    return Flops(once, 2 * once)


# --- what a solver asks for -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """Gradients that a solver's step takes of each level, and how many sets of them it holds at its peak."""

    outer: float
    inner: float
    held: int  # of what both levels reach, the one that is being made included
    copies: int = 0  # of what the inner level reaches: running means, shadows, values


def asked(solver: Solver, *, depends: bool = False) -> Asked:
    """What one step of the solver takes; ``depends``: the inner loss reads parameters of the outer level."""
    if isinstance(solver, Single):
        return Asked(1, 0, 1)
    if isinstance(solver, Alternating):
        return Asked(1, solver.inner_steps, 2)
    if isinstance(solver, Sequential):
        return Asked(1 - solver.fraction, solver.fraction, 1)
    if isinstance(solver, ImplicitTangent):  # two gradients for each product with the curvature
        systems = 2 if depends else 1
        return Asked(1, 1 + 2 * solver.steps * systems, 4, copies=5)
    shadow = solver.inner_steps + 1 if depends and isinstance(solver, DynamicBarrier | ValuePenalty) else 0
    means = 2 if isinstance(solver, DynamicBarrier) and solver.ema else 0
    return Asked(1, 1 + shadow, 3 if shadow else 2, copies=means + bool(shadow))


# --- caches -----------------------------------------------------------------------------------------------------------


def feature_bytes(images: int, tokens: int, width: int, bytes_each: int = 2) -> int:
    """Bytes of a frozen tower's features, ``tokens`` of ``width`` numbers for each image."""
    return images * tokens * width * bytes_each


def reference_bytes(answers: int, tokens: float, width: int, bytes_each: int = 2) -> int:
    """Bytes of a reference's log-probability (float32) and last hidden state at each of an answer's ``tokens``.

    ``width`` 0 is of log-probabilities alone, which serve a loss without divergences.
    """
    return round(answers * tokens * (width * bytes_each + 4))


def cache_pays(
    num_bytes: int,
    forward_seconds: float,
    epochs: float,
    *,
    disk_rate: float = DISK_RATE,
    free_bytes: int | None = None,
    gpus: int = 1,
) -> tuple[bool, str]:
    """Whether a cache saves time, and the sentence that says why.

    Training's forward passes of all epochs are saved, for those of caching, which one process runs, for writing the
    cache once and for reading it in every epoch.

    Args:
        num_bytes: of the cache, over all records.
        forward_seconds: what the forward passes take that an epoch spends and the cache would hold.
        epochs: how often training reads each record.
        disk_rate: bytes a second, to and from the disk.
        free_bytes: what the disk has left; None where that is not known.
        gpus: how many share training's forward passes; caching's take as many times as long.
    """
    _check(num_bytes=num_bytes, forward_seconds=forward_seconds, epochs=epochs)
    if not disk_rate > 0:
        raise ValueError(f"cache_pays: disk_rate={disk_rate}, wanted bytes a second, above 0")
    size = f"{num_bytes / 1e9:,.1f} GB"
    if epochs <= 1:
        return False, f"saves nothing: with epochs={epochs:g} no record is read twice, and the first reading fills it"
    if free_bytes is not None and num_bytes > free_bytes:
        return False, f"does not fit: it takes {size}, and the disk has {free_bytes / 1e9:,.1f} GB left"
    saved, spent = (epochs - gpus) * forward_seconds, (epochs + 1) * num_bytes / disk_rate
    if saved <= 0:
        passes = f"{gpus * forward_seconds:,.0f} s in one process, those of {epochs:g} epochs on {gpus} GPUs"
        return False, f"saves nothing: its forward passes take {passes} {epochs * forward_seconds:,.0f} s"
    sums = f"saves {saved:,.0f} s of forward passes in {epochs:g} epochs, for {spent:,.0f} s of disk ({size})"
    return saved > spent, sums


def _check(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number >= 0:
            raise ValueError(f"cache_pays: {name}={number}, wanted 0 or more")
