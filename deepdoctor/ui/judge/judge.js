// Conveniences only: the pages work without this file. Number keys choose; the browser remembers where it left off.
"use strict";
const page = document.body.dataset;

document.documentElement.classList.add("scripts");

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("textarea, input:not([type=radio], [type=checkbox])");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !/^[1-9]$/.test(event.key)) return;
  const groups = Array.from(document.querySelectorAll("fieldset[role=radiogroup]"));
  const here = event.target.closest("fieldset[role=radiogroup]");
  const group = here || groups.find((each) => !each.querySelector(":checked"));
  const choice = group && group.querySelectorAll("input")[Number(event.key) - 1];
  if (!choice) return;
  event.preventDefault();
  choice.checked = true;
  const next = groups.slice(groups.indexOf(group) + 1).find((each) => !each.querySelector(":checked"));
  const goal = next ? next.querySelector("input") : document.querySelector("button.primary");
  goal.focus({ preventScroll: true });
  (next || goal).scrollIntoView({ block: "nearest" });
});

// A browser may refuse to remember, as inside another site's frame.
function remembered(key, value) {
  try {
    if (value !== undefined) localStorage.setItem(key, value);
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

if (page.home) remembered(`judge ${page.study}`, JSON.stringify({ home: page.home, name: page.rater }));
const place = document.getElementById("continue");
const last = place && remembered(`judge ${location.pathname.replace(/\/$/, "")}`);
if (last) {
  const link = document.createElement("a");
  const { home, name } = JSON.parse(last);
  link.href = home;
  link.textContent = `Go on as ${name}`;
  place.append(link, ", as you left off in this browser. Somebody else? Join below.");
  place.hidden = false;
}
