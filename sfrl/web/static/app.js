// The page of `sfrl web`. What a run has written becomes text nodes alone, never HTML.

import { controls } from "./control.js";
import { Playing } from "./play.js";
import { Topology } from "./topology.js";

const AXES = {
  time_s: { label: "minutes", unit: 60 },
  env_frames: { label: "frames", unit: 1 },
  env_steps: { label: "decisions", unit: 1 },
};
const COLORS = 8; // --c0 ... --c7 in style.css
const GRID = 300; // points of a curve that lies over others
const LIVE_MS = 4000; // between two looks while a run is live
const IDLE_MS = 30000; // and while none is: a new one may begin
const CHART_HEIGHT = 190;

const main = document.getElementById("main");
export const charts = new Set(); // and all else that is to be closed with its view
let timer = 0;
let looks = 0; // are counted, so that the answer to one that is out of date is dropped
let lookAgain = () => {}; // what the present view does every few seconds

// --- small helpers ---

export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const told = (value, format) => (value === null || value === undefined ? "-" : format(value));
export const count = (value) => told(value, (v) => whole.format(v));
export const figure = (value) => told(value, (v) => short.format(v));
export const percent = (value) => told(value, (v) => `${Math.round(100 * v)}%`);

function clock(seconds) {
  return told(seconds, (value) => {
    const all = Math.round(value);
    const two = (number) => String(number).padStart(2, "0");
    return `${Math.floor(all / 3600)}:${two(Math.floor(all / 60) % 60)}:${two(all % 60)}`;
  });
}

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

class NoAnswer extends Error {}

async function ask(what, runs = []) {
  const query = new URLSearchParams(runs.map((run) => ["run", run]));
  const answer = await fetch(`api/${what}?${query}`).catch(() => {
    throw new NoAnswer("No answer: sfrl web, or the training with --web, has ended. Trying again.");
  });
  if (answer.ok) return answer.json();
  const isJson = answer.headers.get("content-type")?.includes("json");
  throw new NoAnswer(isJson ? (await answer.json()).error : await answer.text());
}

function linkTo(run) {
  return `#/run?${new URLSearchParams({ run })}`;
}

// --- what the user has chosen: kept in the address, so that it can be sent and marked ---

export function place() {
  const [path, query = ""] = location.hash.replace(/^#/, "").split("?");
  return { path, query: new URLSearchParams(query) };
}

export function remember(change) {
  const { path, query } = place();
  change(query);
  history.replaceState(null, "", `#${path || "/"}?${query}`);
}

const axisChosen = () => (place().query.get("x") in AXES ? place().query.get("x") : "time_s");
const smoothing = () => Math.min(0.99, Math.max(0, Number(place().query.get("smooth")) || 0));

function tools(redraw, ...more) {
  const axis = el("select", {
    id: "axis",
    onchange: () => {
      remember((query) => query.set("x", axis.value));
      redraw();
    },
  });
  for (const [value, { label }] of Object.entries(AXES)) axis.append(el("option", { value }, label));
  axis.value = axisChosen();
  const smooth = el("input", {
    type: "range", id: "smooth", min: "0", max: "0.95", step: "0.05", value: String(smoothing()),
    oninput: () => {
      remember((query) => query.set("smooth", smooth.value));
      redraw();
    },
  });
  return el(
    "div", { className: "tools" },
    el("label", {}, "Against ", axis), el("label", {}, "Smoothing ", smooth), ...more,
  );
}

// --- curves ---

// Exponential mean, without the pull towards zero at its start. A null stays one.
function smoothed(values) {
  const weight = smoothing();
  let mean = 0;
  let known = 0;
  return values.map((value) => {
    if (value === null || weight === 0) return value;
    mean = weight * mean + (1 - weight) * value;
    known = weight * known + (1 - weight);
    return mean / known;
  });
}

// The curve at other places, between its points; null outside.
function resampled(points, grid) {
  let index = 0;
  return grid.map((x) => {
    if (!points.length || x < points[0][0] || x > points.at(-1)[0]) return null;
    while (index < points.length - 2 && points[index + 1][0] < x) index += 1;
    const [x0, y0] = points[index];
    const [x1, y1] = points[Math.min(index + 1, points.length - 1)];
    return x1 > x0 ? y0 + ((y1 - y0) * (x - x0)) / (x1 - x0) : y1;
  });
}

export class Chart {
  constructor(title, className = "") {
    this.latest = el("output");
    this.plot = el("div", {
      className: "plot", role: "img", tabIndex: 0, onkeydown: (event) => this.onKey(event),
    });
    this.range = null; // of x, of a part that is looked at
    this.title = title;
    this.name = el("span", {}, title);
    this.node = el(
      "section", { className: `chart ${className}` }, el("h3", {}, this.name, this.latest), this.plot,
    );
    this.size = new ResizeObserver(() => this.fit());
    this.size.observe(this.plot);
    charts.add(this);
  }

  // lines: {label, values, color: 0 ..., isBand}; two bands in a row are filled between.
  draw(xLabel, xs, lines) {
    this.given = [xLabel, xs, lines];
    const main = lines.find((line) => !line.isBand);
    const last = main ? main.values.findLast((value) => value !== null) : undefined;
    this.latest.textContent = lines.length > 3 ? "" : figure(last);
    this.end = `; at last ${figure(last)}. Keys: + - arrows 0`;
    const data = [xs, ...lines.map((line) => line.values)];
    const key = JSON.stringify([xLabel, lines.map(({ label, color }) => [label, color])]);
    if (this.uplot && key === this.key) {
      const { range } = this;
      this.uplot.setData(data);
      if (range) this.uplot.setScale("x", { min: range[0], max: range[1] });
      this.tell(xLabel);
    } else this.build(xLabel, data, lines);
    this.key = key;
  }

  onKey(event) {
    if (event.target !== this.plot || !this.uplot) return;
    const xs = this.uplot.data[0];
    const [first, last] = [xs[0], xs.at(-1)];
    const [min, max] = this.range ?? [first, last];
    const half = (max - min) / 2;
    const wanted = {
      "+": [min + half / 2, max - half / 2], "-": [min - half, max + half],
      ArrowLeft: [min - half / 2, max - half / 2], ArrowRight: [min + half / 2, max + half / 2],
      0: [first, last],
    }[event.key];
    if (!wanted || !(half > 0)) return;
    event.preventDefault();
    const width = Math.min(wanted[1] - wanted[0], last - first);
    const from = Math.min(Math.max(wanted[0], first), last - width);
    this.uplot.setScale("x", { min: from, max: from + width });
  }

  // uPlot has another part of x in view, whoever asked for it.
  onScale(xLabel) {
    const [xs, { min, max }] = [this.uplot.data[0], this.uplot.scales.x];
    this.range = min > xs[0] || max < xs.at(-1) ? [min, max] : null;
    this.tell(xLabel);
  }

  tell(xLabel) {
    const part = this.range ? ` from ${figure(this.range[0])} to ${figure(this.range[1])}` : "";
    this.plot.setAttribute("aria-label", `${this.title} against ${xLabel}${part}${this.end}`);
  }

  build(xLabel, data, lines) {
    this.uplot?.destroy();
    const [text, grid] = [color("--soft"), color("--line")];
    const axis = {
      stroke: text, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 },
      font: "12px system-ui, sans-serif", values: (_, ticks) => ticks.map((t) => compact.format(t)),
    };
    const bands = [];
    const series = lines.map((line, index) => {
      const stroke = color(`--c${line.color % COLORS}`);
      if (line.isBand && lines[index - 1]?.isBand && lines[index - 1].color === line.color) {
        bands.push({ series: [index, index + 1], fill: `${stroke}33` });
      }
      return {
        label: line.label, stroke: line.isBand ? `${stroke}66` : stroke,
        width: line.isBand ? 0.5 : 2, spanGaps: true, points: { show: data[0].length < 2 },
        dash: line.color >= COLORS ? [6, 4] : undefined, value: (_, v) => figure(v),
      };
    });
    this.uplot = new uPlot(
      {
        width: this.width(), height: CHART_HEIGHT, bands,
        scales: { x: { time: false } },
        axes: [{ ...axis, space: 70 }, { ...axis, size: 56 }],
        series: [{ label: xLabel, value: (_, v) => figure(v) }, ...series],
        legend: { show: lines.length > 1 },
        cursor: { drag: { setScale: true, x: true, y: false } },
        hooks: {
          ready: [(uplot) => { this.uplot = uplot; this.onScale(xLabel); }],
          setScale: [(uplot, key) => { if (key === "x" && this.uplot === uplot) this.onScale(xLabel); }],
        },
      },
      data, this.plot,
    );
    for (const key of this.plot.querySelectorAll(".u-legend tr:not(:first-child) th")) {
      key.tabIndex = 0;
      key.setAttribute("role", "button");
      key.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          key.click();
        }
      });
    }
  }

  width() {
    return Math.max(100, Math.floor(this.plot.clientWidth));
  }

  fit() {
    if (this.uplot && this.uplot.width !== this.width()) {
      this.uplot.setSize({ width: this.width(), height: CHART_HEIGHT });
    }
  }

  // In the colors of now.
  repaint() {
    this.key = "";
    if (this.given) this.draw(...this.given);
  }

  close() {
    this.size.disconnect();
    this.uplot?.destroy();
    charts.delete(this);
  }
}

// --- one run ---

function runView(path) {
  let run = null;
  let settingsTold = "";
  const parts = {
    title: el("h1"), state: el("p"), facts: el("dl", { className: "facts" }),
    findings: el("div"), shares: el("div"), unknown: el("p", { className: "soft" }),
    log: el("pre", { tabIndex: 0, role: "region", "aria-label": "Log" }),
    settings: el("tbody"), starts: el("div"),
  };
  const control = controls(el, path, () => lookAgain());
  const area = el("div", { className: "charts" });
  const drawn = new Map(); // charts by title
  const only = el("input", { type: "checkbox", checked: true, onchange: () => tellSettings() });
  const any = el("select", { onchange: () => drawCharts() });
  const anyChart = new Chart("Chosen metric", "wide");
  const topology = new Topology(figure, percent);
  main.replaceChildren(
    parts.title, parts.state, control.node, parts.facts,
    el("h2", {}, "What is wrong"), parts.findings,
    el("h2", {}, "Playing"), new Playing(path).node,
    el("h2", {}, "Curves"), tools(() => drawCharts()), area,
    el("h2", {}, "Any metric"),
    el("div", { className: "tools" }, el("label", {}, "Metric ", any)), anyChart.node,
    el("h2", {}, "Who does what"), topology.node,
    el("h2", {}, "Where the time goes"),
    el("p", { className: "soft" }, "Of each component, in the last quarter of the records."),
    parts.shares,
    el("h2", {}, "Log"), parts.log,
    el("h2", {}, "Settings"),
    el("div", { className: "tools" }, el("label", {}, only, " only those that differ")),
    parts.unknown,
    el("table", {},
      el("thead", {}, el("tr", {},
        ...["setting", "value", "default", "set by"].map((t) => el("th", {}, t)))),
      parts.settings),
    el("h2", {}, "Starts"), parts.starts,
  );

  function drawCharts() {
    if (!run) return;
    const { label, unit } = AXES[axisChosen()];
    const xs = (run.records[axisChosen()] ?? []).map((x) => (x === null ? null : x / unit));
    const line = (name, color, isBand = false) => {
      const values = run.records[name] ?? [];
      return { label: name, color, isBand, values: isBand ? values : smoothed(values) };
    };
    const names = Object.keys(run.records);
    const wanted = [
      ["Score, mean of 100 episodes", [
        line("episode_return_max", 0, true), line("episode_return_min", 0, true),
        line("episode_return_mean", 0),
      ], "wide"],
      ["Frames/s", [line("frames_per_s", 1)]],
      ...names.filter((n) => /(^|_)loss$/.test(n)).map((n) => [n.replaceAll("_", " "), [line(n, 2)]]),
      ["Entropy", [line("entropy", 3)]],
      ["Policy lag, optimizer steps", [line("policy_lag_mean", 5), line("policy_lag_max", 4)]],
    ];
    for (const [title, lines, className] of wanted) {
      if (!lines.some((one) => one.values.some((value) => value !== null))) continue;
      if (!drawn.has(title)) {
        drawn.set(title, new Chart(title, className));
        area.append(drawn.get(title).node);
      }
      drawn.get(title).draw(label, xs, lines);
    }
    if (any.options.length !== names.length) {
      const before = any.value;
      any.replaceChildren(...names.map((name) => el("option", {}, name)));
      any.value = names.includes(before) ? before : "episode_length_mean";
    }
    anyChart.title = any.value;
    anyChart.name.textContent = any.value;
    anyChart.draw(label, xs, [line(any.value, 6)]);
  }

  function tellShares() {
    const quarter = (values) => values.slice(-Math.max(1, Math.ceil(values.length / 4)));
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    parts.shares.replaceChildren();
    for (const [component, stages] of Object.entries(run.components)) {
      const shares = stages.map((stage) => {
        const values = quarter(run.records[`${component}/${stage}`] ?? []);
        const known = values.filter((value) => value !== null);
        return { stage, share: known.length ? mean(known) : null };
      });
      if (shares.every(({ share }) => share === null)) continue;
      const bar = el("div", { className: "bar", role: "img", "aria-label": `Time of ${component}` });
      const keys = el("ul", { className: "keys" });
      shares.forEach(({ stage, share }, index) => {
        const paint = stage.startsWith("wait") && index === 0 ? "--wait" : `--c${index}`;
        const piece = el("div", { title: `${stage} ${percent(share)}` });
        piece.style.background = `var(${paint})`;
        piece.style.flexGrow = String(share ?? 0);
        bar.append(piece);
        const mark = el("span", { className: "mark" });
        mark.style.background = `var(${paint})`;
        keys.append(el("li", {}, mark, `${stage} ${percent(share)}`));
      });
      parts.shares.append(el("h3", {}, component), bar, keys);
    }
    if (!parts.shares.childNodes.length) parts.shares.append("Nothing is measured yet.");
  }

  function tellSettings() {
    if (!run) return;
    const told = run.settings.filter(({ by }) => !only.checked || by !== "");
    parts.settings.replaceChildren(...told.map(({ name, value, default: usual, by }) =>
      el("tr", { className: by ? "differs" : "" },
        el("td", {}, name), el("td", {}, value), el("td", {}, usual ?? "-"), el("td", {}, by ?? "-"))));
    const isKnown = run.settings.some(({ by }) => by !== null);
    parts.unknown.textContent = isKnown ? "" : "Its config.json does not tell which differ.";
    parts.starts.replaceChildren(...run.starts.map((start) =>
      el("dl", { className: "lines" }, ...Object.entries(start).map(([name, value]) =>
        el("div", {}, el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, value))))));
    if (!run.starts.length) parts.starts.append("Its config.json tells of none.");
  }

  // What was live may have ended with the server, or gone, and nobody tells.
  function lose() {
    if (run?.state !== "live") return;
    parts.state.firstChild.replaceWith(el("span", { className: "state" }, "no answer"));
    control.lose();
  }

  const look = async () => {
    run = await ask("run", [path]);
    return () => {
      document.title = `${run.name} - sfrl`;
      parts.title.textContent = run.name;
      parts.state.replaceChildren(
        el("span", { className: `state ${run.state}` }, run.state),
        ` \u00b7 ${run.env} \u00b7 ${run.system} \u00b7 seed ${run.seed ?? "-"}`,
        el("br"), run.limit ? `This run is ${run.limit}.` : "What limits it is not known yet.",
      );
      control.tell(run);
      const facts = {
        score: figure(run.episode_return_mean), "best score": figure(run.best_episode_return_mean),
        frames: count(run.env_frames), time: clock(run.time_s), "frames/s": count(run.frames_per_s),
        episodes: count(run.episodes), "episode length": figure(run.episode_length_mean),
        "checkpoint's age": clock(run.checkpoint_age_s), "time left": clock(run.seconds_left),
      };
      parts.facts.replaceChildren(...Object.entries(facts)
        .filter(([, text]) => text !== "-")
        .map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text))));
      parts.findings.replaceChildren(...run.findings.map((finding) =>
        el("div", { className: "finding" },
          el("p", {}, el("strong", {}, finding.what)), el("p", {}, finding.figure),
          el("p", { className: "soft" }, `Counts from: ${finding.rule}`),
          el("p", {}, `Try: ${finding.remedy}`))));
      if (!run.findings.length) parts.findings.append("Nothing, as far as the rules tell.");
      const log = parts.log;
      const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
      log.textContent = run.log.join("\n") || "It has none.";
      if (atEnd) log.scrollTop = log.scrollHeight;
      topology.show(run.topology, run.limit);
      tellShares();
      const settings = JSON.stringify([run.settings, run.starts]);
      if (settings !== settingsTold) tellSettings();
      settingsTold = settings;
      drawCharts();
      return run.state === "live";
    };
  };
  return Object.assign(look, { lose });
}

// --- all runs ---

const COLUMNS = [ // key, name, how it is told, where it is left out
  ["path", "run", String, ""],
  ["state", "state", String, ""],
  ["env", "environment", String, "tablet-only"],
  ["system", "system", String, "wide-only"],
  ["seed", "seed", count, "wide-only"],
  ["episode_return_mean", "score", figure, ""],
  ["best_episode_return_mean", "best", figure, "tablet-only"],
  ["env_frames", "frames", count, "wide-only"],
  ["time_s", "time", clock, "tablet-only"],
  ["frames_per_s", "frames/s", count, "wide-only"],
];
const WORDS = new Set(["path", "state", "env", "system"]);

function runsView() {
  let runs = [];
  let several = null; // curves and groups of the chosen ones
  let sort = { key: "path", isUp: true };
  const chosen = () => place().query.getAll("run");
  const head = el("tr");
  const body = el("tbody");
  const groups = el("tbody");
  const chart = new Chart("Score, mean of 100 episodes", "wide");
  const grouped = el("input", { type: "checkbox", id: "group", checked: true, onchange: () => draw() });
  const overlay = el("section", { hidden: true },
    el("h2", {}, "Chosen runs"),
    tools(() => draw(), el("label", {}, grouped, " seeds as one"),
      el("button", { type: "button", onclick: () => choose([]) }, "Choose none")),
    chart.node,
    el("p", { className: "soft" },
      "A line is the mean of runs that differ in their seeds alone, and the area their spread. " +
      "In brackets: 95% of 10,000 bootstrap samples of the seeds."),
    el("table", {},
      el("thead", {}, el("tr", {}, el("th", {}, "runs"),
        ...["seeds", "score", "best", "minutes", "frames/s"].map((name, index) =>
          el("th", { className: `number ${index > 2 ? "tablet-only" : ""}` }, name)))),
      groups));
  const all = el("button", { type: "button", onclick: () => choose(runs.map((run) => run.path)) },
    "Choose all");
  main.replaceChildren(el("h1", {}, "Runs"), overlay, el("div", { className: "tools" }, all),
    el("table", {}, el("thead", {}, head), body));

  function choose(paths) {
    remember((query) => {
      query.delete("run");
      for (const path of paths) query.append("run", path);
    });
    tellRows();
    lookAgain();
  }

  async function compare() {
    const known = new Set(runs.map((run) => run.path));
    const paths = chosen().filter((path) => known.has(path));
    several = paths.length ? await ask("curves", paths) : null;
  }

  function draw() {
    overlay.hidden = several === null;
    if (several === null) return;
    const { label, unit } = AXES[axisChosen()];
    const curves = new Map(several.runs.map((run) => {
      const points = run[axisChosen()];
      const scores = smoothed(points.map(([, score]) => score));
      return [run.path, points.map(([x], index) => [x / unit, scores[index]])];
    }));
    const places = [...curves.values()].flat().map(([x]) => x);
    const [low, high] = places.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, 0]);
    const grid = places.length
      ? Array.from({ length: GRID }, (_, i) => low + ((high - low) * i) / (GRID - 1)) : [];
    const on = (path) => resampled(curves.get(path), grid);
    const lines = several.groups.flatMap((group, color) => {
      if (!grouped.checked) {
        return group.runs.map((path) => ({ label: path, color, values: on(path) }));
      }
      const alike = group.runs.map(on);
      const over = (fold) => grid.map((_, i) => {
        const values = alike.map((values) => values[i]);
        return values.includes(null) ? null : fold(values);
      });
      const mean = { label: group.label, color,
        values: over((v) => v.reduce((sum, one) => sum + one, 0) / v.length) };
      if (alike.length < 2) return [mean];
      return [
        { label: "highest seed", color, isBand: true, values: over((v) => Math.max(...v)) },
        { label: "lowest seed", color, isBand: true, values: over((v) => Math.min(...v)) }, mean,
      ];
    });
    chart.draw(label, grid, lines);
    const interval = (mean) => told(mean, ({ mean: value, low: from, high: to }) =>
      figure(value) + (from === null ? "" : ` [${figure(from)}, ${figure(to)}]`));
    groups.replaceChildren(...several.groups.map((group, index) => {
      const mark = el("span", { className: "mark" });
      mark.style.background = `var(--c${index % COLORS})`;
      const cells = [count(group.runs.length), interval(group.score), interval(group.best),
        interval(group.minutes), interval(group.frames_per_s)];
      return el("tr", {}, el("td", {}, mark, group.label), ...cells.map((text, column) =>
        el("td", { className: `number interval ${column > 2 ? "tablet-only" : ""}` }, text)));
    }));
  }

  function tellHead() {
    head.replaceChildren(el("th", {}, el("span", { className: "soft", title: "chosen" }, "\u2713")),
      ...COLUMNS.map(([key, name, , where]) => {
        const cell = el("th", { className: `${where} ${WORDS.has(key) ? "" : "number"}` },
          el("button", {
            type: "button", id: `sort-${key}`,
            onclick: () => {
              sort = { key, isUp: sort.key === key ? !sort.isUp : WORDS.has(key) };
              kept(tellHead);
              tellRows();
            },
          }, name));
        if (sort.key === key) {
          cell.setAttribute("aria-sort", sort.isUp ? "ascending" : "descending");
        }
        return cell;
      }));
  }

  function tellRows() {
    const picked = new Set(chosen());
    const order = (a, b) => {
      const [one, other] = [a[sort.key], b[sort.key]];
      if (one === null || other === null) return (one === null) - (other === null); // at the end
      const sign = typeof one === "string"
        ? one.localeCompare(other, "en", { numeric: true }) : one - other;
      return sort.isUp ? sign : -sign;
    };
    kept(() => body.replaceChildren(...[...runs].sort(order).map((run) => {
      const box = el("input", {
        type: "checkbox", id: `choose-${run.path}`, checked: picked.has(run.path),
        "aria-label": `choose ${run.path}`,
        onchange: () => choose(runs.map((one) => one.path).filter((path) =>
          path === run.path ? box.checked : picked.has(path))),
      });
      return el("tr", {}, el("td", {}, box), ...COLUMNS.map(([key, , tell, where]) => {
        const className = `${where} ${WORDS.has(key) ? "" : "number"}`;
        if (key === "path") {
          const name = run.path === "." ? run.name : run.path;
          return el("td", { className }, el("a", { href: linkTo(run.path), id: `to-${run.path}` }, name));
        }
        if (key === "state") {
          return el("td", { className }, el("span", { className: `state ${run.state}` }, run.state));
        }
        return el("td", { className }, tell(run[key]));
      }));
    })));
    if (!runs.length) {
      body.append(el("tr", {}, el("td", { colSpan: COLUMNS.length + 1 }, "No run is here yet.")));
    }
  }

  tellHead();
  return async () => {
    const answer = await ask("runs");
    runs = answer.runs;
    const isLive = runs.some((run) => run.state === "live");
    await compare();
    return () => {
      document.title = "Runs - sfrl";
      document.getElementById("folder").textContent = answer.folder;
      tellRows();
      draw();
      return isLive;
    };
  };
}

// The keyboard's place outlives that its element is made anew.
function kept(change) {
  const { id } = document.activeElement ?? {};
  change();
  if (id) document.getElementById(id)?.focus({ preventScroll: true });
}

// --- what is shown, and when it looks again ---

function show() {
  for (const chart of [...charts]) chart.close();
  const { path, query } = place();
  const look = path === "/run" ? runView(query.get("run") ?? "") : runsView();
  main.hidden = true; // until there is something to show
  const note = document.getElementById("note");
  let hasTold = false;

  lookAgain = async () => {
    clearTimeout(timer);
    looks += 1;
    const own = looks;
    let wait = LIVE_MS;
    try {
      if (!document.hidden || !hasTold) {
        const tell = await look();
        if (own !== looks) return;
        main.hidden = false;
        wait = tell() ? LIVE_MS : IDLE_MS;
        hasTold = true;
        note.textContent = "";
      }
    } catch (error) {
      if (!(error instanceof NoAnswer)) throw error;
      if (own !== looks) return;
      note.textContent = error.message;
      look.lose?.();
    }
    timer = setTimeout(lookAgain, wait);
  };
  lookAgain();
}

window.addEventListener("hashchange", show);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of charts) chart.repaint();
});
show();
