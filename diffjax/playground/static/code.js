// "Copy as Python / as command": the code for what is seen.

import { stream } from "./api.js";
import { button, el } from "./dom.js";

export function code(context, panel) {
  const said = el("span", { class: "hint", role: "status" });
  const shown = el("pre", { hidden: true, tabIndex: 0 });
  async function copy(kind) {
    try {
      const found = {};
      said.textContent = "";
      await stream("code", { panel, values: context.current() }, (event) => Object.assign(found, event));
      shown.textContent = found[kind].trimEnd();
      shown.setAttribute("aria-label", kind);
      shown.hidden = false;
      await navigator.clipboard?.writeText(found[kind]);
      said.textContent = "copied";
    } catch (error) {
      if (error.name === "NotAllowedError") said.textContent = "select the text below to copy it";
      else context.fail(error);
    }
  }
  return el("div", { class: "code" },
    el("div", { class: "row" },
      button("Copy as Python", () => copy("python")),
      button("Copy as command", () => copy("command")),
      said,
    ),
    shown,
  );
}
