/** Numbers, times and durations as people read them. */

const WHOLE = new Intl.NumberFormat("en");
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const MOMENT = new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" });

/** 1,234,567 */
export const count = (value) => WHOLE.format(value);

/** 0.3, 127, 1.2M */
export const brief = (value) => (value < 10 ? WHOLE.format(Math.round(value * 10) / 10) : value < 10_000 ? WHOLE.format(Math.round(value)) : SHORT.format(value));

/** 14:05:09, where the reader is. */
export const clockTime = (instant) => CLOCK.format(new Date(instant));

/** Fri, 27 Nov 2026, 12:00, where the reader is. */
export const moment = (instant) => MOMENT.format(new Date(instant));

/** 1 ticket, 2 tickets */
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** A countdown: 0:09, 14:32, 2:03:00, 3 days. Rounded up, so that 0:00 means that nothing is left. */
export function countdown(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  const [days, hours, minutes] = [Math.floor(seconds / 86_400), Math.floor(seconds / 3600), Math.floor(seconds / 60)];
  if (days >= 2) return `${days} days`;
  const two = (value) => String(value).padStart(2, "0");
  return hours > 0 ? `${hours}:${two(minutes % 60)}:${two(seconds % 60)}` : `${minutes}:${two(seconds % 60)}`;
}

/** A duration in words: 1 minute, 15 minutes, 2 hours 30 minutes. */
export function duration(ms) {
  if (ms < 1000) return plural(Math.max(0, Math.round(ms)), "millisecond");
  const parts = [];
  let rest = Math.round(ms / 1000);
  for (const [size, name] of [[86_400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]]) {
    const number = Math.floor(rest / size);
    rest -= number * size;
    if (number > 0) parts.push(plural(number, name));
  }
  return parts.slice(0, 2).join(" ");
}
