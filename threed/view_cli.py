"""The command line of looking: `threed view WHAT`, a page of one run or mesh, or a gallery of all in a folder."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from threed.errors import Mistake
from threed.flags import check_ranges, said
from threed.viewer import browser, folders
from threed.viewer.site import Site

PORT = (1, 65535)
HELP = """Look at an asset, at a run while it works, or at all of them, in your browser.

WHAT is a run folder, a mesh (GLB, glTF, OBJ, PLY, STL, USDZ), or a folder of these, a gallery with a search.
The page turns the asset around and shows its wireframe, its UVs, each of its maps, with light or without, its levels
of detail (asset_lod1.glb, ... beside asset.glb) and its collider, tells the report in plain words, and offers the
files. Of a run at work it shows the preview, the losses and the time that is left, and the asset once it is there.

It is served on this machine alone, at 127.0.0.1, with nothing from the network; Ctrl-C ends it.

For example:
  threed view                                # all of outputs/
  threed view outputs/a-wooden-barrel-0
  threed view chair.glb --port 8000 --no-browser     # and open http://127.0.0.1:8000/ yourself
  threed text "a wooden barrel" --view       # from the beginning on
"""


@dataclass(frozen=True)
class View:
    """What `threed view` was asked for, as it was typed."""

    what: Annotated[tyro.conf.Positional[Path], said("A run folder, a mesh, or a folder of these.", metavar="WHAT")] = (
        Path("outputs")
    )
    port: Annotated[int | None, said(f"Where to serve the page, {PORT[0]} to {PORT[1]}.", "a free one")] = None
    browser: Annotated[bool, said("Only print the address.", "off")] = True


def main(asked: View) -> None:
    """`threed view`: serve the page until Ctrl-C. Raises Mistake."""
    check_ranges(asked, {"port": PORT})
    with opened(asked.what, asked.port) as site:
        opens = asked.browser and browser.open_page(site.address)
        hint = "" if opens or not asked.browser else "; no browser was found here, open the address in one"
        Console().print(
            f"{asked.what} is at {site.address} (Ctrl-C ends it){hint}", highlight=False, markup=False, soft_wrap=True
        )
        with suppress(KeyboardInterrupt):
            site.serve_forever()


def opened(what: Path, port: int | None = None) -> Site:
    """The site of a run, a mesh or a folder of them. Raises Mistake for what cannot be shown, and for a taken port."""
    where, make = repr(str(what)), 'make something first, for example: threed text "a wooden barrel"'
    if not what.exists():
        raise Mistake(f"there is no {where} to look at; check the path, or {make}")
    if what.is_file() and what.suffix.lower() not in folders.MESHES:
        raise Mistake(f"{where} is neither a run folder nor a mesh; use one of {', '.join(folders.MESHES)}")
    what = what.absolute()
    if what.stem == "asset" and folders.is_run(what.parent):
        what = what.parent
    if what.is_dir() and not folders.is_run(what) and not folders.gallery(what)["entries"]:
        raise Mistake(f"there is no run and no mesh in {where}; {make}")
    try:
        return Site(what if what.is_dir() else what.parent, what, port or 0)
    except OSError as error:
        raise Mistake(f"cannot serve at port {port} ({error.strerror}); leave --port out to use a free one") from error
