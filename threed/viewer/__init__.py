"""A page to look at runs and meshes with, served on this machine alone: `threed view`.

`folders` tells what stands in a folder, `words` what a report says, `progress` how far a run is, `site` answers the
browser, and `companion` does so beside a run. The page itself is plain HTML, CSS and JavaScript in `page/`, with
three.js (MIT) in `page/three/`. Nothing here imports PyTorch before an OBJ file is asked for: a page opens at once.
"""
