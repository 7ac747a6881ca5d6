// The page of runs: asks for what it shows, again and again while it can be seen.
"use strict";

const PAGE = 25;
const POLL = 3000; // milliseconds
const view = { offset: 0, chosen: null };
const rows = new Map(); // by the names of runs: kept, so that the keyboard's focus stays where it is
const find = (selector, place = document) => place.querySelector(selector);

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

async function ask(path) {
  const answer = await fetch(path, { credentials: "same-origin" });
  if (answer.status === 401) throw new Error("Log in to Airflow to see this page.");
  if (answer.ok) return answer.json();
  const told = await answer.json().catch(() => ({}));
  throw new Error(told.detail || `The server answers ${answer.status}.`);
}

function followTheme() { // of Airflow, in whose frame the page is shown
  const chosen = localStorage.getItem("theme");
  const known = chosen === "dark" || chosen === "light";
  document.documentElement.style.colorScheme = known ? chosen : "light dark";
}

const whole = (number) => Math.round(number).toLocaleString("en");
const moment = (seconds) => new Date(seconds * 1000).toLocaleString();
const address = (url) => url.replace(/^file:\/\//, "");

function breakable(made) { // an address breaks behind its slashes, not within a name
  const parts = made.textContent.split(/(?<=\/)/);
  made.replaceChildren(...parts.flatMap((part) => [element("wbr"), part]));
  return made;
}

function shortMoment(seconds) {
  const parts = { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" };
  const at = new Date(seconds * 1000);
  const shown = { dateTime: at.toISOString(), title: moment(seconds) };
  return element("time", at.toLocaleString(undefined, parts), shown);
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "unknown";
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return `${Math.round(seconds)} s`;
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function bar(run) {
  const made = element("div", "", { role: "progressbar", "aria-valuemin": "0" });
  made.append(element("span"), element("b"));
  fillBar(made, run);
  return made;
}

function fillBar(made, run) {
  const percent = run.planned ? Math.floor((1000 * run.done) / run.planned) / 10 : 0;
  made.className = `bar ${run.state}`;
  made.setAttribute("aria-label", `${run.stage}: tasks done`);
  made.setAttribute("aria-valuemax", String(run.planned));
  made.setAttribute("aria-valuenow", String(run.done));
  find("span", made).style.width = `${percent}%`;
  find("b", made).textContent = `${percent} % · ${whole(run.done)} of ${whole(run.planned)}`;
}

function links(run) {
  return Object.entries(run.links).map(([words, address]) => {
    const made = element("a", words, { href: address, target: "_top" });
    made.addEventListener("click", leaveFrame);
    return made;
  });
}

function leaveFrame(event) { // Airflow's frame forbids it, so a link of Airflow's own document goes there
  if (window.parent === window) return;
  event.preventDefault();
  const beyond = window.parent.document.createElement("a");
  beyond.href = event.currentTarget.href;
  beyond.target = event.ctrlKey || event.metaKey ? "_blank" : "";
  beyond.click();
}

function newRow(run) {
  const made = element("tr", "", { "data-run": run.name });
  const cells = Array.from({ length: 7 }, () => element("td"));
  const choose = element("a", address(run.layer) || run.name, { href: `?run=${encodeURIComponent(run.name)}` });
  choose.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // to a new tab or window
    event.preventDefault();
    history.pushState(null, "", choose.href);
    goWhereAddressSays();
  });
  cells[0].textContent = run.stage;
  cells[1].className = "layer";
  cells[1].append(breakable(choose));
  cells[2].append(bar(run));
  cells[3].append(element("span"));
  cells[4].append(shortMoment(run.created));
  cells[5].className = "by";
  cells[5].textContent = run.by;
  const more = element("div", "", { class: "links" });
  more.append(...links(run).slice(0, 2)); // all of them in the view of the run
  cells[6].append(more);
  made.append(...cells);
  return made;
}

function row(run) {
  const made = rows.get(run.name) || newRow(run);
  rows.set(run.name, made);
  fillBar(find(".bar", made), run);
  showState(find("td:nth-child(4) span", made), run);
  return made;
}

function showState(place, run) {
  place.textContent = run.state;
  place.className = `state ${run.state}`;
}

function showRuns(answer) {
  const body = find("#runs tbody");
  const wanted = answer.runs.map(row);
  if (wanted.some((one, i) => body.children[i] !== one) || body.children.length > wanted.length) {
    body.replaceChildren(...wanted);
  }
  const last = view.offset + answer.runs.length;
  find("#place").textContent = answer.total ? `${view.offset + 1} to ${last} of ${whole(answer.total)}` : "";
  find("#newer").disabled = view.offset === 0;
  find("#older").disabled = last >= answer.total;
  find("#runs").hidden = !answer.total;
  find("#pages").hidden = answer.total <= PAGE;
  const filtered = Array.from(new FormData(find("#filters")).values()).some(Boolean);
  const none = filtered
    ? "No run fits these filters."
    : "No run is recorded yet. Trigger a DAG whose name begins with igneous_, and it will appear here.";
  find("#message").textContent = answer.total ? "" : none;
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
  };
  if (run.seconds !== null) numbers["Time taken"] = duration(run.seconds);
  else if (run.state === "working") numbers["Time left"] = duration(run.seconds_left);
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
  made.append(element("small", `${count}, first in task ${group.first_task}, last on ${moment(Date.parse(group.last_seen) / 1000)}`));
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
    find("h2", place).textContent = `${run.stage} · ${address(run.layer)}`;
    breakable(find("h2", place));
    find(".bar", place).replaceWith(bar(run));
    find(".links", place).replaceChildren(...links(run));
    place.dataset.run = run.name;
    place.dataset.errors = "";
  }
  find("#message").textContent = "";
  showState(find(".state", place), run);
  find(".where", place).textContent = `${run.why_it_waits && `${run.why_it_waits}; `}started ${moment(run.created)} by ${run.by}, recorded in ${address(run.url)}`;
  fillBar(find(".bar", place), run);
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
  followTheme();
  try {
    const answer = await ask(view.chosen ? `api/runs/${encodeURIComponent(view.chosen)}` : `api/runs?${wanted()}`);
    if (mine !== asked) return;
    if (view.chosen) showDetail(answer);
    else showRuns(answer);
  } catch (error) {
    if (mine === asked) find("#message").textContent = error.message;
  }
}

function wanted() {
  const filters = new URLSearchParams(new FormData(find("#filters")));
  filters.set("offset", String(view.offset));
  filters.set("limit", String(PAGE));
  return filters;
}

function goWhereAddressSays() {
  view.chosen = new URLSearchParams(location.search).get("run");
  for (const place of document.querySelectorAll("[data-view]")) {
    place.hidden = (place.dataset.view === "run") !== Boolean(view.chosen);
  }
  find("#detail").replaceChildren();
  find("#detail").dataset.run = "";
  find("#message").textContent = "Looking ...";
  refresh();
}

find("#filters").addEventListener("input", () => { view.offset = 0; refresh(); });
find("#filters").addEventListener("submit", (event) => event.preventDefault());
find("#newer").addEventListener("click", () => { view.offset = Math.max(0, view.offset - PAGE); refresh(); });
find("#older").addEventListener("click", () => { view.offset += PAGE; refresh(); });
find("#back").addEventListener("click", (event) => {
  event.preventDefault();
  history.pushState(null, "", location.pathname);
  goWhereAddressSays();
});
window.addEventListener("popstate", goWhereAddressSays);
window.addEventListener("storage", followTheme); // Airflow's switch of the theme
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
setInterval(() => { if (!document.hidden) refresh(); }, POLL);
goWhereAddressSays();
