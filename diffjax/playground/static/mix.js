// Between two seeds, along a walk of several seeds, or between two classes or prompts.

import { code } from "./code.js";
import { button, el, field, input, select, statusLine } from "./dom.js";
import { show } from "./pictures.js";
import { condition, own, sampling, seed } from "./settings.js";

export const title = "Mix";
export const needs = "model";

export function mount(root, context) {
  const { model, values, set } = context;
  const between = values.between ?? "seeds";
  const status = statusLine();
  const gallery = el("div", { class: "gallery" });
  const screen = el("canvas", { class: "picture", width: 1, height: 1, role: "img", "aria-label": "The walk" });
  const slider = el("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Place on the way", oninput: () => { stop(); at(Number(slider.value)); } });
  const place = el("output", {});
  const play = button("Play", () => (timer ? stop() : start()));
  let frames = [];
  let mixtures = [];
  let timer = 0;

  const names = (end) => (between === "conditions" && model.classes.length ? model.classes[Number(end)] ?? "no class" : between === "conditions" ? end : `seed ${end}`);
  const nameOf = ({ ends, weight }) => (weight === 0 ? names(ends[0]) : weight === 1 ? names(ends[1]) : `${Math.round(100 * weight)} % ${names(ends[1])}`);

  function at(index) {
    if (!frames[index]) return;
    show(screen, frames[index]);
    slider.value = index;
    place.textContent = nameOf(mixtures[index]);
    slider.setAttribute("aria-valuetext", place.textContent);
  }

  function start() {
    play.textContent = "Pause";
    let direction = 1;
    timer = setInterval(() => {
      let index = Number(slider.value) + direction;
      if (index >= frames.length || index < 0) {
        if (between === "walk") index = 0;
        else {
          direction = -direction;
          index = Number(slider.value) + direction;
        }
      }
      at(index);
    }, 160);
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  }

  async function run() {
    stop();
    frames = [];
    let cells = [];
    gallery.replaceChildren();
    await context.work("mix", context.current(), status, (event) => {
      if (event.mixtures) {
        mixtures = event.mixtures;
        cells = mixtures.map((mixture) => {
          const canvas = el("canvas", { class: "picture", width: 1, height: 1, role: "img", "aria-label": nameOf(mixture) });
          gallery.append(el("figure", {}, canvas, el("figcaption", {}, nameOf(mixture))));
          return canvas;
        });
        slider.max = mixtures.length - 1;
      }
      if (event.image) {
        show(cells[event.item], event.image);
        frames[event.item] = event.image;
        at(event.item);
        status.busy(`${event.item + 1} of ${cells.length}`);
        if (event.item === cells.length - 1) {
          status.done(`${cells.length} pictures`);
          root.dataset.done = String(Number(root.dataset.done || 0) + 1);
        }
      }
    });
  }

  const other = condition(context, { label: "label_to", prompt: "prompt_to", title: model.classes.length ? "Class at the end" : "Prompt at the end" });
  const keeps = model.jumps && between !== "conditions";
  const otherwise = keeps ? own(model, "sampler") : ["", "ddim: draws no noise of its own"];
  const ways = [["seeds", "two seeds"], ["walk", "a walk of several seeds"]];
  if (other.length) ways.push(["conditions", model.classes.length ? "two classes" : "two prompts"]);
  root.append(el("div", { class: "layout" },
    el("form", { class: "card stack", onsubmit: (event) => { event.preventDefault(); run(); } },
      field("Mix", select(ways, between, (value) => { set({ between: value }, { again: false }); context.reopen(); })),
      ...condition(context),
      ...(between === "conditions" ? other : []),
      ...(between === "walk"
        ? [field("Seeds", input("text", values.seeds ?? "0, 1, 2", (value) => set({ seeds: value })), "The walk comes back to the first")]
        : [seed(context, { title: between === "seeds" ? "First seed" : "Seed" })]),
      between === "seeds" && seed(context, { name: "seed_to", title: "Second seed" }),
      field(between === "walk" ? "Pictures from seed to seed" : "Pictures", input("number", values.count ?? "7", (value) => set({ count: value }), { min: 2, max: 16 })),
      ...sampling(context, { otherwise }),
      el("div", { class: "row" }, el("button", { class: "primary" }, "Mix"), button("Stop", () => context.stop(status))),
    ),
    el("section", { class: "card stack", "aria-label": "The pictures" },
      el("div", { class: "screen" }, screen),
      el("div", { class: "timeline" }, play, slider, place),
      gallery, status.line, code(context, "mix"),
    ),
  ));
  return { run, stop };
}
