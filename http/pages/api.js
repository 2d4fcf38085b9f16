/** Calls of the server: an answer, a refusal with its problem (RFC 9457), or no answer at all. */

import { heardTime } from "./clock.js";

/** Where the server is: one above these files. A proxy may put a path in front of it. */
export const BASE = new URL("..", import.meta.url);

/** Milliseconds in which an answer must have come. A payment waits three seconds for its durability at most. */
const ANSWER_MS_MAX = 20_000;

/** The server said no. `code` decides; `problem` has what it says beside that. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail ?? `The server answered ${status}.`);
    this.status = status;
    this.code = problem.code ?? "unreadable_answer";
    this.problem = problem;
  }
}

/** No answer came: whether the call was carried out is not known. */
export class Lost extends Error {}

/** The address of a path. @returns {string} */
export const address = (path) => new URL(path.replace(/^\//, ""), BASE).href;

/**
 * One call.
 *
 * @param {string} method
 * @param {string} path begins with a slash
 * @param {{body?: unknown, type?: string, headers?: Record<string, string>, signal?: AbortSignal}} [options]
 * @returns {Promise<{status: number, body: any, sentAt: number}>} `sentAt` by performance.now()
 * @throws {Refused | Lost}
 */
export async function call(method, path, { body, type = "application/json", headers = {}, signal } = {}) {
  const sentAt = performance.now();
  const signals = [AbortSignal.timeout(ANSWER_MS_MAX), ...(signal ? [signal] : [])];
  let response, text;
  try {
    response = await fetch(address(path), {
      method,
      headers: body === undefined ? headers : { "Content-Type": type, ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      credentials: "omit",
      signal: AbortSignal.any(signals),
    });
    text = await response.text();
  } catch (error) {
    throw new Lost(String(error));
  }
  heardTime(response.headers.get("Date"), sentAt);
  const read = parsed(text);
  if (response.ok && read !== undefined) return { status: response.status, body: read, sentAt };
  throw new Refused(response.status, read ?? {});
}

/** JSON, or undefined for what is none: a proxy's page of its own. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
