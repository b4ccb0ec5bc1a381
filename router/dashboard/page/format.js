// Numbers as people read them. Null is a dash: nothing is known.

const DASH = "–";

export function plain(value) {
  if (value === null || value === undefined) return DASH;
  if (value >= 1e6) return `${trimmed(value / 1e6)} M`;
  if (value >= 1e4) return `${trimmed(value / 1e3)} k`;
  return Number.isInteger(value) ? value.toLocaleString("en") : trimmed(value);
}

function trimmed(value) {
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return value.toFixed(digits);
}

export function seconds(value) {
  if (value === null || value === undefined) return DASH;
  if (value === 0) return "0 ms";
  if (value < 0.001) return `${Math.round(value * 1e6)} µs`;
  if (value < 0.01) return `${(value * 1000).toFixed(1)} ms`;
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  if (value < 100) return `${value.toFixed(value < 10 ? 2 : 1)} s`;
  return `${Math.round(value)} s`;
}

export function percent(share) {
  if (share === null || share === undefined) return DASH;
  if (share === 1) return "100 %";
  const value = Math.min(99.9, share * 100); // never rounded up to perfection
  return `${value.toFixed(1)} %`;
}

export function bytes(value) {
  if (value === null || value === undefined) return DASH;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let index = 0;
  while (value >= 1000 && index < units.length - 1) {
    value /= 1000;
    index += 1;
  }
  return `${index === 0 ? Math.round(value) : trimmed(value)} ${units[index]}`;
}

export function lasted(value) {
  const total = Math.max(0, Math.round(value));
  if (total < 60) return `${total} s`;
  if (total < 3600) return `${Math.floor(total / 60)} min`;
  if (total < 86400) return `${Math.floor(total / 3600)} h ${Math.floor((total % 3600) / 60)} min`;
  return `${Math.floor(total / 86400)} d ${Math.floor((total % 86400) / 3600)} h`;
}

export function clockTime(unix) {
  return new Date(unix * 1000).toLocaleTimeString("en-GB");
}

export function counted(number, one, many) {
  return `${plain(number)} ${number === 1 ? one : many || one + "s"}`;
}
