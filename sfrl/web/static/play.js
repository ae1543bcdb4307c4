// The panel in which a run's agent plays: sfrl/web/playing.py tells what it does.

import { Chart, charts, count, el, figure, percent, place, remember } from "./app.js";

const STEPS = 200; // of the curve of values
const CURVE_MS = 250; // between two drawings of it
const WAIT_MS = 1000; // between two looks how long nothing has come

export class Playing {
  constructor(run) {
    this.run = run;
    this.button = el("button", { type: "button", id: "watch", onclick: () => this.choose() });
    this.said = el("span", { role: "status" });
    this.waited = el("span"); // apart, so that no reader says it each second
    this.canvas = el("canvas", { role: "img", "aria-label": "The game's picture", hidden: true });
    this.noPicture = el("p", { className: "soft" });
    this.pairs = new Map(); // of the facts, by name
    this.facts = el("dl", { className: "facts" });
    this.bars = el("div", { className: "decisions" });
    this.curveBox = el("div"); // of the curve
    this.stage = el(
      "div", { className: "playing", hidden: true },
      el("div", {}, this.canvas, this.noPicture),
      el("div", {}, this.facts, this.bars, this.curveBox),
    );
    this.node = el(
      "section", { "aria-label": "Playing" },
      el("div", { className: "tools" }, this.button, el("span", {}, this.said, this.waited)),
      this.stage,
    );
    this.onVisibility = () => this.follow();
    document.addEventListener("visibilitychange", this.onVisibility);
    charts.add(this);
    this.follow();
  }

  isChosen() {
    return place().query.get("watch") === "1";
  }

  choose() {
    const isChosen = this.isChosen();
    remember((query) => (isChosen ? query.delete("watch") : query.set("watch", "1")));
    this.follow();
  }

  // Watch if the reader wants to, and looks.
  follow() {
    const isWanted = this.isChosen();
    this.button.textContent = isWanted ? "Stop watching" : "Watch";
    if (isWanted && !document.hidden) this.open();
    else this.leave();
    if (!isWanted) {
      this.stage.hidden = true;
      this.tell("A process of its own then plays the newest checkpoint, as long as you watch.");
    }
  }

  open() {
    if (this.source) return;
    this.tell("It starts, and takes only the time that nobody else wants.");
    this.values = [];
    this.began = performance.now();
    this.timer = setInterval(() => this.wait(), WAIT_MS);
    this.source = new EventSource(`api/play?${new URLSearchParams({ run: this.run })}`);
    this.source.onmessage = ({ data }) => this.take(JSON.parse(data));
    this.source.onerror = () => {
      const isRefused = this.source?.readyState === EventSource.CLOSED;
      if (isRefused) this.give("The server refuses to play it.");
      else this.tell("No answer. Trying again.");
    };
  }

  leave() {
    this.source?.close();
    this.source = null;
    clearInterval(this.timer);
    this.waited.textContent = "";
  }

  // Stop, and say why.
  give(problem) {
    remember((query) => query.delete("watch"));
    this.follow();
    this.tell(problem);
  }

  tell(text) {
    if (this.said.textContent !== text) this.said.textContent = text;
  }

  wait() {
    const seconds = (performance.now() - this.began) / 1000;
    this.waited.textContent = seconds < 2 ? "" : ` Nothing has come for ${count(seconds)} s.`;
  }

  take(told) {
    this.began = performance.now();
    this.waited.textContent = "";
    if (told.problem) this.give(told.problem);
    else if (told.waiting) this.tell(told.waiting);
    else this.show(told);
  }

  show(frame) {
    this.tell(`The checkpoint of ${count(frame.frames)} frames plays.`);
    this.stage.hidden = false;
    this.noPicture.hidden = !frame.no_picture;
    this.noPicture.textContent = frame.no_picture
      ? `There is no picture of this environment: ${frame.no_picture}` : "";
    if (frame.picture) this.draw(frame.picture, frame.picture_type);
    const facts = {
      score: figure(frame.score), decisions: count(frame.steps), episode: count(frame.episode),
      "last scores": frame.scores.map(figure).join(", ") || "-",
    };
    for (const [name, text] of Object.entries(facts)) {
      if (!this.pairs.has(name)) {
        this.pairs.set(name, el("dd"));
        this.facts.append(el("div", {}, el("dt", {}, name), this.pairs.get(name)));
      }
      this.pairs.get(name).textContent = text;
    }
    if (frame.choices.length || frame.numbers.length) this.tellDecision(frame);
    if (frame.value !== null) this.tellValue(frame);
  }

  // A picture that comes while another one is still being read is left out.
  async draw(base64, type) {
    if (this.isDrawing) return;
    this.isDrawing = true;
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const picture = await createImageBitmap(new Blob([bytes], { type }));
    const { canvas } = this;
    if (canvas.width !== picture.width) canvas.width = picture.width;
    if (canvas.height !== picture.height) canvas.height = picture.height;
    canvas.getContext("2d").drawImage(picture, 0, 0);
    picture.close();
    canvas.hidden = false;
    this.isDrawing = false;
  }

  tellValue({ steps, episode, value }) {
    if (this.values.at(-1)?.episode !== episode) this.values = [];
    this.values = [...this.values.slice(1 - STEPS), { steps, episode, value }];
    const now = performance.now();
    if (this.values.length < 2 || now - (this.drawn ?? 0) < CURVE_MS) return;
    this.drawn = now;
    if (!this.curve) {
      this.curve = new Chart("Value estimate");
      this.curve.latest.setAttribute("aria-live", "off");
      this.curveBox.append(this.curve.node);
    }
    this.curve.draw("decisions", this.values.map((one) => one.steps),
      [{ label: "value", color: 0, values: this.values.map((one) => one.value) }]);
  }

  // One line for each value of a choice, and for each number.
  tellDecision({ choices, numbers, are_values: areValues }) {
    const lines = [
      ...choices.flatMap((choice) => choiceLines(choice, areValues)), ...numbers.map(numberLine),
    ];
    const names = JSON.stringify(lines.map(({ group, name }) => [group, name]));
    if (names !== this.names) this.build(lines, areValues);
    this.names = names;
    lines.forEach(({ from, to, mark, text, isTaken }, index) => {
      const { row, bar, point, told } = this.rows[index];
      row.classList.toggle("taken", isTaken);
      bar.style.left = `${100 * from}%`;
      bar.style.width = `${100 * Math.max(0, to - from)}%`;
      point.hidden = mark === null;
      point.style.left = `${100 * (mark ?? 0)}%`;
      told.textContent = text;
    });
  }

  build(lines, areValues) {
    const list = el("ul", { className: "bars" });
    this.rows = lines.map(({ group, name }) => {
      const bar = el("div");
      const point = el("i");
      const told = el("span", { className: "number" });
      const label = [group, name].filter((text) => text).join(": ");
      const row = el("li", {},
        el("span", { title: label }, label), el("div", { className: "track" }, bar, point), told);
      list.append(row);
      return { row, bar, point, told };
    });
    const kinds = new Set(lines.map(({ isNumber }) => isNumber));
    const titles = ["Numbers with their mean and standard deviation"].filter(() => kinds.has(true));
    const what = areValues ? "Values" : "Probabilities";
    if (kinds.has(false)) titles.unshift(`${what} of the actions`);
    this.bars.replaceChildren(el("h3", {}, titles.join("; ")), list);
  }

  repaint() {}

  close() {
    document.removeEventListener("visibilitychange", this.onVisibility);
    this.leave();
    charts.delete(this);
  }
}

function choiceLines({ name: group, bars, rest, taken }, areValues) {
  const shares = bars.map(([, share]) => share).filter((share) => share !== null); // null: a mask's
  const low = areValues ? Math.min(...shares) : 0;
  const range = areValues ? Math.max(...shares) - low || 1 : 1;
  const lines = bars.map(([name, share]) => ({
    group, name, from: 0, to: share === null ? 0 : (share - low) / range, mark: null,
    isNumber: false, isTaken: name === taken, text: areValues ? figure(share) : percent(share),
  }));
  if (rest === null) return lines;
  const isTaken = !bars.some(([name]) => name === taken);
  return [...lines, {
    group, name: "others", from: 0, to: rest, mark: null, isNumber: false, isTaken,
    text: percent(rest),
  }];
}

// Without bounds the place is that within three standard deviations.
function numberLine({ name, low, high, mean, below, above, taken }) {
  const least = low ?? Math.min(mean - 3 * (mean - below), taken);
  const most = high ?? Math.max(mean + 3 * (above - mean), taken);
  const at = (number) => Math.min(1, Math.max(0, (number - least) / (most - least || 1)));
  return {
    group: "", name, from: at(below), to: at(above), mark: at(taken),
    isNumber: true, isTaken: false, text: figure(taken),
  };
}
