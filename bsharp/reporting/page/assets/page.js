// Data, theme, tabs, contents, reloading. charts.js and completions.js follow in the same scope.

const byId = (id) => document.getElementById(id);

/** A new element; children are nodes or strings, and strings become text. */
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

const CONTROL = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u206f\ufeff]/g;

/** Text with nothing invisible in it but newlines, tabs and joiners; as visible() in embed.py. */
function visible(text) {
  return String(text).toWellFormed().replace(CONTROL, (character) => {
    const code = character.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    if (code === 0x7f) return "\u2421";
    return "⟨U+" + code.toString(16).toUpperCase().padStart(4, "0") + "⟩";
  });
}

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const characters = atob(base64);
  const bytes = new Uint8Array(characters.length);
  for (let at = 0; at < characters.length; at++) bytes[at] = characters.charCodeAt(at); // ten times as fast as Uint8Array.from
  return bytes;
}

/** What was compressed, as it flows out of the decompressor. */
function inflated(base64) {
  const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream);
}

/** The text of a data script. */
async function readText(id) {
  const script = byId(id);
  return script.hasAttribute("data-gzip") ? inflated(script.textContent).text() : script.textContent;
}

async function readData(id) {
  return JSON.parse(await readText(id));
}

const session = {
  get(key, otherwise) {
    try {
      const text = sessionStorage.getItem("bsharp:" + location.pathname + ":" + key);
      return text === null ? otherwise : JSON.parse(text);
    } catch {
      return otherwise;
    }
  },
  set(key, value) {
    try { sessionStorage.setItem("bsharp:" + location.pathname + ":" + key, JSON.stringify(value)); } catch { /* forbidden */ }
  },
};

// Theme.
const themeButton = byId("theme");
const isDark = () => document.documentElement.dataset.theme === "dark";
const themeListeners = [];

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  themeButton.textContent = theme === "dark" ? "Light" : "Dark";
  themeButton.setAttribute("aria-label", `Switch to the ${theme === "dark" ? "light" : "dark"} theme`);
  for (const listener of themeListeners) listener();
}
setTheme(document.documentElement.dataset.theme);
themeButton.addEventListener("click", () => {
  const theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("bsharp-theme", theme); } catch { /* forbidden */ }
  setTheme(theme);
});

// Tabs, one per run.
const tabs = [...document.querySelectorAll("[role=tab]")];

function selectTab(index, focus = false) {
  tabs.forEach((tab, at) => {
    tab.setAttribute("aria-selected", String(at === index));
    tab.tabIndex = at === index ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = at !== index;
  });
  if (focus) tabs[index].focus();
  session.set("tab", index);
  spy();
}
tabs.forEach((tab, at) => {
  tab.addEventListener("click", () => { selectTab(at); scrollTo(0, 0); });
  tab.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    selectTab((moves[event.key] + tabs.length) % tabs.length, true);
  });
});

// Contents: the section in view is marked; a link into another run's panel opens it.
function spy() {
  const run = document.querySelector(".run:not([hidden])");
  const edge = innerHeight / 3;
  let current = null;
  for (const section of run.querySelectorAll("section")) {
    if (section.getBoundingClientRect().top <= edge) current = section;
  }
  for (const link of run.querySelectorAll(".toc a")) {
    const here = current !== null && link.getAttribute("href") === "#" + current.id;
    if (here) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}
let spying = false;
addEventListener("scroll", () => {
  if (spying) return;
  spying = true;
  requestAnimationFrame(() => { spying = false; spy(); });
}, { passive: true });

const narrow = matchMedia("(max-width: 1079px)");
const foldContents = () => document.querySelectorAll(".toc details").forEach((node) => { node.open = !narrow.matches; });
foldContents();
narrow.addEventListener("change", foldContents);
document.querySelectorAll(".toc a").forEach((link) => link.addEventListener("click", () => {
  if (narrow.matches) link.closest("details").open = false;
}));

/** Open whatever hides the node: its run's tab, folds, an option that is not chosen. */
function reveal(node) {
  const run = node.closest(".run");
  if (run && run.hidden) selectTab(Number(run.id.slice("run-".length)));
  const option = node.closest(".option");
  if (option && option.hidden) choose(option.closest(".choose"), option.id);
  for (let fold = node.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
}

function openHash() {
  let target = null;
  try { target = byId(decodeURIComponent(location.hash.slice(1))); } catch { return; }
  if (!target) return;
  reveal(target);
  target.scrollIntoView();
  if (target.closest(".glossary")) target.focus({ preventScroll: true });
}
addEventListener("hashchange", openHash);
document.querySelectorAll('a[href^="#"]').forEach((link) => link.addEventListener("click", () => {
  if (link.hash === location.hash) openHash(); // the address does not change, so nothing else would open the fold
}));

// One of several options at a time.
function choose(host, id) {
  for (const button of host.querySelectorAll(":scope > .choice button")) {
    const chosen = button.getAttribute("aria-controls") === id;
    button.setAttribute("aria-pressed", String(chosen));
    byId(button.getAttribute("aria-controls")).hidden = !chosen;
  }
  session.set("choose:" + host.id, id);
}
for (const host of document.querySelectorAll(".choose")) {
  const buttons = host.querySelectorAll(":scope > .choice button");
  for (const button of buttons) button.addEventListener("click", () => choose(host, button.getAttribute("aria-controls")));
  const saved = session.get("choose:" + host.id, null);
  if ([...buttons].some((button) => button.getAttribute("aria-controls") === saved)) choose(host, saved);
}

// The glossary's search.
for (const glossary of document.querySelectorAll(".glossary")) {
  const search = glossary.querySelector("input");
  const entries = [...glossary.querySelectorAll("dl > div")];
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    for (const entry of entries) entry.hidden = !entry.textContent.toLowerCase().includes(wanted);
  });
}

// Reloading, while a run goes on. Scroll position, tab, folds and filters survive it.
const reload = byId("reload");
if (reload) {
  const pause = byId("pause");
  const show = (paused) => {
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Resume" : "Pause";
    reload.classList.toggle("paused", paused);
  };
  show(session.get("paused", false));
  pause.addEventListener("click", () => {
    const paused = pause.getAttribute("aria-pressed") !== "true";
    session.set("paused", paused);
    show(paused);
  });
  setInterval(() => {
    if (pause.getAttribute("aria-pressed") !== "true") location.reload();
  }, Number(reload.dataset.seconds) * 1000);
}
const folds = () => [...document.querySelectorAll("section details")];
addEventListener("pagehide", () => {
  session.set("scroll", scrollY);
  session.set("folds", folds().map((node) => node.open));
});

function restore() {
  if (tabs.length) selectTab(Math.min(session.get("tab", 0), tabs.length - 1));
  const open = session.get("folds", []);
  folds().forEach((node, at) => { if (at < open.length) node.open = open[at]; });
  const entry = performance.getEntriesByType("navigation")[0];
  if (entry && entry.type === "reload") {
    history.scrollRestoration = "manual";
    scrollTo(0, session.get("scroll", 0));
  } else {
    openHash();
  }
  spy();
}

function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = make("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
