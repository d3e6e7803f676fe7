"""Files to records, records to batches, batches in an order that can be resumed."""

from hialign.data.captions import coco_captions, flickr8k
from hialign.data.collate import LanguageCollator, PairCollator
from hialign.data.hallucinate import ByModel, ByWords, Hallucinated, Left
from hialign.data.hub import hub_caption_stream, hub_captions
from hialign.data.llava import llava_captions, llava_conversations
from hialign.data.loader import Loader
from hialign.data.records import (
    AnyData,
    BadRecord,
    CaptionedImage,
    Conversation,
    Dataset,
    EncodedImage,
    Mixture,
    Skipped,
    Streamed,
    Turn,
    load_image,
    mix,
    split,
)
from hialign.data.replies import Endpoint, LocalModel
from hialign.data.throughput import Throughput, measure
from hialign.data.vqa import vqa_v2
from hialign.data.workers import WorkerDied

__all__ = [
    "AnyData",
    "BadRecord",
    "ByModel",
    "ByWords",
    "CaptionedImage",
    "Conversation",
    "Dataset",
    "EncodedImage",
    "Endpoint",
    "Hallucinated",
    "LanguageCollator",
    "Left",
    "Loader",
    "LocalModel",
    "Mixture",
    "PairCollator",
    "Skipped",
    "Streamed",
    "Throughput",
    "Turn",
    "WorkerDied",
    "coco_captions",
    "flickr8k",
    "hub_caption_stream",
    "hub_captions",
    "llava_captions",
    "llava_conversations",
    "load_image",
    "measure",
    "mix",
    "split",
    "vqa_v2",
]
