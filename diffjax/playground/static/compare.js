// One seed under several samplers, numbers of steps or scales, with the time and the evaluations.

import { code } from "./code.js";
import { button, el, field, input, plural, seconds, select, statusLine } from "./dom.js";
import { show } from "./pictures.js";
import { condition, guidance, more, sampler, seed, steps } from "./settings.js";

export const title = "Compare";
export const needs = "model";

const DEFAULTS = { sampler: "ddim, dpm_solver_pp_2m, heun, euler_ancestral", steps: "4, 8, 16, 32", scale: "1, 2, 4, 8" };
const HINTS = {
  sampler: "Names, with options if you like: ddim(eta=0.5)",
  steps: "Numbers of steps",
  scale: "Scales of the guidance below; 1 is none",
};

export function mount(root, context) {
  const { values, set } = context;
  const by = values.by ?? "sampler";
  const status = statusLine();
  const gallery = el("div", { class: "gallery large" });
  const items = input("text", values.items ?? DEFAULTS[by], (value) => set({ items: value }), { spellcheck: false });
  const all = () => items.value.split(/,(?![^(]*\))/).map((item) => item.trim()).filter(Boolean);

  // Samplers are also switched on and off by buttons.
  const chosen = by === "sampler" && el("details", {}, el("summary", {}, "All samplers"), el("div", { class: "choices" },
    ...context.names.sampler.map((name) => {
      const one = button(name, () => {
        const on = all().includes(name);
        items.value = (on ? all().filter((item) => item !== name) : [...all(), name]).join(", ");
        one.setAttribute("aria-pressed", !on);
        set({ items: items.value });
      }, { "aria-pressed": all().includes(name) });
      return one;
    })));

  async function run() {
    let cells = [];
    let done = 0;
    gallery.replaceChildren();
    await context.work("compare", { ...context.current(), items: items.value }, status, (event) => {
      if (event.items) {
        cells = event.items.map((name) => {
          const canvas = el("canvas", { class: "picture", width: 1, height: 1, role: "img", "aria-label": name });
          const about = el("div", { class: "numbers" }, "\u00a0");
          const figure = el("figure", {}, canvas, el("figcaption", {}, el("b", {}, by === "steps" ? `${name} steps` : by === "scale" ? `scale ${name}` : name), about));
          gallery.append(figure);
          return { canvas, about };
        });
      }
      const cell = cells[event.item];
      if (!cell) return;
      if (event.seen) {
        show(cell.canvas, event.seen);
        status.busy(`${event.item + 1} of ${cells.length}`);
      }
      if (event.failed) cell.about.textContent = event.failed;
      if (event.image) {
        show(cell.canvas, event.image);
        cell.about.replaceChildren(el("span", {}, plural(event.evaluations, "evaluation")), el("span", {}, seconds(event.seconds)));
      }
      if (event.image || event.failed) done += 1;
      if (done === cells.length) {
        status.done("Times are without compilation, one picture at a time.");
        root.dataset.done = String(Number(root.dataset.done || 0) + 1);
      }
    });
  }

  root.append(el("div", { class: "layout" },
    el("form", { class: "card stack", onsubmit: (event) => { event.preventDefault(); run(); } },
      field("Compare", select([["sampler", "samplers"], ["steps", "numbers of steps"], ["scale", "scales of guidance"]], by, (value) => {
        set({ by: value, items: "" }, { again: false });
        context.reopen();
      })),
      field("What to compare", items, HINTS[by]),
      chosen,
      ...condition(context), seed(context),
      by !== "sampler" && sampler(context),
      by !== "steps" && steps(context),
      ...(by === "scale" ? [guidance(context)[0]] : guidance(context)),
      more(context),
      el("div", { class: "row" }, el("button", { class: "primary" }, "Compare"), button("Stop", () => context.stop(status))),
    ),
    el("section", { class: "card stack", "aria-label": "The pictures" }, gallery, status.line, code(context, "compare")),
  ));
  return { run };
}
