"""All that is known of English captions: colours, kinds of adjectives, and what may be said instead of a word."""

from __future__ import annotations


def _all(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Every colour word that is understood, and the name by which it is judged (`recolour.NAMED`).
COLOURS: dict[str, str] = {
    **{
        name: name for name in _all("red orange yellow golden green teal blue purple pink brown beige white grey black")
    },
    **{"crimson": "red", "scarlet": "red", "maroon": "red", "gold": "golden", "olive": "green", "lime": "green"},
    **{"turquoise": "teal", "cyan": "teal", "aqua": "teal", "navy": "blue", "violet": "purple", "lavender": "purple"},
    **{"magenta": "pink", "tan": "beige", "cream": "beige", "bronze": "brown", "silver": "grey", "gray": "grey"},
}
SHADES = _all("dark light pale bright deep reddish bluish greenish yellowish mint sandy sky")
THINGS = _all("orange gold olive lime lavender cream bronze silver")  # that share a colour's name
NOT_COLOURS = {("red", "panda"), *((thing, noun) for thing in THINGS for noun in ("tree", "trees", "juice"))}

DETERMINERS = _all("a an the some one two three four five six seven eight nine ten")
TAILS = _all(
    ", with without of in on for from under over to at around by into inside covered full filled made tied wrapped "
    "stuck shaped reaching growing hanging bending looking covering cheering together that up down"
)
PARTITIVES = _all(  # a colour belongs to what they are of
    "group pile stack bunch bundle cluster row set pair piece slice tuft patch roll sheet half top bottom end front "
    "back corner body field heap side sheaf head leaf loaf stacks pieces slices rows piles bundles model"
)
SIZES = _all("small little tiny miniature large big huge giant enormous")
BEFORE_COLOUR = SIZES | _all(  # the adjectives that English puts there; materials and kinds of things come after
    "tall short long low high wide narrow thin thick fat slim heavy old new young ancient round rounded square "
    "rectangular oval triangular curved bent flat straight crooked cylindrical hexagonal geometric cone-shaped "
    "cube-shaped l-shaped t-shaped flat-topped jagged spiral open closed broken damaged destroyed empty simple plain "
    "detailed decorated decorative carved dead dry bare leafy spiky grassy mossy rocky dirty rusty worn burning burnt "
    "glowing growing ripe raw cooked chopped melted lit unlit hanging standing floating flying stacked crushed "
    "flattened striped modern vintage retro futuristic elegant angry cut picked"
)
MATERIALS = {"wooden": "wood", "brick": "bricks"} | {
    name: name
    for name in _all("stone metal iron steel glass leather cardboard concrete clay plastic canvas bone paper marble")
}
PEOPLE = _all("man woman lady gentleman boy girl person character businessman businesswoman")
UNCOUNTED = _all(
    "grass lettuce cheese bread wheat rice food hay bamboo debris dirt snow water rubble armor armour furniture corn "
    "meat wood ham grain moss gold sand terrain men women people children teeth feet mice geese sheep"
)

# What `vary` may say instead | what only `paraphrases` says. Plurals in "-s" follow; a bare bar keeps a compound whole.
THESAURUS: dict[str, str] = {
    # people, animals and monsters
    "man": "guy |",
    "gingerbread man": "|",
    "woman": "lady |",
    "chef": "cook |",
    "wizard": "mage, sorcerer | magician",
    "mage": "wizard | magician",
    "robot": "droid |",
    "monster": "creature | beast",
    "monster truck": "|",
    "dinosaur": "dino |",
    "pig": "hog | swine",
    "snake": "serpent |",
    # plants, food and ground
    "rock": "stone | boulder",
    "rock pillar": "stone pillar |",
    "boulder": "rock |",
    "tree stump": "stump | cut tree",
    "pine tree": "pine, conifer | evergreen tree",
    "fir tree": "fir | conifer tree",
    "bush": "shrub |",
    "flower": "blossom | bloom",
    "flower bud": "|",
    "houseplant": "house plant, indoor plant | pot plant",
    "mushroom": "toadstool | fungus",
    "mushroom stem": "|",
    "tuft of grass": "clump of grass | bit of grass",
    "campfire": "camp fire | fire pit",
    "campfire pit": "|",
    "donut": "doughnut |",
    "hamburger": "burger |",
    "french fries": "fries |",
    "corn": "maize |",
    "meteor": "meteorite | asteroid",
    # furniture and household
    "couch": "sofa | settee",
    "sofa": "couch | settee",
    "armchair": "easy chair |",
    "chest of drawers": "dresser | bureau",
    "nightstand": "bedside table, bedside cabinet | night table",
    "bedside cabinet": "nightstand, bedside table | night table",
    "bookcase": "bookshelf |",
    "bookshelf": "bookcase |",
    "cabinet": "cupboard |",
    "rug": "carpet | floor mat",
    "carpet": "rug | floor mat",
    "pillow": "cushion |",
    "floor lamp": "standing lamp |",
    "standing floor lamp": "|",
    "fridge": "refrigerator | icebox",
    "television": "tv | tv set",
    "stove": "cooker |",
    "stove top": "|",
    "bathtub": "bath, tub |",
    "washing machine": "washer |",
    "trash can": "garbage can, rubbish bin | waste bin",
    "picture frame": "photo frame |",
    "cooking pot": "cook pot | stew pot",
    "frying pan": "pan | skillet",
    "mug": "cup | tankard",
    "chalice": "goblet | drinking cup",
    "computer monitor": "computer screen |",
    "laptop computer": "laptop |",
    "mobile phone": "cell phone |",
    # containers and props
    "barrel": "cask | keg",
    "launcher barrel": "|",
    "crate": "box | packing case",
    "bucket": "pail |",
    "chest": "trunk | coffer",
    "chest armor": "chest plate | breastplate",
    "treasure chest": "loot chest | treasure box",
    "sack": "bag |",
    "backpack": "rucksack | knapsack",
    "potion bottle": "potion flask | potion vial",
    "gem": "jewel | gemstone",
    "spellbook": "spell book | book of spells",
    "padlock": "lock |",
    "traffic cone": "road cone | safety cone",
    "fire hydrant": "hydrant |",
    "loudspeaker": "speaker |",
    "gravestone": "tombstone, headstone | grave marker",
    "coffin": "casket | burial box",
    "crypt": "tomb | mausoleum",
    "statue": "sculpture | figure",
    # weapons
    "sword": "blade | saber",
    "dagger": "knife | stiletto",
    "hatchet": "hand axe |",
    "axe": "ax |",
    "pistol": "handgun | sidearm",
    "hand grenade": "grenade |",
    "knight helmet": "knight helm |",
    # vehicles
    "car": "automobile | motor car",
    "race car": "racing car |",
    "racing car": "race car |",
    "police car": "cop car | patrol car",
    "sports car": "|",
    "train car": "|",
    "fire truck": "fire engine |",
    "truck": "lorry |",
    "army tank": "military tank | battle tank",
    "spaceship": "spacecraft, starship | space ship",
    "motorcycle": "motorbike | motor bike",
    "rowboat": "rowing boat | row boat",
    "locomotive": "train engine |",
    "train wagon": "train car | rail car",
    "cart": "wagon | barrow",
    # buildings
    "house": "home | dwelling",
    "space house": "|",
    "storage house": "|",
    "town house": "|",
    "hut": "shack, cabin | shed",
    "tavern": "inn | pub",
    "church": "chapel |",
    "castle": "fortress | citadel",
    "watchtower": "lookout tower | guard tower",
    "office building": "office block |",
    "dock": "pier, jetty | wharf",
    "pillar": "column |",
    "column": "pillar |",
    "stairs": "steps | stairway",
    "railing": "handrail | guard rail",
    "street light": "street lamp, lamp post | streetlight",
    "street lamp": "street light | streetlight",
    # adjectives
    "small": "little, tiny | miniature",
    "little": "small | miniature",
    "tiny": "very small, little | miniature",
    "large": "big, huge | enormous",
    "big": "large, huge | enormous",
    "huge": "very big | enormous",
    "tall": "high | towering",
    "long": "elongated | lengthy",
    "long sleeve": "|",
    "old": "aged | ancient",
    "old lady": "|",
    "old gentleman": "|",
    "round": "rounded |",
    "wide": "broad |",
    "thin": "slender | skinny",
    "broken": "smashed | shattered",
    "damaged": "broken | battered",
    "dead": "lifeless | withered",
    "closed": "shut |",
    "burning": "flaming | blazing",
    "glowing": "shining | luminous",
    "spiky": "spiked | thorny",
    "simple": "plain |",
    "rusty": "rusted |",
    "wooden": "wood | timber",
    "sci-fi": "futuristic | science fiction",
    "autumn": "fall |",
    "grey": "gray |",
    "golden": "gold |",
    "gold": "golden |",
    "purple": "violet |",
    "tan": "beige |",
    # turns of phrase
    "pile": "heap, mound | mass",
    "group": "cluster, bunch | collection",
    "covered in snow": "covered with snow | under snow",
    "full of": "filled with | loaded with",
    "without": "with no | lacking",
    "with arms spread": "with open arms |",
}
