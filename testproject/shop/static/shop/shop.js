// Everything works without this file, except the buttons that send several requests at once.
"use strict";

const text = (tag, content) => Object.assign(document.createElement(tag), { textContent: content });

// Chromium opens six connections to one host, so six is a crowd.
async function crowd(button) {
  const into = document.getElementById(button.dataset.into);
  const form = button.hasAttribute("data-form") ? button.form : null;
  const url = form ? form.action : button.dataset.url;
  const ask = async () => {
    const began = performance.now();
    const response = await fetch(url, { method: form ? "POST" : "GET", body: form && new FormData(form), cache: "no-store" });
    const body = await response.text();
    const role = form
      ? (response.headers.get("Idempotent-Replayed") ? "replayed" : response.ok ? "ran" : "refused")
      : response.headers.get("X-Single-Flight");
    return [response.status, role, what(body), `${Math.round(performance.now() - began)} ms`];
  };
  button.disabled = true;
  into.replaceChildren(text("p", "…"));
  const rows = await Promise.all(Array.from({ length: Number(button.dataset.crowd) }, () =>
    ask().catch((error) => ["failed", String(error), "", ""])));
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const title of ["Status", "Role", "Answer", "Took"]) head.append(Object.assign(text("th", title), { scope: "col" }));
  const tbody = table.createTBody();
  for (const row of rows) {
    const line = tbody.insertRow();
    for (const cell of row) line.append(text("td", cell));
  }
  into.replaceChildren(table);
  await refresh(into.closest("section"));
  button.disabled = false;
}

// The figures beside the button as the page would show them now.
async function refresh(section) {
  const response = await fetch(location.pathname, { cache: "no-store" });
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const fresh = page.querySelector(`#${section.id} dl`);
  if (fresh) section.querySelector("dl").replaceWith(fresh);
}

function what(body) {
  const paid = body.match(/Payment no\. \d+/);
  if (paid) return paid[0];
  try {
    const found = JSON.parse(body);
    return found.number ? `report ${found.number} by process ${found.process}` : found.detail || "";
  } catch {
    return body.slice(0, 60);
  }
}

for (const button of document.querySelectorAll(".needs-script")) {
  button.hidden = false;
  button.addEventListener("click", () => crowd(button));
}

const box = document.querySelector("[data-import]");
async function follow() {
  let pause = 3000;
  if (!document.hidden) {
    try {
      const state = await (await fetch(box.dataset.import, { cache: "no-store" })).json();
      const task = state.task;
      box.querySelector("progress").value = task ? task.progress : 0;
      box.querySelector('[data-field="task"]').textContent = task
        ? `${task.status}, attempt ${task.attempt}, ${Math.round(task.progress)} %` +
          (task.status === "running" && task.rate ? `, ${Math.round(task.rate)} rows/s, ${Math.ceil(task.seconds_left)} s left` : "")
        : "not started today";
      box.querySelector('[data-field="rows"]').textContent =
        state.attempts.map((one) => `${one.rows} by attempt ${one.attempt}`).join(", ") || "none yet";
      if (task && task.status === "running") pause = 1000;
    } catch {
      box.querySelector('[data-field="task"]').textContent = "the server does not answer";
    }
  }
  setTimeout(follow, pause);
}
if (box) setTimeout(follow, 1000);
