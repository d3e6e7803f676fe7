"""``hialign plan``: what a run would take, from its config alone: no data, no download, no GPU."""

from __future__ import annotations

import sys

from hialign.runner import request
from hialign.runner.settings import print_traceback

USAGE = "hialign plan experiment=chip model=llava_1_5_7b gpus=8"
ABOUT = f"""\
usage: {USAGE} [any of hialign train's settings] [settings of its own]

  gpus=1                 how many
  gpu_memory=80          GiB of each
  mfu=0.4                share of the peak that a step's operations get
  peak_flops=989e12      dense bfloat16 operations a second of each: an H100 SXM's
  sharding=              replicate or fsdp; by default fsdp where the language model trains in full, else replicate
  records=N              of every stage's data, records.STAGE=N of one, where the data set's size is not known
  prompt_tokens=N        of a row of text, on average; answer_tokens=N, longest_answer=N likewise"""


def main() -> int:
    """Prints the plan; returns the exit code."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(ABOUT)
        return 0
    try:
        asked, rest = request.read(sys.argv[1:])
        from hialign.runner import planned  # seconds, which a slip in the settings above need not wait

        planned.tell(asked, rest)
    except (ValueError, OSError) as error:
        print_traceback()
        print(f"hialign plan: {error}", file=sys.stderr)
        return 1
    return 0
