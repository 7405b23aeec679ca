/** What outlives a reload and ends with the tab. Two services behind one host, by prefix, do not share it. */

const PREFIX = `internlm-chat ${location.pathname} `;

export function recall(name, otherwise) {
  try {
    return JSON.parse(sessionStorage.getItem(PREFIX + name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Whether it could be kept: there may be no storage, or it may be full. */
export function keep(name, value) {
  try {
    if (value === null) sessionStorage.removeItem(PREFIX + name);
    else sessionStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
