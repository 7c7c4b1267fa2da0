// Charts as SVG text: axes, lines, and what stands at their ends. Colours come from the style sheet by class.

const SIGNS = { "<": "&lt;", ">": "&gt;", "&": "&amp;", '"': "&quot;" };
const escaped = (text) => String(text).replace(/[<>&"]/g, (sign) => SIGNS[sign]);
const fixed = (value) => (Math.round(value * 100) / 100).toString();

/** A number for people: three digits, a real minus, no "-0". */
function shown(value, digits = 3) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size < 5e-7) return "0";
  let text;
  if (size >= 1e5 || size < 1e-3) text = value.toExponential(1).replace("e+", "e");
  else text = size >= 1000 ? value.toFixed(0) : Number(value.toPrecision(digits)).toString();
  return text.replace(/-/g, "−");
}

const signed = (value) => (value > 0 && shown(value) !== "0" ? "+" : "") + shown(value);

function niceTicks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw - 1e-12);
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + 1e-9 * step; at++) ticks.push(Number((at * step).toPrecision(12)));
  return ticks;
}

// Sizes are read once before anything is drawn: reading one after drawing makes the browser lay out the whole page.
const sizes = { letter: 17, widths: new Map() };

function measure() {
  sizes.letter = parseFloat(getComputedStyle(document.documentElement).fontSize);
  for (const host of document.querySelectorAll(".drawing")) sizes.widths.set(host.id, Math.max(Math.floor(host.clientWidth), 200));
}

/** The size of a letter, in pixels: charts grow with the reader's type. */
const letter = () => sizes.letter;
const widthOf = (host) => sizes.widths.get(host.id);

/** The frame of a chart: scales, grid, axes with titles. `x` and `y` are {range, ticks?, title, log?, text?}. */
function frame({ width, height, x, y, right = 12, bottomAxis = true }) {
  const em = letter();
  const left = 3.1 * em;
  const [top, bottom] = [1.75 * em, bottomAxis ? 2.9 * em : 0.7 * em];
  const place = (axis) => (axis.log ? Math.log10 : (value) => value);
  const scale = (axis, from, to) => {
    const [low, high] = axis.range.map(place(axis));
    return (value) => from + ((place(axis)(value) - low) / (high - low)) * (to - from);
  };
  const sx = scale(x, left, width - right);
  const sy = scale(y, height - bottom, top);
  const xTicks = x.ticks ?? niceTicks(...x.range, Math.max(3, Math.floor((width - left) / (4.5 * em))));
  const yTicks = y.ticks ?? niceTicks(...y.range, 4);
  const [xEnd, yEnd] = [width - right, height - bottom];
  const text = (axis, value) => escaped(axis.text ? axis.text(value) : shown(value));
  let out = yTicks.map((tick) => `<path class="grid" d="M${fixed(left)} ${fixed(sy(tick))}H${fixed(xEnd)}"/><text class="tick" x="${fixed(left - 0.4 * em)}" y="${fixed(sy(tick))}" dy=".32em" text-anchor="end">${text(y, tick)}</text>`).join("");
  out += `<path class="axis" d="M${fixed(left)} ${fixed(yEnd)}H${fixed(xEnd)}"/>`;
  if (bottomAxis) {
    out += xTicks.map((tick) => `<path class="axis" d="M${fixed(sx(tick))} ${fixed(yEnd)}v5"/><text class="tick" x="${fixed(sx(tick))}" y="${fixed(yEnd + 1.15 * em)}" text-anchor="middle">${text(x, tick)}</text>`).join("");
    out += `<text class="title" x="${fixed(xEnd)}" y="${fixed(yEnd + 2.45 * em)}" text-anchor="end">${x.title}</text>`;
  }
  out += `<text class="title" x="2" y="${fixed(0.95 * em)}">${y.title}</text>`;
  return { sx, sy, out, left, xEnd, yEnd, top, em, width, height };
}

function path(points, sx, sy) {
  return points.map(([x, y], at) => `${at ? "L" : "M"}${fixed(sx(x))} ${fixed(sy(y))}`).join("");
}

const line = (points, { sx, sy }, kind) => `<path class="line ${kind}" d="${path(points, sx, sy)}"/>`;

const dot = (x, y, { sx, sy }, kind = "", radius = 6) =>
  `<circle class="dot ${kind}" cx="${fixed(sx(x))}" cy="${fixed(sy(y))}" r="${radius}"/>`;

/** A short piece of the tangent with the given slope at (x, y), cut at the frame. */
function tangent(x, y, slope, { sx, sy, left, xEnd, top, yEnd }, reach) {
  const limit = (end) => {
    let [px, py] = [sx(x + end), sy(y + slope * end)];
    const [ox, oy] = [sx(x), sy(y)];
    const shares = [1];
    if (px > xEnd) shares.push((xEnd - ox) / (px - ox));
    if (px < left) shares.push((left - ox) / (px - ox));
    if (py < top) shares.push((top - oy) / (py - oy));
    if (py > yEnd) shares.push((yEnd - oy) / (py - oy));
    const share = Math.max(0, Math.min(...shares));
    return `${fixed(ox + share * (px - ox))} ${fixed(oy + share * (py - oy))}`;
  };
  return `<path class="tangent" d="M${limit(-reach)}L${limit(reach)}"/>`;
}

/** Where a drawing's values lie, in pixels, for presses in it and for whoever reads it. */
function scaleOf({ left, xEnd, top, yEnd }, x, y) {
  return { left, right: xEnd, low: x.range[0], high: x.range[1], log: Boolean(x.log), top, bottom: yEnd, yLow: y[0], yHigh: y[1] };
}

/** The drawing as an image with a name for those who do not see it. */
function svg({ width, height }, body, label) {
  return `<svg width="${width}" height="${Math.round(height)}" viewBox="0 0 ${width} ${Math.round(height)}" role="img" aria-label="${escaped(label)}">${body}</svg>`;
}

/** Labels at the right end of lines, moved apart so that none covers another. */
function endLabels(labels, { xEnd, yEnd, top, em, sy }) {
  const gap = 1.1 * em;
  const placed = labels.map((label) => ({ ...label, at: sy(label.y) })).sort((left, right) => left.at - right.at);
  for (let pass = 0; pass < 40; pass++) {
    for (let at = 1; at < placed.length; at++) {
      const over = gap - (placed[at].at - placed[at - 1].at);
      if (over > 0) { placed[at].at += over / 2; placed[at - 1].at -= over / 2; }
    }
    for (const label of placed) label.at = Math.min(Math.max(label.at, top), yEnd);
  }
  return placed.map((label) => `<text class="end ${label.kind}" x="${fixed(xEnd + 0.45 * em)}" y="${fixed(label.at)}" dy=".32em">${label.text}</text>`).join("");
}

const samples = (low, high, count) => Array.from({ length: count + 1 }, (_, at) => low + ((high - low) * at) / count);

/** The range of values with a margin; a range of one value is widened. */
function rangeOf(values, least = 1e-3) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const missing = Math.max(least - (high - low), 0);
  low -= missing / 2;
  high += missing / 2;
  const margin = 0.06 * (high - low);
  return [low - margin, high + margin];
}
