"""``hialign compare``: whether one run is better than another, on the same questions. Imports no torch."""

from __future__ import annotations

import sys
from pathlib import Path

from hialign.evaluation.scored import Comparison, compare, differences, read_details
from hialign.runner import settings

USAGE = "hialign compare A B [benchmark=NAME] [resamples=10000] [seed=0] [different=false] [allow=PACKAGE]"
ABOUT = """\
A and B are run folders that `hialign evaluate` scored, or folders that `hialign score` wrote. For each benchmark that
both have: A, B and A minus B with its 95 % interval, images (or what else belongs together) being drawn anew for both
at once; p is that of no difference, for each number by itself. Where answers are right or wrong, McNemar's exact test
too, by the official rule; it takes answers for independent of each other, which the intervals do not. Scores of
different settings (another rule, other words) are refused; different=true compares them all the same."""
KEYS = ("benchmark", "resamples", "seed", "different", "allow")


def main() -> None:
    """Reads the two folders from the command line and prints a table for each benchmark."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(f"usage: {USAGE}\n\n{ABOUT}")
        return
    folders = [argument for argument in arguments if "=" not in argument or Path(argument).is_dir()]
    keyed = [argument for argument in arguments if argument not in folders]
    given = settings.read("compare", keyed, optional=KEYS, usage=USAGE)
    if len(folders) != 2:
        raise ValueError(f"compare: got {len(folders)} folders, wanted two: {USAGE}")
    allow = [given["allow"]] if "allow" in given else []
    a, b = (read_details(Path(folder), allow=allow) for folder in folders)
    names = [name for name in a if name in b]
    if "benchmark" in given:
        names = [name for name in names if name == given["benchmark"]]
    if not names:
        wanted = given.get("benchmark", "any benchmark")
        raise ValueError(f"compare: not both have {wanted}; A has {', '.join(a)}, B has {', '.join(b)}")
    resamples = settings.whole("resamples", given.get("resamples", "10000"))
    seed = settings.whole("seed", given.get("seed", "0"))
    if (different := given.get("different", "false")) not in ("true", "false"):
        raise ValueError(f"different: got {different!r}, wanted true or false")
    for name in names:
        _say_differences(name, differences(a[name], b[name]), different == "true")
        try:
            found = compare(a[name], b[name], resamples=resamples, seed=seed)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        print(f"{name}\n{text(found)}")


def _say_differences(name: str, found: list[str], admitted: bool) -> None:
    """A line where settings differ and that is admitted; else a ValueError."""
    if not found:
        return
    if not admitted:
        raise ValueError(
            f"{name}: A and B were scored with different settings: {'; '.join(found)}; score both alike, or set "
            "different=true"
        )
    print(f"NOTE: {name} was scored with different settings (A / B): {'; '.join(found)}")


def text(found: Comparison) -> str:
    """The comparison as lines."""
    width = max(map(len, found.differences))
    lines = [f"  {'':<{width}}  {'A':>10}  {'B':>10}  {'A - B':>10}  {'95 % interval':>22}  p"]
    for name, one in found.differences.items():
        interval = f"[{one.low:.4f}, {one.high:.4f}]"
        lines.append(
            f"  {name:<{width}}  {one.a:>10.4f}  {one.b:>10.4f}  {one.difference:>+10.4f}  {interval:>22}  {_p(one.p)}"
        )
    if found.answers is not None:
        alone = f"{found.answers.a_alone} right in A alone, {found.answers.b_alone} in B alone"
        lines.append(f"  answers: {alone}; McNemar p {_p(found.answers.p)}")
    return "\n".join(lines)


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-4 else "< 0.0001"
