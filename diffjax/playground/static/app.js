// The page: tabs, the run, the theme, and what panels are given.

import * as address from "./address.js";
import { get, stream } from "./api.js";
import { el } from "./dom.js";
import * as compare from "./compare.js";
import * as draw from "./draw.js";
import * as edit from "./edit.js";
import * as mix from "./mix.js";
import { followTheme } from "./theme.js";
import * as toy from "./toy.js";
import * as training from "./training.js";

const PANELS = { draw, compare, mix, edit, training, toy };
const DELAY = 350; // ms from a change of a control to the request

const byId = (id) => document.getElementById(id);
const models = new Map();
let known = { runs: [], names: {} };
let now = { panel: "", values: {} };
let mounted = null;
let work = new AbortController();
let timer = 0;

function fail(error) {
  const line = byId("error");
  if (error?.name === "AbortError") return;
  line.textContent = error ? error.message : "";
  line.hidden = !error;
}

function runOf(values) {
  return known.runs.find((run) => run.name === values.run) ?? known.runs.find((run) => run.draws) ?? known.runs[0];
}

function about(model, run) {
  const size = model ? model.shape.slice(0, 2).join(" × ") : "";
  const kind = model && (model.classes.length ? `${model.classes.length} classes` : model.texts ? "drawn from text" : "");
  byId("about").textContent = [run.name, model ? [size, kind, model.parametrisation && `predicts ${model.parametrisation}`, `step ${model.step}`].filter(Boolean).join(" · ") : run.kind].join(" — ");
}

// A panel's request; the one before it is ended.
async function request(panel, values, status, onEvent) {
  work.abort();
  const own = (work = new AbortController());
  fail(null);
  status.busy("waiting");
  try {
    await stream(panel, values, (event) => {
      if (own.signal.aborted) return;
      if (event.waiting) status.busy(`${event.waiting} before this one`);
      if (event.loading) status.busy(`loading ${event.loading}`);
      if (event.begun) status.busy("compiling the network, the first time only");
      onEvent(event);
    }, own.signal);
  } catch (error) {
    if (!own.signal.aborted) {
      status.done("");
      fail(error);
    }
  }
}

function contextOf(model, run) {
  const context = {
    model, run, runs: known.runs, modelOf, names: known.names, values: now.values, fail,
    current: () => ({ ...now.values, run: run.name }),
    set(changed, { again = true } = {}) {
      Object.assign(now.values, changed);
      address.write(now.panel, now.values);
      clearTimeout(timer);
      if (again) timer = setTimeout(() => mounted?.run?.(), DELAY);
    },
    work: request,
    reopen: () => open(),
    stop(status) {
      clearTimeout(timer);
      work.abort();
      status.done("stopped");
    },
  };
  return context;
}

async function modelOf(run) {
  if (!models.has(run.name)) {
    byId("about").textContent = `loading ${run.name} …`;
    await stream("describe", { run: run.name }, (event) => {
      if (event.model) models.set(run.name, event.model);
    });
  }
  return models.get(run.name);
}

async function open() {
  const found = address.read();
  const panel = found.panel in PANELS ? found.panel : Object.keys(PANELS)[0];
  mounted?.stop?.();
  work.abort();
  clearTimeout(timer);
  mounted = null;
  now = { panel, values: found.values };
  fail(found.panel && panel !== found.panel ? new Error(`there is no panel ${found.panel}: this is ${panel}`) : null);
  for (const tab of byId("tabs").children) {
    const chosen = tab.id === `tab-${panel}`;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    if (chosen) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  document.title = `${PANELS[panel].title} · diffjax playground`;
  const root = byId("panel");
  root.replaceChildren();
  delete root.dataset.done;
  root.setAttribute("aria-labelledby", `tab-${panel}`);
  const run = runOf(now.values);
  if (found.values.run && run.name !== found.values.run) {
    fail(new Error(`there is no run ${found.values.run} here: this is ${run.name}`));
  }
  byId("run").value = run.name;
  if (PANELS[panel].needs) {
    now.values.run = run.name;
    address.write(panel, now.values);
  }
  const needed = PANELS[panel].needs;
  let model = null;
  try {
    if (needed === "model") model = await modelOf(run);
  } catch (error) {
    byId("about").textContent = "";
    fail(error);
    return;
  }
  if (now.values !== found.values) return; // the page has moved on
  if (needed) about(model, run);
  else byId("about").textContent = PANELS[panel].about ?? "";
  mounted = PANELS[panel].mount(root, contextOf(model, run));
  root.dataset.panel = panel;
  mounted.run?.();
}

function go(panel, values) {
  address.write(panel, values, { push: true });
  open();
}

// Tabs by the arrow keys, Home and End, with one stop of the Tab key.
function tabs() {
  const names = Object.keys(PANELS);
  byId("tabs").append(...names.map((name, i) => el("button", {
    type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "panel",
    onclick: () => go(name, now.values.run ? { run: now.values.run } : {}),
    onkeydown: (event) => {
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: names.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const tab = byId("tabs").children[(to + names.length) % names.length];
      tab.focus();
      tab.click();
    },
  }, PANELS[name].title)));
}

async function start() {
  followTheme(byId("theme"));
  tabs();
  byId("skip").addEventListener("click", (event) => { event.preventDefault(); byId("panel").focus(); });
  try {
    known = await get("api/runs");
  } catch (error) {
    fail(error);
    return;
  }
  byId("run").append(...known.runs.map((run) => el("option", { value: run.name }, run.name)));
  byId("run").addEventListener("change", () => go(now.panel, { run: byId("run").value }));
  addEventListener("hashchange", open);
  await open();
}

start();
