// Settings, sliders, links and redrawing. The settings are one plain object; the address holds what is not its default.

const DATA = JSON.parse(byId("theory-data").textContent);
const WORLDS = Object.fromEntries(DATA.worlds.map((world) => [world.id, world]));
const SIMPLEX = Object.fromEntries(DATA.simplex.map((world) => [world.id, world]));
const DEFAULTS = {
  world: DATA.worlds[0].id, alpha: 2, beta_inv: 3, c: 0, normalisation: "sum", rho: 0.5, k: 8, epsilon: 0,
  simplex: DATA.simplex[0].id, flow: "sharpened", start: null, at: "",
};
const CHOICES = {
  world: Object.keys(WORLDS), normalisation: Object.keys(EXPONENT_OF), simplex: Object.keys(SIMPLEX), flow: Object.keys(FLOW_NAMES),
};

/** 0 and then equal steps of the logarithm, rounded to three digits: `value(position)` and its inverse. */
function logSteps(low, high, perDecade) {
  const steps = Math.round(Math.log10(high / low) * perDecade);
  return {
    steps: steps + 1,
    value: (at) => (at === 0 ? 0 : Number((low * 10 ** ((at - 1) / perDecade)).toPrecision(3))),
    position: (value) => (value < low / 2 ? 0 : Math.max(Math.round(Math.log10(value / low) * perDecade), 0) + 1),
    range: [0, high],
  };
}

function evenSteps(low, high, step) {
  return {
    steps: Math.round((high - low) / step),
    value: (at) => Number((low + at * step).toPrecision(12)),
    position: (value) => Math.round((value - low) / step),
    range: [low, high],
  };
}

const SLIDERS = {
  alpha: evenSteps(0, 10, 0.05),
  beta_inv: logSteps(0.1, 10_000, 20),
  c: logSteps(0.001, 100, 20),
  rho: evenSteps(0, 1, 0.05),
  k: evenSteps(1, 64, 1),
  epsilon: logSteps(0.001, 10, 20),
};

let settings = { ...DEFAULTS };
let view = null;

/** What of `wanted` may be: numbers within the sliders' ranges, known names; anything else keeps what was. */
function allowed(wanted, before) {
  const found = { ...before };
  for (const [key, value] of Object.entries(wanted)) {
    if (Object.hasOwn(SLIDERS, key)) {
      const number = Number(value);
      if (value === "" || !Number.isFinite(number)) continue;
      const [low, high] = SLIDERS[key].range;
      found[key] = Math.min(Math.max(key === "k" ? Math.round(number) : number, low), high);
    } else if (Object.hasOwn(CHOICES, key)) {
      if (CHOICES[key].includes(value)) found[key] = value;
    } else if (key === "start") {
      const start = value === null ? null : (Array.isArray(value) ? value : String(value).split(",")).map(Number);
      if (start === null || (start.length === 3 && start.every((share) => share > 0 && share < 1))) found.start = start;
    } else if (key === "at" && /^[a-z]*$/.test(value)) found.at = value;
  }
  return found;
}

function change(wanted) {
  const asked = typeof wanted === "function" ? wanted(settings, view) : wanted;
  settings = allowed(asked, settings);
  requestDraw();
}

let waiting = false;
function requestDraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => draw(false));
}

const PICTURES = { bars: drawBars, power: drawAlpha, tilt: drawLambda, length: drawLength, nudge: drawNudge, flows: drawSimplex };
let resting = 0;

/** Draws the sections in sight at once, and with `all` the others too; else those follow when the sliders rest. */
function draw(all = true) {
  waiting = false;
  clearTimeout(resting);
  const world = WORLDS[settings.world];
  view = { world, settings, simplex: SIMPLEX[settings.simplex], solved: solve(world, settings) };
  showControls();
  measure();
  const places = Object.keys(PICTURES).map((id) => byId(id).getBoundingClientRect());
  const inSight = places.map(({ top, bottom }) => all || (bottom > -100 && top < innerHeight + 100));
  const pictures = Object.values(PICTURES);
  pictures.filter((_, at) => inSight[at]).forEach((picture) => picture(view));
  const hidden = pictures.filter((_, at) => !inSight[at]);
  if (hidden.length > 0) resting = setTimeout(() => hidden.forEach((picture) => picture(view)), 100);
  saveAddress();
}

// ------------------------------------------------------------------------------------------------------- controls

function showControls() {
  for (const [key, { position }] of Object.entries(SLIDERS)) {
    for (const input of document.querySelectorAll(`input[data-key=${key}]`)) {
      input.value = position(settings[key]);
      input.setAttribute("aria-valuetext", shown(settings[key]));
    }
    for (const output of document.querySelectorAll(`output[data-key=${key}]`)) output.textContent = shown(settings[key]);
  }
  for (const key of Object.keys(CHOICES)) {
    for (const select of document.querySelectorAll(`select[data-key=${key}]`)) select.value = settings[key];
    for (const button of document.querySelectorAll(`button[data-key=${key}]`)) button.setAttribute("aria-pressed", String(button.value === settings[key]));
  }
  for (const formula of document.querySelectorAll("[data-leash]")) formula.hidden = (formula.dataset.leash === "1") !== settings.c > 0;
  byId("rho-row").hidden = settings.normalisation !== "weighted_mean";
  const { world } = view;
  const best = world.logprob.indexOf(Math.max(...world.logprob));
  byId("world-said").textContent = `${world.name}. ${world.text.length} responses; the base is right ${shown(100 * mean(world.logprob, world.reward))} % of the time; its likeliest response is ${isRight(world, best) ? "right" : "wrong"}.`;
  const rho = settings.normalisation === "weighted_mean" ? `, ρ = ${shown(settings.rho)}` : "";
  byId("summary").textContent = `${world.name.split(":")[0]} · α ${shown(settings.alpha)} · β⁻¹ ${shown(settings.beta_inv)} · c ${shown(settings.c)} · ${settings.normalisation.replace("_", " ")}${rho}`;
}

const PLAY_SECONDS = 8;
let playing = null;

/** Moves a slider from where it is (from its left end if it is at the right one) to its right end; a second press stops. */
function play(key) {
  const { steps, value, position } = SLIDERS[key];
  const first = position(settings[key]) >= steps ? 0 : position(settings[key]);
  let [began, shownAt] = [null, first];
  playing = playing === key ? null : key;
  showPlaying();
  const move = (now) => {
    if (playing !== key) return;
    began ??= now;
    const at = Math.min(first + Math.floor(((now - began) / 1000 / PLAY_SECONDS) * steps), steps);
    if (at !== shownAt) change({ [key]: value(at) });
    shownAt = at;
    if (at < steps) requestAnimationFrame(move);
    else stopPlaying();
  };
  requestAnimationFrame(move);
}

function stopPlaying() {
  playing = null;
  showPlaying();
}

function showPlaying() {
  for (const button of document.querySelectorAll("[data-play]")) {
    const on = playing === button.dataset.play;
    button.textContent = on ? "■" : "▶\ufe0e";
    button.setAttribute("aria-label", `${on ? "Stop" : "Play"} ${button.dataset.name}`);
  }
}

function listenToControls() {
  document.querySelector(".numbers").addEventListener("toggle", requestDraw);
  showPlaying();
  for (const button of document.querySelectorAll("[data-play]")) button.addEventListener("click", () => play(button.dataset.play));
  for (const kind of ["pointerdown", "keydown"]) {
    addEventListener(kind, (event) => { if (playing && !event.target.closest?.("[data-play]")) stopPlaying(); }, true);
  }
  for (const input of document.querySelectorAll("input[data-key]")) {
    const { key } = input.dataset;
    input.max = SLIDERS[key].steps;
    input.addEventListener("input", () => change({ [key]: SLIDERS[key].value(Number(input.value)) }));
  }
  for (const select of document.querySelectorAll("select[data-key]")) {
    select.addEventListener("change", () => change({ [select.dataset.key]: select.value, ...(select.dataset.key === "simplex" ? { start: null } : {}) }));
  }
  for (const button of document.querySelectorAll("button[data-key]")) {
    button.addEventListener("click", () => change({ [button.dataset.key]: button.value }));
  }
  for (const button of document.querySelectorAll("button[data-try]")) {
    button.addEventListener("click", () => change({ ...DEFAULTS, k: settings.k, at: settings.at, ...JSON.parse(button.dataset.try) }));
  }
  byId("reset").addEventListener("click", () => change({ ...DEFAULTS, at: settings.at }));
  byId("nudge-rest").addEventListener("click", () => change({ start: null }));
  for (const [id, key] of [["power-plot", "alpha"], ["tilt-plot", "beta_inv"], ["length-plot", "alpha"], ["nudge-plot", "epsilon"]]) {
    listenToDrag(byId(id), key);
  }
  listenToSimplex(change);
}

/** A press or drag in a chart sets its slider. */
function listenToDrag(host, key) {
  const set = (event) => {
    const { left, right, low, high, log } = JSON.parse(host.dataset.scale);
    const share = Math.min(Math.max((event.clientX - host.getBoundingClientRect().left - left) / (right - left), 0), 1);
    const value = log ? low * (high / low) ** share : low + share * (high - low);
    const { position, value: valueAt } = SLIDERS[key];
    change({ [key]: key === "beta_inv" ? Number(value.toPrecision(3)) : valueAt(position(value)) });
  };
  host.addEventListener("click", set);
  host.addEventListener("pointerdown", (event) => { if (event.pointerType !== "touch") { host.setPointerCapture(event.pointerId); set(event); } });
  host.addEventListener("pointermove", (event) => { if (host.hasPointerCapture(event.pointerId)) set(event); });
}

// -------------------------------------------------------------------------------------------------------- address

let saving = 0;
function saveAddress() {
  clearTimeout(saving);
  saving = setTimeout(() => {
    const parts = Object.entries(settings).filter(([key, value]) => String(value) !== String(DEFAULTS[key]));
    const text = parts.map(([key, value]) => `${key}=${Array.isArray(value) ? value.map((share) => share.toFixed(4)).join(",") : value}`).join("&");
    if (location.hash.slice(1) !== text) history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  }, 250); // browsers refuse more than a few changes a second
}

function readAddress() {
  const text = location.hash.slice(1);
  if (text && !text.includes("=")) return;
  settings = allowed(Object.fromEntries(new URLSearchParams(text)), DEFAULTS);
  requestDraw();
  if (settings.at) byId(settings.at)?.scrollIntoView();
}

// ---------------------------------------------------------------------------------------------- theme and contents

const themeButton = byId("theme");
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  themeButton.textContent = theme === "dark" ? "Light" : "Dark";
  themeButton.setAttribute("aria-label", `Switch to the ${theme === "dark" ? "light" : "dark"} theme`);
}
setTheme(document.documentElement.dataset.theme);
themeButton.addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("bsharp-theme", theme); } catch { /* forbidden */ }
  setTheme(theme);
});
for (const link of document.querySelectorAll(".theory-toc a")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    const section = byId(link.hash.slice(1));
    section.scrollIntoView();
    section.focus({ preventScroll: true });
    change({ at: section.id });
  });
}

// ----------------------------------------------------------------------------------------- the page checks itself

/** The largest difference between the page's figures and the reference, relative where a figure exceeds 1; and how many. */
function checkItself() {
  let [count, worst] = [0, 0];
  const compare = (own, reference) => {
    count += 1;
    const error = Math.abs(own - reference) / Math.max(1, Math.abs(reference));
    worst = Number.isNaN(error) ? Infinity : Math.max(worst, error);
  };
  for (const { world: id, settings: at, figures, slopes } of DATA.reference) {
    const world = WORLDS[id];
    const solved = solve(world, at);
    for (const [regime, row] of Object.entries(figures)) {
      const own = figuresOf(world, solved[regime], at.k);
      for (const [key, value] of Object.entries(row)) compare(own[key] ?? 0, value ?? 0);
      compare(own.log_z === null ? 1 : 0, row.log_z === null ? 1 : 0);
    }
    compare(covariance(solved.tempered.logp, world.reward, solved.likelihood), slopes.reward_alpha);
    compare(covariance(solved.tilted.logp, world.reward, world.reward), slopes.reward_lambda);
    compare(covariance(solved.tempered.logp, world.length, solved.likelihood), slopes.length_alpha);
  }
  for (const { world: id, settings: at, epsilon, best, second, reward } of DATA.nudges) {
    const world = WORLDS[id];
    const top = topTwo(likelihoodOf(world, at));
    compare(top[0], best);
    compare(top[1], second);
    const solved = solve(nudged(world, best, second, epsilon), at);
    for (const [regime, value] of Object.entries(reward)) compare(mean(solved[regime].logp, world.reward), value);
  }
  for (const { world: id, settings: at, objective, start, times, natural } of DATA.flows) {
    const { values, h } = flowOf(SIMPLEX[id], at, objective);
    times.forEach((time, index) => {
      naturalFlow(start.map(Math.log), values, h, time).forEach((logp, response) => compare(Math.exp(logp), natural[index][response]));
    });
  }
  return { count, worst };
}

listenToControls();
readAddress();
draw();
if (settings.at) byId(settings.at)?.scrollIntoView();
addEventListener("hashchange", readAddress);
let lastWidth = document.documentElement.clientWidth;
new ResizeObserver(() => {
  if (document.documentElement.clientWidth === lastWidth) return;
  lastWidth = document.documentElement.clientWidth;
  requestDraw();
}).observe(document.documentElement);
for (const when of ["beforeprint", "afterprint"]) addEventListener(when, () => draw());
const controls = byId("controls");
if (matchMedia("(max-width: 999px)").matches) controls.open = false;
const { count, worst } = checkItself();
const agrees = worst <= 1e-9;
byId("checked").textContent = agrees
  ? `On opening, this page compared ${count} of its figures with those of the Python library: the largest difference is ${worst.toExponential(1)}.`
  : `This page's figures differ from those of the Python library by up to ${worst.toExponential(1)}: do not trust them.`;
byId("checked").classList.toggle("warning", !agrees);
window.bsharpTheory = { data: DATA, worlds: WORLDS, simplex: SIMPLEX, change, allowed, solve, figuresOf, mean, covariance, nudged, topTwo, flipAt, flowOf, draw, naturalFlow, euclideanFlow, euclideanPath, checkItself, settings: () => settings, defaults: DEFAULTS };
document.documentElement.dataset.ready = "";
