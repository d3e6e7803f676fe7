"""Files to records, records to batches, batches in an order that can be resumed."""

from hialign.data.captions import coco_captions, flickr8k
from hialign.data.collate import LanguageCollator, PairCollator
from hialign.data.drawn import draw_captioned
from hialign.data.loader import Loader
from hialign.data.records import (
    BadRecord,
    CaptionedImage,
    Dataset,
    Mixture,
    Skipped,
    load_image,
    mix,
    split,
)

__all__ = [
    "BadRecord",
    "CaptionedImage",
    "Dataset",
    "LanguageCollator",
    "Loader",
    "Mixture",
    "PairCollator",
    "Skipped",
    "coco_captions",
    "draw_captioned",
    "flickr8k",
    "load_image",
    "mix",
    "split",
]
