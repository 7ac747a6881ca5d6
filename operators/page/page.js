// The page of runs: asks for what it shows, again and again while it can be seen.
"use strict";

const PAGE = 25;
const POLL = 3000; // milliseconds
const view = { offset: 0, chosen: new URLSearchParams(location.search).get("run") };
const find = (selector, place = document) => place.querySelector(selector);

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

async function ask(path) {
  const answer = await fetch(path, { credentials: "same-origin" });
  if (answer.status === 401 || answer.status === 403) throw new Error("Log in to Airflow to see this page.");
  if (!answer.ok) throw new Error((await answer.text()) || `the server answers ${answer.status}`);
  return answer.json();
}

const whole = (number) => Math.round(number).toLocaleString("en");
const moment = (seconds) => new Date(seconds * 1000).toLocaleString();

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "unknown";
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return `${Math.round(seconds)} s`;
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function bar(run) {
  const percent = run.planned ? Math.floor((1000 * run.done) / run.planned) / 10 : 0;
  const made = element("div", "", {
    class: `bar ${run.state}`,
    role: "progressbar",
    "aria-label": `${run.stage}: tasks done`,
    "aria-valuemin": "0",
    "aria-valuemax": String(run.planned),
    "aria-valuenow": String(run.done),
  });
  const filled = element("span");
  filled.style.width = `${percent}%`;
  made.append(filled, element("b", `${percent} % · ${whole(run.done)} of ${whole(run.planned)}`));
  return made;
}

function row(run) {
  const made = element("tr", "", { "data-run": run.name });
  if (run.name === view.chosen) made.setAttribute("aria-current", "true");
  const choose = element("button", run.layer, { type: "button" });
  choose.addEventListener("click", () => {
    view.chosen = view.chosen === run.name ? null : run.name;
    refresh();
  });
  const cells = Array.from({ length: 7 }, () => element("td"));
  cells[0].textContent = run.stage;
  cells[1].className = "layer";
  cells[1].append(choose);
  cells[2].append(bar(run));
  cells[3].append(element("span", run.state, { class: `state ${run.state}` }));
  cells[4].textContent = moment(run.created);
  cells[5].textContent = run.by;
  for (const [words, address] of Object.entries(run.links)) {
    cells[6].append(element("a", words, { href: address, target: "_top" }), " ");
  }
  made.append(...cells);
  return made;
}

function showRuns(answer) {
  find("#runs tbody").replaceChildren(...answer.runs.map(row));
  const last = view.offset + answer.runs.length;
  find("#place").textContent = answer.total ? `${view.offset + 1} to ${last} of ${whole(answer.total)}` : "";
  find("#newer").disabled = view.offset === 0;
  find("#older").disabled = last >= answer.total;
  find("#message").textContent = answer.total ? "" : "There are no such runs.";
  const choice = find("select[name=stage]");
  const known = new Set(Array.from(choice.options, (option) => option.value));
  for (const stage of answer.stages) if (!known.has(stage)) choice.append(element("option", stage));
}

function showNumbers(place, run) {
  const numbers = {
    "Tasks done": `${whole(run.done)} of ${whole(run.planned)}`,
    "Attempts failed": whole(run.failed_attempts),
    "Tasks given up": whole(run.given_up),
    "Tasks per second": run.tasks_per_second === null ? "unknown" : run.tasks_per_second.toPrecision(3),
    "Voxels per second": run.voxels_per_second === null ? "unknown" : whole(run.voxels_per_second),
    [run.seconds === null ? "Time left" : "Time taken"]: duration(run.seconds ?? run.seconds_left),
  };
  place.replaceChildren(
    ...Object.entries(numbers).map(([words, value]) => {
      const pair = element("div");
      pair.append(element("dt", words), element("dd", value));
      return pair;
    })
  );
}

function errorGroup(run, group) {
  const made = element("li");
  made.append(element("div", group.message, { class: "message" }));
  const count = group.count === 1 ? "once" : `${whole(group.count)} times`;
  made.append(element("small", `${count}, first in task ${group.first_task}, last at ${group.last_seen}`));
  const more = element("details");
  more.append(element("summary", `Traceback of task ${group.task}, attempt ${group.attempt}`));
  more.addEventListener("toggle", async () => {
    if (!more.open || find("pre", more)) return;
    const failure = await ask(`api/runs/${run.name}/failures/${group.task}/${group.attempt}`);
    more.append(element("pre", failure.traceback || failure.error, { tabindex: "0" }));
  });
  made.append(more);
  return made;
}

function showDetail(run) {
  const place = find("#detail");
  if (place.dataset.run !== run.name) {
    place.replaceChildren(find("#detail-form").content.cloneNode(true));
    place.dataset.run = run.name;
    place.dataset.errors = "";
  }
  place.hidden = false;
  find("h2", place).textContent = `${run.stage} · ${run.layer}`;
  find(".where", place).textContent = `${run.state}${run.held && ` (${run.held})`}; recorded in ${run.url}`;
  showNumbers(find(".numbers", place), run);
  find(".plan", place).hidden = !run.plan;
  find(".plan pre", place).textContent = run.plan_in_words;
  const errors = JSON.stringify(run.errors);
  if (place.dataset.errors !== errors) { // else an open traceback would close
    place.dataset.errors = errors;
    const groups = run.errors.map((group) => errorGroup(run, group));
    find(".errors", place).replaceChildren(...(groups.length ? groups : [element("li", "none")]));
  }
  const workers = run.workers.map((worker) => {
    const hand = worker.task === null ? "no task in hand" : `task ${worker.task}`;
    const made = element("li", `${worker.worker}: ${hand} `);
    made.append(element("small", `seen ${duration(Math.max(0, Date.now() / 1000 - worker.at))} ago`));
    return made;
  });
  find(".workers", place).replaceChildren(...(workers.length ? workers : [element("li", "none is alive")]));
  find(".parameters", place).textContent = JSON.stringify(run.parameters, null, 2);
}

let asked = 0;

async function refresh() {
  const mine = ++asked; // an answer that comes late must not overwrite a later one
  try {
    const filters = new URLSearchParams(new FormData(find("#filters")));
    filters.set("offset", String(view.offset));
    filters.set("limit", String(PAGE));
    const runs = await ask(`api/runs?${filters}`);
    const detail = view.chosen ? await ask(`api/runs/${view.chosen}`) : null;
    if (mine !== asked) return;
    showRuns(runs);
    if (detail) showDetail(detail);
    else find("#detail").hidden = true;
  } catch (error) {
    if (mine === asked) find("#message").textContent = error.message;
  }
}

find("#filters").addEventListener("input", () => { view.offset = 0; refresh(); });
find("#filters").addEventListener("submit", (event) => event.preventDefault());
find("#newer").addEventListener("click", () => { view.offset = Math.max(0, view.offset - PAGE); refresh(); });
find("#older").addEventListener("click", () => { view.offset += PAGE; refresh(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
setInterval(() => { if (!document.hidden) refresh(); }, POLL);
refresh();
