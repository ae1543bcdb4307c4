// Who does what in a run, drawn: workers and stores in a row, and what flows between them.
//
// A row from left to right where there is room, else from top to bottom. Both are one arrangement:
// "along" is the row's direction, "across" the other one.

const SVG = "http://www.w3.org/2000/svg";
const WIDE = 1000; // pixels from which on the row goes from left to right
const LINE = 16; // pixels between two lines of text
const PAD = 10; // within a box, and between a frame and what is in it
const TIP = 7; // of an arrow
const FONT = "12px system-ui, sans-serif"; // as in style.css
const STRONG = `600 ${FONT}`;

const pen = document.createElement("canvas").getContext("2d");

function textWidth(text, font) {
  pen.font = font;
  return pen.measureText(text).width;
}

// In lines that are at most so wide, unless a word is wider.
function wrapped(text, width, font) {
  const lines = [];
  for (const word of text.split(" ")) {
    const longer = lines.length ? `${lines.at(-1)} ${word}` : word;
    if (lines.length && textWidth(longer, font) <= width) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

function html(tag, className, ...children) {
  const node = document.createElement(tag);
  node.className = className;
  node.append(...children);
  return node;
}

export class Topology {
  // Two functions that tell a number, and a share.
  constructor(figure, percent) {
    [this.figure, this.percent] = [figure, percent];
    this.node = html("div", "topology");
    this.width = 0;
    // In the next frame: a drawing of another height must not be made while sizes are told.
    new ResizeObserver(() => requestAnimationFrame(() => {
      if (this.node.clientWidth !== this.width) this.draw();
    })).observe(this.node);
  }

  // What sfrl/web/layout.py made, and what limits the run, in words.
  show(layout, limit) {
    [this.layout, this.limit] = [layout, limit];
    this.draw();
  }

  draw() {
    this.width = this.node.clientWidth;
    if (this.layout === undefined || !this.width) return;
    if (this.layout === null) {
      this.node.replaceChildren("Its config.json does not tell: this version cannot read it.");
      return;
    }
    const { nodes, interval_s: seconds } = this.layout;
    const isShared = this.layout.frames.some(({ nodes: inside }) =>
      nodes.filter((node) => inside.includes(node.name) && !node.is_store).length > 1);
    const told = [
      "Each worker is a process of its own, unless a frame shows who shares one.",
      isShared ? "Those who share one take turns: how busy each is, is of its own time." : "",
      seconds === null ? "There are no rates yet." :
        "Rates, of all processes together, and how busy workers are: in the newest whole " +
        `interval between two records, of ${this.figure(seconds)} s.`,
    ];
    this.node.replaceChildren(
      html("p", "soft", told.join(" ")), new Drawing(this).svg, this.list(),
    );
  }

  rate({ per_s: rate }) {
    return rate === null ? "" : `${this.figure(rate)}/s`;
  }

  lines(node) {
    const lines = node.lines.map(({ text, number }) =>
      (number === null ? text : text.replace("{}", this.figure(number))));
    return node.busy === null ? lines : [...lines, `busy ${this.percent(node.busy)}`];
  }

  // For who does not see the drawing.
  list() {
    const titles = new Map(this.layout.nodes.map(({ name, title }) => [name, title]));
    const limit = (node) => (node.limits ? [`this run is ${this.limit}`] : []);
    const list = html("ul", "unseen",
      ...this.layout.frames.map(({ title, nodes }) =>
        html("li", "", `${title}: ${nodes.map((name) => titles.get(name)).join(", ")}`)),
      ...this.layout.nodes.map((node) =>
        html("li", "", [node.title, ...this.lines(node), ...limit(node)].join(", "))),
      ...this.layout.flows.map((flow) => html("li", "",
        `${titles.get(flow.sender)} to ${titles.get(flow.receiver)}: ` +
        `${flow.what} ${this.rate(flow)}`)));
    list.setAttribute("aria-label", "Who does what, as a list");
    return list;
  }
}

class Drawing {
  constructor(topology) {
    this.topology = topology;
    this.layout = topology.layout;
    this.isWide = topology.width >= WIDE;
    this.svg = document.createElementNS(SVG, "svg");
    this.places = new Map(this.layout.nodes.map((node, index) => [node.name, index]));
    const between = ({ sender, receiver }) =>
      Math.abs(this.places.get(sender) - this.places.get(receiver));
    this.far = this.layout.flows.filter((flow) => between(flow) > 1);
    this.near = this.layout.flows.filter((flow) => between(flow) === 1);
    this.laneGap = this.isWide ? 42 : 38;
    const width = topology.width - 2;
    if (this.isWide) this.arrangeInARow(width);
    else this.arrangeInAColumn(width);
    this.layout.frames.forEach((frame) => this.frame(frame));
    this.far.forEach((flow, lane) => this.farFlow(flow, lane));
    this.near.forEach((flow) => this.nearFlow(flow));
    this.boxes.forEach((box) => this.box(box));
    const { limit } = topology;
    this.svg.setAttribute("role", "img");
    this.svg.setAttribute("aria-label", "The run's workers, its memory and what flows between " +
      `them; as a list below.${limit ? ` This run is ${limit}.` : ""}`);
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("height", this.height);
  }

  // --- where everything stands ---

  boxOf(node, width) {
    const inner = width - 2 * PAD;
    const rows = [
      ...wrapped(node.title, inner, STRONG).map((text) => [text, "strong"]),
      ...this.topology.lines(node).flatMap((line) =>
        wrapped(line, inner, FONT).map((text) => [text, ""])),
    ];
    const limit = node.limits ? wrapped(this.topology.limit, inner, STRONG) : [];
    const bar = node.busy === null ? 0 : LINE;
    const height = (rows.length + limit.length) * LINE + bar + 2 * PAD;
    return { node, rows, limit, width, height };
  }

  arrangeInARow(width) {
    const number = this.layout.nodes.length;
    const gap = number > 4 ? 108 : 130;
    const size = Math.min(210, (width - 4 * PAD - (number - 1) * gap) / number);
    const start = (width - number * size - (number - 1) * gap) / 2;
    const top = this.layout.frames.length ? LINE + 2 * PAD : PAD;
    this.boxes = this.layout.nodes.map((node, index) =>
      ({ ...this.boxOf(node, size), x: start + index * (size + gap), y: top }));
    const height = Math.max(...this.boxes.map((box) => box.height), 150);
    for (const box of this.boxes) box.height = height;
    this.height = top + height + 2 * PAD + this.far.length * this.laneGap;
  }

  arrangeInAColumn(width) {
    const size = Math.min(420, width - 2 * PAD - this.far.length * this.laneGap - PAD);
    const x = (width - size - this.far.length * this.laneGap) / 2;
    let y = 0;
    this.boxes = this.layout.nodes.map((node, index) => {
      const first = this.layout.frames.some(({ nodes }) => nodes[0] === node.name);
      const last = this.layout.frames.some(({ nodes }) =>
        nodes.at(-1) === this.layout.nodes[index - 1]?.name);
      y += (first ? LINE + PAD : 0) + (last ? PAD : 0) + (index ? 58 : PAD);
      const box = { ...this.boxOf(node, size), x, y };
      y += box.height;
      return box;
    });
    this.height = y + 2 * PAD;
  }

  // --- strokes ---

  add(tag, attributes, text = "") {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.textContent = text;
    this.svg.append(node);
  }

  text(x, y, text, more = {}) {
    this.add("text", { x, y, ...more }, text);
  }

  // Through these points; its tip is at the last one.
  arrow(points) {
    const [[x0, y0], [x, y]] = points.slice(-2);
    const [dx, dy] = [Math.sign(x - x0), Math.sign(y - y0)];
    const [bx, by] = [x - dx * TIP, y - dy * TIP];
    const half = TIP / 2;
    const line = [...points.slice(0, -1), [bx, by]];
    this.add("path", { class: "flow", d: `M${line.map((point) => point.join(" ")).join("L")}` });
    this.add("path", {
      class: "tip",
      d: `M${x} ${y}L${bx - dy * half} ${by - dx * half}L${bx + dy * half} ${by + dx * half}Z`,
    });
  }

  box({ node, rows, limit, x, y, width, height }) {
    const className = [node.is_store ? "store" : "", node.limits ? "limits" : ""].join(" ").trim();
    this.add("rect", { class: className, x, y, width, height, rx: 8 });
    let line = y + PAD - 4;
    const tell = (text, name) => {
      line += LINE;
      this.text(x + PAD, line, text, { class: name });
    };
    for (const [text, name] of rows) tell(text, name);
    if (node.busy !== null) {
      const bar = { x: x + PAD, y: line + 6, height: 6, rx: 3 };
      this.add("rect", { ...bar, class: "waiting", width: width - 2 * PAD });
      this.add("rect", { ...bar, class: "working", width: (width - 2 * PAD) * node.busy });
      line += LINE;
    }
    for (const text of limit) tell(text, "limit");
  }

  frame({ title, nodes }) {
    const inside = this.boxes.filter(({ node }) => nodes.includes(node.name));
    const [first, last] = [inside[0], inside.at(-1)];
    const lanes = this.far.filter((flow) =>
      nodes.includes(flow.sender) && nodes.includes(flow.receiver)).length * this.laneGap;
    const x = first.x - PAD;
    const y = first.y - PAD - LINE;
    const width = last.x + last.width + PAD - x + (this.isWide ? 0 : lanes);
    const height = last.y + last.height + PAD - y + (this.isWide ? lanes : 0);
    this.add("rect", { class: "frame", x, y, width, height, rx: 8 });
    // In a column at the right, where no arrow comes in.
    const end = this.isWide ? { x: x + PAD } : { x: first.x + first.width, "text-anchor": "end" };
    this.add("text", { ...end, y: y + LINE }, title);
  }

  endsOf({ sender, receiver }) {
    return [sender, receiver].map((name) => this.boxes[this.places.get(name)]);
  }

  // Two neighbors may have one each way: forth before, back behind the middle.
  nearFlow(flow) {
    const [from, to] = this.endsOf(flow);
    const isForth = this.places.get(flow.sender) < this.places.get(flow.receiver);
    const rate = this.topology.rate(flow);
    if (this.isWide) {
      const [left, right] = isForth ? [from, to] : [to, from];
      const ends = [left.x + left.width + 2, right.x - 2];
      const middle = (ends[0] + ends[1]) / 2;
      const y = left.y + 75 + (isForth ? -14 : 14);
      this.arrow((isForth ? ends : ends.reverse()).map((x) => [x, y]));
      const lines = isForth ? [y - LINE - 8, y - 8] : [y + LINE, y + 2 * LINE];
      if (isForth && !rate) lines[0] = lines[1];
      this.text(middle, lines[0], flow.what, { "text-anchor": "middle" });
      this.text(middle, lines[1], rate, { "text-anchor": "middle", class: "strong" });
    } else {
      const [upper, lower] = isForth ? [from, to] : [to, from];
      const ends = [upper.y + upper.height + 2, lower.y - 2];
      const x = from.x + from.width * (isForth ? 0.08 : 0.55);
      const middle = ends[0] + 26;
      this.arrow((isForth ? ends : ends.reverse()).map((y) => [x, y]));
      this.text(x + 10, middle, flow.what);
      this.text(x + 10, middle + LINE, rate, { class: "strong" });
    }
  }

  // Around the others, in a lane of its own.
  farFlow(flow, lane) {
    const [from, to] = this.endsOf(flow);
    const label = `${flow.what} ${this.topology.rate(flow)}`.trim();
    const share = (lane + 1) / (this.far.length + 1); // of a box's side
    if (this.isWide) {
      const bottom = from.y + from.height;
      const y = bottom + (lane + 0.8) * this.laneGap;
      const [x0, x1] = [from, to].map((box) => box.x + box.width * share);
      this.arrow([[x0, bottom + 2], [x0, y], [x1, y], [x1, bottom + 2]]);
      this.text((x0 + x1) / 2, y - 6, label, { "text-anchor": "middle" });
    } else {
      const right = from.x + from.width;
      const x = right + (lane + 0.8) * this.laneGap;
      const [y0, y1] = [from, to].map((box) => box.y + box.height * share);
      this.arrow([[right + 2, y0], [x, y0], [x, y1], [right + 2, y1]]);
      const middle = (y0 + y1) / 2;
      this.text(x - 6, middle, label, {
        "text-anchor": "middle", transform: `rotate(-90 ${x - 6} ${middle})`,
      });
    }
  }
}
