// The settings in the address: #panel?name=value&... Every change of a control is written there.

export function read() {
  const [panel, query] = location.hash.replace(/^#/, "").split(/\?(.*)/s);
  return { panel: decodeURIComponent(panel || ""), values: Object.fromEntries(new URLSearchParams(query || "")) };
}

export function write(panel, values, { push = false } = {}) {
  const kept = Object.entries(values).filter(([, value]) => value !== "" && value !== undefined && value !== null);
  const query = new URLSearchParams(kept).toString();
  const hash = `#${panel}${query ? `?${query}` : ""}`;
  if (hash === location.hash) return;
  history[push ? "pushState" : "replaceState"](null, "", hash);
}
