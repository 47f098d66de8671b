// Light or dark: the system's choice, unless the switch says otherwise.

const dark = matchMedia("(prefers-color-scheme: dark)");

function stored() {
  try { return localStorage.getItem("theme"); } catch { return null; }
}

export function followTheme(control) {
  const shown = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  const draw = () => {
    const other = shown() === "dark" ? "light" : "dark";
    control.textContent = other === "dark" ? "Dark" : "Light";
    control.setAttribute("aria-label", `Use ${other} colours`);
  };
  if (stored()) document.documentElement.dataset.theme = stored();
  control.addEventListener("click", () => {
    const other = shown() === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = other;
    try { localStorage.setItem("theme", other); } catch { /* a private window */ }
    draw();
    document.dispatchEvent(new Event("theme"));
  });
  dark.addEventListener("change", draw);
  draw();
}
