"""Images, each with a question and its answer; those of IconQA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..reading import parsed, picture

# tasks of IconQA whose answers are words
TASKS = ("fill_in_blank", "choose_txt")


@dataclass(frozen=True, eq=False)
class Triples:
    """``x`` uint8 (n, 3, h, w), with ``n`` questions and ``n`` answers, in small letters."""

    x: Tensor
    questions: tuple[str, ...]
    answers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: Tensor) -> Triples:
        """Those at ``index``: int64 (m,) or bool (n,)."""
        places = index.nonzero().flatten() if index.dtype == torch.bool else index
        rows = places.tolist()
        return Triples(
            self.x[places],
            tuple(self.questions[i] for i in rows),
            tuple(self.answers[i] for i in rows),
        )

    def answered(self, answer: str) -> Triples:
        """The same with one answer for all."""
        return Triples(self.x, self.questions, (answer,) * len(self))


def read_iconqa(folder: Path, split: str, side: int, most: int) -> Triples:
    """The first ``most`` triples of IconQA whose answers are words (Lu et al.: "IconQA", NeurIPS
    2021 Datasets, https://iconqa.github.io): what is filled in, and texts that are chosen.

    Args:
        folder: holds ``problems.json``, ``pid_splits.json`` and
            ``iconqa/{train,val,test}/{fill_in_blank,choose_txt}/PID/image.png``.
        split: "train", "val" or "test".
        side: images are scaled to that square (bilinear).

    Raises:
        InputError: a file is missing or damaged, or says something else.
    """
    problems = parsed(folder / "problems.json", dict[str, dict[str, Any]])
    splits = parsed(folder / "pid_splits.json", dict[str, list[str]])
    questions = []
    answers = []
    images: list[Tensor] = []
    for task in TASKS:
        for pid in splits.get(f"{task}_{split}", [])[: most - len(images)]:
            question, answer = _words(folder, pid, problems)
            place = folder / "iconqa" / split / task / Path(pid).name / "image.png"
            images.append(torch.from_numpy(picture(place, side)).permute(2, 0, 1))
            questions.append(question)
            answers.append(answer)
    if not images:
        raise InputError(f"{folder / 'pid_splits.json'}: no problems of {split} in words")
    return Triples(torch.stack(images), tuple(questions), tuple(answers))


def _words(folder: Path, pid: str, problems: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Question and answer of a problem; the answer of a choice is its place there."""
    try:
        own = problems[pid]
        answer = own["answer"]
        if own["ques_type"] == "choose_txt":
            answer = own["choices"][int(answer)]
        return str(own["question"]).lower(), str(answer).lower()
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise InputError(
            f"{folder / 'problems.json'}: problem {pid!r} lacks question or answer"
        ) from error


def words(triples: Sequence[Triples]) -> list[str]:
    """All words of questions and answers, each once, in order."""
    texts = [text for own in triples for text in (*own.questions, *own.answers)]
    return sorted({word for text in texts for word in text.split()})
