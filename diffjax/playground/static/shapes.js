// Points of the plane [-2, 2] x [-2, 2] in the address, four letters each, and some shapes of them.

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
export const LIMIT = 2;

const lettersOf = (value) => {
  const number = Math.max(0, Math.min(4095, Math.round(((value / LIMIT + 1) / 2) * 4095)));
  return LETTERS[number >> 6] + LETTERS[number & 63];
};

export const textOf = (points) => points.map(([x, y]) => lettersOf(x) + lettersOf(y)).join("");

export function pointsOf(text) {
  const found = [];
  for (let i = 0; i + 4 <= text.length; i += 4) {
    const numbers = [...text.slice(i, i + 4)].map((letter) => LETTERS.indexOf(letter));
    if (numbers.some((number) => number < 0)) return found;
    found.push([0, 2].map((k) => (((numbers[k] * 64 + numbers[k + 1]) / 4095) * 2 - 1) * LIMIT));
  }
  return found;
}

const range = (count, make) => Array.from({ length: count }, (_, i) => make(i / count, i));
const turn = (share) => 2 * Math.PI * share;

export const SHAPES = {
  moons: () => [
    ...range(40, (s) => [Math.cos(Math.PI * s) * 0.9 - 0.45, Math.sin(Math.PI * s) * 0.9 - 0.2]),
    ...range(40, (s) => [0.45 - Math.cos(Math.PI * s) * 0.9, 0.2 - Math.sin(Math.PI * s) * 0.9]),
  ],
  spiral: () => range(90, (s) => {
    const radius = 0.2 + 1.15 * s;
    return [radius * Math.cos(turn(2 * s)), radius * Math.sin(turn(2 * s))];
  }),
  ring: () => range(60, (s) => [1.1 * Math.cos(turn(s)), 1.1 * Math.sin(turn(s))]),
  islands: () => range(8, (s) => [1.15 * Math.cos(turn(s)), 1.15 * Math.sin(turn(s))]),
  heart: () => range(80, (s) => {
    const a = turn(s);
    return [
      (1.25 * 16 * Math.sin(a) ** 3) / 17,
      (1.25 * (13 * Math.cos(a) - 5 * Math.cos(2 * a) - 2 * Math.cos(3 * a) - Math.cos(4 * a))) / 17 + 0.1,
    ];
  }),
};
