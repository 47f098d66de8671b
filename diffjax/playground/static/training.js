// A run's curves and grids of samples, as they are written.

import { post } from "./api.js";
import * as chart from "./chart.js";
import { button, el, field, select, statusLine } from "./dom.js";

export const title = "Training";
export const needs = "run";

const ago = (age) => (age < 7200 ? `${Math.round(age / 60)} min` : age < 172800 ? `${Math.round(age / 3600)} h` : `${Math.round(age / 86400)} days`);

const EVERY = 2000; // ms between two looks at the files

export function mount(root, context) {
  const { run: own, values, set } = context;
  const status = statusLine();
  const curves = new Map(); // a metric's name -> [[step, value]]
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  picture.setAttribute("class", "chart");
  picture.setAttribute("role", "img");
  const legend = el("div", { class: "legend" });
  const tiles = el("div", { class: "tiles" });
  const sheet = el("img", { class: "sheet", alt: "", hidden: true });
  const slider = el("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Step of the grid of samples", oninput: () => { followed = Number(slider.value) === grids.length - 1; grid(); } });
  const place = el("output", {});
  const metric = select([["loss", "loss"]], "loss", (value) => { set({ metric: value }, { again: false }); draw(); });
  const scale = select([["log", "logarithmic"], ["linear", "linear"]], values.scale ?? "log", (value) => { set({ scale: value }, { again: false }); draw(); });
  const smooth = select([["0", "none"], ["0.02", "a little"], ["0.08", "much"]], values.smooth ?? "0.02", (value) => { set({ smooth: value }, { again: false }); draw(); });
  let grids = [];
  let followed = true;
  let start = 0;
  let timer = 0;
  let stopped = false;

  function add(records) {
    for (const { step, ...record } of records) {
      for (const [name, value] of Object.entries(record)) {
        if (!curves.has(name)) curves.set(name, []);
        const points = curves.get(name);
        // A run that was resumed wrote some steps again.
        while (points.length && points.at(-1)[0] >= step) points.pop();
        points.push([step, value]);
      }
    }
  }

  function shown() {
    const chosen = metric.value;
    return chosen === "loss" && curves.has("eval_loss") ? ["loss", "eval_loss"] : [chosen];
  }

  function draw() {
    const names = shown();
    chart.draw(picture, names.map((name) => ({ points: curves.get(name) ?? [], smooth: name === "eval_loss" ? 0 : Number(smooth.value) })), {
      logs: scale.value === "log", label: `Curves of ${names.join(" and ")} over steps`,
    });
    legend.replaceChildren(...names.map((name, i) => el("span", { class: `c${i + 1}` }, name)));
    const facts = [["step", Math.max(0, ...[...curves.values()].map((points) => points.at(-1)[0]))]];
    for (const [name, words] of [["loss", "loss"], ["eval_loss", "eval loss"], ["images_per_second", "images a second"], ["learning_rate", "learning rate"]]) {
      if (curves.has(name)) facts.push([words, curves.get(name).at(-1)[1]]);
    }
    tiles.replaceChildren(...facts.map(([name, value]) => el("div", { class: "tile" }, el("span", {}, name), el("strong", {}, name === "step" ? String(value) : chart.short(value)))));
  }

  function choices() {
    const known = new Set([...metric.options].map((option) => option.value));
    for (const name of [...curves.keys()].sort()) if (!known.has(name)) metric.append(el("option", { value: name }, name));
    if (values.metric && curves.has(values.metric)) metric.value = values.metric;
  }

  function grid() {
    const name = grids[Number(slider.value)];
    sheet.hidden = !name;
    if (!name) return;
    const step = Number(name.match(/\d+/)[0]);
    const address = `grids/${encodeURIComponent(own.name)}/${name}`;
    if (sheet.getAttribute("src") !== address) sheet.src = address;
    sheet.alt = `Samples after step ${step}`;
    place.textContent = `step ${step}`;
    slider.setAttribute("aria-valuetext", place.textContent);
  }

  async function look() {
    try {
      const found = await post("api/training", { run: own.name, start });
      if (stopped) return;
      if (found.restarted) curves.clear();
      add(found.records);
      const news = found.records.length || found.grids.length !== grids.length;
      start = found.next;
      if (found.grids.length !== grids.length) {
        grids = found.grids;
        slider.max = Math.max(0, grids.length - 1);
        if (followed) slider.value = slider.max;
        grid();
      }
      if (news) {
        choices();
        draw();
      }
      if (!curves.size) status.done("no metrics yet: they are shown as soon as the run writes them");
      else if (found.age < 60) status.busy("live: new lines are shown every 2 seconds");
      else status.done(`last written ${ago(found.age)} ago`);
      root.dataset.done = String(Number(root.dataset.done || 0) + 1);
    } catch (error) {
      if (!stopped) context.fail(error);
    }
  }

  async function loop() {
    if (!document.hidden) await look();
    if (!stopped) timer = setTimeout(loop, EVERY);
  }

  const resized = () => draw();
  addEventListener("resize", resized);
  root.append(el("div", { class: "stack" },
    tiles,
    el("section", { class: "card stack", "aria-label": "Curves" },
      el("div", { class: "triple fields" }, field("Curve", metric), field("Scale", scale), field("Smoothing", smooth)),
      picture, el("div", { class: "row spread" }, legend, status.line),
    ),
    el("section", { class: "card stack", "aria-label": "Grids of samples" },
      el("h2", {}, "Samples while it trains"),
      el("div", { class: "timeline" }, button("Latest", () => { followed = true; slider.value = slider.max; grid(); }), slider, place),
      sheet,
    ),
  ));
  return {
    run: loop,
    stop() {
      stopped = true;
      clearTimeout(timer);
      removeEventListener("resize", resized);
    },
  };
}
