// Building blocks of the page. Text from outside is only ever text: no markup is made of strings anywhere here, and the
// page's policy (trusted types) makes any attempt an error.

export const $ = (id) => document.getElementById(id);

/** An element; `text` becomes its text, functions listen to events, anything else is an attribute. */
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "text") made.textContent = value;
    else if (typeof value === "function") made.addEventListener(key, value);
    else made.setAttribute(key, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** An element of a drawing. */
export function draw(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") made.textContent = value;
    else made.setAttribute(key, String(value));
  }
  made.append(...children);
  return made;
}

const QUIET_MS = 1500;
let waiting = null;

/** Say something to whoever listens instead of looking; of what comes in quick succession only the last is said. */
export function announce(words) {
  clearTimeout(waiting);
  waiting = setTimeout(() => { $("said").textContent = words; }, QUIET_MS);
}

/** Show a notice, in place of the one of the same `topic`. `bad` is what went wrong; others go away by themselves. */
export function notify(topic, words, { bad = false, again = null } = {}) {
  dismiss(topic);
  const notice = el("div", { class: bad ? "notice bad" : "notice", "data-topic": topic }, el("p", { text: words }));
  if (again) {
    notice.append(el("button", { type: "button", text: again.label, click: () => { notice.remove(); again.act(); } }));
  }
  notice.append(el("button", { type: "button", text: "Dismiss", "aria-label": "Dismiss this notice", click: () => notice.remove() }));
  $("notices").append(notice);
  if (!bad) setTimeout(() => notice.remove(), 8000);
}

/** Take the notice of a topic away, if it is there. */
export function dismiss(topic) {
  for (const notice of $("notices").querySelectorAll(".notice")) if (notice.dataset.topic === topic) notice.remove();
}

/** Ask twice, or ask for a name. Resolves to the text (or true), or null when it was thought better of. */
export function sure({ title, words, yes, label = null, text = "" }) {
  const dialog = $("sure");
  $("sure-title").textContent = title;
  $("sure-words").textContent = words;
  $("sure-yes").textContent = yes;
  $("sure-label").textContent = label ?? "";
  $("sure-label").hidden = $("sure-text").hidden = label === null;
  $("sure-text").value = text;
  dialog.querySelector("button[value=no]").textContent = label === null ? "Keep" : "Cancel";
  dialog.returnValue = "no";
  dialog.showModal();
  if (label !== null) $("sure-text").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      if (dialog.returnValue !== "yes") resolve(null);
      else resolve(label === null ? true : $("sure-text").value.trim());
    }, { once: true });
  });
}

/** What a tab remembers until it is closed; nothing where the browser forbids it. */
export const tab = {
  kept(name) {
    try { return sessionStorage.getItem(name); } catch { return null; }
  },
  keep(name, value) {
    try { value === null ? sessionStorage.removeItem(name) : sessionStorage.setItem(name, value); } catch { /* until a reload */ }
  },
};
