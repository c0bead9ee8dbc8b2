// A small drawing of bytes against tokens read, with its numbers beside it for whoever does not see it.

import { draw } from "./page.js";
import { bytes, count } from "./words.js";

const WIDTH = 320, HEIGHT = 96, LEFT = 4, RIGHT = 4, TOP = 16, BOTTOM = 18;
const MOST_POINTS = 240;

export class Chart {
  /** `what` is its title for those who listen. */
  constructor(what) {
    this.what = what;
    this.points = []; // {tokens, values: {line: bytes}}
    this.drawing = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "chart", role: "img", "aria-label": what });
  }

  clear() {
    this.points = [];
  }

  /** One more look; of looks at the same number of tokens only the last stands. */
  add(tokens, values) {
    if (this.points.length > 1 && this.points.at(-1).tokens === tokens) this.points.pop();
    this.points.push({ tokens, values });
    // The first and the newest stay, those between are thinned out.
    if (this.points.length > MOST_POINTS) this.points = this.points.filter((_, place, all) => place % 2 === 0 || place === all.length - 1);
    this.render();
  }

  render() {
    const { points } = this, last = points.at(-1), lines = Object.keys(last.values);
    const most = Math.max(1, ...points.flatMap((each) => Object.values(each.values))) * 1.05;
    const from = points[0].tokens, span = Math.max(1, last.tokens - from);
    const x = (tokens) => LEFT + (WIDTH - LEFT - RIGHT) * (tokens - from) / span;
    const y = (value) => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / most;
    const end = points.length > 1 && last.tokens > from ? WIDTH - RIGHT : x(from) + 6;
    this.drawing.setAttribute("aria-label", `${this.what}: ${lines.map((line) =>
      `${line} ${bytes(points[0].values[line])} at ${count(from)}, ${bytes(last.values[line])} at ${count(last.tokens)}`).join("; ")}`);
    this.drawing.replaceChildren(
      draw("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM, class: "axis" }),
      ...lines.flatMap((line) => [
        draw("polyline", { class: `line ${line}`, points: [...points.map((each) => `${x(each.tokens).toFixed(1)},${y(each.values[line]).toFixed(1)}`), `${end.toFixed(1)},${y(last.values[line]).toFixed(1)}`].join(" ") }),
        draw("text", { x: WIDTH - RIGHT, y: Math.max(11, y(last.values[line]) - 4), class: `label ${line}`, "text-anchor": "end", text: `${LABELS[line] ?? line} ${bytes(last.values[line])}` }),
      ]),
      draw("text", { x: LEFT, y: HEIGHT - 4, class: "label", text: `${count(from)} tokens` }),
      draw("text", { x: WIDTH - RIGHT, y: HEIGHT - 4, class: "label", "text-anchor": "end", text: span > 1 ? count(last.tokens) : "" }),
    );
  }
}

const LABELS = { device: "pools", process: "whole process", archive: "" };
