// The UV layout: a texture with its triangles faint over it and the outlines of its charts strong.

const SIDE = 1024, FAINT_UP_TO = 60000; // pixels; triangles beyond which only outlines are drawn

export function draw(canvas, { geometry, texture, set }) {
  const uv = geometry.attributes[set ? `uv${set}` : "uv"], paper = canvas.getContext("2d");
  canvas.width = canvas.height = SIDE;
  const image = texture?.image;
  if (image) {
    canvas.height = Math.max(64, Math.round((SIDE * image.height) / image.width));
    paper.drawImage(image, 0, 0, canvas.width, canvas.height);
  } else {
    paper.fillStyle = "#8a8a86";
    paper.fillRect(0, 0, canvas.width, canvas.height);
  }
  if (!uv) return { charts: null };
  const { outlines, inner, charts } = edges(geometry, uv);
  const pixel = Math.max(1, SIDE / (canvas.clientWidth || SIDE)); // of the screen
  paper.lineJoin = "round";
  if (inner.length / 2 < 1.5 * FAINT_UP_TO) stroke(paper, uv, inner, "rgb(255 255 255 / 0.22)", pixel);
  stroke(paper, uv, outlines, "rgb(0 0 0 / 0.55)", 3.2 * pixel);
  stroke(paper, uv, outlines, "rgb(255 255 255 / 0.95)", 1.4 * pixel);
  return { charts };
}

function stroke(paper, uv, ends, style, width) {
  const { width: wide, height: tall } = paper.canvas;
  paper.beginPath();
  for (let i = 0; i < ends.length; i += 2) {
    paper.moveTo(uv.getX(ends[i]) * wide, uv.getY(ends[i]) * tall);
    paper.lineTo(uv.getX(ends[i + 1]) * wide, uv.getY(ends[i + 1]) * tall);
  }
  paper.strokeStyle = style;
  paper.lineWidth = width;
  paper.stroke();
}

// Edges of one triangle are outlines, those of two lie within a chart; vertices at one place in the layout are one.
function edges({ index }, uv) {
  const places = new Map(), welded = new Uint32Array(uv.count), parent = [];
  for (let i = 0; i < uv.count; i++) {
    const key = `${Math.round(uv.getX(i) * 1e6)} ${Math.round(uv.getY(i) * 1e6)}`;
    if (!places.has(key)) parent[places.size] = places.size, places.set(key, places.size);
    welded[i] = places.get(key);
  }
  const root = i => {
    while (parent[i] !== i) i = parent[i] = parent[parent[i]];
    return i;
  };
  const corners = index ? index.count : uv.count, corner = i => (index ? index.getX(i) : i), found = new Map();
  for (let i = 0; i + 2 < corners; i += 3) {
    for (let side = 0; side < 3; side++) {
      const a = corner(i + side), b = corner(i + ((side + 1) % 3)), [low, high] = [welded[a], welded[b]].sort((x, y) => x - y);
      const key = low * places.size + high;
      parent[root(low)] = root(high);
      const seen = found.get(key);
      if (seen) seen[2]++;
      else found.set(key, [a, b, 1]);
    }
  }
  const outlines = [], inner = [];
  for (const [a, b, times] of found.values()) (times === 1 ? outlines : inner).push(a, b);
  const used = new Set();
  for (let i = 0; i < corners; i++) used.add(root(welded[corner(i)]));
  return { outlines, inner, charts: used.size };
}
