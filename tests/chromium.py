"""A real browser for tests: headless Chromium, spoken to over a pipe in its DevTools protocol.

It draws in software, and every request that it makes, every error on its console, is kept.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, Queue
from typing import Any

import numpy as np
from PIL import Image

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PATIENCE = 120.0  # seconds
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
]

# A browser reads at descriptor 3 and writes at 4, wherever the pipes are by chance.
START = """import fcntl, os, sys
for place, pipe in enumerate([fcntl.fcntl(int(each), fcntl.F_DUPFD, 10) for each in sys.argv[1:3]], 3):
    os.dup2(pipe, place)
os.execv(sys.argv[3], sys.argv[3:])"""


class Tab:
    """One page of a browser: what it asked for (`requests`) and complained of (`errors`)."""

    def __init__(self, write: Any, read: Any) -> None:
        self._write, self._answers, self._number = write, Queue[dict[str, Any]](), 0
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._session: str | None = None
        threading.Thread(target=self._listen, args=(read,), daemon=True).start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while True:
            answer = self._answers.get(timeout=PATIENCE)
            if answer["id"] == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _listen(self, read: Any) -> None:
        buffer = b""
        while chunk := os.read(read.fileno(), 2**20):
            *messages, buffer = (buffer + chunk).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._answers.put(message)
                else:
                    self._note(message["method"], message["params"])

    def _note(self, method: str, told: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"])[:2000])
        elif method == "Runtime.consoleAPICalled" and told["type"] in {"error", "warning", "assert"}:
            self.errors.append(" ".join(str(each.get("value", each.get("description"))) for each in told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in {"error", "warning"}:
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    def size(self, width: int, height: int, scale: float = 1, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of an expression, awaited."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str, patience: float = PATIENCE) -> None:
        """Wait for an expression to become true; until then it may fail as well."""
        script = f"(() => {{ try {{ return !!({script}); }} catch {{ return false; }} }})()"
        end = time.monotonic() + patience
        while not self.run(script):
            assert time.monotonic() < end, f"{script} does not come; the page complains of {self.errors}"
            time.sleep(0.1)

    def rectangle(self, selector: str) -> list[float]:
        """Left, top, width and height of the first element of this kind, brought into view."""
        return self.run(
            f"(e => {{ e.scrollIntoView({{block: 'nearest'}}); const r = e.getBoundingClientRect();"
            f"return [r.x, r.y, r.width, r.height]; }})(document.querySelector({json.dumps(selector)}))"
        )

    def click(self, selector: str) -> None:
        """With the mouse, at the middle of the first element of this kind."""
        x, y, width, height = self.rectangle(selector)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.mouse(kind, x + width / 2, y + height / 2)

    def mouse(self, kind: str, x: float, y: float) -> None:
        button = "none" if kind == "mouseMoved" else "left"
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=1, clickCount=1)

    def type(self, words: str) -> None:
        self.call("Input.insertText", text=words)

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def picture(self, selector: str | None = None) -> Image.Image:
        """What is seen, or what an element's rectangle shows."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
        clip = {}
        if selector:
            x, y, width, height = self.rectangle(selector)
            clip = {"clip": {"x": x, "y": y, "width": width, "height": height, "scale": 1}}
        shot = base64.b64decode(self.call("Page.captureScreenshot", format="png", **clip)["data"])
        return Image.open(io.BytesIO(shot)).convert("RGB")

    def pixels(self, selector: str) -> np.ndarray:
        return np.asarray(self.picture(selector), np.float32) / 255


@contextmanager
def browser() -> Iterator[Tab]:
    """A tab of a fresh browser."""
    (child_in, to), (back, child_out) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [str(PROGRAM), *FLAGS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            [sys.executable, "-c", START, str(child_in), str(child_out), *command],
            pass_fds=(child_in, child_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_in)
        os.close(child_out)
        with os.fdopen(to, "wb") as write, os.fdopen(back, "rb") as read:
            try:
                yield Tab(write, read)
            except Empty:
                raise AssertionError(f"{PROGRAM} does not answer") from None
            finally:
                process.kill()
                process.wait()
