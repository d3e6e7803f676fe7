"""How long scoring takes, beside pycocoevalcap where it and Java are installed: python scripts/benchmarks/evaluation.py

Writes docs/benchmarks/evaluation.json, and evaluation.md from it. Annotations and answers are made up and written to
files once. Every turn of a competitor is a process of its own, which reads the files and scores the answers; they take
turns, A B C A B C ..., and a ratio is the median of the turns'. Targets are in processor time, which other work on the
machine leaves nearly alone; what a process starts (Java) counts with it. Each process says whether torch was imported.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import pkgutil
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CATEGORIES = ("random", "popular", "adversarial")
# What stands in made-up captions beside the names of things.
FILLERS = """
    a the of in on with and is are to at near behind large small white black brown red green two three several young
    standing sitting holding riding walking looking next top front side people scene image appears also there into
    visible background sunny busy wooden covered filled street field water grass room floor wall sky
"""
THINGS = """
    person bicycle car motorcycle airplane bus train truck boat bench bird cat dog horse sheep cow elephant bear zebra
    giraffe backpack umbrella handbag tie suitcase frisbee skis snowboard kite skateboard surfboard bottle cup fork
    knife spoon bowl banana apple sandwich orange broccoli carrot pizza donut cake chair couch bed toilet laptop mouse
    remote keyboard microwave oven toaster sink refrigerator book clock vase scissors toothbrush dogs cars men women
"""


@dataclass(frozen=True)
class Size:
    """How much is scored."""

    images: int  # with captions
    words: int  # of a description that CHAIR reads
    references: int  # of an image
    questions: int  # POPE's, of each of three categories
    turns: int


WHOLE = Size(images=5000, words=100, references=5, questions=3000, turns=5)
SMALL = Size(images=12, words=20, references=2, questions=24, turns=1)


# What is scored, made up once.


def sentence(rng: random.Random, words: int) -> str:
    """Words with one thing in eight, a comma or a full stop now and then, and a thing at the end."""
    fillers, things, marks = FILLERS.split(), THINGS.split(), ["", "", "", "", "", "", "", ",", "."]
    made = [rng.choice(things if rng.random() < 0.125 else fillers) + rng.choice(marks) for _ in range(words - 1)]
    return " ".join([*made, rng.choice(things)]).capitalize() + "."


def make(folder: Path, size: Size) -> None:
    """COCO's and POPE's files with answers."""
    rng = random.Random(0)
    write = lambda name, content: (folder / name).write_text(json.dumps(content))  # noqa: E731
    ids = range(1, size.images + 1)
    images = [{"id": n, "file_name": f"COCO_val2014_{n:012d}.jpg"} for n in ids]
    references = [
        {"id": n * 10 + k, "image_id": n, "caption": sentence(rng, rng.randrange(8, 14))}
        for n in ids
        for k in range(size.references)
    ]
    write("captions_val2014.json", {"images": images, "annotations": references})
    kinds = [{"id": n, "name": name} for n, name in enumerate(THINGS.split()[:60], 1)]
    boxes = [{"image_id": n, "category_id": rng.randrange(1, 61)} for n in ids for _ in range(7)]
    write("instances_val2014.json", {"images": images, "annotations": boxes, "categories": kinds})
    write("descriptions.json", [{"image_id": n, "caption": sentence(rng, size.words)} for n in ids])
    write("captions.json", [{"image_id": n, "caption": sentence(rng, rng.randrange(8, 14))} for n in ids])
    answers = []
    for category in CATEGORIES:
        asked = [
            {
                "question_id": n,
                "image": f"{n // 6}.jpg",
                "text": f"Is there a {rng.choice(THINGS.split())}?",
                "label": label,
            }
            for n, label in zip(range(1, size.questions + 1), ["yes", "no"] * size.questions, strict=False)
        ]
        write(f"coco_pope_{category}.json", asked)
        answers += [
            {"id": f"{category}/{one['question_id']}", "answer": rng.choice(["Yes", "No", "No, there is not."])}
            for one in asked
        ]
    write("pope.json", answers)


# Competitors: each reads the folder's files and returns its headline number.


def chair(folder: Path) -> float:
    found = importlib.import_module("hialign.benchmarks.chair").Chair(root=str(folder))
    return found.score(found.read(str(folder / "descriptions.json"))).numbers["CHAIRi"]


def captions(folder: Path, *metrics: str) -> float:
    found = importlib.import_module("hialign.benchmarks.coco_captions").CocoCaptions(root=str(folder), metrics=metrics)
    return found.score(found.read(str(folder / "captions.json"))).numbers["CIDEr"]


def pope(folder: Path) -> float:
    found = importlib.import_module("hialign.benchmarks.pope").Pope(root=str(folder))
    return found.score(found.read(str(folder / "pope.json"))).numbers["mean/f1"]


def every_import(_: Path) -> float:
    """Imports all that scores."""
    room = importlib.import_module("hialign.benchmarks")
    names = [module.name for module in pkgutil.iter_modules(room.__path__, "hialign.benchmarks.")]
    return float(len([importlib.import_module(name) for name in names]))


def pycocoevalcap(folder: Path, *metrics: str) -> float:
    """Its tokeniser, a Java program, and its CIDEr, with BLEU and ROUGE-L where they are asked for."""
    cider, tokenizer = (
        importlib.import_module(f"pycocoevalcap.{name}") for name in ("cider.cider", "tokenizer.ptbtokenizer")
    )
    theirs: dict[int, list[dict[str, str]]] = {}
    for one in json.loads((folder / "captions_val2014.json").read_text())["annotations"]:
        theirs.setdefault(one["image_id"], []).append({"caption": one["caption"]})
    ours = json.loads((folder / "captions.json").read_text())
    texts = tokenizer.PTBTokenizer().tokenize(theirs)
    said = tokenizer.PTBTokenizer().tokenize({one["image_id"]: [{"caption": one["caption"]}] for one in ours})
    if "Bleu" in metrics:
        importlib.import_module("pycocoevalcap.bleu.bleu").Bleu(4).compute_score(texts, said, verbose=0)
    if "ROUGE_L" in metrics:
        importlib.import_module("pycocoevalcap.rouge.rouge").Rouge().compute_score(texts, said)
    return float(cider.Cider().compute_score(texts, said)[0])


@dataclass(frozen=True)
class Case:
    """What is measured, who scores it, ours first, and the processor time that it may take."""

    name: str
    title: Callable[[Size], str]
    most: float | None
    who: dict[str, Callable[[Path], float]]


CASES = (
    Case("chair", lambda size: f"CHAIR, {size.images:,} descriptions of {size.words} words", 10.0, {"hialign": chair}),
    Case(
        "cider",
        lambda size: f"CIDEr, {size.images:,} captions with {size.references} references each, tokenising included",
        10.0,
        {
            "hialign": lambda folder: captions(folder, "CIDEr"),
            "pycocoevalcap": lambda folder: pycocoevalcap(folder, "CIDEr"),
        },
    ),
    Case(
        "captions",
        lambda size: "the same, with BLEU and ROUGE-L",
        None,
        {
            "hialign": lambda folder: captions(folder, "CIDEr", "Bleu", "ROUGE_L"),
            "pycocoevalcap": lambda folder: pycocoevalcap(folder, "CIDEr", "Bleu", "ROUGE_L"),
        },
    ),
    Case("pope", lambda size: f"POPE, {3 * size.questions:,} answers", 1.0, {"hialign": pope}),
    Case("import", lambda size: "importing all of hialign.benchmarks", None, {"hialign": every_import}),
)


# One competitor's process, and the one that gives the turns.


def serve(case: Case, who: str, folder: Path) -> None:
    """Scores once and says how long it took."""
    competitor = case.who[who]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    start, before = time.perf_counter(), processor()
    number = competitor(folder)
    found = {"seconds": time.perf_counter() - start, "cpu_seconds": processor() - before, "number": number}
    print(json.dumps({**found, "torch": "torch" in sys.modules}), file=answers, flush=True)


def processor() -> float:
    """Seconds of processor time of this process and of what it started and saw end."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def absent(case: Case, who: str) -> str | None:
    """Why it cannot be measured here."""
    if case.name == "chair" and importlib.util.find_spec("hialign.benchmarks.chair") is None:
        return "hialign.benchmarks.chair is not there"
    if who == "pycocoevalcap" and importlib.util.find_spec("pycocoevalcap") is None:
        return "not installed"
    return "there is no java" if who == "pycocoevalcap" and shutil.which("java") is None else None


def measured(case: Case, size: Size, folder: Path) -> dict[str, Any]:
    """Of each competitor its turns, or why there are none."""
    reasons = {who: absent(case, who) for who in case.who}
    results: dict[str, Any] = {who: {"absent": reason} if reason else {"turns": []} for who, reason in reasons.items()}
    for _ in range(size.turns):
        for who, result in results.items():
            if "absent" not in result:
                command = [sys.executable, __file__, "--serve", case.name, who, str(folder)]
                done = subprocess.run(
                    command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
                )
                if done.returncode:
                    raise RuntimeError(f"{case.name}, {who}: {done.stderr.strip().splitlines()[-1]}")
                result["turns"].append(json.loads(done.stdout))
    found = [turn["number"] for result in results.values() for turn in result.get("turns", [])]
    if any(abs(number - found[0]) > 1e-9 for number in found):
        raise RuntimeError(f"{case.name}: the competitors' numbers differ: {sorted(set(found))}")
    return {"name": case.name, "title": case.title(size), "most": case.most, "results": results}


def median(result: dict[str, Any], what: str) -> float:
    """The median over its turns."""
    return statistics.median(turn[what] for turn in result["turns"])


def machine() -> dict[str, Any]:
    """What it ran on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version()}


def versions() -> dict[str, str]:
    """Of what was measured."""
    found = {}
    for package in ("numpy", "pycocoevalcap"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def rows(case: dict[str, Any]) -> list[str]:
    """The lines of one case: who, processor time, time on the wall, beside the first, whether torch came in."""
    ours = case["results"]["hialign"]
    lines = []
    for who, result in case["results"].items():
        if "absent" in result:
            lines.append(f"| {case['title']} | {who} | {result['absent']} | | | |")
            continue
        beside = "-"
        if "absent" not in ours:
            ratios = [a["cpu_seconds"] / b["cpu_seconds"] for a, b in zip(result["turns"], ours["turns"], strict=True)]
            beside = f"{statistics.median(ratios):.2f}"
        torch = "**yes**" if any(turn["torch"] for turn in result["turns"]) else "no"
        times = f"{median(result, 'cpu_seconds'):.2f} s | {median(result, 'seconds'):.2f} s"
        lines.append(f"| {case['title']} | {who} | {times} | {beside} | {torch} |")
    return lines


def targets(cases: list[dict[str, Any]], quick: bool) -> list[str]:
    """The lines of what was wanted."""
    lines = []
    for case in cases:
        ours = case["results"]["hialign"]
        if case["most"] is None:
            continue
        wanted = f"| {case['title']}: at most {case['most']:g} s of one core"
        if quick or "absent" in ours:
            lines.append(f"{wanted} | not measured |")
        else:
            time_ = median(ours, "cpu_seconds")
            lines.append(f"{wanted} | {time_:.2f} s, {'reached' if time_ <= case['most'] else '**missed**'} |")
    imported = [case["name"] for case in cases if any(t["torch"] for t in case["results"]["hialign"].get("turns", []))]
    return [*lines, f"| scoring imports no torch | {'**missed**: ' + ', '.join(imported) if imported else 'reached'} |"]


def markdown(report: dict[str, Any]) -> str:
    """The page."""
    where = report["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        "# How long scoring takes",
        "",
        f"Made by `{report['command']}` on {where['processor']} ({where['cores']} cores, Python {where['python']}); "
        f"{packages}.",
        "",
        "Made-up annotations and answers are read from files and scored, each turn in a process of its own; Python's",
        "start is not counted, imports are. Times are medians over the turns, and beside stands the median of",
        "the turns' ratios of processor time to hialign's. pycocoevalcap tokenises by a Java program; its numbers are",
        "the same.",
        "",
        "| what | who | processor time | on the wall | beside | torch |",
        "|---|---|---|---|---|---|",
        *(row for case in report["cases"] for row in rows(case)),
        "",
        "| wanted | measured |",
        "|---|---|",
        *targets(report["cases"], report["quick"]),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, writes both files and prints the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one turn: to try the script; needs --out")
    parser.add_argument("--out", type=Path, help="folder; without it docs/benchmarks")
    parser.add_argument("--serve", nargs=3, metavar=("CASE", "WHO", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        name, who, folder = arguments.serve
        return serve(next(case for case in CASES if case.name == name), who, Path(folder))
    if arguments.quick and arguments.out is None:
        parser.error("--quick needs --out: tiny sizes would take the place of the whole in docs/benchmarks")
    size = SMALL if arguments.quick else WHOLE
    command = "python scripts/benchmarks/evaluation.py" + (" --quick" if arguments.quick else "")
    report: dict[str, Any] = {
        "command": command,
        "quick": arguments.quick,
        "machine": machine(),
        "versions": versions(),
    }
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), size)
        report["cases"] = [measured(case, size, Path(folder)) for case in CASES]
    out = arguments.out or ROOT / "docs" / "benchmarks"
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "evaluation.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
