// The dashboard: renders the sections that arrive over /events. It uses no library and never creates markup from text.
"use strict";

const $ = (id) => document.getElementById(id);
/** The latest value of each section. */
const latest = {};
let range = "coarse";
/** Whether the range was chosen by the reader, or by the age of the process. */
let rangeIsChosen = false;
let clockOffset = 0;

// ---- Elements ----------------------------------------------------------------------------------------------------

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** A status badge: a shape and a word. */
const badge = (status, ...words) =>
  el("span", { class: "badge", "data-status": status }, el("span", { class: "shape", "aria-hidden": "true" }), el("span", { class: "word" }, ...words));

/** Replaces the children of an element and restores the focus within it. */
function render(parent, ...children) {
  const focused = parent.contains(document.activeElement) && document.activeElement.dataset.focus;
  parent.replaceChildren(...children.flat().filter(Boolean));
  if (focused) {
    const target = [...parent.querySelectorAll("[data-focus]")].find((node) => node.dataset.focus === focused);
    if (target) target.focus({ preventScroll: true });
  }
}

const emptyState = (title, hint) => el("p", { class: "empty" }, el("strong", {}, title), hint);

/** Renders text in which backticks mark code. */
const prose = (text) => text.split("`").map((part, at) => (at % 2 ? el("code", {}, part) : part));

function table(caption, columns, rows, options = {}) {
  const head = columns.map((column) => el("th", { scope: "col", class: column.class }, column.hidden ? el("span", { class: "quiet" }, column.name) : column.name));
  return el("table", { class: "cards" },
    el("caption", { class: options.quiet ? "quiet" : null }, caption),
    el("thead", {}, el("tr", {}, head)),
    el("tbody", {}, rows));
}

const cell = (name, attributes, ...children) => el("td", { "data-name": name, ...attributes }, ...children);

/** The button below a long list that shows all of it, or less. */
const foldButton = (focus, isOpen, total, onclick) =>
  el("p", { class: "more" }, el("button", { class: "small", type: "button", "data-focus": focus, "aria-expanded": String(isOpen), onclick }, isOpen ? "Show fewer" : `Show all ${total}`));

/** The button of an admin command, which asks for a confirmation. `yes` and `no` are the words on its buttons. */
function commandButton(word, name, { question, text, yes, no }, run) {
  const onclick = () => {
    for (const [id, words] of Object.entries({ title: question, text, yes, no })) $(`confirm-${id}`).textContent = words;
    const dialog = $("confirm");
    dialog.returnValue = "no";
    dialog.onclose = () => {
      if (dialog.returnValue === "yes") run();
    };
    dialog.showModal();
  };
  return el("button", { type: "button", class: "small danger", "data-focus": `${word} ${name}`, "aria-label": `${word} ${name}`, onclick }, word);
}

async function fetchJson(path, options) {
  const response = await fetch(path, options);
  return { ok: response.ok, body: await response.json() };
}

/** Sends an admin command about a `kind` of thing, and shows the result. `done` makes the text from the response. */
async function sendCommand(path, body, kind, message, done) {
  let ok = false, text = `The gateway did not respond; check whether the ${kind} is still listed.`;
  try {
    const response = await fetchJson(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    ok = response.ok;
    text = ok ? done(response.body) : response.body.data;
  } catch {
    // The text says so.
  }
  message.dataset.status = ok ? "ok" : "bad";
  message.textContent = text;
}

// ---- Formats -----------------------------------------------------------------------------------------------------

const now = () => Date.now() / 1000 + clockOffset;

function formatSeconds(seconds) {
  if (seconds < 1) return "< 1 s";
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} days`;
}

const ago = (time) => (now() - time < 1 ? "now" : `${formatSeconds(now() - time)} ago`);

function clockTime(time, withSeconds) {
  const options = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  if (withSeconds) options.second = "2-digit";
  return new Date(time * 1000).toLocaleTimeString([], options);
}

const dateTime = (time) =>
  `${new Date(time * 1000).toLocaleDateString([], { year: "numeric", month: "short", day: "numeric" })}, ${clockTime(time)}`;

/** A time; its tooltip has the date. */
const timeElement = (time, text) => el("time", { datetime: new Date(time * 1000).toISOString(), title: new Date(time * 1000).toISOString() }, text || clockTime(time, true));

const count = (number) => number.toLocaleString("en", { maximumFractionDigits: 0 }).replaceAll(",", "\u202f");

function rate(perSecond) {
  if (perSecond === 0) return "0";
  if (perSecond < 10) return perSecond.toFixed(perSecond < 1 ? 2 : 1);
  return count(perSecond);
}

function share(part, whole) {
  if (!whole || !part) return "0 %";
  const percent = (100 * part) / whole;
  return percent < 0.1 ? "< 0.1 %" : `${percent.toFixed(percent < 10 ? 1 : 0)} %`;
}

function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return `${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`;
}

const rangeShort = () => (range === "fine" ? "in 5 min" : "in 1 h");
const rangeWords = () => (range === "fine" ? "last 5 minutes" : "last hour");

// ---- Charts ------------------------------------------------------------------------------------------------------

/** The next round number that is at least `value`. */
function roundUp(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 3, 4, 5, 8, 10].find((step) => step * power >= value) * power;
}

const linear = (max) => {
  const top = roundUp(max);
  return { at: (value) => value / top, ticks: [0, top / 2, top] };
};

const logarithmic = (min, max) => {
  const low = Math.floor(Math.log10(Math.max(min, 0.01)));
  const high = Math.max(Math.ceil(Math.log10(Math.max(max, 0.01))), low + 1);
  const ticks = [];
  for (let power = low; power <= high; power += 1) ticks.push(10 ** power);
  return { at: (value) => Math.max(0, (Math.log10(Math.max(value, 0.001)) - low) / (high - low)), ticks };
};

/** Splits points into segments without null values: the line has a gap where there is no value. */
function segments(times, values) {
  const all = [];
  let segment = [];
  values.forEach((value, at) => {
    if (value === null) {
      if (segment.length) all.push(segment);
      segment = [];
    } else {
      segment.push([times[at], value]);
    }
  });
  if (segment.length) all.push(segment);
  return all;
}

/** The time axis that both charts share: the range, or as much of it as there is data. */
function timeAxis() {
  const to = now(), longest = range === "fine" ? 300 : 3600;
  return { from: to - Math.min(longest, Math.max(120, to - latest.state.started)), to };
}

function chart(figure, { title, unit, times, axis, lines, scale, show, area, noData }) {
  const width = Math.max(figure.clientWidth - 28, 240);
  const height = figure.querySelector("svg.plot")?.clientHeight || (window.innerWidth < 640 ? 176 : 208);
  const left = 46, right = 8, top = 8, bottom = 20;
  const { from, to } = axis;
  const x = (time) => left + ((time - from) / (to - from)) * (width - left - right);
  const y = (value) => top + (1 - scale.at(value)) * (height - top - bottom);
  const plot = svg("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-labelledby": `${figure.id}-title` });
  plot.append(svg("title", { id: `${figure.id}-title` }, `${title}, ${rangeWords()}: ${lines.map((line) => `${line.name} ${line.now}`).join(", ")}`));
  for (const tick of scale.ticks) {
    const at = Math.round(y(tick)) + 0.5;
    plot.append(svg("line", { class: tick === scale.ticks[0] ? "axis base" : "axis", x1: left, x2: width - right, y1: at, y2: at }),
      svg("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, show(tick)));
  }
  const step = [60, 120, 300, 600, 1200].find((seconds) => ((to - from) / seconds) * 64 <= width) || 1200;
  for (let time = Math.ceil(from / step) * step; time <= to; time += step) {
    if (x(time) < left + 12 || x(time) > width - right - 12) continue;
    plot.append(svg("line", { class: "axis", x1: x(time), x2: x(time), y1: height - bottom, y2: height - bottom + 4 }),
      svg("text", { x: x(time), y: height - 4, "text-anchor": "middle" }, clockTime(time)));
  }
  const inside = times.map((time) => time >= from);
  const visible = times.filter((_, at) => inside[at]);
  for (const line of lines) {
    const values = line.values.filter((_, at) => inside[at]);
    for (const segment of segments(visible, values)) {
      const path = segment.map(([time, value], at) => `${at ? "L" : "M"}${x(time).toFixed(1)} ${y(value).toFixed(1)}`).join("");
      if (line === area && segment.length > 1) {
        const base = y(0).toFixed(1);
        plot.append(svg("path", { class: "area", d: `${path}L${x(segment.at(-1)[0]).toFixed(1)} ${base}L${x(segment[0][0]).toFixed(1)} ${base}Z` }));
      }
      plot.append(segment.length > 1
        ? svg("path", { class: `line s-${line.series}`, d: path })
        : svg("circle", { class: `dot f-${line.series}`, r: 2.5, cx: x(segment[0][0]), cy: y(segment[0][1]) }));
    }
  }
  if (!lines.some((line) => line.values.some((value, at) => value !== null && inside[at]))) {
    plot.append(svg("text", { x: left + (width - left - right) / 2, y: height / 2, "text-anchor": "middle" }, noData));
  }
  const legend = el("ul", { class: "legend" }, lines.map((line) =>
    el("li", {}, svg("svg", { viewBox: "0 0 24 8", "aria-hidden": "true" }, svg("path", { class: `line s-${line.series}`, d: "M1 4H23" })), `${line.name} `, el("b", {}, line.now))));
  const isOpen = figure.querySelector("details")?.open;
  const rows = () => visible.map((time, at) => el("tr", {}, el("th", { scope: "row" }, clockTime(time, true)),
    lines.map((line) => el("td", { class: "num" }, show(line.values[times.length - visible.length + at]))))).reverse();
  const body = el("tbody", {}, isOpen ? rows() : []);
  const details = el("details", { open: isOpen, ontoggle: (event) => { if (event.target.open && !body.children.length) body.append(...rows()); } },
    el("summary", { "data-focus": `${figure.id}-values` }, "Values"),
    el("div", { tabindex: 0, role: "region", "aria-label": `${title}: values` }, el("table", {}, el("caption", { class: "quiet" }, `${title}, ${unit}`),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Time"), lines.map((line) => el("th", { scope: "col", class: "num" }, `${line.name}`)))),
      body)));
  const showReadout = addReadout(figure, plot, { times, inside, lines, show, x, width, top, height, bottom });
  render(figure, el("figcaption", {}, el("h3", {}, title), el("span", { class: "hint" }, unit), legend), plot, details);
  showReadout();
}

/** Where the pointer rests on a chart, by its figure. */
const pointers = new Map();

/** Shows the values at the pointer's position. Returns a function that does so again under a pointer that rests. */
function addReadout(figure, plot, { times, inside, lines, show, x, width, top, height, bottom }) {
  const clear = () => {
    plot.querySelector(".cursor")?.remove();
    figure.querySelector(".readout")?.remove();
  };
  const showAt = (clientX) => {
    clear();
    const box = plot.getBoundingClientRect();
    const at = ((clientX - box.left) / box.width) * width;
    let nearest = -1;
    times.forEach((time, index) => {
      if (inside[index] && (nearest < 0 || Math.abs(x(time) - at) < Math.abs(x(times[nearest]) - at))) nearest = index;
    });
    if (nearest < 0) return;
    const here = x(times[nearest]);
    plot.append(svg("line", { class: "cursor", x1: here, x2: here, y1: top, y2: height - bottom }));
    const values = lines.map((line) => `${line.name} ${show(line.values[nearest])}`).join(" · ");
    const readout = el("div", { class: "readout", "aria-hidden": "true" }, `${clockTime(times[nearest], true)}  ${values}`);
    figure.append(readout);
    const max = figure.clientWidth - readout.offsetWidth - 8;
    readout.style.insetInlineStart = `${Math.max(8, Math.min(here + 8, max))}px`;
  };
  plot.onpointermove = ({ clientX }) => {
    pointers.set(figure, clientX);
    showAt(clientX);
  };
  // The figure stays when the plot is replaced.
  plot.onpointerleave = figure.onpointerleave = () => {
    pointers.delete(figure);
    clear();
  };
  return () => pointers.has(figure) && showAt(pointers.get(figure));
}

/** A bar chart of counts, without numbers. */
function spark(values) {
  const width = 136, height = 24, max = Math.max(...values, 1);
  const bars = Math.min(values.length, 60), each = values.length / bars;
  const path = [];
  for (let bar = 0; bar < bars; bar += 1) {
    const part = values.slice(Math.floor(bar * each), Math.floor((bar + 1) * each));
    const value = part.reduce((sum, one) => sum + (one || 0), 0) / Math.max(part.length, 1);
    if (value > 0) {
      const tall = Math.max(1.5, (value / max) * (height - 2));
      const x = (bar / 60) * width + (width * (60 - bars)) / 60;
      path.push(`M${x.toFixed(1)} ${height - 1}v-${tall.toFixed(1)}h1.6v${tall.toFixed(1)}z`);
    }
  }
  return svg("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    svg("line", { class: "axis", x1: 0, x2: width, y1: height - 0.5, y2: height - 0.5 }),
    svg("path", { class: "f-b", d: path.join("") }));
}

// ---- Sections ----------------------------------------------------------------------------------------------------

const draw = {
  state(state) {
    clockOffset = state.now - Date.now() / 1000;
    $("version").textContent = state.version;
    const [status, text] = state.phase === "serving" ? ["ok", "Ready"] : state.phase === "starting" ? ["warn", "Starting"] : ["warn", "Draining"];
    const problem = status !== "ok" ? null : !state.ready ? `Not ready: ${state.why}` : !state.usable ? "No usable backend" : null;
    $("state").dataset.status = problem ? "bad" : status;
    $("state-text").textContent = problem || text;
    figures();
  },

  attention(items) {
    const status = items.length ? (items.some((item) => item.severity === "bad") ? "bad" : "warn") : "ok";
    $("attention").dataset.status = status;
    const icon = document.createElement("span");
    icon.className = "shape";
    icon.setAttribute("aria-hidden", "true");
    render($("attention-list"), items.length
      ? items.map((item) => el("li", { "data-status": item.severity }, icon.cloneNode(), el("strong", {}, item.what),
        item.section ? el("a", { href: `#${item.section}`, "data-focus": `attention-${item.section}` }, "Show") : null,
        el("span", { class: "do" }, prose(item.todo))))
      : [el("li", { "data-status": "ok" }, icon, el("span", {}, "No problems."))]);
    document.title = `${status === "bad" ? "✖ " : status === "warn" ? "▲ " : ""}timbr-gateway`;
  },

  traffic() {
    if (!rangeIsChosen) {
      range = now() - latest.state.started < 600 ? "fine" : "coarse";
      document.querySelector(`#range input[value=${range}]`).checked = true;
    }
    const data = latest.traffic[range], axis = timeAxis();
    const { t: times } = data;
    const last = (values) => values.length ? values.at(-1) : 0;
    const served = { name: "served", series: "a", values: data.answered, now: `${rate(last(data.answered))}/s` };
    const rates = [served,
      { name: "rejected", series: "b", values: data.refused, now: `${rate(last(data.refused))}/s` },
      { name: "failed", series: "c", values: data.failed, now: `${rate(last(data.failed))}/s` }];
    const max = Math.max(...rates.flatMap((line) => line.values), 0);
    chart($("chart-requests"), {
      title: "Requests", unit: "per second", times, axis, lines: rates, scale: linear(max), area: served,
      show: (value) => (value === null ? "–" : rate(value)), noData: "No data yet",
    });
    const { whole } = data;
    const quantiles = [["p50", "a"], ["p95", "b"], ["p99", "c"]].map(([name, series]) => ({ name, series, values: data[name], now: duration(whole[name]) }));
    const allValues = quantiles.flatMap((line) => line.values).filter((value) => value !== null);
    chart($("chart-durations"), {
      title: "Duration", unit: `to the end of the response; percentiles of the ${rangeWords()}`, times, axis, lines: quantiles,
      scale: logarithmic(Math.min(...allValues, 1), Math.max(...allValues, 10)), show: duration, noData: "No requests in this period",
    });
    reasons();
    figures();
  },

  refusals() { recent(); },

  top(top) {
    $("callers-hint").textContent = top.seconds ? `last ${formatSeconds(top.seconds)}` : "";
    for (const [kind, title] of [["users", "User"], ["addresses", "Address"], ["routes", "Route"]]) {
      const list = top[kind];
      render($(`callers-${kind}`), list.length
        ? table(`By ${title.toLowerCase()}`, [{ name: title }, { name: "Requests", class: "num" }, { name: "Rejected", class: "num" }, { name: "Failed", class: "num" }],
          list.slice(0, SHOWN_CALLERS).map((one) => el("tr", {},
            el("th", { scope: "row", class: "break" }, one.name, one.reason ? el("span", { class: "sub muted mono" }, one.reason) : null),
            cell("requests", { class: "num" }, count(one.requests)),
            cell("rejected", { class: "num" }, count(one.rejected)),
            cell("failed", { class: "num" }, count(one.failed)))))
        : emptyState(`No ${kind} yet.`, kind === "users" ? "Users are counted once their identity is proven." : "Requests of the last minutes are counted here."));
    }
  },

  upstreams(upstreams) {
    const { endpoints, names } = upstreams;
    const good = endpoints.filter((one) => one.state === "usable").length;
    $("upstreams-hint").textContent = endpoints.length ? `${good} of ${endpoints.length} usable` : "";
    const words = {
      usable: ["ok", "usable"], trial: ["warn", "probing"], ejected: ["bad", "ejected"], unhealthy: ["bad", "unhealthy"],
    };
    const failing = names.filter((name) => name.failing);
    render($("upstreams-body"), endpoints.length
      ? table("Endpoints of the backends", [{ name: "Address" }, { name: "State" }, { name: "In flight", class: "num" }, { name: "Connections", class: "num" }, { name: "Responses", class: "num" }, { name: "Failures", class: "num" }, { name: "Ejections", class: "num" }],
        endpoints.map((one) => {
          const [status, word] = words[one.state] || ["warn", one.state];
          const why = [one.silent_seconds >= 60 && `no response for ${formatSeconds(one.silent_seconds)}`, one.why && one.why.replaceAll("_", " "), one.since && status !== "ok" && `since ${clockTime(one.since, true)}`, one.tried_in !== null && one.tried_in !== undefined && `next probe in ${one.tried_in} s`].filter(Boolean).join(", ");
          return el("tr", {},
            el("th", { scope: "row" }, el("span", { class: "mono" }, one.address), one.authority !== one.address ? el("span", { class: "sub muted" }, ` ${one.authority}`) : null, one.upstream !== "default" ? el("span", { class: "sub muted" }, ` ${one.upstream}`) : null),
            cell("state", { class: "wide" }, badge(status, word), why && el("span", { class: "sub" }, why)),
            cell("in flight", { class: "num" }, count(one.in_flight), one.abandoned ? el("span", { class: "sub" }, `${count(one.abandoned)} abandoned`) : null),
            cell("connections", { class: "num" }, `${count(one.open)} (${count(one.idle)} idle)`),
            cell("responses", { class: "num" }, count(one.answers)),
            cell("failures", { class: "num" }, count(one.failures)),
            cell("ejections", { class: "num" }, count(one.ejections)));
        }), { quiet: true })
      : emptyState("No endpoint is known.", "The backend's name could not be resolved yet; the log has the cause."),
    failing.map((name) => el("p", { class: "more" }, badge("bad", `${name.host} cannot be resolved: ${name.failing}`))));
    figures();
  },

  certificates(certificates) {
    render($("certificates-body"), certificates.length
      ? table("Server certificates", [{ name: "Names" }, { name: "Expires" }, { name: "Days left", class: "num" }],
        certificates.map((one) => {
          const days = Math.floor((one.not_after - now()) / 86400);
          const status = days < 0 ? "bad" : days < 14 ? "warn" : "ok";
          return el("tr", {}, el("th", { scope: "row", class: "break" }, one.names || "(no name)", one.self_signed ? el("span", { class: "sub muted" }, "self-signed at start; clients cannot verify it") : null),
            cell("expires", { class: "nowrap" }, timeElement(one.not_after, dateTime(one.not_after))),
            cell("days left", { class: "num" }, badge(status, days < 0 ? "expired" : days > 36500 ? "over 100 years" : `${count(days)} ${days === 1 ? "day" : "days"}`)));
        }), { quiet: true })
      : emptyState("TLS is off.", "listen.https is off, so a proxy in front of the gateway must terminate TLS."));
  },

  store(store) {
    const rows = [["kind", store.kind], ["state", badge(store.up ? "ok" : "bad", store.up ? "available" : "unavailable")]];
    if (store.place) rows.push(["location", el("span", { class: "mono" }, store.place)]);
    rows.push(["token lifetime", formatSeconds(store.ttl)]);
    if (store.verifier) rows.push(["verifier", store.verifier]);
    rows.push(["note", store.note]);
    render($("store-body"), el("dl", { class: "facts padded" }, rows.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
    figures();
  },

  configuration() { configuration(); },
};

/** Number of callers in each list; `timbr-gateway top` prints more. */
const SHOWN_CALLERS = 5;

function figures() {
  const { state, traffic, upstreams } = latest;
  if (!state) return;
  const figure = (name, value, unit, note, status) =>
    el("div", { "data-status": status }, el("dt", {}, name), el("dd", { class: "value" }, value, unit ? el("span", { class: "unit" }, ` ${unit}`) : null), el("dd", { class: "note" }, note));
  const list = [];
  if (traffic) {
    const minute = traffic.minute, whole = traffic[range].whole;
    const total = minute.answered + minute.refused + minute.failed;
    list.push(
      figure("Requests", rate(total / minute.seconds), "/s", `${count(whole.answered + whole.refused + whole.failed)} ${rangeShort()}`),
      figure("Rejected", share(minute.refused, total), "in 1 min", `${count(whole.refused)} ${rangeShort()}`),
      figure("Failed", share(minute.failed, total), "in 1 min", `${count(whole.failed)} ${rangeShort()}`, minute.failed ? (minute.failed > total / 20 ? "bad" : "warn") : null),
      figure("Duration p95", duration(minute.p95), "in 1 min", `p50 ${duration(minute.p50)}, p99 ${duration(minute.p99)}`));
  }
  list.push(figure("In flight", count(state.in_flight), "", `${count(state.connections)} connections`));
  if (upstreams) {
    const good = upstreams.endpoints.filter((one) => one.state === "usable").length;
    const all = upstreams.endpoints.length;
    list.push(figure("Upstreams", `${good}`, `of ${all}`, good === all && all ? "all usable" : good ? "some are ejected" : "none usable", good ? (good < all ? "warn" : null) : "bad"));
  }
  const reload = state.reload;
  list.push(figure("Uptime", formatSeconds(now() - state.started), "", `${state.workers} ${state.workers === 1 ? "worker" : "workers"}${reload ? `; reloaded ${ago(reload.at)}` : ""}`));
  render($("figures"), list);
}

function reasons() {
  const list = latest.traffic[range].reasons;
  render($("reasons"), list.length
    ? table(`By reason, ${rangeWords()}`, [{ name: "Reason" }, { name: "Over time", hidden: false }, { name: "Requests", class: "num" }],
      list.map((one) => el("tr", {}, el("th", { scope: "row", class: "break mono" }, one.reason), cell("", {}, spark(one.points)), cell("requests", { class: "num" }, count(one.total)))))
    : emptyState(`No rejections in the ${rangeWords()}.`, "Rejections are listed here by reason; docs/errors.md describes each reason."));
}

// ---- Rejections --------------------------------------------------------------------------------------------------

/** Number of rejections in the collapsed list. */
const COLLAPSED_ROWS = 12;
const opened = new Map();
let showsAll = false;
let shownRejections = null;

const keyOf = (rejection) => `${rejection.time} ${rejection.request_id}`;

/** Renders the recent rejections. New ones are held back while a row is open or the list has the focus. */
function recent(showNew) {
  const parent = $("recent");
  const isInUse = opened.size > 0 || parent.contains(document.activeElement);
  if (!shownRejections || showNew || !isInUse) shownRejections = latest.refusals || [];
  const newest = latest.refusals || [];
  const waiting = shownRejections.length ? newest.filter((one) => one.time > shownRejections[0].time).length : newest.length;
  if (!shownRejections.length) {
    render(parent, emptyState("No rejections yet.", "Each rejection will be listed here with the phase that rejected it and a remedy."));
    return;
  }
  const columns = [{ name: "Time" }, { name: "Reason" }, { name: "Status", class: "num" }, { name: "Client" }, { name: "Request", class: "wide" }];
  const rows = shownRejections.slice(0, showsAll ? shownRejections.length : COLLAPSED_ROWS);
  render(parent,
    waiting ? el("p", { class: "more" }, el("button", { class: "small", type: "button", "data-focus": "newer", onclick: () => recent(true) }, `Show ${waiting === newest.length ? `${waiting} or more` : waiting} newer`)) : null,
    table("Recent rejections", columns, rows.map(rejectionRows)),
    shownRejections.length > COLLAPSED_ROWS ? foldButton("all", showsAll, shownRejections.length, () => { showsAll = !showsAll; recent(); }) : null);
}

function rejectionRows(rejection) {
  const key = keyOf(rejection), isOpen = opened.has(key), id = `explanation-${rejection.time}`.replaceAll(".", "-");
  const toggle = () => {
    if (opened.has(key)) opened.delete(key);
    else opened.set(key, null);
    recent();
    if (opened.has(key)) explain(rejection, key);
  };
  const row = el("tr", { class: isOpen ? "open" : null },
    cell("", { class: "nowrap" }, timeElement(rejection.time)),
    cell("", { class: "nowrap" }, el("button", { type: "button", class: "expand", "aria-expanded": String(isOpen), "aria-controls": isOpen ? id : null, "data-focus": key, onclick: toggle }, el("span", { class: "mono" }, rejection.reason))),
    cell("status", { class: "num" }, rejection.status),
    cell("", { class: "break" }, rejection.user || rejection.client, rejection.user ? el("span", { class: "sub" }, rejection.client) : null),
    cell("", { class: "wide break mono" }, `${rejection.method} ${rejection.path}`));
  if (!isOpen) return [row];
  return [row, el("tr", { class: "explained", id }, el("td", { colspan: 5 }, explanation(rejection, opened.get(key))))];
}

async function explain(rejection, key) {
  try {
    const response = await fetch(`/explain/${encodeURIComponent(rejection.request_id)}`);
    const explained = response.ok ? (await response.json()).refusals.find((one) => keyOf(one) === key) : null;
    if (opened.has(key)) opened.set(key, explained ? explained.trace : []);
  } catch {
    if (opened.has(key)) opened.set(key, []);
  }
  recent();
}

function explanation(rejection, trace) {
  const facts = [
    ["header", rejection.field && el("code", {}, rejection.field)],
    ["options", rejection.rules.length && rejection.rules.map((rule, at) => [at ? ", " : "", el("code", {}, rule)])],
    ["detail", rejection.detail],
    ["route", rejection.route],
    ["user", rejection.user],
    ["key", rejection.key && el("code", {}, rejection.key)],
    ["duration", duration(rejection.after_ms)],
    ["request id", el("code", {}, rejection.request_id)],
    ["trace id", el("code", {}, rejection.trace_id)],
  ].filter(([, value]) => value);
  return el("div", { class: "explanation" },
    el("p", {}, prose(rejection.advice)),
    trace && trace.length ? el("ol", { class: "steps", "aria-label": "Phases of the request" }, trace.map((one) =>
      el("li", { "data-status": one.outcome === "refused" ? "bad" : "ok" }, el("span", { class: "shape", "aria-hidden": "true" }), `${one.step.replaceAll("_", " ")} ${one.outcome}`))) : null,
    el("dl", { class: "facts" }, facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
}

// ---- Tokens ------------------------------------------------------------------------------------------------------

const MAX_TOKENS = 50;
/** Number of tokens in the collapsed list. */
const COLLAPSED_TOKENS = 8;
let tokenRequests = 0;
let showsAllTokens = false;
let tokenList = null;

async function tokens() {
  const user = $("tokens-user").value.trim();
  const request = ++tokenRequests;
  let response;
  try {
    response = await fetchJson(`/tokens?limit=${MAX_TOKENS}${user ? `&user=${encodeURIComponent(user)}` : ""}`);
  } catch {
    return; // The page already shows that the gateway is unreachable.
  }
  if (request !== tokenRequests) return; // a newer request is in flight
  if (!response.ok) {
    render($("tokens-body"), emptyState("Cannot list the tokens.", response.body.data));
    return;
  }
  tokenList = response.body;
  showTokens(user);
}

function showTokens(user) {
  const list = tokenList, all = list.tokens.length;
  const shown = list.tokens.slice(0, showsAllTokens ? all : COLLAPSED_TOKENS);
  const toggle = () => {
    showsAllTokens = !showsAllTokens;
    showTokens(user);
  };
  const columns = [{ name: "User", class: "wide" }, { name: "Fingerprint" }, { name: "Issued" }, { name: "Last used" }, { name: "Expires" }, { name: "Action", hidden: true }];
  render($("tokens-body"), list.tokens.length
    ? [table("Active tokens", columns, shown.map(tokenRow), { quiet: true }),
      all > COLLAPSED_TOKENS ? foldButton("all-tokens", showsAllTokens, all, toggle) : null,
      list.more ? el("p", { class: "more" }, `There are more than ${MAX_TOKENS} tokens; filter by user, or run `, el("code", {}, "timbr-gateway tokens list"), ".") : null]
    : emptyState(user ? `${user} has no active token.` : "No tokens yet.", "Clients get a token with POST /timbr/api/get_token."));
}

function tokenRow(token) {
  return el("tr", {},
    el("th", { scope: "row", class: "break" }, token.user),
    cell("fingerprint", { class: "mono" }, token.fingerprint),
    cell("issued", { class: "nowrap" }, timeElement(token.minted, ago(token.minted))),
    cell("last used", { class: "nowrap" }, timeElement(token.last_used, ago(token.last_used))),
    cell("expires", { class: "nowrap" }, timeElement(token.expires, `in ${formatSeconds(token.expires - now())}`)),
    cell("", { class: "num" }, revokeButton(token)));
}

function revokeButton(token) {
  const name = `${token.fingerprint} of ${token.user}`;
  const text = `${name} is revoked immediately, on all replicas. The user must log in again.`;
  return commandButton("Revoke", name, { question: "Revoke this token?", text, yes: "Revoke", no: "Cancel" }, async () => {
    await sendCommand("/tokens/revoke", { fingerprint: token.fingerprint }, "token", $("tokens-message"), () => `Revoked ${name}.`);
    await tokens();
  });
}

// ---- Configuration -----------------------------------------------------------------------------------------------

function configuration() {
  if (!latest.configuration) return;
  const text = $("configuration-filter").value.trim().toLowerCase();
  const withDefaults = $("configuration-defaults").checked || text !== "";
  const all = latest.configuration.options;
  const matching = all.filter((one) => (withDefaults || one.origin !== "default") && `${one.key} ${one.value || ""} ${one.origin}`.toLowerCase().includes(text));
  const hidden = all.length - matching.length;
  render($("configuration-body"), matching.length
    ? table("Active options", [{ name: "Option" }, { name: "Value", class: "wide" }, { name: "Source" }], matching.map((one) => el("tr", {},
      el("th", { scope: "row", class: "mono" }, one.key),
      cell("", { class: "break mono" }, one.value === null ? el("span", { class: "muted" }, "set, hidden") : one.value),
      cell("source", { class: "muted from" }, one.origin))), { quiet: true })
    : emptyState(all.length ? "No option matches." : "The configuration is not available.", text ? "Try part of an option name, such as timeouts." : "All options have their default values."),
  hidden && !text ? el("p", { class: "more" }, `${hidden} more options have their default values.`) : null);
}

// ---- Updates -----------------------------------------------------------------------------------------------------

const SECTIONS = ["state", "attention", "traffic", "top", "refusals", "upstreams", "certificates", "store", "configuration"];
/** When the gateway became unreachable, or 0. */
let unreachableSince = 0;
let failures = 0;

function update(section, value) {
  latest[section] = value;
  draw[section](value);
}

function setConnection(status, text) {
  $("live").dataset.status = status;
  if ($("live-text").textContent !== text) $("live-text").textContent = text;
  document.body.classList.toggle("stale", status === "bad");
}

/** Marks the gateway as unreachable and the shown data as stale. */
function showUnreachable() {
  unreachableSince = unreachableSince || now();
  setConnection("bad", `unreachable since ${clockTime(unreachableSince, true)}`);
  $("state").dataset.status = "bad";
  $("state-text").textContent = "Unreachable";
  const drained = latest.state && latest.state.phase !== "serving" && latest.state.phase !== "starting";
  const item = drained
    ? { severity: "warn", what: "The gateway has stopped", todo: "It was draining at the last update. This page reconnects automatically." }
    : { severity: "bad", what: "The gateway is unreachable", todo: "The data below is stale. Check that the process runs (`systemctl status`, `kubectl get pods`) and that the port is still forwarded." };
  if (JSON.stringify(latest.attention) !== JSON.stringify([item])) update("attention", [item]);
}

async function poll() {
  try {
    const response = await fetch("/overview");
    if (!response.ok) throw new Error(String(response.status));
    const overview = await response.json();
    unreachableSince = 0;
    for (const section of SECTIONS) update(section, overview[section]);
    setConnection("warn", "updated every 3 seconds");
    return overview.state.phase === "serving";
  } catch {
    showUnreachable();
    return false;
  }
}

function subscribe() {
  const events = new EventSource("/events");
  events.onopen = () => {
    unreachableSince = failures = 0;
    setConnection("ok", "live");
  };
  for (const section of SECTIONS) {
    events.addEventListener(section, (event) => {
      setConnection("ok", "live");
      update(section, JSON.parse(event.data));
    });
  }
  events.onerror = () => {
    events.close();
    setTimeout(async () => {
      if (await poll()) subscribe();
      else events.onerror();
    }, failures++ ? 3000 : 300);
  };
}

document.addEventListener("DOMContentLoaded", () => {
  $("range").addEventListener("change", (event) => {
    range = event.target.value;
    rangeIsChosen = true;
    if (latest.traffic) draw.traffic();
  });
  for (const id of ["tokens-search", "configuration-search"]) $(id).addEventListener("submit", (event) => event.preventDefault());
  let typing = 0;
  $("tokens-user").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(tokens, 250);
  });
  $("configuration-filter").addEventListener("input", configuration);
  $("configuration-defaults").addEventListener("change", configuration);
  let resized = 0;
  window.addEventListener("resize", () => {
    clearTimeout(resized);
    resized = setTimeout(() => latest.traffic && draw.traffic(), 100);
  });
  setInterval(() => {
    if (document.visibilityState === "visible") tokens();
  }, 10000);
  tokens();
  subscribe();
});
