// The pictures of the sections: each draws itself from the world, the settings and what is solved, into its own element.

const REGIME_NAMES = { base: "Base", sharpened: "Sharpened", tempered: "Tempered", tilted: "Tilted", task: "Task reward" };
const FIGURES = [
  ["reward", "E[r]", "expected reward: the accuracy"],
  ["length", "E[T]", "expected length, tokens"],
  ["entropy", "H", "entropy, nats"],
  ["kl", "KL", "KL to the base, nats"],
  ["log_z", "log Z", "log of the normalising sum Z"],
  ["pass_at_k", "pass@k", "chance that one of k draws is right"],
];
const NO_LOG_Z = "defined for c > 0 only: without a KL term the optimum is an argmax";
const SCALES = [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1];
const byId = (id) => document.getElementById(id);
const isRight = (world, at) => world.reward[at] > 0.5;
const I = (letters) => `<tspan class="i">${letters}</tspan>`;
const E_R = `E[${I("r")}]`;
const E_T = `E[${I("T")}]`;

/** N(l_ref) as text of a drawing, or with `html` of a sentence. */
function likelihoodName({ normalisation, rho }, html = false) {
  if (normalisation !== "weighted_mean") return normalisation === "sum" ? "ℓ" : "ℓ/T";
  return html ? `ℓ/T<sup>${shown(rho)}</sup>` : `ℓ/T${raised(shown(rho))}`;
}

const raised = (text) => `<tspan class="small" dy="-.5em">${text}</tspan><tspan dy=".38em">\u200b</tspan>`;
const lowered = (text) => `<tspan class="small" dy=".3em">${text}</tspan>`;

// -------------------------------------------------------------------------------------------------------- the bars

function drawBars({ world, settings, solved }) {
  for (const regime of Object.keys(REGIME_NAMES)) {
    const host = byId(`bars-${regime}`);
    host.innerHTML = barsOf(world, solved[regime].logp, solved.base.logp, widthOf(host), regime, regime === "task");
    const figures = figuresOf(world, solved[regime], settings.k);
    byId(`figures-${regime}`).innerHTML = FIGURES.map(([key, name, meaning]) =>
      `<div title="${figures[key] === null ? NO_LOG_Z : meaning}"><dt>${name.replace("@k", `@${settings.k}`)}</dt><dd data-key="${key}" data-value="${figures[key] ?? ""}">${shown(figures[key])}</dd></div>`).join("");
  }
  const numbers = byId("bars-numbers");
  if (numbers.parentElement.open) numbers.innerHTML = numbersTable(world, solved);
}

function barsOf(world, logp, baseLogp, width, regime, labelled) {
  const count = world.text.length;
  const em = letter();
  const p = logp.map(Math.exp);
  const top = SCALES.find((scale) => scale >= Math.max(...p, ...baseLogp.map(Math.exp)) - 1e-9) ?? 1;
  const left = 2.6 * em;
  const step = (width - left - 2) / count;
  const written = labelled && step >= 0.82 * em;
  const marks = Math.min(0.5 * em, 0.8 * step);
  const [high, foot] = [5.4 * em, 1.0 * em];
  const longest = written ? Math.max(...world.text.map((text) => text.length)) * 0.52 * em + 0.4 * em : 0;
  const size = { width, height: 0.8 * em + high + foot + longest };
  const ground = 0.8 * em + high;
  const y = (value) => ground - (Math.min(value, top) / top) * high;
  let out = [0, top / 2, top].map((tick) => `<path class="${tick ? "grid" : "axis"}" d="M${left} ${fixed(y(tick))}H${width}"/><text class="tick" x="${fixed(left - 0.35 * em)}" y="${fixed(y(tick))}" dy=".32em" text-anchor="end">${shown(tick)}</text>`).join("");
  const gap = step > 4 ? Math.min(0.16 * step, 4) : 0;
  for (let at = 0; at < count; at++) {
    const x = left + at * step;
    const right = isRight(world, at);
    const name = `${world.text[at]} · ${right ? "right" : "wrong"} · probability ${shown(p[at])} (base ${shown(Math.exp(baseLogp[at]))}) · length ${world.length[at]}`;
    const height = ground - y(p[at]);
    const bar = height > 0.05 ? `<rect class="bar ${right ? "right" : "wrong"}" x="${fixed(x + gap)}" y="${fixed(ground - height)}" width="${fixed(step - 2 * gap)}" height="${fixed(height)}"/>` : "";
    const sign = right ? tick(x + step / 2, ground + 0.5 * em, marks) : cross(x + step / 2, ground + 0.5 * em, marks);
    const label = written ? `<text class="response" transform="translate(${fixed(x + step / 2)} ${fixed(ground + foot + 0.1 * em)}) rotate(90)" dy=".32em">${escaped(world.text[at])}</text>` : "";
    out += `<g>${bar}${sign}${label}<rect class="catch" x="${fixed(x)}" y="0" width="${fixed(step)}" height="${fixed(ground + foot)}"/><title>${escaped(name)}</title></g>`;
  }
  if (regime !== "base") {
    const outline = baseLogp.map((value, at) => `${at ? "" : `M${fixed(left)} ${fixed(y(Math.exp(value)))}`}V${fixed(y(Math.exp(value)))}h${fixed(step)}`).join("");
    out += `<path class="outline" d="${outline}"/>`;
  }
  const best = p.indexOf(Math.max(...p));
  const label = `${REGIME_NAMES[regime]}: probabilities of ${count} responses; the likeliest, ${isRight(world, best) ? "right" : "wrong"}, has ${shown(p[best])}`;
  return svg(size, out, label);
}

const tick = (x, y, size) => `<path class="mark right" d="M${fixed(x - 0.5 * size)} ${fixed(y)}l${fixed(0.35 * size)} ${fixed(0.4 * size)}l${fixed(0.65 * size)} ${fixed(-0.85 * size)}"/>`;
const cross = (x, y, size) => `<path class="mark wrong" d="M${fixed(x - 0.28 * size)} ${fixed(y - 0.28 * size)}l${fixed(0.56 * size)} ${fixed(0.56 * size)}m0 ${fixed(-0.56 * size)}l${fixed(-0.56 * size)} ${fixed(0.56 * size)}"/>`;

function numbersTable(world, solved) {
  const regimes = Object.keys(REGIME_NAMES);
  const rows = world.text.map((text, at) => `<tr><th scope="row">${escaped(text)}</th><td>${isRight(world, at) ? "✓ right" : "✗ wrong"}</td><td>${world.length[at]}</td>${regimes.map((regime) => `<td>${shown(Math.exp(solved[regime].logp[at]))}</td>`).join("")}</tr>`);
  return `<table><thead><tr><th scope="col">response</th><th scope="col">grade</th><th scope="col">tokens</th>${regimes.map((regime) => `<th scope="col">${REGIME_NAMES[regime]}</th>`).join("")}</tr></thead><tbody>${rows.join("")}</tbody></table>`;
}

// ------------------------------------------------------------------------------- a curve above, its slope below

/** Two panels over one axis: values with the tangent at the slider's point, and the slope whose area is their change. */
function curveAndSlope(host, options) {
  const { x, at, curves, slope, value, valueTitle, slopeTitle, levels = [], valueRange, label, from, offScale } = options;
  const width = widthOf(host);
  const em = letter();
  const right = 7.2 * em;
  const bounds = valueRange ?? rangeOf([...curves.flatMap((curve) => curve.points.map(([, y]) => y)), ...levels.map((level) => level.y)], 0.02);
  const upper = frame({ width, height: 15 * em, x, y: { range: bounds, title: valueTitle }, right, bottomAxis: false });
  let out = upper.out;
  for (const level of levels) out += `<path class="level ${level.kind}" d="M${upper.left} ${fixed(upper.sy(level.y))}H${fixed(upper.xEnd)}"/>`;
  for (const curve of curves) out += line(curve.points, upper, curve.kind);
  const here = slope(at);
  if (!offScale) out += tangent(at, value(at), here, upper, 0.16 * (x.range[1] - x.range[0]));
  out += `<path class="guide" d="M${fixed(upper.sx(at))} ${fixed(upper.top)}V${fixed(upper.yEnd)}"/>`;
  out += dot(at, value(at), upper, "here");
  const ends = [...curves.filter((curve) => curve.name).map((curve) => ({ y: curve.points.at(-1)[1], text: curve.name, kind: curve.kind })), ...levels.map((level) => ({ y: level.y, text: level.name, kind: level.kind }))];
  out += endLabels(ends, upper);
  const slopes = samples(...x.range, 160).map((point) => [point, slope(point)]);
  const slopeRange = rangeOf([0, ...slopes.map(([, y]) => y)], 0.01);
  const lower = frame({ width, height: 12 * em, x, y: { range: slopeRange, title: slopeTitle }, right });
  const zero = fixed(lower.sy(0));
  let below = lower.out + `<path class="axis" d="M${lower.left} ${zero}H${fixed(lower.xEnd)}"/>`;
  const covered = samples(Math.min(from, at), Math.max(from, at), 80).map((point) => [point, slope(point)]);
  for (const [kind, clip] of [["gain", (value) => Math.max(value, 0)], ["loss", (value) => Math.min(value, 0)]]) {
    const edge = covered.map(([px, py]) => [px, clip(at < from ? -py : py) * (at < from ? -1 : 1)]);
    below += `<path class="area ${kind}" d="M${fixed(lower.sx(edge[0][0]))} ${zero}${path(edge, lower.sx, lower.sy).replace("M", "L")}L${fixed(lower.sx(edge.at(-1)[0]))} ${zero}Z"/>`;
  }
  below += line(slopes, lower, "slope") + `<path class="guide" d="M${fixed(lower.sx(at))} ${fixed(lower.top)}V${fixed(lower.yEnd)}"/>` + dot(at, here, lower, "here");
  below += `<text class="end slope" x="${fixed(lower.xEnd + 0.45 * em)}" y="${fixed(lower.sy(slopes.at(-1)[1]))}" dy=".32em">slope</text>`;
  const panel = `<g transform="translate(0 ${fixed(upper.height)})">${below}</g>`;
  host.innerHTML = svg({ width, height: upper.height + lower.height }, out + panel, label);
  host.dataset.scale = JSON.stringify(scaleOf(upper, x, bounds));
  host.dataset.slopeScale = JSON.stringify(scaleOf(lower, x, slopeRange));
}

const ALPHA_AXIS = { range: [0, 10], title: `${I("α")} (1 is the base)` };

function drawAlpha({ world, settings, solved }) {
  const { likelihood } = solved;
  const at = settings.alpha;
  const policy = (alpha) => pathPoint(world, likelihood, alpha, 0);
  const value = (alpha) => mean(policy(alpha), world.reward);
  const slope = (alpha) => covariance(policy(alpha), world.reward, likelihood);
  const limit = mean(optimumOf(world, likelihood, { w: 0, s: 1, c: 0, o: 0 }).logp, world.reward);
  const [name, said] = [likelihoodName(settings), likelihoodName(settings, true)];
  curveAndSlope(byId("power-plot"), {
    x: ALPHA_AXIS, at, from: 1, value, slope, valueRange: [-0.04, 1.04],
    curves: [{ points: samples(0, 10, 160).map((alpha) => [alpha, value(alpha)]), kind: "tempered", name: "tempered" }],
    levels: [{ y: limit, kind: "sharpened", name: "α → ∞" }, { y: value(1), kind: "base", name: "base" }],
    valueTitle: `${E_R} under ${I("p")}${lowered("α")}`, slopeTitle: `its slope, Cov(${I("r")}, ${name})`,
    label: `Expected reward against alpha: ${shown(value(1))} at the base, ${shown(value(at))} at alpha ${shown(at)}, limit ${shown(limit)}`,
  });
  const between = correlation(solved.base.logp, world.reward, likelihood);
  byId("power-said").innerHTML = `At <b>α = ${shown(at)}</b> the accuracy is <b>${shown(value(at))}</b> and its slope Cov(r, ${said}) = <b>${signed(slope(at))}</b>. From the base’s ${shown(value(1))} the shaded area adds up to <b>${signed(value(at) - value(1))}</b>; in the limit sharpening ends at <b>${shown(limit)}</b>. At the base Corr(r, ${said}) = <b>${between === null ? "–" : signed(between)}</b>.`;
}

function drawLambda({ world, settings, solved }) {
  const { likelihood } = solved;
  const most = 14;
  const lambda = Math.min(settings.beta_inv, most);
  const offScale = settings.beta_inv > most;
  const along = (alpha) => (point) => pathPoint(world, likelihood, alpha, point);
  const at = along(settings.alpha);
  const value = (point) => mean(at(point), world.reward);
  const slope = (point) => covariance(at(point), world.reward, world.reward);
  const points = (alpha) => samples(0, most, 160).map((point) => [point, mean(along(alpha)(point), world.reward)]);
  const curves = [{ points: points(settings.alpha), kind: "tilted", name: `tilted, α ${shown(settings.alpha)}` }];
  if (settings.alpha !== 1) curves.unshift({ points: points(1), kind: "plain", name: "tilted, α 1" });
  const base = mean(world.logprob, world.reward);
  curveAndSlope(byId("tilt-plot"), {
    x: { range: [0, most], title: `${I("λ")} = β⁻¹ (0: no reward)` }, at: lambda, from: 0, value, slope, curves, offScale,
    levels: [{ y: base, kind: "base", name: "base" }], valueRange: [-0.04, 1.04],
    valueTitle: `${E_R} under ${I("p")}${lowered("λ")}`, slopeTitle: `its slope, Var(${I("r")})`,
    label: `Expected reward against lambda: it rises from ${shown(value(0))} to ${shown(value(most))} and never falls`,
  });
  const now = pathPoint(world, likelihood, settings.alpha, settings.beta_inv);
  const variance = covariance(now, world.reward, world.reward);
  const kl = figuresOf(world, { logp: now, logZ: 0 }, 1).kl;
  const origin = settings.alpha === 1
    ? `The base starts at <b>p₀ = ${shown(base)}</b>;`
    : `The tilt starts from the base tempered at α = ${shown(settings.alpha)}: <b>p₀ = ${shown(value(0))}</b> in the formula, not the base’s ${shown(base)} (for that, α = 1);`;
  byId("tilt-said").innerHTML = `At <b>λ = ${shown(settings.beta_inv)}</b>${offScale ? " (beyond the right edge)" : ""} the accuracy is <b>${shown(mean(now, world.reward))}</b> and its slope Var(r) = <b>${shown(variance)}</b>, never negative, at most 1/4. ${origin} the distance paid is KL = <b>${shown(kl)}</b> nats${settings.alpha === 1 ? `, never more than log(1/p₀) = ${shown(-Math.log(base))}` : ""}.`;
}

// ---------------------------------------------------------------------------------------------------------- length

function drawLength({ world, settings }) {
  const host = byId("length-plot");
  const kinds = ["sum", "weighted_mean", "mean"];
  const paths = kinds.map((normalisation) => {
    const [name, said] = [false, true].map((html) => likelihoodName({ ...settings, normalisation }, html));
    const likelihood = likelihoodOf(world, { ...settings, normalisation });
    const policy = (alpha) => pathPoint(world, likelihood, alpha, 0);
    return { normalisation, name, said, likelihood, policy, length: (alpha) => mean(policy(alpha), world.length) };
  });
  const curves = paths.map((one) => ({ ...one, points: samples(0, 10, 120).map((alpha) => [alpha, one.length(alpha)]) }));
  const range = rangeOf(curves.flatMap((curve) => curve.points.map(([, y]) => y)), 1);
  const axes = frame({ width: widthOf(host), height: 19 * letter(), x: ALPHA_AXIS, y: { range, title: `${E_T}, tokens` }, right: 7.2 * letter() });
  const chosen = paths.find((one) => one.normalisation === settings.normalisation);
  const slope = covariance(chosen.policy(settings.alpha), world.length, chosen.likelihood);
  let out = axes.out + curves.map((curve) => line(curve.points, axes, `${curve.normalisation} ${curve === curves.find((one) => one.normalisation === settings.normalisation) ? "chosen" : ""}`)).join("");
  out += tangent(settings.alpha, chosen.length(settings.alpha), slope, axes, 1.6) + dot(settings.alpha, chosen.length(settings.alpha), axes, "here") + dot(1, paths[0].length(1), axes, "base", 4);
  out += endLabels(curves.map((curve) => ({ y: curve.points.at(-1)[1], text: curve.name, kind: curve.normalisation })), axes);
  host.innerHTML = svg(axes, out, `Expected length against alpha: ${paths.map((one) => `${one.normalisation} ${shown(one.length(settings.alpha))} tokens`).join(", ")} at alpha ${shown(settings.alpha)}`);
  host.dataset.scale = JSON.stringify(scaleOf(axes, ALPHA_AXIS, range));
  const all = paths.map((one) => `<b>${shown(one.length(settings.alpha))}</b> tokens with ${one.said}`).join(", ");
  byId("length-said").innerHTML = `At <b>α = ${shown(settings.alpha)}</b> the expected length is ${all}; the base has ${shown(paths[0].length(1))}. The chosen slope is Cov(T, ${chosen.said}) = <b>${signed(slope)}</b>.${settings.normalisation === "sum" && signed(slope).startsWith("+") ? ` Positive here: a likely long response outweighs the tendency. Shortening is typical, not a theorem${settings.alpha === 1 ? "" : `; at the base, α = 1, the slope is ${signed(covariance(world.logprob, world.length, chosen.likelihood))}`}.` : ""}`;
}

// ----------------------------------------------------------------------------------------------- a nudge to the base

const NUDGE_ZERO = 0.0004; // where the logarithmic axis, broken left of 0.001, has its 0
const NUDGE_RANGE = [NUDGE_ZERO, 10];

function drawNudge({ world, settings, solved }) {
  const [best, next] = topTwo(solved.likelihood);
  const flip = flipAt(world, settings);
  const after = nudged(world, best, next, settings.epsilon);
  const solvedAfter = solve(after, settings);
  const host = byId("nudge-plot");
  const regimes = ["sharpened", "tempered", "tilted", "task"];
  const edge = flip !== null && flip > NUDGE_RANGE[0] && flip < NUDGE_RANGE[1] && settings.c === 0 ? [flip * (1 - 1e-6), flip * (1 + 1e-6)] : [];
  const sizes = [0, ...samples(-3, 1, 160).map((power) => 10 ** power), ...edge].sort((left, right) => left - right);
  const place = (epsilon) => Math.max(epsilon, NUDGE_ZERO);
  const accuracy = (logp) => mean(logp, world.reward);
  const solutions = sizes.map((epsilon) => solve(nudged(world, best, next, epsilon), settings));
  const bounds = [-0.04, 1.04];
  const narrow = widthOf(host) < 36 * letter(); // 0.001 would touch the 0
  const axes = frame({
    width: widthOf(host), height: 18 * letter(), right: 7.2 * letter(),
    x: { range: NUDGE_RANGE, log: true, ticks: [NUDGE_ZERO, ...(narrow ? [] : [0.001]), 0.01, 0.1, 1, 10], text: (value) => (value === NUDGE_ZERO ? "0" : shown(value)), title: `size of the nudge ${I("ε")}, nats` },
    y: { range: bounds, title: `${E_R} at the optimum` },
  });
  const at = place(settings.epsilon);
  let out = axes.out + axisBreak(axes.sx(Math.sqrt(NUDGE_ZERO * 0.001)), axes.yEnd, axes.em) + `<path class="guide" d="M${fixed(axes.sx(at))} ${fixed(axes.top)}V${fixed(axes.yEnd)}"/>`;
  for (const regime of regimes) out += line(sizes.map((epsilon, index) => [place(epsilon), accuracy(solutions[index][regime].logp)]), axes, regime);
  for (const regime of regimes) out += dot(at, accuracy(solvedAfter[regime].logp), axes, regime, 5);
  out += endLabels(regimes.map((regime) => ({ y: accuracy(solutions.at(-1)[regime].logp), text: REGIME_NAMES[regime].toLowerCase(), kind: regime })), axes);
  host.innerHTML = svg(axes, out, `Accuracy at the optimum against the size of the nudge; the sharpened optimum ${flip === null ? "never flips" : `flips at ${shown(flip)} nats`}`);
  host.dataset.scale = JSON.stringify(scaleOf(axes, { range: NUDGE_RANGE, log: true }, bounds));
  byId("nudge-rows").innerHTML = ["base", ...regimes].map((regime) => nudgeRow(regime, world, settings, solved, solvedAfter, best, next)).join("");
  const flipped = flip !== null && settings.epsilon > 0 && topTwo(solvedAfter.likelihood)[0] !== best;
  const name = (index) => `<b class="${isRight(world, index) ? "right" : "wrong"}">${escaped(world.text[index])}</b> (${isRight(world, index) ? "right" : "wrong"})`;
  const moved = massMoved(solved.sharpened, solvedAfter.sharpened);
  const same = isRight(world, best) === isRight(world, next);
  const alike = same && settings.c === 0 && flip !== null ? `Both are <b>${isRight(world, best) ? "right" : "wrong"}</b>: the sharpened optimum’s mass moves at the flip, its accuracy does not. Try the near tie.` : "";
  byId("nudge-said").innerHTML = `The nudge takes ε/2 nats from ${name(best)} and gives them to ${name(next)}. The best of N(ℓ) changes at <b>ε = ${flip === null ? "–" : shown(flip)}</b>. ${alike} ${settings.epsilon === 0 ? (alike ? "" : "Move the slider.") : flipped ? `At ε = ${shown(settings.epsilon)} it <b>has flipped</b>: ${settings.c === 0 ? "with c = 0 all mass moves" : `the leash c = ${shown(settings.c)} lets only part of the mass move (${shown(moved)})`}.` : `At ε = ${shown(settings.epsilon)} it has not.`}`;
}

/** The probability that is somewhere else afterwards: half the sum of the absolute differences. */
function massMoved(before, after) {
  return before.logp.reduce((sum, logp, at) => sum + Math.abs(Math.exp(after.logp[at]) - Math.exp(logp)) / 2, 0);
}

/** Two strokes across an axis where it leaves something out. */
function axisBreak(x, y, em) {
  const strokes = [-0.16, 0.16].map((by) => `M${fixed(x + (by - 0.14) * em)} ${fixed(y + 0.35 * em)}l${fixed(0.28 * em)} ${fixed(-0.7 * em)}`);
  return `<path class="axis break" d="${strokes.join("")}"/>`;
}

/** A regime's change: how much more the log-ratio of the two responses moved than the base's, and the mass that moved. */
function nudgeRow(regime, world, settings, before, after, best, next) {
  const gap = (solution) => solution[regime].logp[next] - solution[regime].logp[best];
  const moved = massMoved(before[regime], after[regime]);
  const change = gap(after) - gap(before);
  const baseChange = after.base.logp[next] - after.base.logp[best] - before.base.logp[next] + before.base.logp[best];
  let amplified = "–";
  if (regime === "task" && settings.c === 0) amplified = "0";
  else if (regime === "sharpened" && settings.c === 0) amplified = "0, ∞ at the flip";
  else if (settings.epsilon > 0 && Number.isFinite(change)) amplified = shown(change / baseChange);
  else if (settings.epsilon === 0 && settings.normalisation === "sum") amplified = shown(slopeOf(regime, settings));
  const [old, now] = [mean(before[regime].logp, world.reward), mean(after[regime].logp, world.reward)];
  return `<tr data-regime="${regime}"><th scope="row"><i class="${regime}"></i>${REGIME_NAMES[regime]}</th><td>${amplified}</td><td data-value="${moved}">${shown(moved)}</td><td data-value="${now}">${shown(old)} → ${shown(now)}</td></tr>`;
}

/** How much a log-ratio of the optimum changes per nat of the base's, for N = sum: 1 + s / c. */
function slopeOf(regime, settings) {
  const objective = objectivesOf(settings)[regime];
  return objective === null ? 1 : 1 + objective.s / objective.c;
}
