"""The exported GLB in three.js beside our own renderer: how far their pictures agree.

    npm install three                                   # in any folder; and a Chromium: the system's, or playwright's
    python benchmarks/threejs.py node_modules           # three assets, which it makes itself
    python benchmarks/threejs.py node_modules my.glb --chromium /usr/bin/google-chrome

Base colour only, unlit, sRGB out, no tone mapping, from the same cameras: three.js draws SUPERSAMPLE x SUPERSAMPLE
samples a pixel, as `surface.render` does, and both are averaged alike. It filters textures as the file says, in linear
light and with mip-maps; `surface.render` reads the texture itself, bilinearly, in display sRGB. PSNR is that of
pictures on white, whole and over the pixels that are opaque in both. Writes benchmarks/results/threejs.json and, for
the eye, outputs/benchmark/threejs.png: ours above three.js's above ten times their difference.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from timing import kept

from threed.pictures import agreement, colour_psnr, sheet
from threed.renderers import surface
from threed.renderers.camera import Cameras, orbit
from threed.renderers.mesh import Asset
from threed.renderers.read import normalised, read
from threed.renderers.volume import Render
from threed.run import slug

PROMPTS = ("a wooden barrel", "a wooden chair", "a green pine tree")
SIZE, SUPERSAMPLE, VIEWS = 256, 2, 8
PATIENCE = 120  # seconds until a browser that says nothing is given up
RUNS = Path("outputs/benchmark")
TYPES = {".js": "text/javascript", ".html": "text/html", ".json": "application/json"}
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PAGE = """<!doctype html><script type="importmap">
{"imports": {"three": "/npm/three/build/three.module.js", "three/addons/": "/npm/three/examples/jsm/"}}
</script><script type="module">
const told = body => fetch("/told", {method: "POST", body: JSON.stringify(body)});
try {
  const THREE = await import("three");
  const {GLTFLoader} = await import("three/addons/loaders/GLTFLoader.js");
  const asked = await (await fetch("/asked.json")).json();
  const renderer = new THREE.WebGLRenderer({antialias: false, alpha: true, preserveDrawingBuffer: true});
  renderer.setSize(asked.size, asked.size);
  renderer.setClearColor(0, 0);
  renderer.toneMapping = THREE.NoToneMapping;
  const root = (await new GLTFLoader().loadAsync("/asset.glb")).scene;
  root.traverse(each => {
    if (!each.isMesh) return;
    const {map, color, side} = each.material;
    each.material = new THREE.MeshBasicMaterial({map, color, side});
  });
  root.scale.setScalar(asked.scale);
  root.position.fromArray(asked.offset);
  const scene = new THREE.Scene().add(root), pictures = [];
  for (const {position, fov} of asked.cameras) {
    const camera = new THREE.PerspectiveCamera(fov, 1, 0.1, 100);
    camera.position.fromArray(position);
    camera.lookAt(0, 0, 0);
    renderer.render(scene, camera);
    pictures.push(renderer.domElement.toDataURL("image/png"));
  }
  await told({revision: THREE.REVISION, pictures});
} catch (error) { await told({error: String(error)}); }
</script>"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", type=Path, help="the folder node_modules with three in it")
    parser.add_argument("assets", type=Path, nargs="*", help="GLB files; without any, three are made")
    parser.add_argument("--chromium", default="chromium", help="the browser's program")
    asked = parser.parse_args()
    if not (asked.modules / "three" / "build" / "three.module.js").is_file():
        parser.error(f"there is no three.js in {asked.modules}; `npm install three` makes a folder node_modules")
    cameras, rows, shown = orbit(VIEWS), [], []
    for path in asked.assets or made():
        asset = read(path)
        ours = surface.render(replace(asset, mesh=normalised(asset.mesh)), cameras, SIZE, SIZE, SUPERSAMPLE)
        theirs, revision = drawn(path, asset, cameras, asked.modules, asked.chromium)
        whole, iou = agreement(ours, theirs)
        rows.append({"asset": f"{path.parent.name}/{path.name}", "psnr": round(whole, 2)})
        rows[-1] |= {"psnr_opaque": round(colour_psnr(ours, theirs), 2), "iou": round(iou, 4)}
        shown += compared(ours, theirs)
    kept("threejs", {"three": revision, "size": SIZE, "views": VIEWS, "assets": rows})
    RUNS.mkdir(parents=True, exist_ok=True)
    sheet(torch.cat(shown), columns=VIEWS).save(RUNS / "threejs.png")
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


def made() -> list[Path]:
    """The assets of PROMPTS; runs that are already there are not made again."""
    folders = [RUNS / "instant" / slug(prompt) for prompt in PROMPTS]
    for prompt, folder in zip(PROMPTS, folders, strict=True):
        if not (folder / "asset.glb").exists():
            flags = ["--recipe", "instant", "--output", str(folder), "--overwrite"]
            subprocess.run([sys.executable, "-m", "threed", "text", prompt, *flags], check=True)
    return [folder / "asset.glb" for folder in folders]


def drawn(path: Path, asset: Asset, cameras: Cameras, modules: Path, chromium: str) -> tuple[Render, str]:
    """three.js's pictures, as if they were our own, and its revision."""
    before, after = asset.mesh.vertices, normalised(asset.mesh).vertices
    scale = ((after.amax(0) - after.amin(0)).norm() / (before.amax(0) - before.amin(0)).norm()).item()
    task = {
        "size": SIZE * SUPERSAMPLE,
        "scale": scale,
        "offset": (after[0] - before[0] * scale).tolist(),
        "cameras": [
            {"position": position, "fov": math.degrees(fov)}
            for position, fov in zip(cameras.position.tolist(), cameras.fov_y.tolist(), strict=True)
        ],
    }
    files = {"/": PAGE.encode(), "/asked.json": json.dumps(task).encode(), "/asset.glb": path.read_bytes()}
    with served(files, modules) as (address, told), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium, *QUIET, f"--user-data-dir={profile}", address]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            found = told.get(timeout=PATIENCE)
        except Empty:
            sys.exit(f"{chromium} drew nothing in {PATIENCE} seconds")
        finally:
            browser.terminate()
            browser.wait()
    if "error" in found:
        sys.exit(f"three.js: {found['error']}")
    samples = torch.stack([decoded(picture) for picture in found["pictures"]])
    samples = samples * samples[..., 3:]
    pixels = torch.nn.functional.avg_pool2d(samples.movedim(-1, 1), SUPERSAMPLE).movedim(1, -1)
    albedo, alpha = pixels.split([3, 1], dim=-1)
    return Render(albedo, albedo, alpha, torch.zeros_like(alpha), torch.zeros_like(albedo)), found["revision"]


@contextmanager
def served(files: dict[str, bytes], modules: Path) -> Iterator[tuple[str, Queue[Any]]]:
    """A web server of these files and of node's modules, its address, and what the page tells it."""
    told: Queue[Any] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path)
            if content is None and self.path.startswith("/npm/"):
                file = modules / self.path.removeprefix("/npm/")
                content = file.read_bytes() if file.is_file() else None
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Type", TYPES.get(Path(self.path).suffix or ".html", "application/octet-stream"))
            self.end_headers()
            self.wfile.write(content or b"")

        def do_POST(self) -> None:
            told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", told
    finally:
        server.shutdown()
        server.server_close()


def decoded(url: str) -> torch.Tensor:
    """RGBA in [0, 1] out of a data URL with a PNG."""
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA")
    return torch.from_numpy(np.array(picture)).float() / 255


def compared(ours: Render, theirs: Render) -> list[torch.Tensor]:
    first, second = (render.albedo + 1 - render.alpha for render in (ours, theirs))
    return [first, second, (1 - 10 * (first - second).abs()).clamp(min=0)]


if __name__ == "__main__":
    main()
