/* Refreshes the dashboard in place. The page is complete without this script, but must then be reloaded by hand.
 *
 * The server renders everything. Here the new rendering is merged into the old one, so that focus, open details and
 * the place on the page stay, and a screen reader reads only what changed. */
"use strict";

(() => {
  const root = document.getElementById("goscope");
  const live = document.getElementById("goscope-live");
  if (!root || !live) return;
  const warning = document.getElementById("goscope-warning");
  const pause = document.getElementById("goscope-pause");
  const choice = document.getElementById("goscope-interval");
  const token = document.querySelector("#goscope-form input[name=csrfmiddlewaretoken]");
  const LONGEST_WAIT = 60, LONGEST_ANSWER = 10, LONGEST_LINK = 1500;

  let interval = Number(root.dataset.interval), failures = 0, paused = false, busy = false, leaving = false;
  let timer, base = performance.now(), good = shown("[data-reachable=yes]") ? shown("[data-as-of]").dataset.asOf : null;

  function shown(selector) { return live.querySelector(selector); }

  // Merging

  function merge(old, fresh) {
    if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) { old.replaceWith(fresh); return; }
    if (old.nodeType !== Node.ELEMENT_NODE) { if (old.data !== fresh.data) old.data = fresh.data; return; }
    for (const { name, value } of fresh.attributes) {
      if (keeps(old, name)) continue;
      if (old.getAttribute(name) === value) continue;
      old.setAttribute(name, value);
      // What was ticked is no longer what is there: it must be looked at again.
      if (name === "value" && old.type === "checkbox") old.checked = false;
    }
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && !keeps(old, name)) old.removeAttribute(name);
    }
    mergeChildren(old, fresh);
  }

  // What the operator opened stays open.
  function keeps(element, name) {
    return (name === "open" && element.nodeName === "DETAILS") || (name === "hidden" && element.classList.contains("goscope-all"));
  }

  function mergeChildren(old, fresh) {
    const known = new Map([...old.children].filter((one) => one.id).map((one) => [one.id, one]));
    const wanted = new Set([...fresh.children].map((one) => one.id));
    let at = old.firstChild;
    for (const next of [...fresh.childNodes]) {
      let match = next.id ? known.get(next.id) : null;
      // Nodes that are gone are removed first. Moving the nodes that stay would take the focus away.
      while (at && match && at !== match && (at.nodeType !== Node.ELEMENT_NODE || !at.id || !wanted.has(at.id))) at = removed(at);
      if (!next.id) {
        while (at && at.id && !wanted.has(at.id)) at = removed(at);
        if (at && !at.id && at.nodeName === next.nodeName) match = at;
      }
      if (!match) { old.insertBefore(next, at); continue; }
      if (match === at) at = at.nextSibling; else old.insertBefore(match, at);
      merge(match, next);
    }
    while (at) at = removed(at);
  }

  function removed(node) { const next = node.nextSibling; node.remove(); return next; }

  function show(fresh) {
    const focused = live.contains(document.activeElement) ? document.activeElement : null;
    const section = focused && focused.closest("section");
    mergeChildren(live, fresh);
    base = performance.now();
    if (focused && !live.contains(focused)) {
      const heading = section && live.contains(section) ? section.querySelector("h2") : shown("h2");
      if (heading) { heading.tabIndex = -1; heading.focus({ preventScroll: true }); }
    }
    tick();
  }

  // Countdowns

  function duration(seconds) {
    const whole = Math.floor(seconds);
    for (const [size, unit, small, part] of [[86400, "d", 3600, "h"], [3600, "h", 60, "m"], [60, "m", 1, "s"]]) {
      if (whole >= size) return `${Math.floor(whole / size)} ${unit} ${String(Math.floor(whole % size / small)).padStart(2, "0")} ${part}`;
    }
    return `${whole} s`;
  }

  function tick() {
    const passed = (performance.now() - base) / 1000;
    for (const one of live.querySelectorAll("[data-left], [data-age]")) {
      const down = "left" in one.dataset;
      const seconds = down ? Math.max(0, Number(one.dataset.left) - passed) : Number(one.dataset.age) + passed;
      const text = duration(seconds);
      if (one.textContent !== text) one.textContent = text;
    }
    for (const one of live.querySelectorAll(".goscope-ticks, .goscope-all")) one.hidden = false;
  }

  // Refreshing

  function wait() { return Math.min(LONGEST_WAIT, interval * 2 ** Math.min(failures, 6)); }

  function plan() {
    clearTimeout(timer);
    if (!paused && !document.hidden && !leaving) timer = setTimeout(refresh, wait() * 1000);
  }

  // Selecting all, and menus of which one is open

  live.addEventListener("change", (event) => {
    const table = event.target.closest("table");
    if (!table || event.target.type !== "checkbox") return;
    const boxes = [...table.querySelectorAll("tbody .goscope-pick input")], all = table.querySelector(".goscope-all");
    if (event.target === all) for (const one of boxes) one.checked = all.checked;
    else all.checked = boxes.every((one) => one.checked);
  });
  function closeMenus(but) {
    for (const one of live.querySelectorAll(".goscope-menu[open]")) if (one !== but) one.open = false;
  }
  document.addEventListener("click", (event) => closeMenus(event.target.closest(".goscope-menu")));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const open = document.activeElement && document.activeElement.closest(".goscope-menu[open]");
    closeMenus(null);
    if (open) open.querySelector("summary").focus();
  });

  function request(signal) {
    const query = root.dataset.query, options = { credentials: "same-origin", redirect: "manual", cache: "no-store", signal };
    if (query.length <= LONGEST_LINK) return fetch(query ? `${root.dataset.live}?${query}` : root.dataset.live, options);
    const body = new URLSearchParams({ query, csrfmiddlewaretoken: token.value });
    return fetch(root.dataset.live, { ...options, method: "POST", body });
  }

  async function refresh() {
    if (busy) return;
    busy = true;
    clearTimeout(timer);
    const control = new AbortController();
    const limit = setTimeout(() => control.abort(), LONGEST_ANSWER * 1000);
    try {
      const response = await request(control.signal);
      if (response.type === "opaqueredirect") throw new Error("You are signed out: reload the page to sign in.");
      if (response.status === 403) {
        live.replaceChildren();
        throw new Error("You no longer have the permission to see this page.");
      }
      if (!response.ok && response.status !== 503) throw new Error(`The site answered with the error ${response.status}.`);
      const fresh = new DOMParser().parseFromString(await response.text(), "text/html").body;
      const state = fresh.querySelector("[data-reachable]");
      if (!state) throw new Error(response.ok ? "The site answered with another page." : `The site answered with the error ${response.status}.`);
      if (state.dataset.reachable === "no") {
        // The last good data stay; a page that never had any shows what is wrong.
        if (good === null && response.ok) show(fresh);
        throw new Error(`MongoDB can't be reached: ${state.dataset.error}`);
      }
      good = state.dataset.asOf;
      failures = 0;
      show(fresh);
      calm();
    } catch (error) {
      failures += 1;
      if (!leaving) warn(error);
    } finally {
      clearTimeout(limit);
      busy = false;
      plan();
    }
  }

  function warn(error) {
    const reason = error.name === "AbortError" ? "The site did not answer in time." : error instanceof TypeError ? "The site can't be reached." : error.message;
    const age = good === null ? "" : ` What is shown is as of ${good}.`;
    const text = `Refreshing fails.${age} ${reason} ${paused ? "" : `It is tried again every ${duration(wait())}.`}`.trim();
    if (warning.textContent !== text) warning.textContent = text;
    warning.hidden = false;
    root.classList.add("goscope-stale");
  }

  function calm() {
    warning.hidden = true;
    warning.textContent = "";
    root.classList.remove("goscope-stale");
  }

  // Controls

  function remembered(name, value) {
    try {
      if (value !== undefined) sessionStorage.setItem(`goscope.${name}`, value);
      return sessionStorage.getItem(`goscope.${name}`);
    } catch { return null; }
  }

  function setPaused(now) {
    paused = now;
    pause.setAttribute("aria-pressed", String(now));
    remembered("paused", now ? "yes" : "no");
  }

  pause.addEventListener("click", () => {
    setPaused(!paused);
    if (paused) clearTimeout(timer); else refresh();
  });
  choice.addEventListener("change", () => {
    interval = Number(choice.value);
    remembered("interval", choice.value);
    plan();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) clearTimeout(timer); else if (!paused) refresh();
  });
  window.addEventListener("online", () => { if (!paused && !document.hidden) refresh(); });
  window.addEventListener("pagehide", () => { leaving = true; clearTimeout(timer); });
  window.addEventListener("pageshow", () => { leaving = false; plan(); });

  const before = remembered("interval");
  if ([...choice.options].some((one) => one.value === before)) {
    choice.value = before;
    interval = Number(before);
  } else choice.value = String(interval);
  document.getElementById("goscope-auto").hidden = false;
  setPaused(remembered("paused") === "yes");
  if (good === null && shown("[data-reachable=no]")) failures = 1;
  setInterval(tick, 1000);
  tick();
  plan();
})();
