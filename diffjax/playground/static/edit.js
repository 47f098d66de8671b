// A picture that is drawn or loaded; a mask painted on it; what a task makes of it.

import { code } from "./code.js";
import { button, el, field, input, plural, seconds, select, statusLine } from "./dom.js";
import { Mask, cellsOf } from "./mask.js";
import { packedOf, show } from "./pictures.js";
import { condition, sampling, seed } from "./settings.js";

export const title = "Edit";
export const needs = "model";

const MASKED = ["inpaint", "repaint"];
const TASKS = [
  ["inpaint", "inpaint: fill what is painted"], ["repaint", "repaint: fill it, with jumps back"],
  ["vary", "vary"], ["invert", "invert: to noise and back"], ["super_resolution", "restore from fewer pixels"],
  ["deblur", "restore from a blur"], ["colourise", "restore from grey"],
];

export function mount(root, context) {
  const { model, run: own, values, set } = context;
  const [height, width, channels] = model.shape;
  const enlarges = model.enlarges;
  const task = enlarges ? "upscale" : values.task ?? "inpaint";
  const masked = MASKED.includes(task);
  const status = statusLine();
  const picture = el("canvas", { class: "picture", width: 1, height: 1, role: "img", "aria-label": "The picture to edit" });
  const paint = el("canvas", { class: "mask", tabIndex: 0, role: "img", "aria-label": "Mask: drag to paint what is made again; or arrow keys and the space bar", hidden: !masked });
  const results = el("div", { class: "gallery" });
  const mask = new Mask(paint, (text) => set({ mask: text }));
  let loaded = null; // a picture of the user's own, which has no address
  mask.radius = Math.max(1, Math.max(...cellsOf(height, width)) / 16);
  mask.size(...cellsOf(height, width), values.mask ?? "");

  async function run() {
    let columns = 0;
    let done = 0;
    results.replaceChildren();
    const sent = { ...context.current(), ...(loaded ? { picture: loaded } : {}) };
    if (enlarges && !sent.source && !loaded) sent.source = sources()[0];
    await context.work("edit", sent, status, (event) => {
      if (event.picture) {
        show(picture, event.picture);
        const [rows, cells] = cellsOf(...event.picture.shape);
        mask.size(rows, cells, context.values.mask ?? "");
      }
      if (event.seen) {
        done += 1;
        status.busy(`step ${done}`);
        if (!results.children.length) results.append(el("figure", {}, el("canvas", { class: "picture", "aria-hidden": "true" }), el("figcaption", {}, "on the way")));
        show(results.firstChild.firstChild, event.seen);
      }
      if (event.columns) {
        columns = event.columns;
        results.replaceChildren();
      }
      if (event.image) {
        const number = results.children.length;
        const name = task === "invert" ? ["image", "noise", "and back"][number] : number >= columns ? `${number - columns + 1}` : ["image", masked ? "known" : "measured"][number];
        const canvas = el("canvas", { class: "picture", role: "img", "aria-label": `Result: ${name}` });
        show(canvas, event.image);
        results.append(el("figure", {}, canvas, el("figcaption", {}, name)));
      }
      if (event.evaluations) {
        status.done(plural(event.evaluations, "evaluation"), seconds(event.seconds));
        root.dataset.done = String(Number(root.dataset.done || 0) + 1);
      }
    });
  }

  async function load(file) {
    let bitmap;
    try {
      bitmap = await createImageBitmap(file);
    } catch {
      context.fail(new Error(`${file.name} is no picture that this browser reads: choose a PNG or JPEG file`));
      return;
    }
    const canvas = el("canvas");
    // A model of one size is given that size; what is enlarged may have any, up to 256 pixels.
    const shrink = Math.min(1, 256 / Math.max(bitmap.width, bitmap.height));
    canvas.width = enlarges ? Math.max(1, Math.round(bitmap.width * shrink)) : width;
    canvas.height = enlarges ? Math.max(1, Math.round(bitmap.height * shrink)) : height;
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    loaded = packedOf(canvas, channels);
    drop.hidden = false;
    run();
  }

  const file = el("input", { type: "file", accept: "image/*", hidden: true, onchange: () => file.files[0] && load(file.files[0]) });
  const drop = button("Draw it again", () => { loaded = null; drop.hidden = true; run(); }, { hidden: true });
  const sources = () => context.runs.filter((run) => run.draws && run.name !== own.name).map((run) => run.name);
  const redraw = (changed) => { loaded = null; drop.hidden = true; set(changed); };

  root.append(el("div", { class: "layout" },
    el("form", { class: "card stack", onsubmit: (event) => { event.preventDefault(); run(); } },
      field("Task", select(enlarges ? [["upscale", "upscale"]] : TASKS, task, (value) => { set({ task: value }, { again: false }); context.reopen(); })),
      task === "vary" && range("Strength", "strength", 0.5, { min: 0.05, max: 1, step: 0.05 }),
      task === "super_resolution" && range("Factor", "factor", 2, { min: 2, max: 8, step: 1 }),
      task === "deblur" && range("Blur, in pixels", "std", 1, { min: 0.5, max: 4, step: 0.5 }),
      ...condition(context),
      enlarges && field("Picture drawn by", select(sources(), values.source, (value) => redraw({ source: value })), "A run of small pictures"),
      enlarges && el("details", { open: Boolean(values.source_label || values.source_prompt) }, el("summary", {}, "The picture's own condition"), el("div", { class: "stack" },
        field("Class number", input("number", values.source_label ?? "", (value) => redraw({ source_label: value }), { min: -1 })),
        field("Prompt", input("text", values.source_prompt ?? "", (value) => redraw({ source_prompt: value }), { placeholder: "as above" })),
      )),
      seed({ ...context, set: (changed) => redraw(changed) }, { title: "Seed of the picture" }),
      seed(context, { name: "edit_seed", title: "Seed of the edit" }),
      field("Results", input("number", values.count ?? "3", (value) => set({ count: value }), { min: 1, max: 8 })),
      ...sampling(context),
      el("div", { class: "row" }, el("button", { class: "primary" }, "Edit"), button("Stop", () => context.stop(status))),
    ),
    el("section", { class: "card stack", "aria-label": "The pictures" },
      el("div", { class: "two" },
        el("div", { class: "stack" },
          el("div", { class: "painter" }, picture, paint),
          masked && el("div", { class: "row" },
            button("Paint", () => tool(false), { id: "paint", "aria-pressed": "true" }),
            button("Erase", () => tool(true), { id: "erase", "aria-pressed": "false" }),
            button("Clear", () => mask.fill(0)),
          ),
          masked && brush(),
          el("div", { class: "row" }, button("Load a picture", () => file.click()), drop, file),
        ),
        el("div", { class: "stack" }, results, status.line),
      ),
      code(context, "edit"),
    ),
  ));

  function range(label, name, otherwise, limits) {
    const shown = el("output", {}, String(values[name] ?? otherwise));
    const control = el("input", { type: "range", ...limits, oninput: () => { shown.textContent = control.value; }, onchange: () => set({ [name]: control.value }) });
    control.value = values[name] ?? otherwise;
    const made = field(label, control);
    made.firstChild.append(" ", shown);
    return made;
  }

  function brush() {
    const control = el("input", { type: "range", min: 0.6, max: 8, step: 0.2, oninput: () => { mask.radius = Number(control.value); } });
    control.value = mask.radius;
    return field("Brush", control);
  }

  function tool(erases) {
    mask.erases = erases;
    root.querySelector("#paint").setAttribute("aria-pressed", !erases);
    root.querySelector("#erase").setAttribute("aria-pressed", erases);
  }

  return { run };
}
