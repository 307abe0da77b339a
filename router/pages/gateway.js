// Asking the gateway, with a key where it wants one. The key is kept in this page alone, while it is open.

const PATIENCE_MS = 10_000;
let key = "";

export class Problem extends Error {
  constructor(status, title, detail) {
    super(detail ? `${title}: ${detail}` : title);
    Object.assign(this, { status, title, detail });
  }
}

// There is no answer at all: the gateway is gone, or the way to it.
export class Unreachable extends Error {}

export const setKey = (text) => { key = text.trim(); };
export const hasKey = () => key !== "";

export async function ask(path, { headers = {}, ...options } = {}) {
  let response;
  try {
    response = await fetch(path, {
      ...options,
      headers: key ? { ...headers, Authorization: `Bearer ${key}` } : headers,
      cache: "no-store",
      credentials: "omit",
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
    if (response.ok) return await response.json();
  } catch (error) {
    throw new Unreachable(error.message);
  }
  const told = await response.json().catch(() => ({}));
  throw new Problem(response.status, told.title ?? response.statusText, told.detail ?? "");
}

// A link that a browser follows carries no key: with one, the page fetches what is behind it and shows that.
export function followWithKey(link) {
  link.addEventListener("click", async (event) => {
    if (!hasKey()) return;
    event.preventDefault();
    const shown = window.open("", "_blank");
    const document = await ask(link.getAttribute("href"));
    const blob = new Blob([JSON.stringify(document, null, 2)], { type: "application/json" });
    if (shown) shown.location = URL.createObjectURL(blob);
  });
}
