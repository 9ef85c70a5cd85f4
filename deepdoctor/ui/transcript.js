// Keeps the panels of a comparison in step with the component's value. Texts are set as text; the answer alone arrives as HTML
// that the page has escaped. Folds keep the reader's choice, scrolling up in a thought included; nothing is redrawn that has not changed.
const SIDES = Array.from(element.querySelectorAll(".dd-side"), (section) => section.dataset.side);
const part = (side, name) => element.querySelector(`[data-side="${side}"] [data-part="${name}"]`);
const choices = {};
const follows = {};
let shownKey = null;

function setText(node, text) {
  const old = node.textContent;
  if (old === text) return;
  const only = node.childNodes.length === 1 && node.firstChild.nodeType === Node.TEXT_NODE;
  if (only && text.startsWith(old)) node.firstChild.appendData(text.slice(old.length));
  else node.textContent = text;
}

function setAnswer(node, markup) {
  const wanted = document.createElement("template");
  wanted.innerHTML = markup;
  const blocks = Array.from(wanted.content.childNodes);
  blocks.forEach((block, index) => {
    const old = node.childNodes[index];
    if (!old) node.appendChild(block);
    else if (!old.isEqualNode(block)) node.replaceChild(block, old);
  });
  while (node.childNodes.length > blocks.length) node.lastChild.remove();
}

function fold(side, open) {
  part(side, "fold").setAttribute("aria-expanded", String(open));
  part(side, "reasoning").hidden = !open;
}

function showSide(side, values) {
  const reasoning = part(side, "reasoning");
  for (const name of ["title", "whose", "source", "status", "said", "length", "note"]) setText(part(side, name), values[name]);
  reasoning.setAttribute("aria-label", `Reasoning${values.whose}`);
  part(side, "note").hidden = !values.note;
  part(side, "note").className = `dd-note ${values.note_kind}`;
  part(side, "fold").hidden = !values.reasoning;
  const section = element.querySelector(`[data-side="${side}"]`);
  section.dataset.phase = values.phase;
  section.hidden = !values.title; // a further checkpoint that was not asked for
  setText(reasoning, values.reasoning);
  setAnswer(part(side, "answer"), values.answer);
  const reading = !reasoning.hidden && !follows[side];
  const open = Boolean(values.reasoning) && (choices[side] ?? (values.open || reading));
  fold(side, open);
  if (open && values.phase === "thinking" && follows[side]) reasoning.scrollTop = reasoning.scrollHeight;
}

// A comparison that was opened stands far from the list it was chosen in; one that an address names, on a tab not yet shown.
// What stands around it is drawn a moment later, so it is kept in sight until then, or until the reader does something.
const SETTLED_AFTER = 2000;

function bringIntoSight() {
  const question = element.querySelector("[data-part=asked]");
  let shown = false;
  const layout = new ResizeObserver(() => {
    if (!question.getClientRects().length) return;
    if (!shown) setTimeout(() => layout.disconnect(), SETTLED_AFTER);
    shown = true;
    question.scrollIntoView({ block: "start" });
  });
  layout.observe(question);
  layout.observe(document.body);
  for (const act of ["wheel", "touchstart", "pointerdown", "keydown"]) {
    addEventListener(act, () => layout.disconnect(), { once: true, passive: true });
  }
}

function show() {
  const value = props.value;
  if (!value || !value.base) return;
  const isNew = value.key !== shownKey;
  const asked = isNew && value.base.phase === "waiting";
  if (isNew) {
    shownKey = value.key;
    for (const side of SIDES) {
      choices[side] = null;
      follows[side] = true;
    }
  }
  setText(element.querySelector("[data-part=question]"), value.question);
  element.querySelector("[data-part=asked]").hidden = !value.question;
  setText(element.querySelector("[data-part=made]"), value.made);
  for (const side of SIDES) showSide(side, value[side]);
  // Once, when a question was asked: the buttons go to the top, so that Stop and both panels are in sight.
  if (asked) document.getElementById("dd-ask-buttons")?.scrollIntoView({ block: "start" });
  else if (isNew && value.key) bringIntoSight();
}

for (const side of SIDES) {
  const region = part(side, "reasoning");
  part(side, "fold").addEventListener("click", () => {
    choices[side] = region.hidden;
    fold(side, region.hidden);
  });
  region.addEventListener("scroll", () => {
    if (!region.hidden) follows[side] = region.scrollHeight - region.scrollTop - region.clientHeight < 24;
  }, { passive: true });
}
watch("value", show);
show();
