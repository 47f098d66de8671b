// Elements, form fields with labels, and the status line that all panels have.

export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("aria-")) made.setAttribute(name, String(value));
    else if (value === false) continue;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (name in made && name !== "list" && name !== "form") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== undefined && child !== null && child !== false));
  return made;
}

let number = 0;

export function field(label, control, hint) {
  control.id ||= `field-${++number}`;
  const note = hint && el("span", { class: "hint", id: `${control.id}-hint` }, hint);
  if (note) control.setAttribute("aria-describedby", note.id);
  return el("div", { class: "field" }, el("label", { htmlFor: control.id }, label), control, note);
}

export function select(options, value, onchange) {
  const made = el("select", { onchange: () => onchange(made.value) });
  for (const option of options) {
    const [key, text] = Array.isArray(option) ? option : [option, option];
    made.append(el("option", { value: key }, text));
  }
  made.value = value ?? "";
  if (made.selectedIndex < 0) {
    made.append(el("option", { value }, value));
    made.value = value;
  }
  return made;
}

export function input(type, value, onchange, props = {}) {
  const made = el("input", { type, onchange: () => onchange(made.value), ...props });
  if (value !== undefined) made.value = value;
  return made;
}

export function button(text, onclick, props = {}) {
  return el("button", { type: "button", onclick, ...props }, text);
}

// A line that says what goes on; screen readers hear its changes.
export function statusLine() {
  const line = el("div", { class: "status", role: "status", "aria-live": "polite" });
  const say = (...parts) => line.replaceChildren(...parts.filter(Boolean).map((part) => el("span", {}, part)));
  return {
    line,
    busy(...parts) { line.classList.add("busy"); say(...parts); },
    done(...parts) { line.classList.remove("busy"); say(...parts); },
  };
}

export const seconds = (value) => (value < 10 ? `${value.toFixed(2)} s` : `${value.toFixed(1)} s`);
export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
