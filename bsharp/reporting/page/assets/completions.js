// The completions browser: one problem under the base and the chosen regimes, side by side.

const CUT = 4000; // characters of a text that are shown before "show all"
const LISTED = 100; // problems listed before "show more"

const percent = (share) => (share === null ? "–" : Math.round(100 * share) + " %");
const figure = (value, digits = 2) => (value === null ? "–" : value.toFixed(digits).replace("-", "−"));

/** A text that stays text: cut where it is long, direction kept to itself. */
function textNode(text) {
  const shown = visible(text.length > CUT ? text.slice(0, CUT) : text);
  const body = make("pre", { class: "text", dir: "auto" }, shown === "" ? make("em", {}, "(empty)") : shown);
  if (text.length <= CUT) return body;
  const more = make("button", { type: "button", class: "more" }, `Show all ${text.length.toLocaleString("en")} characters`);
  more.addEventListener("click", () => { body.textContent = visible(text); more.remove(); body.tabIndex = -1; body.focus(); });
  return make("div", {}, body, more);
}

function regimeChip(name) {
  const at = [...regimeStyles.keys()].indexOf(name);
  return make("span", { class: "name" }, make("span", { class: `chip regime-${at}`, "aria-hidden": "true" }), make("bdi", {}, visible(name)));
}

class Browser {
  constructor(root, index) {
    this.root = root;
    this.index = index;
    this.key = "completions:" + root.id;
    this.chunks = new Map();
    this.positions = new Map(index.problems.map((problem, at) => [problem.id, at]));
    const regimes = index.models.map((_, at) => at).filter((at) => at > 0);
    const wanted = regimes.filter((at) => ["sharpening", "task_reward"].includes(index.models[at].name));
    const saved = session.get(this.key, {});
    this.state = { query: "", show: "all", about: regimes[0] ?? 0, family: "", role: "", grade: "", selection: null, listed: LISTED,
      problem: null, models: [0, ...(wanted.length ? wanted : regimes.slice(0, 2))].filter((at) => at < index.models.length), seeds: {}, ...saved };
    this.build();
    this.update();
  }

  build() {
    const { models, problems, grades, changed } = this.index;
    const values = (key) => [...new Set(problems.map((problem) => problem[key]).filter((value) => value !== null))].sort();
    this.search = make("input", { type: "search", placeholder: "question or id", "aria-label": "Search problems", value: this.state.query,
      oninput: () => this.set({ query: this.search.value, selection: null }) });
    const kinds = [["all", "all"], ...(changed.length ? [["gained", "gained"], ["lost", "lost"]] : []), ["collapsed", "collapsed"]];
    this.shows = kinds.map(([value, label]) => make("button", { type: "button", "data-show": value,
      onclick: () => this.set({ show: value, selection: null }) }, label));
    this.about = this.select("under", models.map((model, at) => [String(at), model.name]), "about", (value) => Number(value));
    const filters = [["family", values("family")], ["role", values("role")], ["grade", grades]]
      .filter(([, options]) => options.length > 1)
      .map(([key, options]) => this.select(key, [["", "any"], ...options.map((option) => [String(option), String(option)])], key));
    this.toggles = models.map((model, at) => make("button", { type: "button", "data-model": String(at),
      onclick: () => this.toggle(at) }, regimeChip(model.name)));
    this.count = make("p", { class: "count", role: "status" });
    this.list = make("ul", { class: "problem-list" });
    this.detail = make("div", { class: "detail", tabindex: "-1" });
    this.root.replaceChildren(
      make("div", { class: "filters", role: "group", "aria-label": "Which problems" },
        this.search, make("div", { class: "choice", role: "group", "aria-label": "Show problems" }, ...this.shows), this.about, ...filters),
      make("div", { class: "filters", role: "group", "aria-label": "Models side by side" }, make("span", {}, "Side by side"), ...this.toggles),
      this.count,
      make("div", { class: "panes" }, make("div", { class: "list-pane", tabindex: "0", role: "region", "aria-label": "Problems" }, this.list), this.detail),
      make("p", { class: "caption" }, this.index.collapsed +
        " The grade filter keeps problems where some sample of the model chosen beside it has that grade."),
    );
  }

  select(label, options, key, convert = (value) => value) {
    const select = make("select", { "data-filter": key, onchange: () => this.set({ [key]: convert(select.value), selection: null }) },
      ...options.map(([value, text]) => make("option", { value }, visible(text))));
    select.value = String(this.state[key]);
    return make("label", {}, label + " ", select);
  }

  toggle(at) {
    const models = this.state.models.includes(at) ? this.state.models.filter((other) => other !== at) : [...this.state.models, at];
    this.set({ models: models.sort((a, b) => a - b) });
  }

  /** Problems `ids` alone, with `regime` shown beside the base; called by the links elsewhere in the page. */
  open(ids, regime) {
    const at = this.index.models.findIndex((model) => model.name === regime);
    const selection = ids.map((id) => this.positions.get(id)).filter((position) => position !== undefined);
    this.search.value = "";
    for (const select of this.root.querySelectorAll("select[data-filter]")) if (select.dataset.filter !== "about") select.value = "";
    this.set({ selection, query: "", show: "all", family: "", role: "", grade: "", problem: selection[0] ?? null,
      ...(at >= 0 ? { about: at, models: [...new Set([0, at, ...this.state.models])].sort((a, b) => a - b) } : {}) });
    this.root.scrollIntoView({ block: "start" });
    this.showSelected();
    this.detail.focus({ preventScroll: true });
  }

  /** The chosen problem in view, of the list, which scrolls by itself, and of the window. */
  showSelected() {
    const row = this.list.querySelector("[aria-current]");
    if (!row) return;
    const pane = this.list.parentElement;
    const from = row.getBoundingClientRect().top - pane.getBoundingClientRect().top;
    if (from < 0 || from + row.offsetHeight > pane.clientHeight) pane.scrollTop += from - row.offsetHeight;
    const { top, bottom } = row.getBoundingClientRect();
    if (top < 0 || bottom > innerHeight) row.scrollIntoView({ block: "center" }); // below the filters of a small screen
  }

  set(changes) {
    Object.assign(this.state, { listed: LISTED }, changes);
    session.set(this.key, this.state);
    this.update();
  }

  matching() {
    const { query, show, about, family, role, grade, selection } = this.state;
    const { problems, changed, grades, models } = this.index;
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    const change = changed.find((entry) => models[about] && entry.regime === models[about].name);
    const chosen = selection ? new Set(selection) : show === "gained" || show === "lost" ? new Set(change ? change[show] : []) : null;
    const bit = grades.indexOf(grade);
    return problems.map((_, at) => at).filter((at) => {
      const problem = problems[at];
      if (chosen && !chosen.has(at)) return false;
      if (show === "collapsed" && !problem.collapsed.includes(about)) return false;
      if (family !== "" && String(problem.family) !== family) return false;
      if (role !== "" && String(problem.role) !== role) return false;
      if (bit >= 0 && !(problem.grades[about] >> bit & 1)) return false;
      const text = (problem.id + " " + problem.question).toLowerCase();
      return words.every((word) => text.includes(word));
    });
  }

  update() {
    const found = this.matching();
    const { problems } = this.index;
    for (const button of this.shows) button.setAttribute("aria-pressed", String(this.state.selection === null && button.dataset.show === this.state.show));
    for (const button of this.toggles) button.setAttribute("aria-pressed", String(this.state.models.includes(Number(button.dataset.model))));
    this.about.querySelector("select").value = String(this.state.about);
    this.count.replaceChildren(`${found.length} of ${problems.length} problems` + (this.state.selection ? ", chosen above " : ""));
    if (this.state.selection) {
      this.count.append(make("button", { type: "button", class: "clear", onclick: () => this.set({ selection: null }) }, "Show all problems"));
    }
    if (!found.includes(this.state.problem)) this.state.problem = found[0] ?? null;
    const rows = found.slice(0, this.state.listed).map((at) => this.row(at));
    if (found.length > this.state.listed) {
      rows.push(make("li", {}, make("button", { type: "button", class: "more", onclick: () => this.set({ listed: this.state.listed + 5 * LISTED }) },
        `${found.length - this.state.listed} more`)));
    }
    this.list.replaceChildren(...rows);
    this.found = found;
    this.showProblem();
  }

  row(at) {
    const problem = this.index.problems[at];
    const shares = this.state.models.map((model) => `${percent(problem.right[model])}`).join(" → ");
    return make("li", {}, make("button", { type: "button", class: "problem", "data-problem": String(at), "aria-current": at === this.state.problem ? "true" : false,
      onclick: () => this.choose(at) },
    make("bdi", { class: "question" }, visible(problem.question || problem.id)), make("span", { class: "shares", title: "samples right" }, shares)));
  }

  choose(at) {
    this.state.problem = at;
    session.set(this.key, this.state);
    for (const button of this.list.querySelectorAll("[data-problem]")) {
      if (Number(button.dataset.problem) === at) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    this.showProblem();
  }

  async texts(at) {
    const [chunk, place] = this.index.problems[at].chunk;
    if (!this.chunks.has(chunk)) this.chunks.set(chunk, readData(`${this.root.id}-chunk-${chunk}`));
    return (await this.chunks.get(chunk))[place];
  }

  async showProblem() {
    const at = this.state.problem;
    if (at === null) {
      this.detail.replaceChildren(make("p", { class: "absent" }, "No problem matches. Choose other filters."));
      return;
    }
    const problem = this.index.problems[at];
    const here = this.found.indexOf(at);
    const step = (by) => make("button", { type: "button", disabled: !(here + by in this.found), onclick: () => this.choose(this.found[here + by]) },
      by < 0 ? "Previous" : "Next");
    const facts = ["task", "family", "role", "mode", "difficulty"].filter((key) => problem[key] !== null && problem[key] !== "none").map((key) => `${key} ${visible(problem[key])}`);
    const head = make("div", { class: "head" }, make("div", { class: "steps" }, step(-1), step(1)),
      make("p", { class: "facts" }, make("bdi", {}, visible(problem.id)), " · " + facts.join(" · ")));
    if (problem.chunk === null) {
      this.detail.replaceChildren(head, make("p", { class: "absent" }, "The texts of this problem were left out for size; the files below hold them."));
      return;
    }
    let texts = null;
    try {
      texts = await this.texts(at);
    } catch (error) {
      this.detail.replaceChildren(head, make("p", { class: "absent" }, "These texts could not be read: " + error.message));
      return;
    }
    if (this.state.problem !== at) return; // another problem was chosen meanwhile
    this.detail.replaceChildren(head,
      make("div", { class: "asked" }, make("h4", {}, "Question"), textNode(texts.question), make("p", {}, "Right answer: ", make("bdi", {}, visible(texts.gold)))),
      make("div", { class: "side-by-side" }, ...this.state.models.map((model) => this.column(model, problem, texts.samples[model]))));
  }

  column(model, problem, bySeed) {
    const { name, seeds } = this.index.models[model];
    const chosen = Math.min(this.state.seeds[name] ?? 0, seeds.length - 1);
    const seed = make("select", { "aria-label": `Seed of ${visible(name)}`, onchange: () => {
      this.set({ seeds: { ...this.state.seeds, [name]: Number(seed.value) } });
    } }, ...seeds.map((value, at) => make("option", { value: String(at) }, `seed ${value}`)));
    seed.value = String(chosen);
    const samples = bySeed[chosen] || [];
    return make("article", { class: `model regime-${[...regimeStyles.keys()].indexOf(name)}` },
      make("header", {}, make("h4", {}, regimeChip(name)), seeds.length > 1 ? seed : "",
        make("p", {}, `${percent(problem.right[model])} of samples right` + (seeds.length > 1 ? ", all seeds" : ""),
          problem.collapsed.includes(model) ? make("span", { class: "badge bad" }, "collapsed") : "")),
      ...(samples.length ? samples.map((sample) => this.sample(sample)) : [make("p", { class: "absent" }, "No samples of this problem.")]));
  }

  sample([count, greedy, text, baseLogprob, logprob, reward, status, answer, length, truncated]) {
    const kind = status === "correct" ? "good" : status === "wrong" ? "bad" : "odd";
    const badges = [greedy ? make("span", { class: "badge" }, "greedy") : make("span", { class: "badge" }, "× " + count),
      make("span", { class: "badge " + kind }, visible(status)), truncated ? make("span", { class: "badge odd" }, "truncated") : ""];
    const term = (title, symbol, value) => make("div", {}, make("dt", { title }, symbol), make("dd", {}, value));
    return make("div", { class: "sample" }, make("p", { class: "badges" }, ...badges), textNode(text),
      make("dl", { class: "figures" },
        term("log-probability under the base, nats", "ℓ_ref", figure(baseLogprob)),
        term("log-probability under this model, nats", "log π", figure(logprob)),
        term("reward", "reward", figure(reward)),
        term("extracted answer", "answer", make("bdi", {}, answer === null ? "none" : visible(answer.slice(0, 200)))),
        term("tokens of the response", "length", length === null ? "–" : `${length} tokens`)));
  }
}

const browsers = new Map();

/** The run's browser, built when first needed. */
function browserOf(root) {
  if (!browsers.has(root)) {
    browsers.set(root, readData(root.id + "-index").then((index) => new Browser(root, index)).catch((problem) => {
      root.replaceChildren(make("p", { class: "absent" }, "The completions could not be read: " + problem.message));
      console.error(problem);
      return null;
    }));
  }
  return browsers.get(root);
}

/** Problems behind a count: in the run's browser, or as a list under the table where there is none. */
async function openProblems(button) {
  const [ids, regime] = (await readData(button.dataset.links))[Number(button.dataset.at)];
  const root = button.closest(".run").querySelector(".completions");
  const browser = root && await browserOf(root);
  if (browser) {
    browser.open(ids, regime);
    return;
  }
  const host = button.closest(".table, .gained-lost");
  host.querySelector(".ids")?.remove();
  host.append(make("ul", { class: "ids", tabindex: "0", role: "region", "aria-label": "Problems" }, ...ids.map((id) => make("li", {}, make("bdi", {}, visible(id))))));
}

for (const button of document.querySelectorAll("button.problems")) button.addEventListener("click", () => openProblems(button));
const browserInView = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    browserInView.unobserve(entry.target);
    browserOf(entry.target);
  }
}, { rootMargin: "600px 0px" });
document.querySelectorAll(".completions").forEach((root) => browserInView.observe(root));
restore();
document.documentElement.dataset.ready = "true";
