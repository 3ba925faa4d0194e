"""Captions say the same in other words; what is held out is never said in training."""

from __future__ import annotations

import re

import numpy as np
import pytest
from tokenizers import Tokenizer

from threed.distill.folder import SHIPPED
from threed.training import captions
from threed.training.captions import (
    MOST_WORDS,
    Phrase,
    can_be_coloured,
    colour_names,
    colour_words,
    paraphrases,
    parse,
    vary,
    with_colour,
)
from threed.training.vocabulary import (
    BEFORE_COLOUR,
    COLOURS,
    MATERIALS,
    SIZES,
    THESAURUS,
)

CAPTIONS = (
    "a wooden barrel",
    "a small green pine tree",
    "an old wooden bench",
    "an orange and white clownfish",
    "a dark grey and brown disc-shaped spaceship",
    "a large pile of gold coins",
    "a market stand with a red and white striped roof",
    "an open treasure chest full of gold coins",
    "a brown wooden chest of drawers",
    "a group of green fuel barrels",
    "a monster truck in an orange autumn",
    "a closed dark brown book",
    "stone dungeon stairs",
    "three candles together",
    "half a coconut",
    "old wooden chest",
    "an L-shaped grey couch",
    "a man in a long sleeve shirt with arms spread",
    "a mage with a wizard hat and a cape",
    "an anglerfish with a glowing lure and sharp teeth",
    "a 'quoted' caption: with, much. punctuation!",
    "barrel",
    "a",
    "the",
    "of",
    "",
    "word " * 13 + "word",
)


def all_variations(caption: str) -> set[str]:
    """Everything that `vary` can say, by every way its choices can go."""
    path, counts, said = list[int](), list[int](), set[str]()

    def pick(options: list, rng: object) -> object:
        distinct = list(dict.fromkeys(options))
        counts.append(len(distinct))
        return distinct[path[len(counts) - 1] if len(counts) <= len(path) else 0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captions, "_pick", pick)
        while True:
            counts.clear()
            said.add(vary(caption, np.random.default_rng(0)))
            path += [0] * (len(counts) - len(path))
            while path and path[-1] == counts[len(path) - 1] - 1:
                path.pop()
            if not path:
                return said
            path[-1] += 1


def spoken(side: str) -> set[str]:
    return {word.strip() for word in side.split(",") if word.strip()}


FREE = {word for line in THESAURUS.values() for word in spoken(line.split("|")[0])}
HELD = {word for line in THESAURUS.values() for word in spoken(line.split("|")[1])}


def test_all_that_a_short_caption_becomes() -> None:
    said = all_variations("a wooden axe")
    plain = {f"{material} {axe}" for material in ("wooden", "wood") for axe in ("axe", "ax")}
    bare = plain | {f"{axe} made of wood" for axe in ("axe", "ax")}
    bare |= {f"{axe}, {material}" for material in ("wooden", "wood") for axe in ("axe", "ax")}
    determined = {*bare, *(f"the {text}" for text in bare)}
    determined |= {f"{'an' if text[0] == 'a' else 'a'} {text}" for text in bare}
    models = {f"3d model of {text}" for text in determined}
    low_poly = {re.sub("^(a |an |the |)", lambda m: f"{m[0]}low-poly ".replace("an ", "a "), t) for t in determined}
    assert said == determined | models | low_poly


@pytest.mark.parametrize(
    ("caption", "sayings"),
    [
        (
            "a small green crate",
            ["a green crate, small", "the tiny green box", "a crate, small and green", "green box"],
        ),
        ("a small rock", ["a rock", "stone", "a rock, little", "a low-poly little stone"]),
        ("a wooden chest with metal bands", ["a trunk made of wood with metal bands", "wood chest with metal bands"]),
        (
            "old wooden bed",
            ["an old wooden bed", "an aged bed made of wood", "bed, aged and wooden", "a bed, old and wood"],
        ),
        ("a group of rocks", ["a cluster of stones", "the bunch of rocks", "3d model of a group of stones"]),
        ("a chest of drawers", ["a dresser", "3d model of the dresser"]),
        ("two spellbooks", ["two spell books", "3d model of two spellbooks"]),
    ],
)
def test_sayings(caption: str, sayings: list[str]) -> None:
    assert set(sayings) <= all_variations(caption)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_whatever_is_said_is_short_lower_case_and_grammatical(caption: str) -> None:
    rng = np.random.default_rng(0)
    said = {vary(caption, rng) for _ in range(100)} - {caption}
    for text in said | set(paraphrases(caption)):
        assert text == text.lower().strip()
        assert "  " not in text
        assert len(re.findall(r"[^\s,.:!]+|[,.:!]", text)) <= MOST_WORDS
        assert not re.search(r"\ba [aeio]|\ban [^aeiouhl]|\b(an?|the) (an?|the)\b|,,|, ,| ,|^,|,$", text), text
        assert colours_of(text) == colours_of(caption)


def colours_of(caption: str) -> set[str]:
    """The named colours; "golden" may become "gold", and "purple" "violet"."""
    return {name for colour in colour_words(caption) for name in colour_names(colour)}


@pytest.mark.parametrize("caption", CAPTIONS)
def test_size_words_are_dropped_but_never_invented(caption: str) -> None:
    sized = {word for size in SIZES for word in (size, *spoken(THESAURUS.get(size, "|").split("|")[0]))}
    rng = np.random.default_rng(1)
    for text in {vary(caption, rng) for _ in range(60)}:
        if not SIZES & set(caption.split()):
            assert not sized & set(text.split())


def test_the_caption_itself_is_said_now_and_then_and_is_not_touched_then() -> None:
    rng = np.random.default_rng(2)
    said = [vary("An  Old BARREL ,by me", rng) for _ in range(600)]
    assert 70 < said.count("An  Old BARREL ,by me") < 130
    assert len(set(said)) > 20


def test_the_generator_decides() -> None:
    first, again = ([vary(c, np.random.default_rng(s)) for c in CAPTIONS for s in range(9)] for _ in range(2))
    assert first == again


def test_what_is_held_out_is_never_said() -> None:
    for caption in ("a wooden barrel", "a rock", "a small old tavern", "two broken statues", "a mug full of rocks"):
        held = paraphrases(caption)
        assert held
        assert caption not in held
        assert len(set(held)) == len(held)
        assert set(held).isdisjoint(all_variations(caption))


@pytest.mark.parametrize("entry", THESAURUS)
def test_no_entry_says_what_is_held_out(entry: str) -> None:
    for caption in (entry, f"a {entry}", f"a small wooden {entry} with a {entry}"):
        rng = np.random.default_rng(3)
        assert set(paraphrases(caption)).isdisjoint({vary(caption, rng) for _ in range(12)})


def test_held_out_synonyms_are_apart_from_the_others() -> None:
    assert FREE.isdisjoint(HELD)
    assert not [(free, held) for free in FREE for held in HELD if f" {held} " in f" {free} "]
    for line in THESAURUS.values():
        assert line.count("|") == 1


def test_paraphrases() -> None:
    assert paraphrases("a small wooden barrel") == (
        "a miniature timber keg",
        "a wooden barrel that is small",
        "a small barrel built out of wood",
        "game asset of a small wooden barrel",
        "game asset of a miniature timber keg",
    )
    assert paraphrases("large stone stairs")[1] == "stone stairs that are large"
    assert paraphrases("an old axe")[:2] == ("an ancient axe", "an axe that is old")
    assert paraphrases("a tree full of apples") == (
        "a tree loaded with apples",
        "game asset of a tree full of apples",
        "game asset of a tree loaded with apples",
    )
    assert paraphrases("word " * 14) == ()


def test_plurals_follow() -> None:
    rng = np.random.default_rng(4)
    said = {vary("two churches, axes, spellbooks and dark crypts", rng) for _ in range(400)}
    found = {word for text in said for word in re.findall(r"[a-z]+", text)}
    assert {"chapels", "axes", "spell", "books", "crypts", "tombs"} <= found
    assert "books of spells" in paraphrases("two spellbooks")[0]


def test_compounds_are_kept_whole() -> None:
    for caption in ("a gingerbread man", "a monster truck", "a storage house", "a grenade launcher barrel"):
        assert all(caption.split(" ", 1)[1] in text for text in all_variations(caption))


def test_every_word_of_the_thesaurus_is_known_to_the_tokenizer() -> None:
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer" / "tokenizer.json"))
    tokenizer.no_padding()
    for word in {word for text in FREE | HELD for word in text.split()}:
        pieces = tokenizer.encode(word, add_special_tokens=False).tokens
        assert "[UNK]" not in pieces
        assert len(pieces) <= 3, (word, pieces)
    for word in {*COLOURS, *SIZES, *MATERIALS.values()}:
        assert len(tokenizer.encode(word, add_special_tokens=False).tokens) <= 2, word


@pytest.mark.parametrize(
    ("caption", "phrase"),
    [
        ("a small green pine tree", Phrase("a", ("small", "green"), "pine tree", "")),
        ("a dark grey and brown heavy tank", Phrase("a", ("dark grey and brown", "heavy"), "tank", "")),
        ("An old wooden Crate full of carrots", Phrase("an", ("old", "wooden"), "crate", "full of carrots")),
        ("half a coconut", Phrase("half a", (), "coconut", "")),
        ("three stone walls", Phrase("three", ("stone",), "walls", "")),
        ("a stone", Phrase("a", (), "stone", "")),
        ("red", Phrase("", (), "red", "")),
        ("a growing plant growing in water", Phrase("a", ("growing",), "plant", "growing in water")),
        ("a barrel, red", Phrase("a", (), "barrel", ", red")),
        ("", Phrase("", (), "", "")),
        ("a", Phrase("a", (), "", "")),
    ],
)
def test_parts(caption: str, phrase: Phrase) -> None:
    assert parse(caption) == phrase
    assert phrase.text == caption.lower()


@pytest.mark.parametrize(
    ("word", "article"),
    [
        *(
            (word, "a")
            for word in ("barrel", "unicorn", "uniform", "one-handed axe", "european hut", "t-rex", "u-turn")
        ),
        *((word, "a") for word in ("used car", "utensil", "ufo", "house", "yellow box", "suv", "3d model")),
        *(
            (word, "an")
            for word in ("axe", "orange box", "unlit torch", "urn", "hourglass", "l-shaped couch", "x-wing")
        ),
        *((word, "an") for word in ("honest man", "unidentified thing", "egg", "office", "uninteresting rock")),
    ],
)
def test_articles(word: str, article: str) -> None:
    for wrong in ("a", "an"):
        assert parse(f"{wrong} {word} on {wrong} {word}").text == f"{article} {word} on {article} {word}"


@pytest.mark.parametrize(
    ("caption", "colours"),
    [
        ("a wooden barrel", ()),
        ("a golden chalice", ("golden",)),
        ("a dark blue sofa", ("dark blue",)),
        ("a reddish brown carpet on a red floor", ("reddish brown", "red")),
        ("a teal green tree", ("teal green",)),
        ("a grey and dark brown shield", ("grey", "dark brown")),
        ("a barrel, purple", ("purple",)),
        ("a soldier in gold", ("gold",)),
        ("a red barn with red doors", ("red",)),
        ("a cupcake with mint green icing", ("mint green",)),
        ("an orange and white fish", ("orange", "white")),
        ("an orange and a plate", ()),
        ("a box that is orange", ("orange",)),
        ("an orange", ()),
        ("a big orange on a plate", ()),
        ("an orange tree", ()),
        ("a leafy green orange tree", ("green",)),
        ("an orange autumn tree", ("orange",)),
        ("a pile of gold", ()),
        ("a pile of gold coins", ("gold",)),
        ("a red panda pilot", ()),
        ("a construction warning light", ()),
        ("a deep plate with a light lamp", ()),
        ("a Gray box painted black and gold", ("gray", "black", "gold")),
        ("", ()),
    ],
)
def test_colour_words(caption: str, colours: tuple[str, ...]) -> None:
    assert colour_words(caption) == colours


def test_colour_names() -> None:
    assert colour_names("dark blue") == ("blue",)
    assert colour_names("teal green") == ("teal", "green")
    assert colour_names("magenta") == ("pink",)
    assert colour_names("silver grey") == ("grey",)


@pytest.mark.parametrize(
    ("caption", "old", "new", "expected"),
    [
        ("a wooden barrel", None, "purple", "a purple wooden barrel"),
        ("a wooden barrel", None, "orange", "an orange wooden barrel"),
        ("an old wooden barrel", None, "red", "an old red wooden barrel"),
        ("a small round table", None, "pink", "a small round pink table"),
        ("a double bed", None, "red", "a red double bed"),
        ("a pile of logs", None, "teal", "a pile of teal logs"),
        ("a large stack of wooden logs", None, "orange", "a large stack of orange wooden logs"),
        ("the top half of a burger bun", None, "orange", "the top half of an orange burger bun"),
        ("half a coconut", None, "orange", "half an orange coconut"),
        ("three candles together", None, "blue", "three blue candles together"),
        ("stairs", None, "blue", "blue stairs"),
        ("a bag of apples", None, "blue", "a blue bag of apples"),
        ("a golden chalice", "golden", "orange", "an orange chalice"),
        ("a closed dark brown book", "dark brown", "white", "a closed white book"),
        ("an orange and white fish", "orange", "red", "a red and white fish"),
        ("a house with an orange roof", "orange", "blue", "a house with a blue roof"),
        ("a red barn with red doors", "red", "orange", "an orange barn with orange doors"),
        ("a red barn with dark red doors", "red", "blue", "a blue barn with dark red doors"),
        ("a barrel, red", "red", "blue", "a barrel, blue"),
    ],
)
def test_with_colour(caption: str, old: str | None, new: str, expected: str) -> None:
    assert with_colour(caption, old, new) == expected
    assert new in colour_words(expected)
    if old is not None and new != "orange":
        assert with_colour(expected, new, old) == caption


@pytest.mark.parametrize("name", sorted(set(COLOURS.values())))
@pytest.mark.parametrize("caption", ["a wooden barrel", "an old axe", "a pile of small bones", "stone stairs", "rock"])
def test_a_colour_that_was_put_in_is_found_and_survives_other_words(caption: str, name: str) -> None:
    coloured = with_colour(caption, None, name)
    assert colour_words(coloured) == (name,)
    rng = np.random.default_rng(5)
    for text in {vary(coloured, rng) for _ in range(30)} | set(paraphrases(coloured)):
        assert colours_of(text) == {name}


def test_a_colour_that_is_not_named_cannot_be_replaced() -> None:
    with pytest.raises(ValueError, match=r"'a red box' does not name the colour 'blue'; it names \['red'\]"):
        with_colour("a red box", "blue", "green")


def test_what_one_colour_would_not_describe() -> None:
    for caption in ("a walking man", "an elegant old lady", "a tree covered in snow", "a crooked dark pine tree"):
        assert not can_be_coloured(caption)
    for caption in ("a wooden barrel", "a snowman", "a gun with a man on it", "a chair"):
        assert can_be_coloured(caption)


def test_tables_agree() -> None:
    assert set(COLOURS).isdisjoint(BEFORE_COLOUR)
    assert set(COLOURS.values()) <= set(COLOURS)
    assert set(MATERIALS).isdisjoint(BEFORE_COLOUR)
