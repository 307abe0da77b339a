// What charts share: their size, their scales, and lines.

// Calls `draw` with the element's width whenever that changes.
export function onWidth(node, draw) {
  let width = 0;
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now > 0 && now !== width) draw((width = now));
  }).observe(node);
}

// A linear map of [low, high] to [from, to].
export const linear = (low, high, from, to) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);

export function logarithmic(low, high, from, to) {
  const along = linear(Math.log(low), Math.log(high), from, to);
  return (value) => along(Math.log(value));
}

// Round numbers from low to high, at most so many.
export function ticks(low, high, most) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((each) => each >= rough * 0.999);
  const found = [];
  for (let place = Math.ceil(low / step - 1e-9); place * step <= high + 1e-9; place += 1) found.push(Number((place * step).toPrecision(12)));
  return found;
}

// 1, 2, 5, 10, 20, … between low and high; of them those that are at least so far apart.
export function logTicks(low, high, at, apart) {
  const found = [];
  for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10) {
    for (const times of [1, 2, 3, 5, 7]) {
      const value = Number((times * power).toPrecision(3));
      if (value >= low && value <= high && (found.length === 0 || at(value) - at(found.at(-1)) >= apart)) found.push(value);
    }
  }
  return found;
}

// The path of a line through points, interrupted where there is no value.
export function line(points) {
  let open = false;
  return points.map(([x, y]) => {
    if (y === null) { open = false; return ""; }
    const step = `${open ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    open = true;
    return step;
  }).join("");
}
