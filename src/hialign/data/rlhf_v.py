"""RLHF-V's set, and others in its columns: an image, and a question with two answers as json in a string."""

from __future__ import annotations

import json
from typing import Any

from hialign.data.files import Problems, lacking
from hialign.data.preferences import preference
from hialign.data.records import BadRecord, Dataset, ImageSource, Part, Preference, check_on_error
from hialign.data.records import split as split_records
from hialign.data.tables import cells, label, load, require_columns

_WANTED = 'wanted {"question": "...", "chosen": "...", "rejected": "..."}'


def rlhf_v_preferences(
    path: str | list[str],
    *,
    name: str | None = None,
    split: str = "train",
    images: str = "",
    revision: str | None = None,
    part: Part = "train",
    holdout: float = 0.0,
    split_seed: int = 0,
    on_error: str = "raise",
) -> Dataset[Preference]:
    """Each row's image and question, with the corrected answer to prefer and the model's own to avoid.

    ``path`` as in hub_captions; the columns ``image`` and ``text`` are read. An image that is only named lies in the
    folder ``images``. A record's id is its row's number: the column idx is not the row's own. Rows are divided into
    parts one by one, so that an image of several rows may be in both.

    Bad rows raise a BadRecord or, with on_error="skip", are listed in ``skipped``; a missing set, split or column
    always raises.

    Source: Yu et al. 2023 (RLHF-V), arXiv:2312.00849, the columns of its published parquet; CHiP trains on the same.
    Differs: nothing.
    """
    check_on_error(on_error)
    rows = load(path, name, split, revision)
    require_columns(rows, path, {"image": "image", "text": "text"})
    sources = cells(rows, path, split, "image", "image", images)
    problems = Problems(label(path), on_error)
    records = []
    for number, text in enumerate(rows["text"]):
        try:
            records.append(_record(str(number), sources[number], text, problems.file))
        except BadRecord as error:
            problems.add(error.record, error.problem, error.fix)
    parted = split_records(records, part, holdout=holdout, seed=split_seed)
    return Dataset(label(path, split), parted, tuple(problems.skipped), on_error)


def _record(number: str, images: tuple[ImageSource, ...], text: Any, file: str) -> Preference:
    record = f"row {number}"
    try:
        said = json.loads(text)
    except (TypeError, json.JSONDecodeError) as error:
        raise BadRecord(file, record, f"text={str(text)[:80]!r} is not json ({error})", _WANTED) from error
    problem = lacking(said, {"question": str, "chosen": str, "rejected": str})
    if not problem and not images:
        problem = "no image"
    if problem:
        raise BadRecord(file, record, problem, _WANTED + " beside an image")
    return preference(number, images, said["question"], said["chosen"], said["rejected"], file=file, record=record)
