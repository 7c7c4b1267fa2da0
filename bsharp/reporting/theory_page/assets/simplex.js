// Policies over three responses as points of a triangle, and the paths on which learning moves them.

const FLOW_NAMES = { task: "Task reward", sharpened: "Sharpening", tempered: "Tempered", tilted: "Tilted", entropy: "Entropy minimisation" };
const MARK_TIMES = [1, 4, 16, 64];
const FIELD = [[1, 1, 6], [1, 3, 4], [1, 4, 3], [1, 6, 1], [2, 2, 4], [2, 4, 2], [3, 1, 4], [3, 4, 1], [4, 1, 3], [4, 2, 2], [4, 3, 1], [6, 1, 1]];
const LEAST = 0.005; // a start on an edge would never leave it

function triangle(width, em) {
  const side = Math.min(width - 6.4 * em, 32 * em);
  const left = (width - side) / 2;
  const high = side * Math.sqrt(3) / 2;
  const corners = [[left + side / 2, 3.1 * em], [left, 3.1 * em + high], [left + side, 3.1 * em + high]];
  const point = (p) => [0, 1].map((axis) => p.reduce((sum, share, at) => sum + share * corners[at][axis], 0));
  const policy = (x, y) => {
    const top = (corners[1][1] - y) / high;
    const last = (x - left - top * side / 2) / side;
    return inside([top, 1 - top - last, last]);
  };
  return { corners, point, policy, height: high + 6.9 * em };
}

function inside(p) {
  const kept = p.map((share) => Math.max(share, LEAST));
  const total = kept.reduce((sum, share) => sum + share, 0);
  return kept.map((share) => share / total);
}

/** Everything a flow needs: values, entropy weight, and the times at which its path is drawn. */
function flowOf(world, settings, name) {
  const objective = objectivesOf(settings)[name];
  const values = valuesOf(world, likelihoodOf(world, settings), objective);
  const h = objective.c - objective.o;
  const spread = Math.max(...values) - Math.min(...values);
  const last = h === 0 ? 60 / Math.max(spread, 1e-6) * 4 : h > 0 ? 12 / h : 9;
  return { objective, values, h, last };
}

/** Times that rise geometrically, so that fast and slow parts are drawn equally well. */
function pathTimes(last, count) {
  return [0, ...samples(Math.log(last * 1e-4), Math.log(last), count).map(Math.exp)];
}

function pathOf(policies, shape) {
  return policies.map((logp, at) => {
    const [x, y] = shape.point(logp.map(Math.exp));
    return `${at ? "L" : "M"}${fixed(x)} ${fixed(y)}`;
  }).join("");
}

/** The regions of starts by where the natural flow ends, for an objective without an interior optimum. */
function basins(world, { values, h }, shape) {
  const [a, b, c] = shape.corners;
  const middle = (...points) => [0, 1].map((axis) => points.reduce((sum, point) => sum + point[axis], 0) / points.length);
  const polygon = (points, right, at) => `<path class="basin ${right ? "right" : "wrong"}" data-end="${at}" d="M${points.map((point) => point.map(fixed).join(" ")).join("L")}Z"/>`;
  if (h > 0) return "";
  if (h < 0) {
    const centre = middle(a, b, c);
    return [[a, b, c], [b, c, a], [c, a, b]].map(([own, one, other], at) => polygon([own, middle(own, one), centre, middle(own, other)], isRight(world, at), at)).join("");
  }
  const best = values.indexOf(Math.max(...values));
  return polygon([a, b, c], isRight(world, best), best);
}

function flowPaths(world, settings, name, start) {
  const flow = flowOf(world, settings, name);
  const logStart = start.map(Math.log);
  const times = pathTimes(flow.last, 150);
  const natural = times.map((time) => naturalFlow(logStart, flow.values, flow.h, time));
  const { points: euclidean, atMarks } = euclideanPath(logStart, flow.values, flow.h, MARK_TIMES);
  const dots = { natural: MARK_TIMES.map((time) => naturalFlow(logStart, flow.values, flow.h, time)), euclidean: atMarks };
  return { flow, natural, euclidean, dots };
}

/** Where the natural flow from `start` ends: the optimum, or what is left of `start` on the argmax. */
function flowEnd({ values, h }, start) {
  if (h > 0) return gibbs(values.map((value) => value / h)).logp;
  const height = h === 0 ? values : start;
  const best = Math.max(...height);
  const width = TIE * Math.max(Math.abs(best), 1);
  return gibbs(start.map((logp, at) => (height[at] >= best - width ? logp : -Infinity))).logp;
}

function drawSimplex({ simplex: world, settings }) {
  const host = byId("simplex-plot");
  const shape = triangle(widthOf(host), letter());
  const name = settings.flow;
  const start = inside(settings.start ?? world.logprob.map(Math.exp));
  const { flow, natural, euclidean, dots } = flowPaths(world, settings, name, start);
  const em = letter();
  let out = basins(world, flow, shape);
  out += `<path class="edge" d="M${shape.corners.map((corner) => corner.map(fixed).join(" ")).join("L")}Z"/>`;
  for (const weights of FIELD) {
    const from = weights.map((weight) => Math.log(weight / 8));
    const track = pathTimes(flow.last, 60).map((time) => naturalFlow(from, flow.values, flow.h, time));
    const head = track.findIndex((logp) => distance(shape, logp, from) > 1.6 * em);
    out += `<path class="field" d="${pathOf(track, shape)}"/>` + (head > 0 ? arrow(shape, track[head - 1], track[head], 0.42 * em) : "");
  }
  out += `<path class="flow euclidean" d="${pathOf(euclidean, shape)}"/><path class="flow natural" d="${pathOf(natural, shape)}"/>`;
  for (const kind of ["euclidean", "natural"]) out += dots[kind].map((logp) => place(shape, logp, `time ${kind}`, 0.24 * em)).join("");
  const end = flowEnd(flow, start.map(Math.log));
  out += place(shape, world.logprob, "basepoint", 0.34 * em);
  const [endX, endY] = shape.point(end.map(Math.exp));
  out += `<path class="goal" d="M${fixed(endX)} ${fixed(endY - 0.62 * em)}l${fixed(0.62 * em)} ${fixed(0.62 * em)}l${fixed(-0.62 * em)} ${fixed(0.62 * em)}l${fixed(-0.62 * em)} ${fixed(-0.62 * em)}z"/>`;
  shape.corners.forEach(([x, y], at) => {
    const up = at === 0 ? -2 * em : 1.5 * em;
    const right = isRight(world, at);
    out += `<text class="corner ${right ? "right" : "wrong"}" x="${fixed(x)}" y="${fixed(y + up)}" text-anchor="middle">${right ? "✓" : "✗"} ${escaped(world.text[at])}</text>`;
    out += `<text class="tick" x="${fixed(x)}" y="${fixed(y + up + 1.1 * em)}" text-anchor="middle">base ${shown(Math.exp(world.logprob[at]))}</text>`;
  });
  const [x, y] = shape.point(start);
  out += `<circle class="start" cx="${fixed(x)}" cy="${fixed(y)}" r="${fixed(0.62 * em)}"/>`;
  const label = `${FLOW_NAMES[name]}: paths over three responses from ${start.map((p) => shown(p, 2)).join(", ")}`;
  const drawing = byId("simplex-drawing");
  drawing.setAttribute("viewBox", `0 0 ${widthOf(host)} ${Math.round(shape.height)}`);
  drawing.setAttribute("height", Math.round(shape.height));
  drawing.innerHTML = out;
  host.setAttribute("aria-label", `${label}. Arrow keys move the start.`);
  host.shape = shape;
  host.dataset.end = JSON.stringify(end.map(Math.exp));
  const names = world.text.map((text, at) => `<b class="${isRight(world, at) ? "right" : "wrong"}">${escaped(text)}</b> ${shown(Math.exp(end[at]))}`).join(", ");
  const reward = mean(end, world.reward);
  byId("simplex-said").innerHTML = `<b>${FLOW_NAMES[name]}</b> from (${start.map((p) => shown(p, 2)).join(", ")}): the natural flow ends at ${names}; accuracy <b>${shown(mean(start.map(Math.log), world.reward))} → ${shown(reward)}</b>. ${BASIN_WORDS(flow)}`;
}

const tiesOf = (values) => values.filter((value) => value >= Math.max(...values) - TIE).length;
const BASIN_WORDS = ({ h, values }) => (h > 0 ? "With a KL term the optimum lies inside the triangle; every start reaches it." : h === 0 ? `One basin: every start ends ${tiesOf(values) > 1 ? "on the same side, in the ratio it has there" : "in the same corner"}; its colour says whether that is right (solid) or wrong (hatched).` : "Three basins: the start’s own likeliest response wins, right or wrong.");

const distance = (shape, one, other) => Math.hypot(...[0, 1].map((axis) => shape.point(one.map(Math.exp))[axis] - shape.point(other.map(Math.exp))[axis]));

function place(shape, logp, kind, radius) {
  const [x, y] = shape.point(logp.map(Math.exp));
  return `<circle class="${kind}" cx="${fixed(x)}" cy="${fixed(y)}" r="${fixed(radius)}"/>`;
}

function arrow(shape, before, after, size) {
  const [from, to] = [before, after].map((logp) => shape.point(logp.map(Math.exp)));
  const angle = Math.atan2(to[1] - from[1], to[0] - from[0]) * 180 / Math.PI;
  return `<path class="head" transform="translate(${fixed(to[0])} ${fixed(to[1])}) rotate(${fixed(angle)})" d="M0 0L${fixed(-1.6 * size)} ${fixed(size)}V${fixed(-size)}Z"/>`;
}

/** Clicks, drags and arrow keys move the start. */
function listenToSimplex(change) {
  const host = byId("simplex-plot");
  const moveTo = (event) => {
    const box = byId("simplex-drawing").getBoundingClientRect();
    change({ start: host.shape.policy(event.clientX - box.left, event.clientY - box.top) });
  };
  host.addEventListener("click", moveTo);
  host.addEventListener("pointerdown", (event) => {
    // A finger beside the circle may want to scroll.
    if (event.pointerType === "touch" && !event.target.classList.contains("start")) return;
    host.setPointerCapture(event.pointerId);
    moveTo(event);
  });
  host.addEventListener("pointermove", (event) => { if (host.hasPointerCapture(event.pointerId)) moveTo(event); });
  host.addEventListener("keydown", (event) => {
    const by = { ArrowUp: [2, -1, -1], ArrowDown: [-2, 1, 1], ArrowLeft: [0, 1, -1], ArrowRight: [0, -1, 1] }[event.key];
    if (!by) return;
    event.preventDefault();
    change((settings, view) => ({ start: inside((settings.start ?? view.simplex.logprob.map(Math.exp)).map((share, at) => share + 0.02 * by[at])) }));
  });
}
