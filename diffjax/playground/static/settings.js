// Controls that several panels share: the condition, the seed, and the settings of sampling.

import { button, el, field, input, select } from "./dom.js";

export const SAMPLING = ["sampler", "grid", "steps", "guidance", "scale", "threshold", "negative_prompt"];

export const own = (model, key) => ["", `the run's own: ${model.own[key] ?? "default"}`];

export function condition(context, { label = "label", prompt = "prompt", title = "" } = {}) {
  const { model, values, set } = context;
  const parts = [];
  if (model.classes.length) {
    const options = model.classes.map((name, i) => [String(i), name === String(i) ? name : `${i} · ${name}`]);
    options.push(["-1", "no class"]);
    parts.push(field(title || "Class", select(options, values[label] ?? "0", (value) => set({ [label]: value }))));
  }
  if (model.texts) {
    const box = input("text", values[prompt] ?? "", (value) => set({ [prompt]: value }), {
      placeholder: "a red apple", autocomplete: "off", maxLength: 2000,
    });
    parts.push(field(title || "Prompt", box));
  }
  return parts;
}

export function seed(context, { name = "seed", title = "Seed" } = {}) {
  const { values, set } = context;
  const box = input("number", values[name] ?? "0", (value) => set({ [name]: value }), { min: 0, step: 1, inputMode: "numeric" });
  const next = button("Next", () => {
    box.value = String(Number(box.value || 0) + 1);
    set({ [name]: box.value });
  }, { "aria-label": `Next ${title.toLowerCase()}` });
  const made = field(title, box);
  box.remove();
  made.append(el("div", { class: "row tight" }, box, next));
  return made;
}

export function steps({ model, values, set }) {
  return field("Steps", input("number", values.steps ?? "", (value) => set({ steps: value }), {
    min: 1, max: 1000, placeholder: String(model.own.steps ?? ""),
  }));
}

export function sampler({ model, names, values, set }, { otherwise = own(model, "sampler") } = {}) {
  return field("Sampler", select([otherwise, ...names.sampler], values.sampler, (value) => set({ sampler: value })));
}

export function guidance({ model, names, values, set }) {
  const scale = input("number", values.scale ?? "2", (value) => set({ scale: value }), { step: 0.5, min: -100, max: 100 });
  const box = field("Scale (1: none)", scale);
  const takes = (value) => value && value !== "none" && !value.includes("(") && value !== "compose";
  box.hidden = !takes(values.guidance);
  const kind = select([own(model, "guidance"), ...names.guidance.filter((name) => name !== "compose")], values.guidance, (value) => {
    box.hidden = !takes(value);
    set({ guidance: value, scale: takes(value) ? scale.value : "" });
  });
  return [field("Guidance", kind), box];
}

// The settings that are changed less often.
export function more({ model, names, values, set }) {
  const made = el("details", {}, el("summary", {}, "More settings"), el("div", { class: "stack" },
    field("Grid of times", select([own(model, "grid"), ...names.grid], values.grid, (value) => set({ grid: value }))),
    field("Threshold on x₀", select([own(model, "threshold"), ...names.threshold], values.threshold, (value) => set({ threshold: value }))),
    model.texts && field("Negative prompt", input("text", values.negative_prompt ?? "", (value) => set({ negative_prompt: value }))),
  ));
  made.open = ["grid", "threshold", "negative_prompt"].some((name) => values[name]);
  return made;
}

export function sampling(context, options) {
  return [sampler(context, options), steps(context), ...guidance(context), more(context)];
}
