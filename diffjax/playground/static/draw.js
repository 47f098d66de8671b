// One picture, step by step: x_t and the estimates of x_0 and eps at every time.

import { code } from "./code.js";
import { button, el, plural, seconds, statusLine } from "./dom.js";
import { download, show } from "./pictures.js";
import { condition, sampling, seed } from "./settings.js";

const STRIP = 10;

export const title = "Draw";
export const needs = "model";

export function mount(root, context) {
  const status = statusLine();
  const canvases = {};
  const figure = (name, caption, label) => {
    canvases[name] = el("canvas", { class: "picture", width: 1, height: 1, role: "img", "aria-label": label });
    return el("figure", {}, canvases[name], el("figcaption", {}, ...caption));
  };
  const sub = (letter, index) => [el("i", {}, letter), el("sub", {}, index)];
  const slider = el("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Time t", oninput: () => at(Number(slider.value)) });
  const place = el("output", {});
  const play = button("Play", () => replay());
  const strip = el("div", { class: "strip", "aria-hidden": "true" });
  const save = button("Save picture", () => download(canvases.x_t, "draw.png"), { disabled: true });
  let frames = [];
  let following = true;
  let timer = 0;

  function at(index) {
    const frame = frames[index];
    if (!frame) return;
    following = index === frames.length - 1;
    for (const name of ["x_t", "x_0", "eps"]) show(canvases[name], frame[name]);
    slider.value = index;
    const where = frame.last ? "t = 0, the picture" : `t = ${Number(frame.t.toPrecision(4))}`;
    slider.setAttribute("aria-valuetext", where);
    place.textContent = where;
    [...strip.children].forEach((thumb) => { thumb.style.opacity = Number(thumb.dataset.index) <= index ? 1 : 0.4; });
  }

  function replay() {
    clearInterval(timer);
    let index = 0;
    at(0);
    timer = setInterval(() => {
      index += 1;
      at(index);
      if (index >= frames.length - 1) clearInterval(timer);
    }, Math.min(120, 3000 / Math.max(1, frames.length)));
  }

  function thumbs() {
    const count = Math.min(STRIP, frames.length);
    strip.replaceChildren(...Array.from({ length: count }, (_, i) => {
      const index = Math.round((i * (frames.length - 1)) / Math.max(1, count - 1));
      const thumb = el("canvas", { class: "picture", onclick: () => at(index) });
      thumb.dataset.index = index;
      show(thumb, frames[index].x_t);
      return thumb;
    }));
  }

  async function run() {
    frames = [];
    following = true;
    clearInterval(timer);
    save.disabled = true;
    strip.replaceChildren();
    let total = 0;
    await context.work("draw", context.current(), status, (event) => {
      if (event.steps) total = event.steps;
      if (event.step) {
        const followed = following;
        frames.push(event.step);
        slider.max = Math.max(total, frames.length - 1);
        if (followed) at(frames.length - 1);
        status.busy(`step ${frames.length} of ${Math.max(total, frames.length)}`);
      }
      if (event.image) {
        const last = frames.at(-1) ?? {};
        frames.push({ t: 0, last: true, x_t: event.image, x_0: event.image, eps: last.eps });
        slider.max = frames.length - 1;
        at(frames.length - 1);
        thumbs();
        save.disabled = false;
        status.done(plural(event.evaluations, "evaluation"), seconds(event.seconds), event.compiling > 0.3 && `and ${seconds(event.compiling)} of compiling`);
        root.dataset.done = String(Number(root.dataset.done || 0) + 1);
      }
    });
  }

  root.append(el("div", { class: "layout" },
    el("form", { class: "card stack", onsubmit: (event) => { event.preventDefault(); run(); } },
      ...condition(context), seed(context), ...sampling(context),
      el("div", { class: "row" }, el("button", { class: "primary" }, "Draw"), button("Stop", () => context.stop(status))),
    ),
    el("section", { class: "card stack", "aria-label": "The picture" },
      el("div", { class: "triple" },
        figure("x_t", [...sub("x", "t"), ", the picture so far"], "x_t, the picture so far"),
        figure("x_0", ["estimate of ", ...sub("x", "0")], "estimate of x_0"),
        figure("eps", ["estimate of ", el("i", {}, "ε")], "estimate of the noise"),
      ),
      el("div", { class: "timeline" }, play, slider, place),
      strip,
      el("div", { class: "row spread" }, status.line, save),
      code(context, "draw"),
    ),
  ));
  return { run, stop: () => clearInterval(timer) };
}
