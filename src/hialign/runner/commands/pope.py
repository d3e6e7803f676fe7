"""``hialign data pope``: POPE's question files, of any annotated images."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from hialign.benchmarks.pope import CATEGORIES
from hialign.benchmarks.pope_build import build, coco_objects, listed_objects
from hialign.runner import settings

USAGE = "hialign data pope out=FOLDER instances=FILE | objects=FILE [files=coco_pope] [images=500] [samples=3] [seed=0]"
ABOUT = """\
instances is COCO's instances json; objects is a json list or a jsonl of {image, objects: [names]}, as a detector gives
them. Of the images with at least `samples` objects, `images` are drawn (0: all in their order). Written are
FILES_{random,popular,adversarial}.json, which benchmark=pope reads by benchmark.pope.root=FOLDER and, where FILES is
another, benchmark.pope.files=FILES."""
OPTIONAL = ("instances", "objects", "files", "images", "samples", "seed")


def main() -> None:
    """Reads its settings from the command line and writes a file for each category."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"usage: {USAGE}\n\n{ABOUT}")
        return
    given = settings.read("data pope", sys.argv[1:], needed=("out",), optional=OPTIONAL, usage=USAGE)
    if ("instances" in given) == ("objects" in given):
        raise ValueError(f"data pope: wanted one of instances= and objects=, as in: {USAGE}")
    images, samples, seed = (
        settings.whole(name, given.get(name, value))
        for name, value in (("images", "500"), ("samples", "3"), ("seed", "0"))
    )
    objects = coco_objects(given["instances"]) if "instances" in given else listed_objects(given["objects"])
    fitting = [image for image, found in objects.items() if len(found) >= samples]
    if images:
        if len(fitting) < images:
            raise ValueError(
                f"images: got {images}, and {len(fitting)} of {len(objects)} images have {samples} objects; set "
                "images= to fewer, or to 0 for all"
            )
        fitting = random.Random(seed).sample(fitting, images)
    out, files = Path(given["out"]), given.get("files", "coco_pope")
    out.mkdir(parents=True, exist_ok=True)
    for category in CATEGORIES:
        questions = build({image: objects[image] for image in fitting}, category, samples=samples, seed=seed)
        file = out / f"{files}_{category}.json"
        file.write_text("".join(json.dumps(question) + "\n" for question in questions))
        print(f"{file}: {len(questions)} questions on {len(fitting)} images")
    words = (f"root={out}", *(() if files == "coco_pope" else (f"files={files}",)), "images=FOLDER")
    print(f"hialign evaluate run=... benchmark=[pope] {' '.join(f'benchmark.pope.{word}' for word in words)} asks them")
