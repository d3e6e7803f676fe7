"""Answers first, scores second: a file of answers that a kill leaves whole and a second run goes on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO


class AnswerFile:
    """``answers`` maps an id to its row; ``write`` adds one to the file at once.

    ``made_by`` says what gives these answers: a model at a step, with its settings. It lies beside the file, and
    answers that something else gave are not gone on with but replaced.
    """

    def __init__(self, file: Path, made_by: Mapping[str, Any]) -> None:
        self.file = file
        self.made_by = json.dumps(made_by, sort_keys=True) + "\n"
        self.answers: dict[str, dict[str, Any]] = {}
        self.out: TextIO | None = None

    def __enter__(self) -> Self:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        label = self.file.with_suffix(".made_by.json")
        if self.file.is_file() and label.is_file() and label.read_text() == self.made_by:
            whole = [line for line in self.file.read_text().splitlines(keepends=True) if line.endswith("\n")]
            try:
                self.answers = {row["id"]: row for row in map(json.loads, whole)}
            except (json.JSONDecodeError, KeyError) as error:
                raise ValueError(
                    f"{self.file}: a line is not an answer ({error}); mend it or delete the file"
                ) from error
            partial = self.file.with_suffix(".partial")
            partial.write_text("".join(whole))  # without a last line that a kill cut short
            partial.replace(self.file)
        else:
            self.file.unlink(missing_ok=True)
            label.write_text(self.made_by)
        self.out = self.file.open("a", buffering=1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.out is not None:
            self.out.close()

    def write(self, record: str, **row: object) -> None:
        """Adds one row; its ``id`` is ``record``."""
        assert self.out is not None
        self.answers[record] = {"id": record, **row}
        self.out.write(json.dumps(self.answers[record]) + "\n")
