"""CHAIR: which things that descriptions name are in the image, by COCO's annotations."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hialign.benchmarks.answers import Entry, check_ids, first, identity, join, read_entries, read_json
from hialign.benchmarks.questions import INSTANCES, held, read_lists, require
from hialign.benchmarks.scores import Answers, Columns, Question, Scores, numbers, share
from hialign.benchmarks.taggers import nltk_words
from hialign.benchmarks.vocabulary import Mention, Vocabulary, Words, as_pattern, built_in, chair_file, closed

COCO_FILES = "COCO's annotations (cocodataset.org, annotations_trainval2014.zip): instances_*.json and captions_*.json"
IDS = "images: a json list or a jsonl of ids or of objects with image_id, question_id, id or image"
LISTS = {
    "instances": INSTANCES,
    "captions": {"images": ("id", "file_name"), "annotations": ("image_id", "caption")},
}
LEMMATIZERS = ("builtin", "pattern", "nltk")
_FILE = re.compile(r"\d+\.\w{3,4}$")  # what the name of an image of COCO ends with


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image's file, the names of the annotated categories in it, and what people wrote of it."""

    file: str
    categories: set[str] = field(default_factory=set)
    captions: list[str] = field(default_factory=list)


def image_id(value: object) -> str:
    """COCO's number of an image as a text: of 42, "000000000042" and "COCO_val2014_000000000042.jpg" it is "42"."""
    stem = str(value).rsplit("/", 1)[-1].split(".")[0]
    digits = stem[len(stem.rstrip("0123456789")) :]
    return str(int(digits)) if digits else str(value)


def read_coco(root: str, splits: Sequence[str]) -> dict[str, Image]:
    """The images of ``splits`` (``val2014``, ...) by their ids, from COCO's files in ``root``."""
    images: dict[str, Image] = {}
    for split in splits:
        files = {kind: Path(root) / f"{kind}_{split}.json" for kind in LISTS}
        instances, captions = (read_lists(files[kind], LISTS[kind], COCO_FILES) for kind in LISTS)
        for content in (instances, captions):
            for one in content["images"]:
                images.setdefault(str(one["id"]), Image(file=str(one["file_name"])))
        names = {str(one["id"]): str(one["name"]) for one in instances["categories"]}
        for number, one in enumerate(instances["annotations"], start=1):
            place = f"{files['instances']}: annotations, entry {number}"
            image = held(images, one, "image_id", place)
            image.categories.add(held(names, one, "category_id", place))
        for number, one in enumerate(captions["annotations"], start=1):
            place = f"{files['captions']}: annotations, entry {number}"
            held(images, one, "image_id", place).captions.append(str(one["caption"]))
    return images


def there(image: Image, vocabulary: Vocabulary, words: Words) -> set[str]:
    """The categories that are in an image: those annotated, and those that its captions name."""
    found = {vocabulary.node(name) for name in image.categories}
    for caption in image.captions:
        found |= {mention.node for mention in vocabulary.mentions(vocabulary.merge(words(caption)))}
    return found


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What a caption says: its words with pairs merged, the categories that it names, those of them not there."""

    words: list[str]
    mentions: list[Mention]
    false: list[Mention]
    truth: set[str]

    @property
    def counts(self) -> dict[str, float]:
        """What the scores are made of; see ``statistic``."""
        return {
            "captions": 1,
            "hallucinated": bool(self.false),
            "mentions": len(self.mentions),
            "false": len(self.false),
            "found": len(self.truth & {mention.node for mention in self.mentions}),
            "there": len(self.truth),
            "words": len(self.words),
        }

    @property
    def row(self) -> dict[str, Any]:
        """What the official code writes down of a caption."""
        counts = self.counts
        return {
            "mscoco_hallucinated_words": [[mention.word, mention.node] for mention in self.false],
            "mscoco_gt_words": sorted(self.truth),
            "mscoco_generated_words": [mention.node for mention in self.mentions],
            "hallucination_idxs": [mention.place for mention in self.false],
            "words": self.words,
            "metrics": {
                "CHAIRs": int(counts["hallucinated"]),
                "CHAIRi": float(share(counts["false"], counts["mentions"])),
                "Recall": float(share(counts["found"], counts["there"])),
            },
        }


def read_caption(words: Sequence[str], truth: set[str], vocabulary: Vocabulary) -> Caption:
    """A caption from its words in the singular, against the categories that are there."""
    merged = vocabulary.merge(words)
    mentions = vocabulary.mentions(merged)
    false = [mention for mention in mentions if mention.node not in truth]
    return Caption(words=[word for word, _ in merged], mentions=mentions, false=false, truth=truth)


def statistic(sums: Columns) -> dict[str, np.ndarray]:
    """``CHAIRs``, ``CHAIRi`` and ``Recall`` in percent, and ``Len``, the words of a caption, marks among them.

    CHAIRs: captions with something that is not there, of all captions. CHAIRi: mentions of what is not there, of all
    mentions. Recall: categories found, of those there.

    Source: Rohrbach et al. 2018, arXiv:1809.02156, section 3.1; Recall and Len: pritamqu/HALVA@059b086, eval_chair.py.
    Differs: CHAIRi without any mention is 0, where theirs divides by zero.
    """
    return {
        name: 100 * share(sums.get(part, 0.0), sums.get(whole, 0.0))
        for name, part, whole in (
            ("CHAIRs", "hallucinated", "captions"),
            ("CHAIRi", "false", "mentions"),
            ("Recall", "found", "there"),
        )
    } | {"Len": share(sums.get("words", 0.0), sums.get("captions", 0.0))}


@dataclass(frozen=True, kw_only=True)
class Chair:
    """A request to describe each of some images of COCO.

    Args:
        root: the folder with ``instances_<split>.json`` and ``captions_<split>.json``.
        ids: a file that names the images asked after, in a json list or a jsonl, such as less-is-more's
            chair-500.jsonl or a file of answers; null asks after all of ``splits``.
        splits: of COCO, those that the images are of.
        images: the folder of the images.
        prompt: the request.
        synonyms: CHAIR's synonyms.txt; null for our own table.
        lemmatizer: how words are made singular. ``builtin``: what the table knows. ``pattern``: as the original code,
            with its faults. ``nltk``: as HALVA and less-is-more, by a tagger and WordNet. In Python also a function
            from a text to its words.
        max_new_tokens: of an answer, where a model is asked.

    Source: Rohrbach et al. 2018, arXiv:1809.02156; code LisaAnne/Hallucination@6e4d33c, utils/chair.py.
    Differs: an image's truth is of its own split; an image without annotations is an error; ``hallucination_idxs``
        count the words as they stand also where a seat was left out.
    """

    IMAGES: ClassVar[str] = "COCO's val2014, or what splits names (cocodataset.org, val2014.zip)"

    root: str
    ids: str | None = None
    splits: Sequence[str] = ("val2014",)
    images: str = ""
    prompt: str = "Please describe this image in detail."
    synonyms: str | None = None
    lemmatizer: str | Words = "builtin"
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        if isinstance(self.lemmatizer, str) and self.lemmatizer not in LEMMATIZERS:
            raise ValueError(f"lemmatizer: got {self.lemmatizer!r}; wanted one of {', '.join(LEMMATIZERS)}")

    @cached_property
    def entries(self) -> dict[str, Image]:
        """Image id -> the image, of those asked after."""
        images = read_coco(self.root, self.splits)
        return images if self.ids is None else asked(self.ids, images, self.splits)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The table of synonyms."""
        return built_in() if self.synonyms is None else chair_file(self.synonyms)

    @cached_property
    def words(self) -> Words:
        """The reader of texts."""
        return reader(self.lemmatizer, self.vocabulary)

    @cached_property
    def truth(self) -> dict[str, set[str]]:
        """Image id -> the categories that are there."""
        return {name: there(image, self.vocabulary, self.words) for name, image in self.entries.items()}

    def questions(self) -> list[Question]:
        """One request for each image."""
        return [
            Question(id=name, image=os.path.join(self.images, image.file), text=self.prompt)
            for name, image in self.entries.items()
        ]

    def read(self, answers: str) -> dict[str, str]:
        """Captions in the original format (``imgToEval``), Maxlinn's, LLaVA's, HALVA's, lmms-eval's or ours.

        They are joined by their image: by its id, else by its file (LLaVA's ``question_id`` then counts the lines).
        """
        entries = read_entries(answers, "captions: a json list or a jsonl of objects with image_id and caption")
        if len(entries) == 1 and "imgToEval" in entries[0]:
            entries = _evaluated(entries[0]["imgToEval"], answers)
        texts = dict.fromkeys(self.entries, self.prompt)
        return join(entries, texts, file=f"{answers} ({self._asked})", key=image_key)

    @property
    def _asked(self) -> str:
        which = f"ids={self.ids}" if self.ids else f"all of {', '.join(self.splits)}; ids=FILE asks after fewer"
        return f"asked after are {len(self.entries)} images, {which}"

    def score(self, answers: Answers) -> Scores:
        """The numbers of ``statistic``, an image being a unit."""
        check_ids(answers, self.entries, f"chair ({self._asked})")
        captions = {
            name: read_caption(self.words(answers[name]), self.truth[name], self.vocabulary) for name in self.entries
        }
        units = {name: caption.counts for name, caption in captions.items()}
        rows = [
            {"id": name, "image_id": coco_number(name), "caption": answers[name], **caption.row}
            for name, caption in captions.items()
        ]
        flags = []
        if self.synonyms is None:
            flags.append("the table of synonyms is our own: papers count by CHAIR's synonyms.txt (synonyms=FILE)")
        if self.lemmatizer == "builtin":
            flags.append(
                "words are made singular by what the table knows; the original code uses pattern, which loses buses"
            )
        if not any(caption.mentions for caption in captions.values()):
            flags.append("no caption names a category, so CHAIRi is 0; the official script divides by zero")
        return Scores(numbers=numbers(units, statistic), units=units, statistic=statistic, rows=rows, flags=flags)


def reader(lemmatizer: str | Words, vocabulary: Vocabulary) -> Words:
    """The reader of texts that a setting of ``LEMMATIZERS`` names."""
    readers: dict[str, Callable[[], Words]] = {
        "builtin": lambda: closed(vocabulary),
        "pattern": lambda: as_pattern,
        "nltk": lambda: nltk_words("set lemmatizer=builtin"),
    }
    return readers[lemmatizer]() if isinstance(lemmatizer, str) else lemmatizer


def image_key(entry: Entry) -> str | None:
    """The image that an entry is about; None when it does not say.

    Its ``image_id``, else the ``image`` where that is a file of COCO's, else the ``question_id`` or ``id``.
    """
    image = first(entry, ["image"])
    named = image if isinstance(image, str) and _FILE.search(image) else None
    ways = (first(entry, ["image_id"]), named, identity(entry, ["question_id", "id"]), image)
    found = next((way for way in ways if way is not None), None)
    return None if found is None else image_id(found)


def coco_number(name: str) -> int | str:
    """An image's id as COCO's files have it, where it is one of theirs."""
    return int(name) if name.isdecimal() else name


def _evaluated(content: Any, file: str) -> list[Entry]:
    """The captions of the original format."""
    place, wanted = f"{file}: imgToEval", "an object of {image id: {image_id, caption}}"
    if not isinstance(content, dict):
        raise ValueError(f"{place}: is a {type(content).__name__}; wanted {wanted}")
    for name, entry in content.items():
        require(entry, ["image_id", "caption"], f"{place}, {name}", wanted)
    return list(content.values())


def asked(file: str, images: Mapping[str, Image], splits: Sequence[str]) -> dict[str, Image]:
    """Those of ``images`` that a file names, in its order; a ValueError names ids twice there or without an image."""
    content = read_json(file, IDS)
    names = []
    for number, one in enumerate(content if isinstance(content, list) else [content], start=1):
        name = image_key(one) if isinstance(one, dict) else image_id(one)
        if name is None:
            raise ValueError(f"{file}: entry {number} names no image; wanted {IDS}")
        names.append(name)
    twice = [name for name, times in Counter(names).items() if times > 1]
    unknown = [name for name in names if name not in images]
    if twice or unknown:
        raise ValueError(
            f"{file}: {len(twice)} images come twice ({', '.join(twice[:5])}) and {len(unknown)} are not of "
            f"{', '.join(splits)} ({', '.join(unknown[:5])}); wanted each image once, and the splits that they are of"
        )
    return {name: images[name] for name in names}
