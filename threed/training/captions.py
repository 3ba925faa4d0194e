"""Captions varied: the same thing in other words, and in another colour.

A caption is a noun phrase, "a small green pine tree with snow on it": a determiner, adjectives, a noun, and a tail that
begins with a preposition. All that is known of English stands in the tables; words in none of them pass unchanged.
Whatever leaves this module is in lower case, with "a" and "an" as they should be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from threed.training.vocabulary import (
    BEFORE_COLOUR,
    COLOURS,
    DETERMINERS,
    MATERIALS,
    NOT_COLOURS,
    PARTITIVES,
    PEOPLE,
    SHADES,
    SIZES,
    TAILS,
    THESAURUS,
    THINGS,
    UNCOUNTED,
)

Option = TypeVar("Option")

MOST_WORDS = 14  # punctuation marks count too: the text encoder is made for short captions


@dataclass(frozen=True)
class Phrase:
    """A caption in parts; `text` puts them together again."""

    determiner: str  # or the empty string
    adjectives: tuple[str, ...]  # those of the tables; "grey and dark brown" is one
    noun: str  # and whatever adjectives no table has
    tail: str

    @property
    def text(self) -> str:
        return _text(" ".join([self.determiner, *self.adjectives, self.noun, self.tail]).split())

    @property
    def head(self) -> str:
        """The noun's last word, or nothing."""
        return self.noun.rpartition(" ")[2]

    @property
    def is_one(self) -> bool:
        """Whether the noun takes "a"; in doubt it does not."""
        is_many = self.head.endswith("s") and not self.head.endswith(("ss", "us"))
        return self.head != "" and self.head not in UNCOUNTED and not is_many


def parse(caption: str) -> Phrase:
    """A caption's parts; all but the determiner may be the noun."""
    words = _words(caption)
    start = 0
    if words and words[0] in DETERMINERS:
        start = 1
    elif words[:1] == ["half"] and words[1:2] in (["a"], ["an"]):
        start = 2
    stop = next((i for i in range(start + 1, len(words)) if words[i] in TAILS), len(words))
    colours = dict(_colour_spans(words))
    adjectives, i = [], start
    while i < stop - 1:
        after = i + 1
        if i in colours:
            after = colours[i]
            while words[after : after + 1] == ["and"] and after + 1 in colours:
                after = colours[after + 1]
        elif words[i] not in BEFORE_COLOUR and words[i] not in MATERIALS:
            break
        if after >= stop:
            break
        adjectives.append(" ".join(words[i:after]))
        i = after
    return Phrase(" ".join(words[:start]), tuple(adjectives), " ".join(words[i:stop]), _text(words[stop:]))


def vary(caption: str, rng: np.random.Generator) -> str:
    """A plausible paraphrase, sometimes the caption itself; at most `MOST_WORDS` words unless the caption has more."""
    phrase = parse(caption)
    if _pick([True, *[False] * 5], rng) or not phrase.head:
        return caption
    phrase = _redetermined(phrase, rng)
    if _pick([True, *[False] * 3], rng):
        phrase = replace(phrase, adjectives=tuple(word for word in phrase.adjectives if word not in SIZES))
    prefix = _pick(["low-poly", "3d model of", *[""] * 7], rng)
    if prefix == "low-poly" and "low-poly" not in caption:
        phrase = replace(phrase, adjectives=(prefix, *phrase.adjectives))
    text = _pick(_arrangements(phrase), rng)
    if prefix == "3d model of":
        text = f"{prefix} {text}"
    varied = _reworded(text, lambda same, others, _: _pick([same, *others] if others else [same], rng))
    return varied if len(_words(varied)) <= MOST_WORDS else caption


def spoken(captions: Iterable[str], rng: np.random.Generator, times: int = 8) -> frozenset[str]:
    """The words of these captions, and of what `vary` makes of them."""
    texts = (text for caption in captions for text in (caption, *(vary(caption, rng) for _ in range(times))))
    return frozenset(word for text in texts for word in _words(text) if word[0].isalnum())


def paraphrases(caption: str) -> tuple[str, ...]:
    """What the caption could have said, for evaluation: `vary` says none of these. Empty where nothing fits."""
    phrase = parse(caption)
    if not phrase.head:
        return ()
    reworded = _reworded(phrase.text, lambda same, _, held: held[0] if held else same)
    said = [reworded] if reworded != phrase.text else []
    qualities = [word for word in phrase.adjectives if word not in MATERIALS]
    if qualities and not phrase.tail:
        bare = replace(phrase, adjectives=tuple(word for word in phrase.adjectives if word in MATERIALS))
        verb = "is" if phrase.is_one or phrase.determiner in ("a", "an") else "are"
        said.append(f"{bare.text} that {verb} {_listed(qualities)}")
    if material := _material(phrase):
        said.append(_made(phrase, material, "built out of"))
    said += [f"game asset of {text}" for text in (phrase.text, *said[:1])]
    return tuple(text for text in said if len(_words(text)) <= MOST_WORDS)


def colour_words(caption: str) -> tuple[str, ...]:
    """The colours that a caption names, each once, with the shades before them: "dark blue"."""
    words = _words(caption)
    return tuple(dict.fromkeys(" ".join(words[start:stop]) for start, stop in _colour_spans(words)))


def colour_names(colour: str) -> tuple[str, ...]:
    """The names (`recolour.NAMED`) by which a colour that `colour_words` found may go: both for "teal green"."""
    return tuple(dict.fromkeys(COLOURS[word] for word in colour.split() if word in COLOURS))


def with_colour(caption: str, old: str | None, new: str) -> str:
    """The caption with `new` wherever it said `old`, one of its `colour_words`; None puts `new` where a colour belongs.

    Raises ValueError for an `old` that the caption does not name.
    """
    if old is None:
        phrase = parse(caption)
        if phrase.head in PARTITIVES and phrase.tail.startswith("of "):
            return replace(phrase, tail=f"of {with_colour(phrase.tail.removeprefix('of '), None, new)}").text
        place = next((i for i, word in enumerate(phrase.adjectives) if word in MATERIALS), len(phrase.adjectives))
        return replace(phrase, adjectives=(*phrase.adjectives[:place], new, *phrase.adjectives[place:])).text
    words = _words(caption)
    spans = [(start, stop) for start, stop in _colour_spans(words) if " ".join(words[start:stop]) == old]
    if not spans:
        raise ValueError(f"{caption!r} does not name the colour {old!r}; it names {list(colour_words(caption))}")
    for start, stop in reversed(spans):
        words[start:stop] = [new]
    return _text(words)


def can_be_coloured(caption: str) -> bool:
    """Whether one colour more says what is seen: people are not "purple", snow lies on things in white, and so on."""
    return parse(caption).head not in PEOPLE and not {"snow", "snowy", "dark", "pale", "colorful"} & set(
        _words(caption)
    )


def _redetermined(phrase: Phrase, rng: np.random.Generator) -> Phrase:
    """With another article or none; what came without one may get it where English asks for it."""
    if phrase.determiner in ("a", "an", "the"):
        other = "the" if phrase.determiner != "the" or not phrase.is_one else "a"
        return replace(phrase, determiner=_pick([phrase.determiner, phrase.determiner, other, ""], rng))
    if not phrase.determiner and phrase.is_one:
        return replace(phrase, determiner=_pick(["", "a"], rng))
    return phrase


def _arrangements(phrase: Phrase) -> list[str]:
    """The orders in which the phrase can be said; the plain one, most often."""
    said = [phrase.text] * 2
    if material := _material(phrase):
        said.append(_made(phrase, material, "made of"))
    if not phrase.tail:
        movable = [word for word in phrase.adjectives if word == "wooden" or word not in {*MATERIALS, "low-poly"}]
        for moved in [[word] for word in movable] + [movable] * (len(movable) > 1):
            fixed = tuple(word for word in phrase.adjectives if word not in moved)
            said.append(f"{replace(phrase, adjectives=fixed).text}, {_listed(moved)}")
    return said


def _material(phrase: Phrase) -> str | None:
    """The material that the phrase's adjectives name, where "made of" has a place: not before "of" or "full"."""
    free = not phrase.tail or phrase.tail.startswith(("with ", "without "))
    return next((word for word in phrase.adjectives if word in MATERIALS), None) if free else None


def _made(phrase: Phrase, material: str, verb: str) -> str:
    others = tuple(word for word in phrase.adjectives if word != material)
    return replace(phrase, adjectives=others, noun=f"{phrase.noun} {verb} {MATERIALS[material]}").text


def _listed(adjectives: Sequence[str]) -> str:
    joint = " and " if len(adjectives) == 2 and not any(" and " in adjective for adjective in adjectives) else ", "
    return joint.join(adjectives)


def _reworded(text: str, say: Callable[[str, list[str], list[str]], str]) -> str:
    """`say` chooses for every entry of the thesaurus in the text: it is told the entry, its synonyms, the held-out."""
    words, said, i = _words(text), list[str](), 0
    while i < len(words):
        for length in range(min(_LONGEST, len(words) - i), 0, -1):
            entry = " ".join(words[i : i + length])
            if entry in _ENTRIES:
                said += say(entry, *_ENTRIES[entry]).split()
                break
        else:
            length = 1
            said.append(words[i])
        i += length
    return _text(said)


def _colour_spans(words: list[str]) -> Iterator[tuple[int, int]]:
    """Where colours are named, as (start, stop); shades and colours in a row are one."""
    i = 0
    while i < len(words):
        stop = i
        while stop < len(words) and (words[stop] in SHADES or _is_colour(words, stop)):
            stop += 1
        while stop > i and words[stop - 1] in SHADES:  # "a light lamp"
            stop -= 1
        if stop > i:
            yield i, stop
        i = max(stop, i + 1)


def _is_colour(words: list[str], i: int) -> bool:
    """Whether a word is a colour here: not so in "an orange", "a pile of gold", "an olive tree"."""
    word, before = words[i], words[i - 1] if i else ""
    after, second = [*words[i + 1 : i + 3], ",", ","][:2]
    if word not in COLOURS or (word, after) in NOT_COLOURS:
        return False
    ends = after in TAILS or (after == "and" and second not in SHADES and second not in COLOURS)
    return word not in THINGS or not ends or before in {",", "in", "and", "is", "are"}


def _words(caption: str) -> list[str]:
    return re.findall(r"[^\s,;:.!?()]+|[,;:.!?()]", caption.lower())


def _text(words: Iterable[str]) -> str:
    """The words as a sentence has them, "a" or "an" by the word that follows."""
    said = list(words)
    for i, word in enumerate(said[:-1]):
        if word in ("a", "an"):
            said[i] = "an" if _takes_an(said[i + 1]) else "a"
    return re.sub(r" (?=[,;:.!?)])|(?<=\() ", "", " ".join(said))


def _takes_an(word: str) -> bool:
    """By sound, as far as spelling shows it: "a uniform", "a one-handed axe", "an hourglass", "an l-shaped couch"."""
    letter = re.match(r"[a-z](?![a-z])", word)
    if letter:
        return letter[0] in "aefhilmnorsx"
    if word.startswith(("one", "once", "eu", "ewe", "ufo", "use", "usu", "ute", "uto", "uti")):
        return False
    if word.startswith("uni"):
        return word.startswith(("unin", "unid", "unim"))
    return word[:1] in set("aeiou") or word.startswith(("hour", "honest", "honor", "honour", "heir"))


def _pick(options: list[Option], rng: np.random.Generator) -> Option:
    """One of them, each as likely as it is often there; everything that is left to chance is decided here."""
    return options[rng.integers(len(options))]


def _plural(phrase: str) -> str:
    if " of " in phrase:
        first, rest = phrase.split(" of ", 1)
        return f"{_plural(first)} of {rest}"
    if phrase.endswith(("s", "x", "ch", "sh")):
        return f"{phrase}es"
    return f"{phrase[:-1]}ies" if re.search("[^aeiou]y$", phrase) else re.sub("(?<=[li])fe?s$", "ves", f"{phrase}s")


def _entries() -> dict[str, tuple[list[str], list[str]]]:
    """The thesaurus with its plurals: what may be said instead, what is held out."""
    entries: dict[str, tuple[list[str], list[str]]] = {}
    for entry, line in THESAURUS.items():
        free, held = ([word.strip() for word in side.split(",") if word.strip()] for side in line.split("|"))
        entries[entry] = free, held
        entries.setdefault(_plural(entry), ([_plural(word) for word in free], [_plural(word) for word in held]))
    return entries


_ENTRIES = _entries()
_LONGEST = max(len(entry.split()) for entry in _ENTRIES)
