// Texts that stand out less than WCAG's 4.5 : 1 from what is behind them, where that is one colour.
(() => {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  const rgba = colour => (context.clearRect(0, 0, 1, 1), context.fillStyle = colour, context.fillRect(0, 0, 1, 1), [...context.getImageData(0, 0, 1, 1).data]);
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const style = getComputedStyle(e);
      if (style.backgroundImage.includes("gradient") && e.tagName !== "SELECT") return null;
      const found = rgba(style.backgroundColor);
      if (found[3] === 255) return found;
    }
    return rgba("white");
  };
  const bad = [];
  for (const e of document.body.querySelectorAll("*")) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()), back = behind(e);
    if (!own || !back || e.disabled || !e.checkVisibility() || e.closest(".unseen, option, noscript")) continue;
    const [a, b] = [light(rgba(getComputedStyle(e).color)), light(back)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) bad.push(`${e.tagName}.${e.className} ${e.textContent} ${(a + 0.05) / (b + 0.05)}`);
  }
  return bad;
})();
