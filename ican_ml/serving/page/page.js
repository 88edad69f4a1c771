"use strict";
// Asks the service about one patient and shows the answer. Nothing is kept, nothing is fetched from elsewhere.

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const SHOWN_CURVES = 5;
const COLOURS = ["#0b5cad", "#b45309", "#15803d", "#7e22ce", "#52606d"];

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function drawn(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function fill(table, head, rows, caption) {
  const headRow = element("tr");
  head.forEach((text) => headRow.append(element("th", text, { scope: "col" })));
  const top = element("thead");
  top.append(headRow);
  const body = element("tbody");
  rows.forEach((cells) => {
    const row = element("tr");
    cells.forEach((cell) => row.append(cell instanceof Node ? cell : element("td", cell)));
    body.append(row);
  });
  table.replaceChildren(element("caption", caption, { class: "skip" }), top, body);
}

const number = (value, digits = 3) => element("td", Number(value).toFixed(digits), { class: "number" });

async function ask(path, body) {
  const token = byId("token").value.trim();
  const headers = { ...(body ? { "content-type": "application/json" } : {}), ...(token ? { authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), cache: "no-store" });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error.message ?? answer.error);
  return answer;
}

function refuse(message) {
  byId("refused").textContent = message;
  byId("refused").hidden = false;
  byId("result").hidden = true;
  byId("status").textContent = "";
}

function question() {
  let given;
  try {
    given = JSON.parse(byId("patient").value);
  } catch (error) {
    throw new Error(`patient: expected JSON, got something else (${error.message})`);
  }
  const isBundle = given !== null && given.resourceType === "Bundle";
  const lines = byId("treatments").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const treatments = lines.length ? lines.map((line) => line.split("+").map((drug) => drug.trim()).filter(Boolean)) : null;
  const time = byId("time").value;
  return { ...(isBundle ? { fhir: given, ...(time ? { prediction_time: time } : {}) } : { patient: given }), treatments, explain: true, echo: true };
}

function showRanked(answer) {
  const tasks = Object.keys(answer.ranked[0].prediction);
  const isShare = (task) => answer.ranked.every((one) => one.prediction[task] >= 0 && one.prediction[task] <= 1);
  const doubts = answer.task in answer.ranked[0].uncertainty;
  const sets = Object.keys(answer.coverage);
  const isDays = (task) => task in answer.ranked[0].event_free;
  const head = ["Rank", "Treatment", ...tasks.flatMap((task) => [task.replaceAll("_", " ") + (isDays(task) ? ", days" : ""), ...(answer.ranked[0].interval[task] ? ["95% interval"] : [])]), ...sets.map((task) => `${Math.round(100 * answer.coverage[task])}% set`), ...(doubts ? ["Members disagree"] : []), "Note"];
  const rows = answer.ranked.map((one, i) => {
    const cells = [String(i + 1), one.treatment.join(" + ") || "(none)"];
    tasks.forEach((task) => {
      const cell = number(one.prediction[task], isDays(task) ? 0 : 3);
      if (task === answer.task && isShare(task)) cell.append(" ", element("progress", null, { value: one.prediction[task], max: 1, "aria-hidden": "true" }));
      cells.push(cell);
      const ends = one.interval[task];
      if (ends) cells.push(element("td", `${ends[0].toFixed(2)} to ${ends[1].toFixed(2)}`, { class: "number" }));
    });
    sets.forEach((task) => cells.push(one.sets[task].length === 1 ? one.sets[task][0] : "undecided"));
    if (doubts) cells.push(number(one.uncertainty[answer.task].epistemic));
    cells.push(one.unknown_drugs.length ? `not seen in training: ${one.unknown_drugs.join(", ")}` : "");
    return cells;
  });
  fill(byId("ranked"), head, rows, "Treatments, most promising first");
  byId("ranked-help").textContent = sets.length ? "An interval is where the share in whom it happens lies, among all patients with this probability, as closely as the tuning patients tell. A set holds the answers that the model cannot rule out; it should hold the truth as often as stated." : "";
}

function showCurves(answer) {
  const task = Object.keys(answer.ranked[0].event_free)[0];
  byId("curves").hidden = task === undefined;
  if (task === undefined) return;
  const shown = answer.ranked.slice(0, SHOWN_CURVES);
  const days = shown[0].event_free[task].days;
  const [width, height, left, bottom] = [640, 240, 44, 30];
  const x = (day) => left + (day / days[days.length - 1]) * (width - left - 150);
  const y = (share) => 10 + (1 - share) * (height - 10 - bottom);
  const told = shown.map((one) => `${one.treatment.join(" + ")} ${(100 * one.event_free[task].probability.at(-1)).toFixed(0)}%`).join(", ");
  const picture = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${task}, event-free after ${Math.round(days.at(-1))} days: ${told}` });
  [0, 0.5, 1].forEach((share) => {
    picture.append(drawn("line", { x1: left, x2: x(days.at(-1)), y1: y(share), y2: y(share), stroke: "#cbd5e1" }));
    picture.append(drawn("text", { x: 4, y: y(share) + 4 }, `${100 * share}%`));
  });
  picture.append(drawn("text", { x: left, y: height - 8 }, "0"), drawn("text", { x: x(days.at(-1)) - 50, y: height - 8 }, `${Math.round(days.at(-1))} days`));
  shown.forEach((one, i) => {
    const points = [[0, 1], ...one.event_free[task].probability.map((share, j) => [days[j], share])];
    picture.append(drawn("polyline", { points: points.map(([day, share]) => `${x(day)},${y(share)}`).join(" "), fill: "none", stroke: COLOURS[i], "stroke-width": 2 }));
    const name = drawn("text", { x: x(days.at(-1)) + 8, y: 20 + 16 * i }, one.treatment.join(" + ").slice(0, 22) || "(none)");
    name.style.fill = COLOURS[i];
    picture.append(name);
  });
  byId("curves").querySelector("div").replaceChildren(picture);
}

function showTimeline(patient) {
  const events = (patient.events ?? []).filter((event) => event.time);
  const rows = [...events].sort((a, b) => (a.time < b.time ? 1 : -1));
  fill(byId("events"), ["Time", "Code", "Value"], rows.map((event) => [event.time.slice(0, 10), event.code, event.value === undefined || event.value === null ? "" : `${event.value} ${event.unit ?? ""}`]), "Events, latest first");
  if (!events.length) {
    byId("timeline").replaceChildren(element("p", "No dated events.", { class: "help" }));
    return;
  }
  const kinds = [...new Set(events.map((event) => event.code.split("//")[0]))].sort();
  const times = events.map((event) => Date.parse(event.time));
  const end = Math.max(...times, Date.parse(patient.prediction_time ?? "") || 0);
  const start = Math.min(...times);
  const [width, left, lane] = [640, 130, 22];
  const height = lane * kinds.length + 30;
  const x = (time) => left + ((time - start) / Math.max(end - start, 1)) * (width - left - 20);
  const picture = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${events.length} events of ${kinds.length} kinds; the table below lists them` });
  kinds.forEach((kind, i) => picture.append(drawn("text", { x: 4, y: lane * i + 18 }, kind.slice(0, 20)), drawn("line", { x1: left, x2: width - 20, y1: lane * i + 14, y2: lane * i + 14, stroke: "#e2e8f0" })));
  events.forEach((event, i) => {
    const dot = drawn("circle", { cx: x(times[i]), cy: lane * kinds.indexOf(event.code.split("//")[0]) + 14, r: 4, fill: "#0b5cad", "fill-opacity": 0.6 });
    dot.append(drawn("title", {}, `${event.time.slice(0, 10)} ${event.code} ${event.value ?? ""} ${event.unit ?? ""}`));
    picture.append(dot);
  });
  picture.append(drawn("text", { x: left, y: height - 6 }, new Date(start).toISOString().slice(0, 10)), drawn("text", { x: width - 90, y: height - 6 }, new Date(end).toISOString().slice(0, 10)));
  byId("timeline").replaceChildren(picture);
}

function showMissing(answer) {
  const told = answer.missing.map((name) => (name === "record" ? "record: no event that it knows" : `${name}: not measured`));
  Object.entries(answer.unknown_features).filter(([, count]) => count).forEach(([name, count]) => told.push(`${name}: ${count} features that the model does not know`));
  if (answer.unknown_covariates.length) told.push(`not seen in training: ${answer.unknown_covariates.join(", ")}`);
  if (answer.events_after_prediction) told.push(`${answer.events_after_prediction} events after the prediction time, not used`);
  if (answer.record.events) told.push(`codes of the record: ${Math.round(100 * answer.record.known)}% known, ${Math.round(100 * answer.record.backed_off)}% read as a broader code, ${Math.round(100 * answer.record.unknown)}% unknown`);
  byId("missing").replaceChildren(...(told.length ? told : ["Nothing that it asks for."]).map((text) => element("li", text)));
}

function show(answer) {
  byId("refused").hidden = true;
  const reasons = answer.applicability?.reasons ?? [];
  byId("abstains").hidden = !reasons.length;
  byId("abstains").querySelector("ul").replaceChildren(...reasons.map((reason) => element("li", reason)));
  showRanked(answer);
  showCurves(answer);
  const named = { gene: "gene", event: "event", covariate: "covariate", birth: "age", modality: "modality" };
  fill(byId("drivers"), ["Effect", "Part", "Name"], answer.drivers.map((one) => [number(one.effect, 4), named[one.kind] + (one.kind === "gene" ? ` (${one.modality})` : ""), one.name]), "What drove the first answer");
  showTimeline(answer.patient);
  showMissing(answer);
  byId("result").hidden = false;
  byId("status").textContent = `${answer.ranked.length} treatments ranked by predicted ${answer.task.replaceAll("_", " ")}.`;
  byId("answer").focus();
}

function showCard(model) {
  byId("model").textContent = `Bundle ${model.bundle}.`;
  const box = byId("card").querySelector("div");
  const card = model.card;
  if (!card.name) {
    box.replaceChildren(element("p", "This bundle was exported without a card."));
    return;
  }
  const parts = [element("h2", card.name), element("p", card.intended_use)];
  const list = (items) => {
    const made = element("ul");
    items.forEach((item) => made.append(element("li", item)));
    return made;
  };
  parts.push(element("h2", "Cohort"), list(Object.entries(card.cohort).map(([name, value]) => `${name}: ${value}`)));
  parts.push(list(Object.entries(card.subjects).map(([name, count]) => `${name}: ${count} subjects`)));
  Object.entries(card.performance).forEach(([task, found]) => {
    const groups = { "model, all": found.overall, ...Object.fromEntries(Object.entries(found.by_indication).map(([name, group]) => [`model, ${name}`, group])), ...found.baselines };
    const metrics = Object.keys(found.overall.metrics);
    const cell = (one) => (one && one.estimate !== null ? `${one.estimate.toFixed(3)}${one.low === null ? "" : ` [${one.low.toFixed(3)}, ${one.high.toFixed(3)}]`}` : "");
    const table = element("table");
    fill(table, ["By", "Subjects", ...metrics.map((metric) => metric.replaceAll("_", " "))], Object.entries(groups).map(([name, group]) => [name, String(group.subjects), ...metrics.map((metric) => cell(group.metrics[metric]))]), `Performance: ${task}`);
    const scroll = element("div", null, { class: "scroll" });
    scroll.append(table);
    parts.push(element("h2", `Held-out patients: ${task}`), scroll);
  });
  parts.push(element("h2", "Limits"), list(card.limits), element("h2", "To be filled in by the deployer"), list(Object.entries(card.deployer).map(([name, value]) => `${name}: ${value}`)));
  box.replaceChildren(...parts);
}

async function openCard() {
  try {
    showCard(await ask("/v1/model"));
  } catch {
    byId("model").textContent = "It asks for a token.";
  }
}

byId("example").addEventListener("click", async () => {
  try {
    byId("patient").value = JSON.stringify(await ask("/v1/example"), null, 1);
    byId("status").textContent = "An invented patient is open.";
    byId("refused").hidden = true;
  } catch (error) {
    refuse(error.message);
  }
});

byId("clear").addEventListener("click", () => {
  ["patient", "time", "treatments"].forEach((id) => { byId(id).value = ""; });
  byId("result").hidden = byId("refused").hidden = true;
  byId("status").textContent = "Open an example patient, or paste one.";
});

byId("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = byId("ask").querySelector("button[type=submit]");
  button.disabled = true;
  byId("status").textContent = "Asking the model ...";
  try {
    show(await ask("/v1/predict", question()));
  } catch (error) {
    refuse(error.message);
  } finally {
    button.disabled = false;
  }
});

byId("token").addEventListener("change", openCard);
openCard();
