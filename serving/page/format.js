// Formatting of numbers, times and statuses.

export const ACTIVE = ["validating_files", "queued", "running", "pausing", "paused"];
export const FINAL = ["succeeded", "failed", "cancelled"];
const STATUSES = { validating_files: "validating files" };
const TONES = { succeeded: "good", failed: "bad", cancelled: "warn", paused: "warn", running: "busy" };

export function statusText(status) {
  return STATUSES[status] ?? String(status);
}

export function toneOf(status) {
  return TONES[status] ?? "calm";
}

export function count(value) {
  return Number(value).toLocaleString("en-US");
}

/** A loss with four significant digits. */
export function loss(value) {
  if (!Number.isFinite(value)) return "–";
  return Math.abs(value) >= 1000 ? count(Math.round(value)) : Number(value.toPrecision(4)).toString();
}

export function percent(value) {
  return Number.isFinite(value) ? `${(100 * value).toFixed(1)}%` : "–";
}

/** A difference of two fractions in percentage points. */
export function points(value) {
  return Number.isFinite(value) ? `${(100 * value).toFixed(1)} pp` : "–";
}

export function bytes(value) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(value < 10 ? 1 : 0)} ${units[unit]}`;
}

/** Seconds since the epoch as local time. */
export function moment(seconds) {
  if (!seconds) return "–";
  const date = new Date(seconds * 1000);
  const two = (number) => String(number).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}
