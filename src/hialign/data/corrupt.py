"""Images made to say less of what is in them: what a visual preference sets against the true image.

Each takes a generator, so that policy and reference can see the same: the loader gives a record one of its own in each
epoch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

STEPS = 1000
NOISE_STEP = 500
KINDS = ("noise", "zoom", "grey", "crop", "rotation", "other")  # the last is another record's image


def schedule() -> tuple[Tensor, Tensor]:
    """The shares of image and of noise after each step, (1000,) both; their squares add up to 1.

    Source: Fu et al. 2025 (CHiP), arXiv:2501.16629; add_diffusion_noise in llava/train/train.py of LVUGAI/CHiP@e7f5193.
    Differs: nothing; in float32 as there, which shows in the first steps' sixth digit.

    >>> image, noise = schedule()
    >>> print(f"{image[500]:.6f} {noise[500]:.6f}")
    0.863017 0.505175
    """
    betas = torch.sigmoid(torch.linspace(-6, 6, STEPS, dtype=torch.float32)) * (5e-3 - 1e-5) + 1e-5
    kept = torch.cumprod(1 - betas, dim=0)
    return kept.sqrt(), (1 - kept).sqrt()


def noised(pixels: Tensor, rng: np.random.Generator, *, step: int = NOISE_STEP) -> Tensor:
    """The pixels, (..., height, width), under the noise of diffusion after ``step`` steps.

    Pixels are as the image tower takes them, normalised: there the noise has the image's own scale.

    Source: as ``schedule``. Differs: the generator is given, where the code draws anew at each access.
    """
    if not 0 <= step < STEPS:
        raise ValueError(f"noise_step={step}: wanted 0 <= noise_step < {STEPS}; the paper's is {NOISE_STEP}")
    image, noise = (float(shares[step]) for shares in schedule())
    drawn = torch.from_numpy(rng.standard_normal(tuple(pixels.shape), dtype=np.float32))
    return image * pixels + noise * drawn.to(pixels)


def zoomed(pixels: Tensor, rng: np.random.Generator, *, low: float = 0.01, high: float = 0.2) -> Tensor:
    """A random part of the pixels, (..., height, width), in the whole's size; it has ``low`` to ``high`` of the area.

    So most of the image is gone. The part's sides are 3:4 to 4:3.

    Source: Wang et al. 2024 (mDPO), arXiv:2406.11839; mdpo_trainer.py of luka-group/mDPO, RandomResizedCrop.
    Differs: the generator is given, where the code's policy and reference may see different parts.
    """
    if not 0 < low <= high <= 1:
        raise ValueError(f"low={low}, high={high}: wanted 0 < low <= high <= 1, the shares of the area to keep")
    height, width = pixels.shape[-2:]
    area = height * width * rng.uniform(low, high)
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    rows = min(height, max(1, round(np.sqrt(area / ratio))))
    columns = min(width, max(1, round(np.sqrt(area * ratio))))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    part = pixels[..., top : top + rows, left : left + columns]
    flat = part.reshape(1, -1, rows, columns)  # interpolate wants a batch of channels
    grown = F.interpolate(flat, size=(height, width), mode="bilinear", align_corners=False)
    return grown.reshape(pixels.shape)


def grey(pixels: Tensor) -> Tensor:
    """Zeros: in pixels as the image tower takes them, normalised, the mean colour.

    Source: LVUGAI/CHiP@e7f5193, which calls it black. Differs: nothing.
    """
    return torch.zeros_like(pixels)


def cropped(image: Image.Image, rng: np.random.Generator, *, height: int = 320, width: int = 240) -> Image.Image:
    """A random part of the image, at most ``height`` x ``width`` pixels large, in its own size.

    Source: LVUGAI/CHiP@e7f5193, llava/train/train.py, "crop".
    Differs: there the image's width and height are taken for each other, which fails for low, wide images.
    """
    rows, columns = min(image.height, height), min(image.width, width)
    top, left = int(rng.integers(image.height - rows + 1)), int(rng.integers(image.width - columns + 1))
    return image.crop((left, top, left + columns, top + rows))


def rotated(image: Image.Image, rng: np.random.Generator, *, low: float = 10.0, high: float = 80.0) -> Image.Image:
    """The image turned by ``low`` to ``high`` degrees, its corners cut off and black where nothing is.

    Source: LVUGAI/CHiP@e7f5193, llava/train/train.py, "rotate". Differs: nothing.
    """
    return image.rotate(rng.uniform(low, high))


def corrupted(
    kind: str,
    image: Callable[[], Image.Image],
    pixels: Tensor,
    process: Callable[[Image.Image], Tensor],
    rng: np.random.Generator,
    *,
    step: int = NOISE_STEP,
) -> Tensor:
    """What ``kind``, any but "other", makes of an image: normalised pixels, of the shape of ``pixels``.

    Noise, zoom and grey work on ``pixels``, which are what ``process`` makes of the image; crop and rotation on the
    image itself, which is asked for only then, and ``process`` comes after.
    """
    if kind not in KINDS or kind == "other":
        raise ValueError(f"kind={kind!r}: wanted one of {', '.join(KINDS[:-1])}")
    if kind == "noise":
        return noised(pixels, rng, step=step)
    if kind == "zoom":
        return zoomed(pixels, rng)
    if kind == "grey":
        return grey(pixels)
    return process(cropped(image(), rng) if kind == "crop" else rotated(image(), rng))
