"""Words that name the 80 categories of COCO, and how they are found in a text without a tagger.

The table of synonyms is ours; the official file of CHAIR or of Object HalBench can be read in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hialign.benchmarks.answers import read_text

Words = Callable[[str], list[str]]  # a text -> its words, each in the singular, punctuation marks among them

# A category of COCO, and what else a caption may call it.
COCO = {
    "person": """
        people man woman boy girl child kid baby toddler infant adult teenager teen youth guy lady gentleman male
        female human pedestrian passenger passerby bystander rider biker cyclist bicyclist motorcyclist driver player
        pitcher catcher umpire skier snowboarder skateboarder skater surfer swimmer athlete golfer walker hiker
        traveler traveller tourist visitor worker coworker chef baker waiter waitress cashier policeman policewoman
        cop officer fireman firefighter soldier serviceman sailor pilot farmer cowboy student teacher doctor nurse
        patient politician shopper buyer customer bride groom mother mom father dad parent sister brother grandmother
        grandfather grandchild friend villager camper hunter jockey
    """,
    "bicycle": "bike tricycle trike unicycle",
    "car": "automobile sedan minivan van suv hatchback convertible limousine limo taxi taxicab cab jeep",
    "motorcycle": "motorbike motor_bike motor_cycle moped scooter",
    "airplane": "aeroplane air_plane aircraft plane jet jetliner airliner airbus biplane seaplane",
    "bus": "minibus schoolbus",
    "train": "locomotive tram tramway streetcar caboose",
    "truck": "lorry pickup firetruck",
    "boat": """
        ship vessel watercraft sailboat motorboat speedboat rowboat lifeboat houseboat tugboat steamboat ferryboat
        canoe kayak yacht dinghy ferry barge freighter trawler schooner catamaran pontoon steamship battleship
    """,
    "traffic light": "traffic_signal stop_light stoplight street_light streetlight",
    "fire hydrant": "hydrant",
    "stop sign": "",
    "parking meter": "",
    "bench": "pew",
    "bird": """
        seagull gull duck duckling goose gosling swan pigeon dove sparrow robin crow raven owl hawk eagle falcon
        vulture parrot parakeet cockatoo cockatiel macaw pelican heron egret stork flamingo ostrich emu peacock
        rooster hen pheasant quail hummingbird woodpecker kingfisher magpie finch bluebird bluejay blackbird songbird
        seabird shorebird waterfowl cormorant puffin sandpiper mallard loon
    """,
    "cat": "kitten kitty feline tabby",
    "dog": """
        puppy pup doggy doggie canine hound mutt beagle bulldog collie corgi chihuahua dachshund doberman greyhound
        husky labrador pitbull poodle pug retriever rottweiler schnauzer sheepdog spaniel terrier
    """,
    "horse": "pony colt foal mare stallion mustang racehorse",
    "sheep": "lamb ewe ram goat",
    "cow": "cattle bull calf ox heifer bison buffalo holstein",
    "elephant": "",
    "bear": "panda",
    "zebra": "",
    "giraffe": "",
    "backpack": "rucksack knapsack",
    "umbrella": "parasol",
    "handbag": "purse wallet briefcase",
    "tie": "necktie bow_tie",
    "suitcase": "suit_case luggage",
    "frisbee": "",
    "skis": "ski",
    "snowboard": "",
    "sports ball": "ball",
    "kite": "",
    "baseball bat": "",
    "baseball glove": "baseball_mitt",
    "skateboard": "",
    "surfboard": "longboard shortboard wakeboard",
    "tennis racket": "racket racquet tennis_racquet",
    "bottle": "",
    "wine glass": "wineglass",
    "cup": "mug teacup",
    "fork": "",
    "knife": "pocketknife",
    "spoon": "teaspoon tablespoon",
    "bowl": "",
    "banana": "",
    "apple": "",
    "sandwich": "burger hamburger cheeseburger",
    "orange": "",
    "broccoli": "",
    "carrot": "",
    "hot dog": "hotdog",
    "pizza": "",
    "donut": "doughnut bagel",
    "cake": "cupcake cheesecake shortcake pancake",
    "chair": "seat stool armchair",
    "couch": "sofa loveseat settee futon recliner",
    "potted plant": "houseplant house_plant",
    "bed": "",
    "dining table": "table desk coffee_table",
    "toilet": "urinal lavatory commode",
    "tv": "television monitor",
    "laptop": "computer laptop_computer netbook macbook",
    "mouse": "",
    "remote": "remote_control",
    "keyboard": "",
    "cell phone": "cellphone mobile_phone phone telephone smartphone iphone",
    "microwave": "",
    "oven": "stove stovetop stove_top_oven",
    "toaster": "",
    "sink": "",
    "refrigerator": "fridge freezer",
    "book": "",
    "clock": "",
    "vase": "",
    "scissors": "",
    "teddy bear": "teddybear teddy",
    "hair drier": "hairdryer hair_dryer hairdrier",
    "toothbrush": "",
}

# Beside the names above: what a pair of words stands for. The last two name no category, and hide a plate and a train.
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
PAIRS = {f"{age} {animal}": animal for age in ("baby", "adult") for animal in ANIMALS} | {
    "passenger jet": "jet",
    "passenger train": "train",
    "bow tie": "tie",
    "toilet seat": "toilet",
    "wine glas": "wine glass",  # what pattern makes of the singular
    "home plate": "home plate",
    "train track": "train track",
}
# The pairs of the official code of CHAIR; it has no "dining table", whose "table" is found.
OFFICIAL_PAIRS = (
    "motor bike",
    "motor cycle",
    "air plane",
    "traffic light",
    "traffic signal",
    "street light",
    "stop light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "suit case",
    "sports ball",
    "baseball bat",
    "baseball glove",
    "tennis racket",
    "wine glass",
    "hot dog",
    "potted plant",
    "laptop computer",
    "cell phone",
    "mobile phone",
    "teddy bear",
    "hair drier",
)

IRREGULAR = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "person": "people",
    "knife": "knives",
    "calf": "calves",
    "wolf": "wolves",
    "thief": "thieves",
    "leaf": "leaves",
    "shelf": "shelves",
    "scarf": "scarves",
    "loaf": "loaves",
    "goose": "geese",
    "mouse": "mice",
    "ox": "oxen",
    "foot": "feet",
    "tooth": "teeth",
    "passerby": "passersby",
}
# A letter-dot abbreviation, a number, "n't" and what comes before it, other short forms, a word, dots, any one mark.
_TOKEN = re.compile(
    r"(?:[^\W\d_]\.){2,}|\d+(?:[.,:]\d+)+|[^\W_]+?(?=n['\u2019]t\b)|n['\u2019]t\b|['\u2019](?:s|m|d|ll|re|ve)\b"
    r"|[^\W_]+(?:[-/&][^\W_]+)*|\.{2,}|[^\w\s]|_+"
)


class Mention(NamedTuple):
    """A word that names a category, the category, and the word's place in the text before pairs were merged."""

    word: str
    node: str
    place: int


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Which words name which category, and which pairs of words are one.

    Args:
        nodes: word, or words with a blank between -> category.
        pairs: two words with a blank between -> what stands for them, which may name no category.
    """

    nodes: Mapping[str, str]
    pairs: Mapping[str, str]

    def node(self, category: str) -> str:
        """The category that a name of COCO's annotations stands for; a ValueError when the table lacks it."""
        if category not in self.nodes:
            raise ValueError(
                f"the table of synonyms has no {category!r}, which the annotations name; wanted a line with each of "
                "their categories: use the built-in table, or COCO's 80 categories"
            )
        return self.nodes[category]

    def merge(self, words: Sequence[str]) -> list[tuple[str, int]]:
        """The words with their places, pairs being one word at the place of their first, greedily from the left."""
        found, place, last, pairs = [], 0, len(words) - 1, self.pairs
        while place <= last:
            pair = pairs.get(f"{words[place]} {words[place + 1]}") if place < last else None
            found.append((words[place] if pair is None else pair, place))
            place += 1 if pair is None else 2
        return found

    def mentions(self, merged: Iterable[tuple[str, int]]) -> list[Mention]:
        """The merged words that name a category; where a toilet is spoken of, its seat is no chair."""
        found = [Mention(word, self.nodes[word], place) for word, place in merged if word in self.nodes]
        if any(mention.word == "toilet" for mention in found):
            return [mention for mention in found if mention.word != "seat"]
        return found


def built_in() -> Vocabulary:
    """Our own table of synonyms, all of whose pairs are merged."""
    lines = [[node, *(name.replace("_", " ") for name in names.split())] for node, names in COCO.items()]
    return _vocabulary(lines, _pairs_of(lines))


def chair_file(file: str) -> Vocabulary:
    """The official table of CHAIR, read and merged as its code does.

    Names behind two blanks (" motor bike", " cheesecake") are dead there, and so they are here.

    Source: Rohrbach et al. 2018, arXiv:1809.02156; code LisaAnne/Hallucination@6e4d33c, utils/chair.py.
    Differs: nothing.
    """
    wanted = "CHAIR's synonyms.txt (github.com/LisaAnne/Hallucination, data): a category a line, names behind commas"
    lines = [line.strip().split(", ") for line in read_text(file, wanted).splitlines() if line.strip()]
    return _vocabulary(lines, OFFICIAL_PAIRS)


def refined_file(file: str) -> Vocabulary:
    """The official table of Object HalBench, all of whose pairs are merged.

    Source: RLHF-V/RLHF-V@8daac8a, eval/eval_gpt_obj_halbench.py.
    Differs: nothing.
    """
    wanted = "synonyms_refine.txt (github.com/RLHF-V/RLHF-V, eval/data): a category a line, names behind commas"
    text = read_text(file, wanted)
    lines = [[name.strip() for name in line.split(",") if name.strip()] for line in text.splitlines() if line.strip()]
    return _vocabulary(lines, [*OFFICIAL_PAIRS, *_pairs_of(lines)])


def _vocabulary(lines: Iterable[Sequence[str]], pairs: Iterable[str]) -> Vocabulary:
    nodes = {name: line[0] for line in lines for name in line}
    return Vocabulary(nodes=nodes, pairs={pair: pair for pair in pairs} | PAIRS)


def _pairs_of(lines: Iterable[Sequence[str]]) -> list[str]:
    return [name for line in lines for name in line if name.count(" ") == 1]


def pieces(text: str) -> list[str]:
    """The words and punctuation marks of ``text``, about as the Penn Treebank cuts them.

    "isn't" and "dog's" are two, "3.5", "u.s." and "black-and-white" one.
    """
    return _TOKEN.findall(text)


def tokens(text: str) -> list[str]:
    """The pieces of ``text`` in lower case."""
    return pieces(text.lower())


def plurals(word: str) -> list[str]:
    """The plural forms of ``word``, the careless one ("childs") among them."""
    found = [word + "s"]
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        found.append(word + "es")
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        found.append(word[:-1] + "ies")
    found += [
        word[: -len(singular)] + plural
        for singular, plural in IRREGULAR.items()
        if word == singular or (singular in ("man", "woman", "child", "knife") and word.endswith(singular))
    ]
    return found


def singulars(names: Iterable[str]) -> dict[str, str]:
    """Plural form -> word, of every word in ``names``; what is itself such a word stays it."""
    words = dict.fromkeys(word for name in names for word in name.split())
    return {form: word for word in words for form in plurals(word) if form not in words}


def closed(vocabulary: Vocabulary) -> Words:
    """A reader that makes singular what the vocabulary knows, and leaves every other word as it is."""
    table = singulars([*vocabulary.nodes, *vocabulary.pairs])
    return lambda text: [table.get(word, word) for word in tokens(text)]


def as_pattern(text: str) -> list[str]:
    """The words of ``text`` as pattern's ``singularize`` leaves them; see ``pattern_singular``."""
    return [pattern_singular(word) for word in tokens(text)]


_PATTERN_KEEPS = ("is", "scissors", "collies", "doggies")
_PATTERN_RULES = tuple(
    (re.compile(ending), singular)
    for ending, singular in (
        (r"^oxen", "ox"),
        (r"^people$", "person"),
        (r"children$", "child"),
        (r"men$", "man"),
        (r"geese$", "goose"),
        (r"([ml])ice$", r"\1ouse"),
        (r"(x|ch|ss|sh|o|bus)es$", r"\1"),
        (r"([^aeiouy])ies$", r"\1y"),
        (r"([nlw]i)ves$", r"\1fe"),
        (r"([aeo]l|[^d]ea|ar)ves$", r"\1f"),
        (r"shoes$", "shoe"),
        (r"s$", ""),
    )
)


def pattern_singular(word: str) -> str:
    """What ``pattern.en.singularize`` makes of ``word``, as far as the words of CHAIR and their plurals go.

    It takes singular words for plurals: bus, glass and tennis become bu, glas and tenni, ties become ty. So the
    official code never finds a bus, nor ties.

    Source: clips/pattern 3.6, singularize, as recorded for the vocabulary of CHAIR.
    Differs: the lists of rare words are left out; none of the rest ends up in that vocabulary.
    """
    if word.endswith("'"):
        return pattern_singular(word[:-1]) + "'s"
    if word in _PATTERN_KEEPS:
        return word
    for ending, singular in _PATTERN_RULES:
        if ending.search(word):
            return ending.sub(singular, word)
    return word
