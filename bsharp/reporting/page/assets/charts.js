// Charts are drawn when they come near the view; colours come from the regime and the theme.

let plotlyReady = null;

/** Plotly, from memory: as a script of its own it is parsed beside the page's thread. */
function loadPlotly() {
  // A blob all the way: as a string it would be decoded and encoded again. The first line asks for all functions to be
  // compiled at once, beside the page's thread, and not one by one on it when they are first called.
  plotlyReady ??= inflated(byId("plotly").textContent).blob().then((source) => new Promise((resolve, reject) => {
    const url = URL.createObjectURL(new Blob(["//# allFunctionsCalledOnLoad\n", source], { type: "text/javascript" }));
    const done = (finish) => () => { URL.revokeObjectURL(url); finish(window.Plotly); };
    document.head.append(make("script", { src: url, async: true, onload: done(resolve), onerror: done(() => reject(new Error("plotly did not load"))) }));
    byId("plotly").remove();
  }));
  return plotlyReady;
}

const regimeStyles = new Map(
  JSON.parse(byId("palette").textContent).map(([name, light, dark, dash, symbol]) => [name, { light, dark, dash, symbol }]),
);
const SEQUENTIAL = { light: [[0, "#f7f8fa"], [0.25, "#c6dbe8"], [0.5, "#7fb2d1"], [0.75, "#3b7fae"], [1, "#123f66"]],
  dark: [[0, "#14181e"], [0.25, "#1c3a52"], [0.5, "#2f6a93"], [0.75, "#6aa9cf"], [1, "#e3f1fa"]] };
const DIVERGING = { light: [[0, "#a63a00"], [0.25, "#e99a5f"], [0.5, "#f5f5f3"], [0.75, "#7ab2d8"], [1, "#00508a"]],
  dark: [[0, "#f59a52"], [0.25, "#9a4c16"], [0.5, "#1d2127"], [0.75, "#1f5f8f"], [1, "#7cc4f2"]] };

const TONES = { good: { light: "#2b7bba", dark: "#5fb0e8" }, bad: { light: "#c2500a", dark: "#f08a45" }, neutral: { light: "#c9ccd1", dark: "#4a505a" } };

const cssValue = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function withAlpha(hex, alpha) {
  const parts = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${parts.join(",")},${alpha})`;
}

/** The trace with colours: those of its regime, or neutral ink. */
function coloured(trace, ink) {
  const meta = trace.meta || {};
  const theme = isDark() ? "dark" : "light";
  const drawn = { ...trace };
  if (hiddenRegimes.has(meta.regime)) drawn.visible = false;
  if (meta.scale) {
    drawn.colorscale = (meta.scale === "diverging" ? DIVERGING : SEQUENTIAL)[theme];
    if (meta.scale === "diverging" && trace.zmid === undefined) drawn.zmid = 0;
    drawn.colorbar = { thickness: 12, outlinewidth: 0, ...trace.colorbar };
    return drawn;
  }
  const style = TONES[meta.tone] || regimeStyles.get(meta.regime) || { light: ink, dark: ink, dash: "solid", symbol: "circle" };
  const colour = style[theme];
  if (/text/.test(trace.mode)) drawn.textfont = { color: ink, shadow: "auto", ...trace.textfont };
  const error = { color: colour, thickness: 1.2, width: 3 };
  for (const key of ["error_x", "error_y"]) if (trace[key]) drawn[key] = { ...error, ...trace[key] };
  if (meta.role === "band") {
    drawn.fillcolor = withAlpha(colour, isDark() ? 0.22 : 0.16);
    drawn.line = { width: 0, color: colour, ...trace.line };
    drawn.mode = "lines";
    drawn.hoverinfo = trace.hoverinfo || "skip";
    drawn.showlegend = trace.showlegend || false;
  } else if (meta.role === "seed") {
    drawn.line = { color: withAlpha(colour, 0.4), width: 1, ...trace.line };
    drawn.marker = { color: withAlpha(colour, 0.4), size: 4, symbol: style.symbol, ...trace.marker };
    drawn.showlegend = trace.showlegend || false;
    drawn.hoverinfo = trace.hoverinfo || "skip";
  } else if (meta.role === "bar" || trace.type === "bar") {
    if (meta.tone) drawn.insidetextfont = { color: meta.tone === "neutral" ? ink : cssValue("--ground"), size: 11 };
    drawn.marker = { color: withAlpha(colour, 1 - 0.75 * (meta.shade || 0)), line: { width: 0 }, ...trace.marker };
  } else {
    drawn.line = { color: colour, width: 2, dash: style.dash, ...trace.line };
    drawn.marker = { color: colour, size: 7, symbol: style.symbol, ...trace.marker };
    if (/text/.test(trace.mode)) drawn.marker.line = { color: cssValue("--ground"), width: 2 }; // seen on any colour
  }
  return drawn;
}

function axisStyle(axis, vertical, grid, muted) {
  const title = { ...(typeof axis.title === "string" ? { text: axis.title } : axis.title) };
  // A title longer than the axis would be cut off: its unit goes to a second line.
  if (vertical && title.text && title.text.length > 24) title.text = title.text.replace(/ \((?=[^(]*$)/, "<br>(");
  return { gridcolor: grid, zeroline: vertical, zerolinecolor: muted, linecolor: muted, automargin: axis.type === "category" || axis.ticktext !== undefined, ...axis,
    title: { standoff: 8, ...title, font: { size: 12, ...title.font } } };
}

/** Traces and layout in the theme's colours. `wanted`: with a legend, although the section has one for all its charts. */
function figureOf(data, width, wanted = false) {
  const [ink, ground, grid, muted] = ["--ink", "--ground", "--rule", "--muted"].map(cssValue);
  const layout = { ...data.layout };
  for (const key of new Set(["xaxis", "yaxis", ...Object.keys(layout).filter((name) => /^[xy]axis\d*$/.test(name))])) {
    layout[key] = axisStyle(layout[key] || {}, key[0] === "y", grid, muted);
  }
  const small = width < 560;
  const legend = data.legend !== false || wanted;
  if (small && layout.grid) layout.grid = { ...layout.grid, rows: panelsOf(data), columns: 1 };
  return {
    traces: data.traces.map((trace) => coloured(trace, ink)),
    layout: {
      paper_bgcolor: ground, plot_bgcolor: ground, autosize: true, uirevision: "kept",
      margin: { l: small ? 62 : 72, r: 16, t: 24, b: legend ? 64 : 48 }, hovermode: "closest", ...layout,
      ...(legend ? {} : { showlegend: false }),
      font: { family: cssValue("--sans"), size: small ? 11 : 12.5, color: ink, ...layout.font },
      hoverlabel: { bgcolor: ground, bordercolor: muted, font: { color: ink }, namelength: -1, ...layout.hoverlabel },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 0, yanchor: "bottom", yref: "container", ...layout.legend },
    },
  };
}

const panelsOf = (data) => new Set(data.traces.map((trace) => trace.xaxis || "x")).size;

/** On a phone panels stand below each other, and need the height. */
function fitHeight(plot, data) {
  if (!data.layout.grid || plot.clientWidth >= 560) return;
  plot.style.height = `${parseFloat(plot.style.height) / data.layout.grid.rows * panelsOf(data)}px`;
}

const drawings = new Map(); // figure → promise of its data, kept once drawn
const near = new Set(); // figures in view
const stale = new Set(); // drawn, but in the colours of another theme or with other regimes
const hiddenRegimes = new Set();

/** Draw the chart, once; a promise that holds when it is there. */
function drawChart(figure) {
  if (!drawings.has(figure)) drawings.set(figure, draw(figure));
  return drawings.get(figure);
}

// Named one by one: a newer plotly adds buttons, among them one that uploads the chart.
const CONFIG = { responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "", editable: false,
  modeBarButtons: [["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "autoScale2d", "resetScale2d"], ["toImage"]] };

async function draw(figure) {
  const plot = figure.querySelector(".plot");
  try {
    const [Plotly, data] = await Promise.all([loadPlotly(), readData(figure.id + "-data")]);
    fitHeight(plot, data);
    const { traces, layout } = figureOf(data, plot.clientWidth);
    await Plotly.newPlot(plot, traces, layout, { ...CONFIG,
      toImageButtonOptions: { filename: figure.dataset.name, scale: 2 } });
    return data;
  } catch (problem) {
    plot.replaceChildren(make("p", { class: "absent" }, "This chart could not be drawn: " + problem.message));
    console.error(problem);
    return null;
  }
}

/** A drawn chart again, in the colours of the theme and with the regimes that are shown. */
async function refresh(figure) {
  const data = await drawings.get(figure);
  if (!stale.delete(figure) || !data) return;
  const plot = figure.querySelector(".plot");
  const { traces, layout } = figureOf(data, plot.clientWidth);
  await (await loadPlotly()).react(plot, traces, layout);
}

/** Charts in view at once, the others when they come into view. */
function refreshAll() {
  for (const figure of drawings.keys()) stale.add(figure);
  for (const figure of near) queueChart(figure);
}
themeListeners.push(refreshAll);

for (const key of document.querySelectorAll(".legend .key")) {
  key.title = "Hide or show in all charts";
  key.addEventListener("click", () => {
    const { regime } = key.dataset;
    if (!hiddenRegimes.delete(regime)) hiddenRegimes.add(regime);
    for (const other of document.querySelectorAll(".legend .key")) other.setAttribute("aria-pressed", String(!hiddenRegimes.has(other.dataset.regime)));
    refreshAll();
  });
}

async function saveChart(figure, format) {
  const name = figure.dataset.name;
  if (format === "csv") {
    download(name + ".csv", "text/csv", await readData(figure.id + "-csv"));
    return;
  }
  const data = await drawChart(figure);
  if (data === null) return;
  const plot = figure.querySelector(".plot");
  const width = Math.max(plot.clientWidth, 800);
  const { traces, layout } = figureOf(data, width, true);
  const size = { width, height: plot.clientHeight + (data.legend === false ? 48 : 0) };
  (await loadPlotly()).downloadImage({ data: traces, layout, config: {} }, { format, filename: name, scale: format === "png" ? 2 : 1, ...size });
}

// One chart at a time; a frame and whatever waits go first (frames pause in a hidden window, hence the timer), and a chart that has left the view meanwhile waits until it is back.
let queue = Promise.resolve();
function queueChart(figure) {
  queue = queue.then(() => {
    if (!near.has(figure)) return null;
    return drawings.has(figure) ? refresh(figure) : drawChart(figure);
  }).then(() => new Promise((resolve) => { requestAnimationFrame(() => setTimeout(resolve)); setTimeout(resolve, 200); }));
}

const nearView = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) { near.delete(entry.target); continue; }
    near.add(entry.target);
    if (!drawings.has(entry.target) || stale.has(entry.target)) queueChart(entry.target);
  }
}, { rootMargin: "120px 0px" });
for (const figure of document.querySelectorAll("figure.chart")) {
  nearView.observe(figure);
  for (const button of figure.querySelectorAll("[data-save]")) {
    button.setAttribute("aria-label", `Save the chart as ${button.textContent}`);
    button.addEventListener("click", () => saveChart(figure, button.dataset.save));
  }
}
addEventListener("beforeprint", () => {
  for (const figure of document.querySelectorAll("figure.chart")) if (figure.offsetParent) drawings.has(figure) ? refresh(figure) : drawChart(figure);
});
