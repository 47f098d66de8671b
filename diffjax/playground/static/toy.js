// A distribution that is drawn with the pointer; particles that go from noise to it; its score.

import { button, el, field, input, select, statusLine } from "./dom.js";
import { LIMIT, SHAPES, pointsOf, textOf } from "./shapes.js";

export const title = "Toy";
export const about = "Points that you draw are the data; their score is known in closed form, and diffjax's own samplers, grids and schedules move the particles (on the server).";

const MOST = 200;
const APART = 0.07; // of two points of one stroke

export function mount(root, context) {
  const { names, values, set } = context;
  const status = statusLine();
  const canvas = el("canvas", { class: "plane", width: 1280, height: 1280, tabIndex: 0, role: "img", "aria-label": "The plane: drag to draw data; the arrow keys and the space bar put single points" });
  const slider = el("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Time t", oninput: () => { halt(); at(Number(slider.value)); } });
  const place = el("output", {});
  const play = button("Play", () => (timer ? halt() : start()));
  const arrows = el("input", { type: "checkbox", onchange: () => { set({ field: arrows.checked ? "" : "0" }, { again: false }); paint(); } });
  arrows.checked = values.field !== "0";
  let points = pointsOf(values.points ?? textOf(SHAPES.moons()));
  let frames = [];
  let places = [];
  let shown = 0;
  let timer = 0;
  let cursor = null;

  const pixel = ([x, y]) => [((x / LIMIT + 1) / 2) * canvas.width, ((1 - y / LIMIT) / 2) * canvas.height];

  function paint() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    const frame = frames[shown];
    if (frame && arrows.checked) {
      pen.strokeStyle = colour("--line-strong");
      pen.lineWidth = 2.5;
      pen.lineCap = "round";
      for (let i = 0; i < places.length; i += 2) {
        const [u, v] = [frame.field[i], frame.field[i + 1]];
        const size = Math.hypot(u, v) || 1;
        const length = (26 * Math.min(1, size / 1.5)) / size + 6 / size;
        const [x, y] = pixel([places[i], places[i + 1]]);
        pen.beginPath();
        pen.moveTo(x, y);
        pen.lineTo(x + u * length, y - v * length);
        pen.stroke();
        pen.beginPath();
        pen.arc(x, y, 2.4, 0, 7);
        pen.fillStyle = colour("--line-strong");
        pen.fill();
      }
    }
    pen.fillStyle = colour("--curve-2");
    for (const point of points) {
      const [x, y] = pixel(point);
      pen.beginPath();
      pen.arc(x, y, 6, 0, 7);
      pen.fill();
    }
    if (frame) {
      pen.globalAlpha = 0.75;
      pen.fillStyle = colour("--curve-1");
      for (let i = 0; i < frame.x.length; i += 2) {
        const [x, y] = pixel([frame.x[i], frame.x[i + 1]]);
        pen.beginPath();
        pen.arc(x, y, 5, 0, 7);
        pen.fill();
      }
      pen.globalAlpha = 1;
    }
    if (cursor) {
      const [x, y] = pixel(cursor);
      pen.strokeStyle = colour("--text");
      pen.lineWidth = 3;
      pen.strokeRect(x - 12, y - 12, 24, 24);
    }
  }

  function at(index) {
    if (!frames[index]) return;
    shown = index;
    slider.value = index;
    place.textContent = `t = ${Number(frames[index].t.toPrecision(4))}`;
    slider.setAttribute("aria-valuetext", place.textContent);
    paint();
  }

  function start() {
    if (shown >= frames.length - 1) at(0);
    play.textContent = "Pause";
    timer = setInterval(() => {
      at(shown + 1);
      if (shown >= frames.length - 1) halt();
    }, Math.max(30, Math.min(110, 3600 / Math.max(1, frames.length))));
  }

  function halt() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  }

  function change(next) {
    points = next;
    halt();
    frames = [];
    paint();
    set({ points: textOf(points) });
  }

  async function run() {
    halt();
    if (!points.length) {
      status.done("draw some points first");
      return;
    }
    frames = [];
    shown = 0;
    const sent = { ...context.current(), points: textOf(points) };
    delete sent.field;
    await context.work("toy", sent, status, (event) => {
      if (event.places) {
        places = event.places;
        slider.max = event.frames - 1;
      }
      if (event.frame) frames.push(event.frame);
      if (event.toy) {
        at(0);
        status.done(`${frames.length - 1} steps`, `${frames[0].x.length / 2} particles`);
        if (matchMedia("(prefers-reduced-motion: reduce)").matches) at(frames.length - 1);
        else start();
        root.dataset.done = String(Number(root.dataset.done || 0) + 1);
      }
    });
  }

  const placeOf = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(((event.clientX - box.left) / box.width) * 2 - 1) * LIMIT, (1 - ((event.clientY - box.top) / box.height) * 2) * LIMIT];
  };
  let stroke = null;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    halt();
    frames = [];
    stroke = [placeOf(event)];
    points = [...points, stroke[0]].slice(-MOST);
    paint();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!stroke) return;
    const [x, y] = placeOf(event);
    const [a, b] = stroke.at(-1);
    if (Math.hypot(x - a, y - b) < APART || Math.max(Math.abs(x), Math.abs(y)) > LIMIT) return;
    stroke.push([x, y]);
    points = [...points, [x, y]].slice(-MOST);
    paint();
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, () => {
      if (stroke) change(points);
      stroke = null;
    });
  }
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!step && event.key !== " ") return;
    event.preventDefault();
    cursor ??= [0, 0];
    if (step) cursor = cursor.map((value, i) => Math.max(-LIMIT, Math.min(LIMIT, value + step[i] * 0.1)));
    else change([...points, cursor].slice(-MOST));
    paint();
  });
  canvas.addEventListener("blur", () => { cursor = null; paint(); });
  const repaint = () => paint();
  document.addEventListener("theme", repaint);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

  root.append(el("div", { class: "layout" },
    el("form", { class: "card stack", onsubmit: (event) => { event.preventDefault(); run(); } },
      el("div", { class: "field" }, el("span", { class: "label", id: "shapes" }, "Start from"), el("div", { class: "choices", role: "group", "aria-labelledby": "shapes" },
        ...Object.entries(SHAPES).map(([name, make]) => button(name, () => change(make()))),
        button("clear", () => change([])),
      )),
      field("Schedule", select(["cosine", "linear_beta", "rectified_flow"], values.schedule ?? "cosine", (value) => set({ schedule: value }))),
      field("Sampler", select(names.sampler.filter((name) => !["flow_map", "consistency"].includes(name)), values.sampler ?? "ddim", (value) => set({ sampler: value }))),
      el("div", { class: "pair" },
        field("Steps", input("number", values.steps ?? "40", (value) => set({ steps: value }), { min: 1, max: 200 })),
        field("Particles", input("number", values.particles ?? "400", (value) => set({ particles: value }), { min: 1, max: 1000 })),
      ),
      el("div", { class: "pair" },
        field("Seed", input("number", values.seed ?? "0", (value) => set({ seed: value }), { min: 0 })),
        field("Spread", input("number", values.spread ?? "0.06", (value) => set({ spread: value }), { min: 0.01, max: 1, step: 0.01 })),
      ),
      el("label", { class: "check" }, arrows, " Show the score"),
      el("div", { class: "row" }, el("button", { class: "primary" }, "Run"), button("Stop", () => context.stop(status))),
    ),
    el("section", { class: "card stack", "aria-label": "The plane" },
      canvas,
      el("div", { class: "timeline" }, play, slider, place),
      el("div", { class: "row spread" },
        el("div", { class: "legend" }, el("span", { class: "c2" }, "data"), el("span", { class: "c1" }, "particles"), el("span", { class: "c0" }, "score × noise scale")),
        status.line,
      ),
    ),
  ));
  paint();
  return {
    run,
    stop() {
      halt();
      document.removeEventListener("theme", repaint);
      matchMedia("(prefers-color-scheme: dark)").removeEventListener("change", repaint);
    },
  };
}
