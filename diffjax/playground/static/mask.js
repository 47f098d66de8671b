// A mask to paint on a picture: cells that are to be made again. Its bits are in the address.

import { base64Of, bytesOf } from "./pictures.js";

const CELLS = 64;

export function cellsOf(height, width) {
  const every = Math.ceil(Math.max(height, width) / CELLS);
  return [Math.ceil(height / every), Math.ceil(width / every)];
}

export class Mask {
  constructor(canvas, onchange) {
    Object.assign(this, { canvas, onchange, radius: 1.5, erases: false });
    this.size(1, 1, "");
    let last = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      last = this.cell(event);
      this.line(last, last);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      const next = this.cell(event);
      this.line(last, next);
      last = next;
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, () => {
        if (last) this.onchange(this.text());
        last = null;
      });
    }
    // By keyboard: arrows move a cursor, the space bar paints.
    this.cursor = null;
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!step && event.key !== " ") return;
      event.preventDefault();
      this.cursor ??= [this.columns / 2, this.rows / 2];
      if (step) {
        this.cursor = [
          Math.min(this.columns - 1, Math.max(0, this.cursor[0] + step[0])),
          Math.min(this.rows - 1, Math.max(0, this.cursor[1] + step[1])),
        ];
      } else {
        this.line(this.cursor, this.cursor);
        this.onchange(this.text());
      }
      this.draw();
    });
    canvas.addEventListener("blur", () => { this.cursor = null; this.draw(); });
  }

  // For a picture of so many cells; without bits the right half is painted.
  size(rows, columns, text) {
    if (this.rows === rows && this.columns === columns && text === this.text()) return;
    Object.assign(this, { rows, columns, painted: new Uint8Array(rows * columns) });
    const bytes = text ? bytesOf(text.replaceAll("-", "+").replaceAll("_", "/")) : null;
    const whole = bytes && bytes.length === Math.ceil((rows * columns) / 8);
    for (let i = 0; i < rows * columns; i += 1) {
      this.painted[i] = whole ? (bytes[i >> 3] >> (7 - (i & 7))) & 1 : Number(i % columns >= columns >> 1);
    }
    this.draw();
  }

  cell(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * this.columns - 0.5, ((event.clientY - box.top) / box.height) * this.rows - 0.5];
  }

  line([x0, y0], [x1, y1]) {
    const steps = Math.ceil(Math.max(Math.abs(x1 - x0), Math.abs(y1 - y0), 1) * 2);
    for (let s = 0; s <= steps; s += 1) this.dot(x0 + ((x1 - x0) * s) / steps, y0 + ((y1 - y0) * s) / steps);
    this.draw();
  }

  dot(x, y) {
    for (let row = 0; row < this.rows; row += 1) {
      for (let column = 0; column < this.columns; column += 1) {
        if ((column - x) ** 2 + (row - y) ** 2 <= this.radius ** 2) this.painted[row * this.columns + column] = this.erases ? 0 : 1;
      }
    }
  }

  fill(value) {
    this.painted.fill(value);
    this.draw();
    this.onchange(this.text());
  }

  text() {
    if (!this.painted) return null;
    const bytes = new Uint8Array(Math.ceil(this.painted.length / 8));
    this.painted.forEach((bit, i) => { bytes[i >> 3] |= bit << (7 - (i & 7)); });
    return base64Of(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  }

  draw() {
    const { canvas, rows, columns } = this;
    const scale = Math.max(1, Math.floor(448 / Math.max(rows, columns)));
    canvas.width = columns * scale;
    canvas.height = rows * scale;
    const pen = canvas.getContext("2d");
    pen.fillStyle = "rgb(86 104 245 / 62%)";
    for (let i = 0; i < rows * columns; i += 1) {
      if (this.painted[i]) pen.fillRect((i % columns) * scale, Math.floor(i / columns) * scale, scale, scale);
    }
    if (this.cursor) {
      pen.strokeStyle = "#fff";
      pen.lineWidth = 2;
      pen.strokeRect(Math.round(this.cursor[0]) * scale, Math.round(this.cursor[1]) * scale, scale, scale);
    }
  }
}
