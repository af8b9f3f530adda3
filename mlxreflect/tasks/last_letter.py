"""Last letters (Wei et al. 2022): join the last letter of each of k words.

The words are common English ones, drawn by a seed; `task.words` says how many. A problem belongs to
a part by a hash of its words in alphabetical order, so no part holds another's words reordered.
A step names a word and its letter, as in "The last letter of apple is e."; the solver takes them in
the order of the words.
"""

import re
import string
from typing import Any

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, make_problem
from mlxreflect.core.seeds import part_of, rng_for
from mlxreflect.graders import WRAPPED, Judged, blocks, final_part, rules_of, statements
from mlxreflect.prompts.parsing import Parsed
from mlxreflect.tasks.base import GENERATED_PARTS, Review, Solver, Task, generate

# Nouns of three to eight letters, each one once.
TEXT = (
    "apple arrow atlas autumn badge baker bamboo banana barrel basket beach beard bench berry "
    "bishop blanket board bottle branch bread breeze brick bridge brother bucket bundle butter "
    "button cabin cable cactus camel camera candle canyon carbon carpet castle cattle ceiling "
    "cellar chain chair chalk cheese cherry chess chief church circle citizen clock cloud "
    "clover coast cobweb coffee comet copper coral corner cotton cousin cradle cricket crown "
    "cube curtain daisy dance dawn desert diamond dinner doctor dolphin donkey dragon dream "
    "drum eagle earth echo edge elbow engine evening fabric falcon farmer feather fence fiddle "
    "field finger fire flame flock flute forest fossil fountain friend frog fruit garden garlic "
    "gate giant ginger glass globe glove goat grape grass guitar hammer harbor harvest hazel "
    "helmet hill honey horizon horse hotel hunter iceberg igloo index insect iron island ivory "
    "jacket jaguar jewel journal judge jungle kettle key kidney king kitchen kite kiwi knight "
    "ladder lagoon lake lamp lantern lawn leader leaf lemon lentil letter lion lizard lunch "
    "magnet mango maple marble market meadow melody menu metal minute mirror mitten monkey moon "
    "motor mountain muffin museum music napkin nature needle nephew nest night north novel "
    "number ocean office olive onion opera orange orbit orchid otter oven owl oxygen oyster "
    "paddle palace panda paper parrot pasta peach pencil pepper piano picnic pigeon pillow "
    "pirate planet plum pocket poem pond potato prince pumpkin puppet purse puzzle quarry queen "
    "quilt rabbit radio rain ranch ribbon rice ring river robin rocket roof rope rose ruby "
    "saddle sailor salad salmon sandal school scissors season shadow sheep shell ship shirt "
    "shoulder silver sister ski sky sleeve snail snow soap sofa spider spoon spring squirrel "
    "stamp star statue stone storm street sugar summer sun swan table tango teacher temple "
    "tennis thread thunder tiger timber toast tomato torch towel tower train treasure tree "
    "trumpet tulip tunnel turtle umbrella uncle valley vanilla velvet village violin volcano "
    "wagon walnut water wheat whistle willow window winter wizard wolf wool yacht yard zebra "
    "zinc zipper"
)
WORDS = TEXT.split()

MISSES = 20_000  # draws without a new problem after which there is none left
MAX_ANSWER = 200  # characters
SPELLED = re.compile(r"[a-z](?:(?: ?(?:->|[,.+-]) ?| )[a-z])+")
LEAD_IN = re.compile(r"(?:the )?(?:final )?answer(?: is)?[: ] *")
QUOTES = "\"'`“”‘’*$_ \t\r\n"


def load(config: TaskConfig, part: str, seed: int) -> list[Problem]:
    """Returns `config.limit` different problems (1000 when 0); only training uses the seed."""
    rng = rng_for("last_letter", part, seed if part == "train" else 0)
    drawn = generate(
        "last_letter", config, part, lambda: rng.sample(WORDS, rng.choice(config.words)),
        lambda words: part_of(" ".join(sorted(words)), GENERATED_PARTS), tuple, MISSES,
    )  # fmt: skip
    return [problem_of(words) for words in drawn]


def problem_of(words: list[str]) -> Problem:
    gold = "".join(word[-1] for word in words)
    solution = "\n".join(steps(words))
    return make_problem("last_letter", {"words": words}, gold, {"solution": solution})


def steps(words: list[str]) -> list[str]:
    return [f"The last letter of {word} is {word[-1]}." for word in words]


# ---- the solver ----------------------------------------------------------------------------------

MAX_LINES, MAX_LINE = 100, 300
# A line that says which letter a word ends in, as models write it.
STEP = re.compile(
    r"""\b([a-z]{2,20})["'”’*`]{0,4}(?: {0,2}(?:->|→|:|=) {0,2}|(?: is|,)?(?: the letter)? )"""
    r"""["'“‘*`]{0,4}([a-z])(?![a-z]| (?!and\b|so\b)[a-z])""",
    re.IGNORECASE,
)


def follow(words: list[str], lines: list[str]) -> tuple[int, list[str], str]:
    """Returns how many words the opening lines have done, those lines, and the first fault."""
    done, kept, pending = 0, list[str](), list[str]()
    for line in lines[:MAX_LINES]:
        said = [(m[1].lower(), m[2].lower()) for m in STEP.finditer(line[:MAX_LINE])]
        said = [(word, letter) for word, letter in said if word in words]
        if said != [(word, word[-1]) for word in words[done : done + len(said)]]:
            return done, kept, f"step {done + 1} is wrong: {line.strip()[:80]}"
        if said:
            done, kept, pending = done + len(said), [*kept, *pending, line], []
        elif "<" not in line and len(line) <= MAX_LINE:  # no tag gets into a rewrite
            pending.append(line)
    return done, kept, ""


def review(problem: Problem, thought: str, search: bool) -> Review:
    """Finds the first wrong step. From any right one the answer can be reached: no search."""
    words = problem.fields.get("words") or []
    done, kept, fault = follow(words, thought.strip("\n").split("\n", MAX_LINES))
    if not fault and done < len(words):
        fault = f"the last letter of {words[done]} is not there"
    return Review(kept, fault)


def finish(problem: Problem, kept: list[str], seed: int) -> tuple[str, str] | None:
    """Continues the kept lines word by word; None where one is wrong or no words are known."""
    words = problem.fields.get("words") or []
    done, held, fault = follow(words, kept)
    if not words or fault or len(held) < len(kept):
        return None
    return "\n".join([*kept, *steps(words)[done:]]), str(problem.gold)


# ---- the task ------------------------------------------------------------------------------------


def instruction(problem: Problem) -> str:
    return (
        "Take the last letter of each word, in order, and join them. The final answer is these "
        "letters only, without spaces."
    )


def show(problem: Problem) -> str:
    return f"Words: {' '.join(problem.fields['words'])}"


def read_letters(text: str) -> str | None:
    """Reads "nesd", "NESD.", "n-e-s-d", "n, e, s, d"; None for anything else."""
    if len(text) > MAX_ANSWER:
        return None
    text = WRAPPED.sub(r"\1", text).replace("**", "").strip(QUOTES).lower()
    if lead := LEAD_IN.match(text):
        text = text[lead.end() :]
    text = text.strip(QUOTES + ".:")
    if SPELLED.fullmatch(text):
        text = "".join(c for c in text if c in string.ascii_lowercase)
    plain = text.isascii() and text.isalpha()
    return text if plain else None


def extract_letters(text: str) -> str | None:
    """Reads the last block or box, else the last "answer is", else a short text as a whole."""
    if spots := blocks(text):
        return read_letters(max(spots).text)
    for found in statements(text):
        line = found.text.lstrip().split("\n", 1)[0].split(". ", 1)[0]
        if letters := read_letters(line) or read_letters(line.split(",", 1)[0]):
            return letters
    return read_letters(text.strip())


def judge(problem: Problem, text: str, tags: str, form: Parsed) -> Judged:
    letters = extract_letters(final_part(text, tags))
    if letters is None:
        return Judged(None, False, "no letters found")
    return Judged(letters, letters == problem.gold, f"expected {problem.gold}, got {letters}")


def from_row(row: dict[str, Any]) -> Problem:
    words = row.get("words")
    if isinstance(words, list) and words and all(isinstance(w, str) and w.isalpha() for w in words):
        return problem_of([word.lower() for word in words])
    gold = row.get("gold")
    if not isinstance(gold, str) or not (gold.isascii() and gold.isalpha()):
        raise UserError(
            f"gold = {str(gold)[:60]!r}: no letters", 'write "gold": "nesd", or "words": ["sun"]'
        )
    return make_problem("last_letter", {"words": []}, gold.lower())


TASK = Task(
    name="last_letter",
    load=load,
    instruction=instruction,
    show=show,
    from_row=from_row,
    rules=rules_of(judge),
    solver=Solver(review, finish),
    generated=True,
)
