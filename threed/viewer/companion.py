"""The page beside a run: `threed text ... --view`.

It is served by a process of its own, at low priority, so that it neither slows the run nor can stop it: one that does
not start, or falls over, costs a line on the screen. It ends with the run's process, however that ends, because it
listens at a pipe that closes then; after a run that was finished it stays until Ctrl-C.

    python -m threed.viewer.companion FOLDER
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threed.run import Run

POLITE = 10  # added to the niceness of the process that serves


@contextmanager
def companion(wanted: bool) -> Iterator[Callable[[Run], None]]:
    """A function that opens the page of a run, or does nothing where none is wanted.

    On the way out it waits for Ctrl-C as long as the page is there, or ends it at once after an error.
    """
    pages: list[subprocess.Popen[str]] = []

    def show(run: Run) -> None:
        if not wanted:
            return
        command = [sys.executable, "-m", "threed.viewer.companion", str(run.folder)]
        try:
            pipe = subprocess.PIPE
            pages.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True))
        except OSError as error:
            run.log.console.print(f"the page cannot be shown ({error.strerror}); the run goes on", markup=False)
            return
        threading.Thread(target=_tell, args=(pages[0], run), daemon=True).start()

    try:
        yield show
        with suppress(KeyboardInterrupt):
            for page in pages:
                if page.poll() is None:
                    sys.stderr.write("the page stays until Ctrl-C\n")
                page.wait()
    finally:
        for page in pages:
            page.terminate()
            page.wait()


def _tell(page: subprocess.Popen[str], run: Run) -> None:
    """Pass on the page's first line, its address or what went wrong, and read the others away."""
    assert page.stdout
    first = page.stdout.readline()
    if first.startswith("http"):
        run.log.console.print(f"look at it: {first.strip()}", highlight=False, markup=False, soft_wrap=True)
    words = (first + page.stdout.read()).split("\n")  # until it ends
    if not first.startswith("http"):
        why = next((line for line in reversed(words) if line.strip()), "it said nothing")
        run.log.console.print(f"the page cannot be shown ({why}); the run goes on", highlight=False, markup=False)


def main() -> None:
    """Serve a run folder until standard input ends."""
    from threed.view_cli import opened
    from threed.viewer.browser import open_page

    with suppress(AttributeError, OSError):  # Windows has no niceness
        os.nice(POLITE)
    with opened(Path(sys.argv[1])) as site:
        threading.Thread(target=_until_the_end, args=(site.shutdown,), daemon=True).start()
        print(site.address, flush=True)
        open_page(site.address)
        with suppress(KeyboardInterrupt):
            site.serve_forever()


def _until_the_end(stop: Callable[[], None]) -> None:
    sys.stdin.read()
    stop()


if __name__ == "__main__":
    main()
