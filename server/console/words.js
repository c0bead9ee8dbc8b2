// Numbers as people read them, and texts counted as the API counts them.

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB"];

export const count = (number) => WHOLE.format(number);

/** `2,752,512` as `2.6 MiB`. */
export function bytes(number) {
  let value = number, unit = 0;
  while (Math.abs(value) >= 1024 && unit < UNITS.length - 1) { value /= 1024; unit += 1; }
  const digits = unit === 0 || Math.abs(value) >= 1000 ? 0 : 1;
  return `${value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })} ${UNITS[unit]}`;
}

/** `75` as `1 min 15 s`. */
export function duration(seconds) {
  if (seconds < 1) return "under 1 s";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${Math.round(seconds % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

// The API counts Unicode code points, JavaScript counts halves of some of them.

export const length = (text) => { let number = 0; for (const _ of text) number += 1; return number; };

/** `text[start:end]` in code points. */
export const slice = (text, start, end) => Array.from(text).slice(start, end).join("");

/** Where in `text` the words stand first, in code points; -1 where they do not. */
export function find(text, words) {
  const at = text.indexOf(words);
  return at < 0 ? -1 : length(text.slice(0, at));
}
