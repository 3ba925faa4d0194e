"""The model card of a trained prior: what it was trained on, how far it came, and under whose licences it stands."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threed import __version__
from threed.training.settings import PARTS

if TYPE_CHECKING:
    from threed.training.parts import Data
    from threed.training.train import Figures

EXAMPLES = 6  # captions
MOST = 20  # names of licences, creators
MOST_CHARACTERS = 60  # of one
LICENCE, CREATOR = ("licence", "license"), ("creator", "author")  # what a captions file calls them
CARD = """# A prior for threed

Trained by `threed prior train`, version {version}, on the folder `{folder}`.

    threed prior sample {example} --prior FOLDER    # what it draws by itself
    threed text {example} --prior FOLDER            # an asset; FOLDER is where this file lies

It knows single objects, alone on a plain background, in the words of its captions. What its assets did not show, it
cannot know.

## Data

{assets} meshes with {captions} different captions, such as {examples}.
{held} more were held out, chosen by their names.
{licences}
## Figures

| part | parameters | steps | samples a step | assets | held out | loss | loss, held out |
|---|---|---|---|---|---|---|---|
{rows}

Losses are those of training at the end, over assets that were trained on and over those held out: of the start the mean
squared error of clean tokens, of the upsampler the mean absolute error of volumes, of the views the mean squared error
of clean pictures, weighted over time, of the angles the cross entropy of azimuth and elevation, of the lift the mean
absolute error of volumes, and how little these and their silhouettes overlap the truth, of the ranker the squared error
of overlaps and how far its choice is from the best. Lower is better; they compare with other trainings on the same
assets only.
{kept}{copies}
## Licence

The program cannot choose one: say here under which licence you pass these weights on, and look at those of the assets
first. The text encoder is that of the prior the training began with; see `text_encoder/NOTICE`.
"""

COPIES = """
## Copies

`lift/exemplars.safetensors` has rough copies of the meshes, so that `threed image` knows again what it is shown:
whoever has this folder has these too.
"""


def written(folder: str, data: Data, captions: Path | None, source: str, finished: Mapping[str, Figures]) -> str:
    """Markdown; the same for the same training, wherever and whenever it ran."""
    others = [part for part in PARTS if part not in finished]
    kept = f"\nNot trained here but taken over from `{plain(source)}`, as far as it has it: {', '.join(others)}.\n"
    examples = [plain(caption) for caption in data.prompts(EXAMPLES)]
    return CARD.format(
        version=__version__,
        folder=plain(folder),
        example=f'"{examples[0]}"',
        assets=data.assets,
        captions=len({item.caption for item in data.train}),
        examples=", ".join(f'"{caption}"' for caption in examples),
        held=data.assets_held_out,
        licences=provenance(captions),
        rows="\n".join(row(part, figures) for part, figures in finished.items()),
        kept=kept if others else "",
        copies=COPIES if "lift" in finished else "",
    )


def row(part: str, figures: Figures) -> str:
    """One of the table of figures."""
    held_out = "" if figures.loss_held_out is None else f"{figures.loss_held_out:.4g}"
    counts = [figures.steps, figures.batch, figures.assets, figures.assets_held_out]
    cells = [part, f"{figures.parameters / 1e6:.1f} M", *map(str, counts), f"{figures.loss:.4g}", held_out]
    return f"| {' | '.join(cells)} |"


def provenance(captions: Path | None) -> str:
    """What the captions file says of licences and creators, each with how often it says so."""
    said = []
    for what, names in (("Licences", LICENCE), ("Creators", CREATOR)):
        counted = Counter(found for record in records(captions) if (found := first(record, names)))
        if counted:
            listed = ", ".join(f"{name} ({count})" for name, count in counted.most_common(MOST))
            more = f" and {len(counted) - MOST} more" if len(counted) > MOST else ""
            said.append(f"{what}, as the captions file names them: {listed}{more}.")
    return "\n".join(["", *said, ""]) if said else "Their licences are not stated in the captions file.\n"


def records(captions: Path | None) -> Iterator[dict[str, Any]]:
    """The objects of a file that was found to be sound."""
    for line in captions.read_bytes().splitlines() if captions else ():
        if line.strip():
            yield json.loads(line.decode("utf-8-sig"))


def first(record: dict[str, Any], names: tuple[str, ...]) -> str:
    """The first of these that is told, or nothing."""
    return next((plain(record[name]) for name in names if isinstance(record.get(name), str)), "")


def plain(text: str) -> str:
    """Text from files as a few words without marks."""
    return " ".join(re.sub(r"[^\w\s.,:;()/+'-]", " ", text).split())[:MOST_CHARACTERS]
