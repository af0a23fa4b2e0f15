// The panel of the query journal. It uses the functions and the data of page.js.
"use strict";

const QUERY_ROWS = 10;

/** Whether the journal is on; `undefined` before the first update. */
const isRecording = () => latest.configuration && latest.configuration.options.some((one) => one.key === "journal.enabled" && one.value === "true");

async function queries() {
  const isOn = isRecording();
  if (isOn === undefined) return;
  if (!isOn) {
    showNoQueries("Statements are not recorded.", "`journal.enabled: true` and a reload turn this on.");
    return;
  }
  let running, top, slow;
  try {
    [running, top, slow] = await Promise.all([
      fetchJson("/queries/running"),
      fetchJson(`/queries/top?by=${$("queries-by").value}&limit=${QUERY_ROWS}`),
      fetchJson(`/queries/slow?limit=${QUERY_ROWS}`),
    ]);
  } catch {
    return; // The page already shows that the gateway is unreachable.
  }
  const failed = [running, top, slow].find((response) => !response.ok);
  if (failed) {
    showNoQueries("Cannot list the queries.", String(failed.body.data));
    return;
  }
  for (const id of ["queries-search", "queries-top", "queries-slow"]) $(id).hidden = false;
  const all = running.body.queries;
  render($("queries-running"), all.length
    ? [table("Running now, the longest first", [{ name: "User" }, { name: "State" }, { name: "For" }, { name: "Ontology" }, { name: "Statement" }, { name: "Action", hidden: true }], all.slice(0, QUERY_ROWS).map(runningRow)),
      all.length > QUERY_ROWS ? el("p", { class: "more" }, `${count(all.length - QUERY_ROWS)} more: `, el("code", {}, "timbr-gateway queries running"), ".") : null]
    : emptyState("Nothing is running.", "Queued, running and abandoned queries are listed here."));
  render($("queries-top"), top.body.rows.length
    ? table("Most time in the last hour", [{ name: $("queries-by").selectedOptions[0].textContent, class: "wide" }, { name: "Count", class: "num" }, { name: "Errors", class: "num" }, { name: "Mean", class: "num" }, { name: "Total", class: "num" }], top.body.rows.map(topRow))
    : emptyState("No statement in the last hour.", null));
  render($("queries-slow"), slow.body.queries.length
    ? table("Slowest in the last hour", [{ name: "User" }, { name: "Ontology" }, { name: "Statement" }, { name: "Status", class: "num" }, { name: "Duration", class: "num" }], slow.body.queries.map(slowRow))
    : emptyState("No statement in the last hour.", null));
}

function showNoQueries(title, hint) {
  for (const id of ["queries-search", "queries-top", "queries-slow"]) $(id).hidden = true;
  render($("queries-running"), emptyState(title, prose(hint)));
}

const shortened = (text) => (text.length > 80 ? `${text.slice(0, 79)}…` : text);
const statement = (query) => el("span", { class: query.text ? "mono break" : "mono nowrap", title: query.text || null }, query.text ? shortened(query.text) : [query.class, query.fingerprint].filter(Boolean).join(" "));

function runningRow(query) {
  const status = { queued: "warn", running: "ok", abandoned: "bad" }[query.state];
  return el("tr", {},
    el("th", { scope: "row", class: "break" }, query.user || "–"),
    cell("state", {}, badge(status, query.state)),
    cell("for", { class: "nowrap" }, duration(query.running_ms)),
    cell("ontology", { class: "break" }, query.ontology || "–"),
    cell("statement", {}, statement(query)),
    cell("", { class: "num" }, query.state === "abandoned" ? null : cancelButton(query)));
}

function topRow(row) {
  return el("tr", {},
    el("th", { scope: "row", class: "break" }, row.text || row.key || "–"),
    cell("count", { class: "num" }, count(row.count)),
    cell("errors", { class: "num" }, count(row.errors)),
    cell("mean", { class: "num" }, duration(row.mean_ms)),
    cell("total", { class: "num" }, duration(row.total_ms)));
}

function slowRow(query) {
  return el("tr", {},
    el("th", { scope: "row", class: "break" }, query.user || "–"),
    cell("ontology", { class: "break" }, query.ontology || "–"),
    cell("statement", {}, statement(query)),
    cell("status", { class: "num" }, String(query.status)),
    cell("duration", { class: "num" }, duration(query.total_ms)));
}

function cancelButton(query) {
  const name = `${query.request_id} of ${query.user}`;
  const text = `${name} ends as if its client had left. The client receives 409.`;
  return commandButton("Cancel", name, { question: "Cancel this query?", text, yes: "Cancel it", no: "Keep it" }, async () => {
    const done = ({ cancelled }) => (cancelled ? `Cancelled a query of ${query.user}.` : "The query had already ended.");
    await sendCommand("/queries/cancel", { request_id: query.request_id, why: "" }, "query", $("queries-message"), done);
    await queries();
  });
}

document.addEventListener("DOMContentLoaded", () => {
  $("queries-search").addEventListener("submit", (event) => event.preventDefault());
  $("queries-by").addEventListener("change", queries);
  setInterval(() => {
    if (document.visibilityState === "visible") queries();
  }, 2000);
});
