// The operators' page: takes what the gateway tells over /events and draws it. No library, no markup made of text.
"use strict";

const $ = (id) => document.getElementById(id);
const known = {};
let span = "coarse";
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

/** A state as shape and word. */
const sign = (is, ...words) =>
  el("span", { class: "is", "data-is": is }, el("span", { class: "shape", "aria-hidden": "true" }), el("span", { class: "word" }, ...words));

/** Puts other children into a place; who had the focus there has it again. */
function put(place, ...children) {
  const focused = place.contains(document.activeElement) && document.activeElement.dataset.focus;
  place.replaceChildren(...children.flat().filter(Boolean));
  if (focused) {
    const again = [...place.querySelectorAll("[data-focus]")].find((node) => node.dataset.focus === focused);
    if (again) again.focus({ preventScroll: true });
  }
}

const empty = (what, then) => el("p", { class: "empty" }, el("strong", {}, what), then);

/** Text with `code` in it. */
const prose = (text) => text.split("`").map((part, at) => (at % 2 ? el("code", {}, part) : part));

function table(caption, columns, rows, options = {}) {
  const head = columns.map((column) => el("th", { scope: "col", class: column.class }, column.hidden ? el("span", { class: "quiet" }, column.name) : column.name));
  return el("table", { class: "cards" },
    el("caption", { class: options.quiet ? "quiet" : null }, caption),
    el("thead", {}, el("tr", {}, head)),
    el("tbody", {}, rows));
}

const cell = (name, attributes, ...children) => el("td", { "data-name": name, ...attributes }, ...children);

// ---- Words -------------------------------------------------------------------------------------------------------

const now = () => Date.now() / 1000 + clockOffset;

function length(seconds) {
  if (seconds < 1) return "a moment";
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} days`;
}

const ago = (time) => (now() - time < 1 ? "now" : `${length(now() - time)} ago`);

function clockTime(time, withSeconds) {
  const options = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  if (withSeconds) options.second = "2-digit";
  return new Date(time * 1000).toLocaleTimeString([], options);
}

const dateTime = (time) =>
  `${new Date(time * 1000).toLocaleDateString([], { year: "numeric", month: "short", day: "numeric" })}, ${clockTime(time)}`;

/** A moment that says the whole date when it is pointed at. */
const moment = (time, text) => el("time", { datetime: new Date(time * 1000).toISOString(), title: dateTime(time) }, text || clockTime(time, true));

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

const spanShort = () => (span === "fine" ? "in 5 min" : "in an hour");
const spanWords = () => (span === "fine" ? "last 5 minutes" : "last hour");

// ---- Charts ------------------------------------------------------------------------------------------------------

/** The next round number above. */
function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 3, 4, 5, 8, 10].find((step) => step * power >= value) * power;
}

const linear = (most) => {
  const top = ceiling(most);
  return { at: (value) => value / top, ticks: [0, top / 2, top] };
};

const logarithmic = (least, most) => {
  const low = Math.floor(Math.log10(Math.max(least, 0.01)));
  const high = Math.max(Math.ceil(Math.log10(Math.max(most, 0.01))), low + 1);
  const ticks = [];
  for (let power = low; power <= high; power += 1) ticks.push(10 ** power);
  return { at: (value) => Math.max(0, (Math.log10(Math.max(value, 0.001)) - low) / (high - low)), ticks };
};

/** Runs of points that follow each other; where nothing is known, the line breaks. */
function runs(times, values) {
  const found = [];
  let run = [];
  values.forEach((value, at) => {
    if (value === null) {
      if (run.length) found.push(run);
      run = [];
    } else {
      run.push([times[at], value]);
    }
  });
  if (run.length) found.push(run);
  return found;
}

function chart(figure, { title, unit, times, lines, scale, show, area, nothing }) {
  const width = Math.max(figure.clientWidth - 28, 240);
  const height = figure.querySelector("svg.plot")?.clientHeight || (window.innerWidth < 640 ? 176 : 208);
  const left = 46, right = 8, top = 8, bottom = 20;
  const from = now() - (span === "fine" ? 300 : 3600), to = now();
  const x = (time) => left + ((time - from) / (to - from)) * (width - left - right);
  const y = (value) => top + (1 - scale.at(value)) * (height - top - bottom);
  const plot = svg("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-labelledby": `${figure.id}-title` });
  plot.append(svg("title", { id: `${figure.id}-title` }, `${title}, ${spanWords()}: ${lines.map((line) => `${line.name} ${line.now}`).join(", ")}`));
  for (const tick of scale.ticks) {
    const at = Math.round(y(tick)) + 0.5;
    plot.append(svg("line", { class: tick === scale.ticks[0] ? "axis base" : "axis", x1: left, x2: width - right, y1: at, y2: at }),
      svg("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, show(tick)));
  }
  const step = span === "fine" ? 60 : width < 420 ? 1200 : 600;
  for (let time = Math.ceil(from / step) * step; time <= to; time += step) {
    if (x(time) < left + 12 || x(time) > width - right - 12) continue;
    plot.append(svg("line", { class: "axis", x1: x(time), x2: x(time), y1: height - bottom, y2: height - bottom + 4 }),
      svg("text", { x: x(time), y: height - 4, "text-anchor": "middle" }, clockTime(time)));
  }
  const inside = times.map((time) => time >= from);
  const seen = times.filter((_, at) => inside[at]);
  for (const line of lines) {
    const values = line.values.filter((_, at) => inside[at]);
    for (const run of runs(seen, values)) {
      const path = run.map(([time, value], at) => `${at ? "L" : "M"}${x(time).toFixed(1)} ${y(value).toFixed(1)}`).join("");
      if (line === area && run.length > 1) {
        const base = y(0).toFixed(1);
        plot.append(svg("path", { class: "area", d: `${path}L${x(run.at(-1)[0]).toFixed(1)} ${base}L${x(run[0][0]).toFixed(1)} ${base}Z` }));
      }
      plot.append(run.length > 1
        ? svg("path", { class: `line s-${line.is}`, d: path })
        : svg("circle", { class: `dot f-${line.is}`, r: 2.5, cx: x(run[0][0]), cy: y(run[0][1]) }));
    }
  }
  if (!lines.some((line) => line.values.some((value, at) => value !== null && inside[at]))) {
    plot.append(svg("text", { x: left + (width - left - right) / 2, y: height / 2, "text-anchor": "middle" }, nothing));
  }
  const legend = el("ul", { class: "legend" }, lines.map((line) =>
    el("li", {}, svg("svg", { viewBox: "0 0 24 8", "aria-hidden": "true" }, svg("path", { class: `line s-${line.is}`, d: "M1 4H23" })), `${line.name} `, el("b", {}, line.now))));
  const isOpen = figure.querySelector("details")?.open;
  const rows = () => seen.map((time, at) => el("tr", {}, el("th", { scope: "row" }, clockTime(time, true)),
    lines.map((line) => el("td", { class: "num" }, show(line.values[times.length - seen.length + at]))))).reverse();
  const body = el("tbody", {}, isOpen ? rows() : []);
  const details = el("details", { open: isOpen, ontoggle: (event) => { if (event.target.open && !body.children.length) body.append(...rows()); } },
    el("summary", { "data-focus": `${figure.id}-values` }, "Values"),
    el("div", { tabindex: 0, role: "region", "aria-label": `${title}: values` }, el("table", {}, el("caption", { class: "quiet" }, `${title}, ${unit}`),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Time"), lines.map((line) => el("th", { scope: "col", class: "num" }, `${line.name}`)))),
      body)));
  point(figure, plot, { times, inside, lines, show, x, left, right, width, top, height, bottom });
  put(figure, el("figcaption", {}, el("h3", {}, title), el("span", { class: "hint" }, unit), legend), plot, details);
}

/** Shows the values at the time that is pointed at. */
function point(figure, plot, { times, inside, lines, show, x, width, top, height, bottom }) {
  const clear = () => {
    plot.querySelector(".cursor")?.remove();
    figure.querySelector(".readout")?.remove();
  };
  plot.addEventListener("pointerleave", clear);
  plot.addEventListener("pointermove", (event) => {
    clear();
    const box = plot.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * width;
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
    const most = figure.clientWidth - readout.offsetWidth - 8;
    readout.style.insetInlineStart = `${Math.max(8, Math.min(here + 8, most))}px`;
  });
}

/** Counts as bars; what they add up to stands beside them. */
function spark(values) {
  const width = 136, height = 24, most = Math.max(...values, 1);
  const bars = Math.min(values.length, 60), each = values.length / bars;
  const path = [];
  for (let bar = 0; bar < bars; bar += 1) {
    const part = values.slice(Math.floor(bar * each), Math.floor((bar + 1) * each));
    const value = part.reduce((sum, one) => sum + (one || 0), 0) / Math.max(part.length, 1);
    if (value > 0) {
      const tall = Math.max(1.5, (value / most) * (height - 2));
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
    const [is, text] = state.phase === "serving" ? ["ok", "Ready"] : state.phase === "starting" ? ["warn", "Starting"] : ["warn", "Draining"];
    $("state").dataset.is = state.ready ? is : is === "ok" ? "bad" : is;
    $("state-text").textContent = state.ready ? text : is === "ok" ? `Not ready: ${state.why}` : text;
    figures();
  },

  attention(points) {
    const is = points.length ? (points.some((one) => one.severity === "bad") ? "bad" : "warn") : "ok";
    $("attention").dataset.is = is;
    const icon = document.createElement("span");
    icon.className = "shape";
    icon.setAttribute("aria-hidden", "true");
    put($("attention-list"), points.length
      ? points.map((one) => el("li", { "data-is": one.severity }, icon.cloneNode(), el("strong", {}, one.what),
        one.section ? el("a", { href: `#${one.section}`, "data-focus": `attention-${one.section}` }, "Show") : null,
        el("span", { class: "do" }, prose(one.todo))))
      : [el("li", { "data-is": "ok" }, icon, el("span", {}, "Nothing needs attention."))]);
    document.title = `${is === "bad" ? "✖ " : is === "warn" ? "▲ " : ""}timbr-gateway`;
  },

  traffic() {
    const series = known.traffic[span];
    const { t: times } = series;
    const last = (values) => values.length ? values.at(-1) : 0;
    const all = { name: "answered", is: "a", values: series.answered, now: `${rate(last(series.answered))}/s` };
    const ofRates = [all,
      { name: "refused", is: "b", values: series.refused, now: `${rate(last(series.refused))}/s` },
      { name: "failed", is: "c", values: series.failed, now: `${rate(last(series.failed))}/s` }];
    const most = Math.max(...ofRates.flatMap((line) => line.values), 0);
    chart($("chart-requests"), {
      title: "Requests", unit: "a second", times, lines: ofRates, scale: linear(most), area: all,
      show: (value) => (value === null ? "–" : rate(value)), nothing: "Nothing has been counted yet",
    });
    const whole = series.whole;
    const ofDurations = [["p50", "a"], ["p95", "b"], ["p99", "c"]].map(([name, is]) => ({ name, is, values: series[name], now: duration(whole[name]) }));
    const all_values = ofDurations.flatMap((line) => line.values).filter((value) => value !== null);
    chart($("chart-durations"), {
      title: "Duration", unit: `to the end of the answer; figures: ${spanWords()}`, times, lines: ofDurations,
      scale: logarithmic(Math.min(...all_values, 1), Math.max(...all_values, 10)), show: duration, nothing: "No request in this time",
    });
    reasons();
    figures();
  },

  refusals() { recent(); },

  upstreams(upstreams) {
    const { endpoints, names } = upstreams;
    const good = endpoints.filter((one) => one.state === "usable").length;
    $("upstreams-hint").textContent = endpoints.length ? `${good} of ${endpoints.length} usable` : "";
    const words = {
      usable: ["ok", "usable"], trial: ["warn", "on trial"], ejected: ["bad", "ejected"], unhealthy: ["bad", "unhealthy"],
    };
    const failing = names.filter((name) => name.failing);
    put($("upstreams-body"), endpoints.length
      ? table("Addresses of the backend", [{ name: "Address" }, { name: "State" }, { name: "In flight", class: "num" }, { name: "Connections", class: "num" }, { name: "Answers", class: "num" }, { name: "Failures", class: "num" }, { name: "Ejections", class: "num" }],
        endpoints.map((one) => {
          const [is, word] = words[one.state] || ["warn", one.state];
          const why = [one.why && one.why.replaceAll("_", " "), one.since && is !== "ok" && `since ${clockTime(one.since, true)}`, one.tried_in !== null && one.tried_in !== undefined && `tried again in ${one.tried_in} s`].filter(Boolean).join(", ");
          return el("tr", {},
            el("th", { scope: "row" }, el("span", { class: "mono" }, one.address), one.authority !== one.address ? el("span", { class: "sub muted" }, ` ${one.authority}`) : null),
            cell("state", { class: "wide" }, sign(is, word), why && el("span", { class: "sub" }, why)),
            cell("in flight", { class: "num" }, count(one.in_flight)),
            cell("connections", { class: "num" }, `${count(one.open)} (${count(one.idle)} idle)`),
            cell("answers", { class: "num" }, count(one.answers)),
            cell("failures", { class: "num" }, count(one.failures)),
            cell("ejections", { class: "num" }, count(one.ejections)));
        }), { quiet: true })
      : empty("No address is known.", "The backend's name has not been found yet; the log says why."),
    failing.map((name) => el("p", { class: "more" }, sign("bad", `${name.host} is not found: ${name.failing}`))));
    figures();
  },

  certificates(certificates) {
    put($("certificates-body"), certificates.length
      ? table("Certificates shown to clients", [{ name: "For" }, { name: "Ends" }, { name: "Left", class: "num" }],
        certificates.map((one) => {
          const days = Math.floor((one.not_after - now()) / 86400);
          const is = days < 0 ? "bad" : days < 14 ? "warn" : "ok";
          return el("tr", {}, el("th", { scope: "row", class: "break" }, one.names || "(no name)", one.self_signed ? el("span", { class: "sub muted" }, "self-signed at start; clients cannot verify it") : null),
            cell("ends", { class: "nowrap" }, moment(one.not_after, dateTime(one.not_after))),
            cell("left", { class: "num" }, sign(is, days < 0 ? "expired" : days > 36500 ? "over 100 years" : `${count(days)} ${days === 1 ? "day" : "days"}`)));
        }), { quiet: true })
      : empty("No TLS.", "listen.https is off, so something in front of the gateway must speak TLS."));
  },

  store(store) {
    const rows = [["kind", store.kind], ["state", sign(store.up ? "ok" : "bad", store.up ? "answers" : "does not answer")]];
    if (store.place) rows.push(["where", el("span", { class: "mono" }, store.place)]);
    rows.push(["tokens last", length(store.ttl)]);
    if (store.verifier) rows.push(["logins checked by", store.verifier]);
    rows.push(["note", store.note]);
    put($("store-body"), el("dl", { class: "facts padded" }, rows.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
    figures();
  },

  configuration() { configuration(); },
};

function figures() {
  const { state, traffic, upstreams } = known;
  if (!state) return;
  const figure = (name, value, unit, note, is) =>
    el("div", { "data-is": is }, el("dt", {}, name), el("dd", { class: "value" }, value, unit ? el("span", { class: "unit" }, ` ${unit}`) : null), el("dd", { class: "note" }, note));
  const list = [];
  if (traffic) {
    const minute = traffic.minute, whole = traffic[span].whole;
    const total = minute.answered + minute.refused + minute.failed;
    list.push(
      figure("Requests", rate(total / minute.seconds), "/s", `${count(whole.answered + whole.refused + whole.failed)} ${spanShort()}`),
      figure("Refused", share(minute.refused, total), "", `${count(whole.refused)} ${spanShort()}`),
      figure("Failed", share(minute.failed, total), "", `${count(whole.failed)} ${spanShort()}`, minute.failed ? (minute.failed > total / 20 ? "bad" : "warn") : null),
      figure("Duration p95", duration(minute.p95), "", `p50 ${duration(minute.p50)}, p99 ${duration(minute.p99)}`));
  }
  list.push(figure("In flight", count(state.in_flight), "", `${count(state.connections)} connections`));
  if (upstreams) {
    const good = upstreams.endpoints.filter((one) => one.state === "usable").length;
    const all = upstreams.endpoints.length;
    list.push(figure("Upstreams", `${good}`, `of ${all}`, good === all && all ? "all usable" : good ? "some are out of use" : "none is usable", good ? (good < all ? "warn" : null) : "bad"));
  }
  const reload = state.reload;
  list.push(figure("Up for", length(now() - state.started), "", `${state.workers} ${state.workers === 1 ? "worker" : "workers"}${reload ? `; reloaded ${ago(reload.at)}` : ""}`));
  put($("figures"), list);
}

function reasons() {
  const list = known.traffic[span].reasons;
  put($("reasons"), list.length
    ? table(`By reason, ${spanWords()}`, [{ name: "Reason" }, { name: "Over time", hidden: false }, { name: "Requests", class: "num" }],
      list.map((one) => el("tr", {}, el("th", { scope: "row", class: "break mono" }, one.reason), cell("", {}, spark(one.points)), cell("requests", { class: "num" }, count(one.total)))))
    : empty(`Nothing was refused in the ${spanWords()}.`, "Refusals stand here by their reason, as docs/errors.md has them."));
}

// ---- Refusals ----------------------------------------------------------------------------------------------------

/** Refusals that are shown before somebody asks for all. */
const FEW = 12;
const opened = new Map();
let showsAll = false;
let shownRefusals = null;

const keyOf = (refusal) => `${refusal.time} ${refusal.request_id}`;

/** New ones wait while somebody reads or moves about in the list. */
function recent(takeNew) {
  const place = $("recent");
  const isRead = opened.size > 0 || place.contains(document.activeElement);
  if (!shownRefusals || takeNew || !isRead) shownRefusals = known.refusals || [];
  const newest = known.refusals || [];
  const waiting = shownRefusals.length ? newest.filter((one) => one.time > shownRefusals[0].time).length : newest.length;
  if (!shownRefusals.length) {
    put(place, empty("Nothing was refused yet.", "Each refusal will stand here with the step that refused and what to do about it."));
    return;
  }
  const columns = [{ name: "When" }, { name: "Reason" }, { name: "Status", class: "num" }, { name: "Who" }, { name: "Request", class: "wide" }];
  const rows = shownRefusals.slice(0, showsAll ? shownRefusals.length : FEW);
  put(place,
    waiting ? el("p", { class: "more" }, el("button", { class: "small", type: "button", "data-focus": "newer", onclick: () => recent(true) }, `Show ${waiting === newest.length ? `${waiting} or more` : waiting} newer`)) : null,
    table("The last ones", columns, rows.map(refusalRows)),
    shownRefusals.length > FEW ? el("p", { class: "more" }, el("button", { class: "small", type: "button", "data-focus": "all", "aria-expanded": String(showsAll), onclick: () => { showsAll = !showsAll; recent(); } }, showsAll ? "Show fewer" : `Show all ${shownRefusals.length}`)) : null);
}

function refusalRows(refusal) {
  const key = keyOf(refusal), isOpen = opened.has(key), id = `explanation-${refusal.time}`.replaceAll(".", "-");
  const toggle = () => {
    if (opened.has(key)) opened.delete(key);
    else opened.set(key, null);
    recent();
    if (opened.has(key)) explain(refusal, key);
  };
  const row = el("tr", { class: isOpen ? "open" : null },
    cell("", { class: "nowrap" }, moment(refusal.time)),
    cell("", { class: "nowrap" }, el("button", { type: "button", class: "expand", "aria-expanded": String(isOpen), "aria-controls": isOpen ? id : null, "data-focus": key, onclick: toggle }, el("span", { class: "mono" }, refusal.reason))),
    cell("status", { class: "num" }, refusal.status),
    cell("", { class: "nowrap" }, refusal.user || refusal.client, refusal.user ? el("span", { class: "sub" }, refusal.client) : null),
    cell("", { class: "wide break mono" }, `${refusal.method} ${refusal.path}`));
  if (!isOpen) return [row];
  return [row, el("tr", { class: "explained", id }, el("td", { colspan: 5 }, explanation(refusal, opened.get(key))))];
}

async function explain(refusal, key) {
  try {
    const answer = await fetch(`/explain/${encodeURIComponent(refusal.request_id)}`);
    const told = answer.ok ? (await answer.json()).refusals.find((one) => keyOf(one) === key) : null;
    if (opened.has(key)) opened.set(key, told ? told.trace : []);
  } catch {
    if (opened.has(key)) opened.set(key, []);
  }
  recent();
}

function explanation(refusal, trace) {
  const facts = [
    ["field", refusal.field && el("code", {}, refusal.field)],
    ["decided by", refusal.rules.length && refusal.rules.map((rule, at) => [at ? ", " : "", el("code", {}, rule)])],
    ["detail", refusal.detail],
    ["route", refusal.route],
    ["user", refusal.user],
    ["key", refusal.key && el("code", {}, refusal.key)],
    ["after", duration(refusal.after_ms)],
    ["request id", el("code", {}, refusal.request_id)],
    ["trace id", el("code", {}, refusal.trace_id)],
  ].filter(([, value]) => value);
  return el("div", { class: "explanation" },
    el("p", {}, prose(refusal.advice)),
    trace && trace.length ? el("ol", { class: "steps", "aria-label": "Steps of the path" }, trace.map((one) =>
      el("li", { "data-is": one.outcome === "refused" ? "bad" : "ok" }, el("span", { class: "shape", "aria-hidden": "true" }), `${one.step.replaceAll("_", " ")} ${one.outcome}`))) : null,
    el("dl", { class: "facts" }, facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
}

// ---- Tokens ------------------------------------------------------------------------------------------------------

const TOKENS_SHOWN = 50;
let tokensAsked = 0;

async function tokens() {
  const user = $("tokens-user").value.trim();
  const asked = ++tokensAsked;
  let told = null, problem = null;
  try {
    const answer = await fetch(`/tokens?limit=${TOKENS_SHOWN}${user ? `&user=${encodeURIComponent(user)}` : ""}`);
    const body = await answer.json();
    if (answer.ok) told = body;
    else problem = body.data;
  } catch {
    return; // The page says already that the gateway does not answer.
  }
  if (asked !== tokensAsked) return;
  if (problem) {
    put($("tokens-body"), empty("Tokens cannot be listed.", problem));
    return;
  }
  const columns = [{ name: "User", class: "wide" }, { name: "Fingerprint" }, { name: "Made" }, { name: "Last used" }, { name: "Ends" }, { name: "Action", hidden: true }];
  put($("tokens-body"), told.tokens.length
    ? [table("Live tokens", columns, told.tokens.map(tokenRow), { quiet: true }),
      told.more ? el("p", { class: "more" }, `There are more than ${TOKENS_SHOWN}; name a user to see fewer, or run `, el("code", {}, "timbr-gateway tokens list"), ".") : null]
    : empty(user ? `${user} has no live token.` : "No tokens yet.", "A client gets one with POST /timbr/api/get_token."));
}

function tokenRow(token) {
  return el("tr", {},
    el("th", { scope: "row", class: "break" }, token.user),
    cell("fingerprint", { class: "mono" }, token.fingerprint),
    cell("made", { class: "nowrap" }, moment(token.minted, ago(token.minted))),
    cell("last used", { class: "nowrap" }, moment(token.last_used, ago(token.last_used))),
    cell("ends", { class: "nowrap" }, moment(token.expires, `in ${length(token.expires - now())}`)),
    cell("", { class: "num" }, el("button", { type: "button", class: "small danger", "data-focus": `revoke-${token.fingerprint}`, "aria-label": `Revoke ${token.fingerprint} of ${token.user}`, onclick: () => askToRevoke(token) }, "Revoke")));
}

function askToRevoke(token) {
  $("confirm-text").textContent = `${token.fingerprint} of ${token.user} ends at once, at every replica. Its user must log in again.`;
  const dialog = $("confirm");
  dialog.returnValue = "no";
  dialog.onclose = () => {
    if (dialog.returnValue === "yes") revoke(token);
  };
  dialog.showModal();
}

async function revoke(token) {
  const told = $("tokens-told");
  try {
    const answer = await fetch("/tokens/revoke", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ fingerprint: token.fingerprint }) });
    const body = await answer.json();
    told.dataset.is = answer.ok ? "ok" : "bad";
    told.textContent = answer.ok ? `Revoked ${token.fingerprint} of ${token.user}.` : body.data;
  } catch {
    told.dataset.is = "bad";
    told.textContent = "The gateway did not answer; look whether the token is still there.";
  }
  await tokens();
}

// ---- Configuration -----------------------------------------------------------------------------------------------

function configuration() {
  if (!known.configuration) return;
  const text = $("configuration-filter").value.trim().toLowerCase();
  const withDefaults = $("configuration-defaults").checked || text !== "";
  const all = known.configuration.options;
  const wanted = all.filter((one) => (withDefaults || one.origin !== "default") && `${one.key} ${one.value || ""} ${one.origin}`.toLowerCase().includes(text));
  const hidden = all.length - wanted.length;
  put($("configuration-body"), wanted.length
    ? table("Options in force", [{ name: "Option" }, { name: "Value", class: "wide" }, { name: "From" }], wanted.map((one) => el("tr", {},
      el("th", { scope: "row", class: "mono" }, one.key),
      cell("", { class: "break mono" }, one.value === null ? el("span", { class: "muted" }, "set, not shown") : one.value),
      cell("from", { class: "muted from" }, one.origin))), { quiet: true })
    : empty(all.length ? "No option matches." : "Nothing is known of the configuration.", text ? "Try a part of its name, such as timeouts." : "All options have their defaults."),
  hidden && !text ? el("p", { class: "more" }, `${hidden} more have their defaults.`) : null);
}

// ---- What the gateway tells --------------------------------------------------------------------------------------

const SECTIONS = ["state", "attention", "traffic", "refusals", "upstreams", "certificates", "store", "configuration"];
let lost = 0;
let failures = 0;

function take(section, value) {
  known[section] = value;
  draw[section](value);
}

function live(is, text) {
  $("live").dataset.is = is;
  if ($("live-text").textContent !== text) $("live-text").textContent = text;
  document.body.classList.toggle("stale", is === "bad");
}

/** Nobody answers: the page says so, and what it shows is old. */
function lose() {
  lost = lost || now();
  live("bad", `no answer since ${clockTime(lost, true)}`);
  $("state").dataset.is = "bad";
  $("state-text").textContent = "No answer";
  const drained = known.state && known.state.phase !== "serving" && known.state.phase !== "starting";
  const point = drained
    ? { severity: "warn", what: "The gateway has ended", todo: "It was draining when it last spoke. This page goes on by itself when it is back." }
    : { severity: "bad", what: "The gateway does not answer", todo: "What stands below was true before. Look whether the process runs (`systemctl status`, `kubectl get pods`), and whether the port is still forwarded." };
  if (JSON.stringify(known.attention) !== JSON.stringify([point])) take("attention", [point]);
}

async function poll() {
  try {
    const answer = await fetch("/overview");
    if (!answer.ok) throw new Error(String(answer.status));
    const told = await answer.json();
    lost = 0;
    for (const section of SECTIONS) take(section, told[section]);
    live("warn", "asked every 3 seconds");
    return told.state.phase === "serving";
  } catch {
    lose();
    return false;
  }
}

function listen() {
  const events = new EventSource("/events");
  events.onopen = () => {
    lost = failures = 0;
    live("ok", "live");
  };
  for (const section of SECTIONS) {
    events.addEventListener(section, (event) => {
      live("ok", "live");
      take(section, JSON.parse(event.data));
    });
  }
  events.onerror = () => {
    events.close();
    setTimeout(async () => {
      if (await poll()) listen();
      else events.onerror();
    }, failures++ ? 3000 : 300);
  };
}

document.addEventListener("DOMContentLoaded", () => {
  $("span").addEventListener("change", (event) => {
    span = event.target.value;
    if (known.traffic) draw.traffic();
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
    resized = setTimeout(() => known.traffic && draw.traffic(), 100);
  });
  setInterval(() => {
    if (document.visibilityState === "visible") tokens();
  }, 10000);
  tokens();
  listen();
});
