"""``hialign data hallucinate``: files for HACL and HALVA, from a command line."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CAPTIONS = {
    "one.jpg": ("A black dog runs through the snow .", "A dog plays outside ."),
    "two.jpg": ("Two men in red shirts sit on a bench .", "Two people on a bench"),
    "three.jpg": ("It is what it is .",),
}


@pytest.fixture
def photos(workshop: Any, tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in CAPTIONS:
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
    lines = [f"{name},{caption}" for name, captions in CAPTIONS.items() for caption in captions]
    (tmp_path / "captions.txt").write_text("\n".join(["image,caption", *lines]) + "\n")
    return tmp_path


def arguments(photos: Path, *more: str) -> tuple[str, ...]:
    data = ("data=flickr8k", f"data.root={photos}", "data.holdout=0.0")
    return ("data", "hallucinate", *data, f"out={photos / 'out'}", *more)


def test_the_command_writes_all_layouts_and_a_sample(workshop: Any, photos: Path) -> None:
    done = workshop.hialign(*arguments(photos, "sample=2", "seed=3"))
    assert done.code == 0, done.err
    out = photos / "out"
    lines = [json.loads(line) for line in (out / "hallucinated.jsonl").read_text().splitlines()]
    hacl, halva = (json.loads((out / f"{name}.json").read_text()) for name in ("hacl", "halva"))
    summary = json.loads((out / "summary.json").read_text())
    assert [row["hallucinated"] for row in lines] == [row["Hallucination caption"] for row in hacl]
    assert [row["hallucinated"] for row in lines] == [row["hallucinated_answer"] for row in halva]
    assert {row["image"] for row in hacl} <= {f"images/{name}" for name in CAPTIONS}
    assert (summary["captions"], summary["made"]) == (5, len(lines))
    (left,) = [json.loads(line) for line in (out / "left.jsonl").read_text().splitlines()]
    assert left["id"] == "three.jpg"
    assert done.out.count(" -> ") == 2
    assert "4 of 5 captions (80.0%)" in done.out
    assert "1 left out: no phrase" in done.out


def test_the_same_command_writes_the_same_and_refuses_to_write_over_it(workshop: Any, photos: Path) -> None:
    assert workshop.hialign(*arguments(photos)).code == 0
    first = (photos / "out" / "halva.json").read_bytes()
    again = workshop.hialign(*arguments(photos))
    assert again.code == 1
    assert "holds captions that are done; name a new folder" in again.err
    (photos / "out").rename(photos / "before")
    assert workshop.hialign(*arguments(photos)).code == 0
    assert (photos / "out" / "halva.json").read_bytes() == first


def test_images_that_are_no_files_are_written_beside_the_captions(workshop: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = workshop.hialign("data", "hallucinate", "data=tabletop", "data.size=4", f"out={out}")
    assert done.code == 0, done.err
    for row in json.loads((out / "hacl.json").read_text()):
        with Image.open(out / row["image"]) as image:
            assert image.size[0] > 8


@pytest.fixture
def endpoint() -> Iterator[Any]:
    """A server that calls every dog a horse; from its third request on it fails, while ``fails`` is set."""
    seen: dict[str, Any] = {"asked": 0, "fails": False}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen["asked"] += 1
            fails = seen["fails"] and seen["asked"] > 2
            caption = body["messages"][0]["content"].rpartition("Sentence: ")[2]
            said = {"choices": [{"message": {"content": caption.replace("dog", "horse").replace("men", "women")}}]}
            self.send_response(500 if fails else 200)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

        def log_message(self, *arguments: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    seen["url"] = f"http://127.0.0.1:{web.server_port}/v1"
    yield seen
    web.shutdown()
    thread.join()
    web.server_close()


def test_a_run_whose_server_failed_goes_on_from_its_replies(workshop: Any, photos: Path, endpoint: Any) -> None:
    server = (f"writer.ask.url={endpoint['url']}", "writer.ask.model=m", "writer.ask.wait=0.0", "writer.ask.retries=1")
    command = arguments(photos, "writer=endpoint", *server, "writer.ask.workers=1", "writer.tries=1")
    endpoint["fails"] = True
    done = workshop.hialign(*command)
    assert done.code == 1
    assert "no reply after 2 tries" in done.err
    assert "run again" in done.err
    endpoint.update(fails=False, asked=0)
    done = workshop.hialign(*command)
    assert done.code == 0, done.err
    assert endpoint["asked"] == 3  # of five captions two had their replies
    texts = [row["Hallucination caption"] for row in json.loads((photos / "out" / "hacl.json").read_text())]
    assert texts == [
        "A black horse runs through the snow .",
        "A horse plays outside .",
        "Two women in red shirts sit on a bench .",
    ]


def test_a_local_model_s_replies_are_judged_too(workshop: Any, photos: Path, checkpoints: Any) -> None:
    model = (f"writer.ask.checkpoint={checkpoints.llama}", "writer.ask.max_new_tokens=4", "writer.ask.device=cpu")
    done = workshop.hialign(*arguments(photos, "writer=model", *model, "writer.tries=1"))
    assert done.code == 0, done.err
    assert "0 of 5 captions" in done.out  # this model knows no words
    assert len((photos / "out" / "replies.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((), "data: got nothing, wanted one of"),
        (("halucinate",), "data: got 'halucinate', wanted one of"),
        (("hallucinate",), "out: not given"),
        (("hallucinate", "out=x"), "data: not chosen"),
        (("hallucinate", "out=x", "data=flickr8k"), "data.root: not given"),
        (
            ("hallucinate", "out=x", "data=flickr8k", "data.root=pictures", "role=vqa"),
            "role=vqa: the data have no such",
        ),
        (("hallucinate", "out=x", "data=tabletop", "role=vqa", "data.size=4"), "data.vqa: holds Conversation records"),
        (("hallucinate", "out=x", "data=tabletop", "sample=-1"), "sample: got -1, wanted 0 or more"),
        (("hallucinate", "out=x", "data=tabletop", "data.size=4", "writer.changes=0"), "writer: changes: got 0"),
        (("hallucinate", "out=x", "data=tabletop", "data.size=4", "writer=model"), "writer.ask.checkpoint"),
    ],
)
def test_a_command_that_cannot_be_done_says_why(workshop: Any, given: tuple[str, ...], told: str) -> None:
    done = workshop.hialign("data", *given)
    assert done.code == 1
    assert told in done.err
