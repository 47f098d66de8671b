// Curves over steps as an SVG: a raw line, faint, and its mean over a window.

const NAMESPACE = "http://www.w3.org/2000/svg";
const MARGIN = { left: 58, right: 14, top: 12, bottom: 30 };

function svg(tag, attributes = {}, text = "") {
  const made = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(1).replace("e+", "e").replace(".0e", "e");
  return String(Number(value.toPrecision(3)));
}

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) ?? rough;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(value);
  return found;
}

// 1, 2 and 5 times the powers of ten between two logarithms; powers alone over many decades.
function decades(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= high; power += 1) {
    for (const factor of high - low > 3 ? [1] : [1, 2, 5]) {
      const mark = power + Math.log10(factor);
      if (mark >= low && mark <= high) found.push(mark);
    }
  }
  return found;
}

// The mean of the values in a window around each, in proportion to the curve's length.
function smoothed(points, share) {
  const half = Math.floor((points.length * share) / 2);
  if (!half) return points;
  const sums = [0];
  points.forEach(([, y]) => sums.push(sums.at(-1) + y));
  return points.map(([x], i) => {
    const from = Math.max(0, i - half);
    const to = Math.min(points.length, i + half + 1);
    return [x, (sums[to] - sums[from]) / (to - from)];
  });
}

// series: [{points: [[step, value]], smooth: share}]; logs: whether values are on a log scale.
export function draw(root, series, { logs, label }) {
  const width = Math.max(280, root.clientWidth);
  const height = 300;
  root.setAttribute("viewBox", `0 0 ${width} ${height}`);
  root.setAttribute("aria-label", label);
  root.replaceChildren();
  const usable = series.map(({ points, smooth }) => ({ smooth, points: logs ? points.filter(([, y]) => y > 0) : points }));
  const all = usable.flatMap(({ points }) => points);
  if (!all.length) {
    root.append(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "nothing to draw yet"));
    return;
  }
  const on = (y) => (logs ? Math.log10(y) : y);
  // The few largest values of the first steps do not flatten the rest.
  const sorted = all.map(([, y]) => on(y)).sort((a, b) => a - b);
  let low = sorted[0];
  let high = sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.995))];
  if (high === low) [low, high] = [low - 0.5, high + 0.5];
  const room = (high - low) * 0.05;
  [low, high] = [low - room, high + room];
  const last = Math.max(...all.map(([x]) => x), 1);
  const right = width - MARGIN.right;
  const bottom = height - MARGIN.bottom;
  const x = (step) => MARGIN.left + (step / last) * (right - MARGIN.left);
  const y = (value) => bottom - ((Math.min(on(value), high) - low) / (high - low)) * (bottom - MARGIN.top);
  const marks = (logs ? decades(low, high) : ticks(low, high, 5)).map((mark) => [mark, logs ? 10 ** mark : mark]);
  for (const [mark, value] of marks) {
    const at = bottom - ((mark - low) / (high - low)) * (bottom - MARGIN.top);
    root.append(svg("line", { class: "grid", x1: MARGIN.left, x2: right, y1: at, y2: at }));
    root.append(svg("text", { x: MARGIN.left - 8, y: at + 4, "text-anchor": "end" }, short(value)));
  }
  for (const step of ticks(0, last, width < 500 ? 4 : 7)) {
    root.append(svg("text", { x: x(step), y: height - 8, "text-anchor": step > last * 0.96 ? "end" : "middle" }, short(step)));
  }
  root.append(svg("line", { class: "axis", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }));
  const path = (points) => points.map(([step, value], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  usable.forEach(({ points, smooth }, i) => {
    const colour = `c${(i % 4) + 1}`;
    if (smooth) root.append(svg("path", { class: `raw ${colour}`, d: path(points) }));
    root.append(svg("path", { class: colour, d: path(smoothed(points, smooth)) }));
  });
}
