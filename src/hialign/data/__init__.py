"""Files to records, records to batches, batches in an order that can be resumed."""

from hialign.data.captions import coco_captions, flickr8k
from hialign.data.collate import LanguageCollator, PairCollator
from hialign.data.collate_preferences import HallucinatedCollator, PreferenceCollator
from hialign.data.hacl import hacl_captions
from hialign.data.hallucinate import ByModel, ByWords, Hallucinated, Left
from hialign.data.halva import halva_preferences
from hialign.data.hub import hub_caption_stream, hub_captions
from hialign.data.keyed import CachedCollator, KeyedBatch, KeyedCollator, side_tokens
from hialign.data.llava import llava_captions, llava_conversations
from hialign.data.loader import Loader
from hialign.data.preferences import chosen_answers, chosen_captions, hub_preferences, json_preferences
from hialign.data.records import (
    Answer,
    AnyData,
    BadRecord,
    CaptionedImage,
    Conversation,
    Dataset,
    EncodedImage,
    HallucinatedImage,
    Mixture,
    Preference,
    Skipped,
    Streamed,
    Turn,
    load_image,
    mix,
    split,
)
from hialign.data.replies import Endpoint, LocalModel
from hialign.data.rlhf_v import rlhf_v_preferences
from hialign.data.scienceqa import hub_scienceqa
from hialign.data.throughput import Throughput, measure
from hialign.data.vqa import vqa_v2
from hialign.data.workers import WorkerDied

__all__ = [
    "Answer",
    "AnyData",
    "BadRecord",
    "ByModel",
    "ByWords",
    "CachedCollator",
    "CaptionedImage",
    "Conversation",
    "Dataset",
    "EncodedImage",
    "Endpoint",
    "Hallucinated",
    "HallucinatedCollator",
    "HallucinatedImage",
    "KeyedBatch",
    "KeyedCollator",
    "LanguageCollator",
    "Left",
    "Loader",
    "LocalModel",
    "Mixture",
    "PairCollator",
    "Preference",
    "PreferenceCollator",
    "Skipped",
    "Streamed",
    "Throughput",
    "Turn",
    "WorkerDied",
    "chosen_answers",
    "chosen_captions",
    "coco_captions",
    "flickr8k",
    "hacl_captions",
    "halva_preferences",
    "hub_caption_stream",
    "hub_captions",
    "hub_preferences",
    "hub_scienceqa",
    "json_preferences",
    "llava_captions",
    "llava_conversations",
    "load_image",
    "measure",
    "mix",
    "rlhf_v_preferences",
    "side_tokens",
    "split",
    "vqa_v2",
]
