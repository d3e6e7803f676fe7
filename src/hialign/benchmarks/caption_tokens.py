"""Captions as the tokens that COCO's evaluation compares."""

from __future__ import annotations

import re

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SIGNS = {
    "\u2018": "'",
    "\u2019": "'",
    "\u00a3": "#",  # as the Treebank writes a pound
    "\u20ac": "$",
    "\u00a2": " cents ",
    "\u00bd": "  1/2 ",  # two blanks: a number before it stays one of its own
    "\u00bc": "  1/4 ",
    "\u00be": "  3/4 ",
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&nbsp;": " ",
    "\n": " ",
}
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))
# Their full stop belongs to them; those of the second line only with a capital.
_ABBREVIATIONS = """
    adm|al|ala|apr|ariz|assn|aug|ave|bldg|blvd|bros|calif|capt|cf|cmdr|co|col|colo|conn|corp|cos|cpl|ct|dec|dept|det|dr|
    esq|est|etc|ext|feb|fla|fri|ft|ga|gen|gov|hon|inc|ind|intl|jan|jr|jul|jun|kan|ky|lt|ltd|maj|mar|md|messrs|mich|minn|
    mlle|mme|mo|mon|mont|mr|mrs|ms|msgr|mt|natl|neb|nev|nov|oct|okla|pfc|ph\\.d|pres|prof|pvt|rd|rep|rev|sen|sep|sept|
    sgt|sq|sr|st|ste|supt|tel|tenn|thu|thurs|tue|tues|univ|va|vs|vt|wed|wis|wyo
"""
_CAPITAL_ABBREVIATIONS = "Ark|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"
# A single letter before these, or before the end, ends its sentence; before others it is an initial.
_STARTS = """
    A|After|An|As|At|But|He|Her|Here|However|If|In|It|Last|Many|More|Mr\\.|Ms\\.|Now|Once|One|Other|Our|She|Since|So|Some|
    Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You
"""
_TOKEN = re.compile(
    rf"""
    (?i:</?[a-z][^<>]*>)                                            # <image>
    |(?i:(?:https?://|www\.)[^\s<>"]*[^\s<>".,;:!?'()])
    |(?i:[\w.+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)*)
    |[@\#][^\W\d]\w*
    |[A-Z]+&[A-Z]+
    |(?i:{_ABBREVIATIONS})\.(?![^\W\d])
    |(?:{_CAPITAL_ABBREVIATIONS})\.(?![^\W\d])
    |(?i:nos?|figs?|pp|ca)\.(?=\s?\d)
    |(?i:(?:[a-z]\.){{2,}})(?![^\W\d])
    |[a-zA-Z]\.(?![^\W\d]|\s+(?:{_STARTS})(?!\w)|\s*$)
    |(?i:can(?=not(?![\w'-]))|(?:gon|wan)(?=na(?![\w'-]))|got(?=ta(?![\w'-]))|(?:lem|gim)(?=me(?![\w'-])))
    |(?i:'t(?=(?:is|was)(?![a-z])))
    |(?i:[a-z]+(?=n't(?![a-z]))|n't(?![a-z]))
    |(?i:y'(?=[a-z])|[a-hj-xz]'(?!(?:ll|ve|re)(?![a-z]))[a-z]{{2,}}|[a-z]*[aeiouy]'[aeiou][a-z]*|li'l|ol')
    |(?i:'(?:s|m|d|ll|ve|re)(?![a-z]))
    |(?i:'n'|'(?:em|til|cause|n)(?![a-z]))
    |'[2-9]0s
    |\d{{1,4}}[ \xa0-]\d{{1,4}}/\d{{1,4}}                                # 1 1/2
    |[-+]?(?:\d+(?:[.,:]\d+)+|\.\d+)                                # 1,000.50 and 5:30
    |[a-zA-Z0-9]+(?:-[a-zA-Z]+){{0,2}}(?:/[a-zA-Z0-9]+(?:-[a-zA-Z]+){{0,2}}){{1,2}}
    |[^\W\d_]+(?:\.[^\W\d_]+)+                                      # a full stop without a blank
    |[^\W_]+(?:[-_][^\W_]+)*
    |[-+]\d+
    |[?!]{{2,}}|\*+|_+
    |[(){{}}\[\]$%&~^|=+\\/<>@\#\u00a5\u00a9\u00ae\u2122\u00b0\u2200-\u22ff]
    """,
    re.VERBOSE,
)


def tokens(caption: str) -> list[str]:
    """The lower-case words, numbers and signs of a caption without its punctuation, split as in the Penn Treebank.

    "isn't" is "is" and "n't", brackets are "-lrb-" and the like, and what is neither a letter nor a sign goes. "1 1/2"
    is one token with a blank that does not break.

    Source: Chen et al. 2015, arXiv:1504.00325, section 4, which tokenise by Stanford's PTBTokenizer 3.4.1
    (pycocoevalcap 1.2) and drop punctuation.
    Differs: written anew, and equal on captions as people write them, but not on all texts: smileys are no tokens. A
    single letter that ends a caption ("vitamin A.") there keeps its full stop or not by the first word of the caption
    that comes next; here it loses it.
    """
    text = _SIGN.sub(lambda match: _SIGNS[match[0]], caption)
    return [_BRACKETS.get(token) or token.lower().replace(" ", "\xa0") for token in _TOKEN.findall(text)]
