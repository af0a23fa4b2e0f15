// The dashboard in a real browser.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";
import { after, before, test } from "node:test";

import { Backend, Gateway, until } from "./gateway.mjs";

const require = createRequire(`${process.env.MODULES}/`);
const { chromium } = require("playwright-core");
const { source: AXE } = require("axe-core");

const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const WIDE = { width: 1280, height: 900 };
const TABLET = { width: 820, height: 1100 };
const PHONE = { width: 360, height: 780 };

const LONG_NAME = "a-service-account-with-a-very-long-name-for-reports@subdomain.example.com";

let browser, backend, gateway, tokens;
const problems = [];

before(async () => {
  backend = await new Backend().start();
  gateway = await Gateway.start(backend, {
    TIMBR_GATEWAY_LIMITS_RULES: "[{name: flood, users: [mallory], requests_per_second: 1, burst: 5}]",
    TIMBR_GATEWAY_LIMITS_FAILURES_PER_ADDRESS: "20",
    TIMBR_GATEWAY_JOURNAL_ENABLED: "true",
  });
  tokens = [];
  for (const user of ["alice", "bob", LONG_NAME]) tokens.push(await gateway.token(user));
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: FLAGS });
  await gateway.load(6000, tokens);
});

after(async () => {
  await browser?.close();
  await gateway?.stop();
  await backend?.stop().catch(() => {});
});

/** Opens the page and records its errors. `mayStop`: the gateway may stop during the test. */
async function open(options = {}, mayStop = false) {
  const context = await browser.newContext({ viewport: WIDE, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(15000);
  page.on("pageerror", (error) => problems.push(`error: ${error}`));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()) && !mayStop) problems.push(`console: ${message.text()}`);
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(gateway.admin)) problems.push(`request to a different origin: ${request.url()}`);
  });
  await page.exposeFunction("reportViolation", (violation) => problems.push(`policy: ${violation}`));
  await page.addInitScript(() => document.addEventListener("securitypolicyviolation", (event) => window.reportViolation(`${event.violatedDirective} ${event.blockedURI}`)));
  await page.goto(gateway.admin);
  await page.getByText("Ready", { exact: true }).waitFor();
  return page;
}

const shot = (page, name) => page.screenshot({ path: path.join(process.env.SCREENSHOTS, `${name}.png`), fullPage: true });

async function checkAccessibility(page, name) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => window.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }));
  const messages = violations.map((one) => `${name}: ${one.impact} ${one.id}: ${one.nodes.map((node) => node.html).slice(0, 3).join(" | ")}`);
  assert.deepEqual(messages, []);
}

/** The panels whose content does not fit: their last columns are hidden. */
const cutPanels = (page) => page.evaluate(() => [...document.querySelectorAll(".panel")].filter((panel) => panel.scrollWidth > panel.clientWidth).map((panel) => panel.id || panel.innerText.slice(0, 40)));

const overflow = (page) => page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);

test("all sections show the current state", async () => {
  const page = await open();
  const text = (id) => page.locator(`#${id}`).innerText();
  await page.locator("#reasons tbody tr").first().waitFor();
  assert.match(await text("figures"), /Requests\s+\d/);
  assert.match(await text("figures"), /1 of 1/);
  assert.match(await text("upstreams"), new RegExp(`127\\.0\\.0\\.1:${backend.port}[\\s\\S]*usable`));
  for (const reason of ["api_key_missing", "content_type_missing", "not_found"]) {
    assert.match(await text("reasons"), new RegExp(`${reason}[\\s\\S]*\\d+`));
  }
  await page.locator("#tokens tbody tr").first().waitFor();
  assert.match(await text("tokens"), /alice[\s\S]*[0-9a-f]{8}/);
  assert.match(await text("certificates"), /127\.0\.0\.1[\s\S]*self-signed/);
  assert.match(await text("store"), /memory[\s\S]*available/);
  assert.match(await text("configuration"), /api_auth_salt\s+set, hidden\s+variable API_AUTH_SALT/);
  assert.match(await text("attention"), /No problems/);
  await page.locator("#callers-users tbody tr", { hasText: "alice" }).waitFor();
  assert.match(await text("callers-addresses"), /127\.0\.0\.1/);
  assert.match(await text("callers-routes"), /api[\s\S]*\d/);
  assert.ok(await page.locator("#range input[value=fine]").isChecked(), "the range fits the age of the process");
  const whole = await page.content();
  for (const secret of [gateway.salt, "planted-in-a-query", ...tokens]) assert.ok(!whole.includes(secret));
  await page.context().close();
});

test("charts have points, axes and a text alternative", async () => {
  const page = await open();
  await page.locator("#range label", { hasText: "5 min" }).click();
  await page.locator("#chart-requests svg.plot path.line.s-a").waitFor();
  await page.locator("#chart-durations svg.plot .line, #chart-durations svg.plot .dot").first().waitFor();
  const title = await page.locator("#chart-requests svg.plot title").textContent();
  assert.match(title, /Requests, last 5 minutes: served .*\/s, rejected .*\/s, failed 0\/s/);
  const labels = await page.locator("#chart-requests svg.plot text").allTextContents();
  assert.ok(labels.some((label) => /^\d\d:\d\d$/.test(label)) && labels.includes("0"), labels.join());
  await page.locator("#chart-requests svg.plot").hover();
  const readout = () => page.locator("#chart-requests .readout").innerText();
  assert.match(await readout(), /\d\d:\d\d:\d\d\s+served/);
  const drawn = await page.locator("#chart-requests svg.plot").elementHandle();
  await page.waitForFunction((plot) => !plot.isConnected, drawn);
  assert.match(await readout(), /\d\d:\d\d:\d\d\s+served/, "it stays when the chart is drawn anew");
  await page.mouse.move(0, 0);
  assert.equal(await page.locator("#chart-requests .readout").count(), 0);
  await page.locator("#chart-requests summary").click();
  await page.locator("#chart-requests details tbody tr").first().waitFor();
  await page.context().close();
});

test("the page updates itself", async () => {
  const page = await open();
  await page.getByText("live", { exact: true }).waitFor();
  await gateway.ask("GET /timbr/api/fresh", { "content-type": "application/json", "x-request-id": "a-fresh-one", "x-api-key": tokens[0], "x_api_key": "x" });
  const row = page.locator("#recent tr", { hasText: "/timbr/api/fresh" });
  await row.waitFor();
  await row.getByRole("button").click();
  const explained = page.locator("#recent tr.explained");
  await explained.getByText("screen refused").waitFor();
  assert.match(await explained.innerText(), /Python backend[\s\S]*x-api-key[\s\S]*a-fresh-one/);
  await page.context().close();
});

test("the page can be used with the keyboard only", async () => {
  const page = await open();
  await page.locator("#recent .expand").first().waitFor();
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to the content");
  await page.keyboard.press("Enter");
  const first = page.locator("#recent .expand").first();
  await first.focus();
  await page.keyboard.press("Enter");
  await page.locator("#recent .explanation .steps").waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-expanded")), "true", "the focus is kept");
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.equal(outline, "solid", "the focus is visible");
  await page.keyboard.press("Enter");
  await page.locator("#recent .explanation").waitFor({ state: "detached" });
  await page.locator("#tokens .danger").first().focus();
  await page.keyboard.press("Enter");
  await page.locator("dialog[open]").waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Cancel", "the safe button has the focus");
  await page.keyboard.press("Escape");
  assert.match(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), /^Revoke /);
  await page.context().close();
});

test("a token is revoked after a confirmation", async () => {
  const page = await open();
  const json = { "content-type": "application/json", "x-api-key": tokens[1] };
  assert.equal((await gateway.ask("GET /timbr/api/q/sales", json)).status, 200);
  const row = page.locator("#tokens tbody tr", { hasText: "bob" });
  await row.getByRole("button", { name: /^Revoke/ }).click();
  await page.getByRole("button", { name: "Cancel", exact: true }).click();
  assert.equal((await gateway.ask("GET /timbr/api/q/sales", json)).status, 200);
  await row.getByRole("button", { name: /^Revoke/ }).click();
  await page.locator("dialog").getByRole("button", { name: "Revoke" }).click();
  await page.getByText(/Revoked [0-9a-f]{8} of bob/).waitFor();
  await row.waitFor({ state: "detached" });
  const rejected = await gateway.ask("GET /timbr/api/q/sales", json);
  assert.deepEqual([rejected.status, JSON.parse(rejected.body).reason], [401, "token_revoked"]);
  await page.locator("#tokens-user").fill("nobody");
  await page.getByText("nobody has no active token.").waitFor();
  await page.context().close();
});

test("options can be filtered", async () => {
  const page = await open();
  await page.locator("#configuration-filter").fill("drain");
  await page.locator("#configuration tbody tr", { hasText: "drain.timeout" }).waitFor();
  assert.match(await page.locator("#configuration").innerText(), /drain\.delay\s+3s\s+variable TIMBR_GATEWAY_DRAIN_DELAY/);
  await page.locator("#configuration-filter").fill("no such thing");
  await page.getByText("No option matches.").waitFor();
  await page.context().close();
});

for (const [colorScheme, viewport, name] of [["light", WIDE, "light"], ["dark", WIDE, "dark"], ["light", TABLET, "tablet"], ["light", PHONE, "phone"], ["dark", PHONE, "phone-dark"]]) {
  test(`the page is accessible and fits: ${name}`, async () => {
    const page = await open({ colorScheme, viewport, reducedMotion: "reduce" });
    await page.locator("#range label", { hasText: "5 min" }).click();
    await page.locator("#tokens tbody tr").first().waitFor();
    await page.locator("#recent .expand").first().click();
    await page.locator("#recent .explanation .steps").waitFor();
    await checkAccessibility(page, name);
    assert.ok((await overflow(page)) <= 0, "no horizontal overflow");
    const motion = await page.evaluate(() => getComputedStyle(document.querySelector("#live > .shape")).animationName);
    assert.equal(motion, "none");
    await shot(page, name);
    await page.context().close();
  });
}

test("without JavaScript the page links to the JSON", async () => {
  const context = await browser.newContext({ viewport: WIDE, javaScriptEnabled: false });
  const plain = await context.newPage();
  await plain.goto(gateway.admin);
  await plain.locator("noscript h2").waitFor();
  await shot(plain, "without-javascript");
  await context.close();
  const page = await (await fetch(gateway.admin)).text();
  const links = page.match(/<noscript>[\s\S]*<\/noscript>/)[0].match(/href="[^"]+"/g).map((link) => link.slice(6, -1));
  assert.ok(links.length > 3);
  for (const link of links) assert.equal((await fetch(gateway.admin + link)).status, 200, link);
});

test("both charts have the same time axis", async () => {
  const page = await open();
  await page.locator("#chart-requests svg.plot path.line.s-a").waitFor();
  const times = (id) => page.locator(`#${id} svg.plot text[text-anchor=middle]`).allTextContents();
  await until("the axes are equal", async () => {
    const [one, other] = [await times("chart-requests"), await times("chart-durations")];
    return one.length > 0 && one.join() === other.join();
  });
  await page.context().close();
});

test("long lists of tokens fold", async () => {
  for (let number = 0; number < 12; number += 1) await gateway.token(`folded-${number}`);
  const page = await open();
  const rows = page.locator("#tokens tbody tr");
  await page.locator("#tokens").getByRole("button", { name: /^Show all \d+$/ }).click();
  await until("all rows are there", async () => (await rows.count()) >= 12);
  await page.locator("#tokens").getByRole("button", { name: "Show fewer" }).click();
  await until("the list is folded", async () => (await rows.count()) === 8);
  await page.context().close();
});

test("a flood, a stopped ontology and an attack are named", async () => {
  const page = await open();
  const attention = page.locator("#attention");
  const json = { "content-type": "application/json" };
  const key = { "x-api-key": await gateway.token("mallory") };
  for (let number = 0; number < 300; number += 1) await gateway.ask("GET /timbr/api/q/sales", { ...json, ...key });
  const row = page.locator("#callers-users tbody tr", { hasText: "mallory" });
  await row.getByText("rate_limited").waitFor();
  await attention.getByText(/\d+ % of the requests of the last minute were rejected/).waitFor();
  await shot(page, "flood");
  await until("all requests are counted", () => /\nmallory +30\d +2\d\d +0 +rate_limited/.test(gateway.run("top")));

  gateway.run("stop", "ontology", "sales", "--why", "Sales is loaded again until six.");
  const stopped = await gateway.ask("GET /timbr/api/q/sales", { ...json, "x-api-key": tokens[0] });
  assert.deepEqual([stopped.status, JSON.parse(stopped.body).data], [503, "Sales is loaded again until six."]);
  await attention.getByText("Stopped by an operator: ontology sales").waitFor();
  await checkAccessibility(page, "stopped ontology");
  await shot(page, "stopped-ontology");
  gateway.run("resume", "ontology", "sales");
  await attention.getByText("Stopped by an operator").waitFor({ state: "detached" });

  for (let number = 0; number < 40; number += 1) await gateway.ask("POST /timbr/api/get_token", { ...json, authorization: "Bearer guess" });
  await attention.getByText(/Clients are locked out after failed logins/).waitFor();
  await page.locator("#reasons tbody tr", { hasText: "too_many_failures" }).waitFor();
  await shot(page, "attack");
  await page.context().close();
});

test("a running query is shown and cancelled", async () => {
  const query = (ontology, token = tokens[0]) => gateway.ask(`POST /timbr/openapi/ontology/${ontology}/query`,
    { "content-type": "application/text", "x-api-key": token, "x-request-id": `query-of-${ontology}` }, "SELECT name FROM customer");
  await query("sales");
  await query("an_ontology_with_a_long_name", tokens[2]);
  const runaway = query("runaway");
  const page = await open();
  const row = page.locator("#queries-running tbody tr", { hasText: "runaway" });
  await row.waitFor();
  assert.match(await row.innerText(), /alice[\s\S]*running[\s\S]*runaway[\s\S]*read/);
  await page.locator("#queries-top tbody tr", { hasText: "alice" }).waitFor();
  await page.locator("#queries-slow tbody tr", { hasText: "sales" }).waitFor();
  await page.locator("#queries-slow tbody tr", { hasText: LONG_NAME }).waitFor();
  await page.locator("#callers-users tbody tr", { hasText: LONG_NAME }).waitFor();
  assert.deepEqual(await cutPanels(page), []);
  await shot(page, "queries");
  await checkAccessibility(page, "queries");
  await row.getByRole("button", { name: "Cancel query-of-runaway of alice" }).click();
  await page.getByRole("button", { name: "Cancel it" }).click();
  await page.getByText("Cancelled a query of alice.").waitFor();
  const { status, body } = await runaway;
  assert.equal(status, 409);
  assert.equal(JSON.parse(body).reason, "query_cancelled");
  await page.context().close();
});

test("an outage of the backend and its end are shown", async () => {
  const page = await open({ colorScheme: "dark" });
  await page.locator("#range label", { hasText: "5 min" }).click();
  const { port } = backend;
  await backend.stop();
  const json = { "content-type": "application/json", "x-api-key": tokens[0] };
  const asking = setInterval(() => gateway.ask("GET /timbr/api/q/sales", json).catch(() => {}), 40);
  try {
    await page.locator("#attention li[data-status=bad]", { hasText: "No endpoint is usable" }).waitFor();
    await page.locator("#state", { hasText: "No usable backend" }).waitFor();
    await until("the title shows the problem", async () => (await page.title()).startsWith("✖"));
    await page.locator("#upstreams").getByText(/ejected|unhealthy/).first().waitFor();
    await page.locator("#chart-requests svg.plot path.line.s-c").waitFor();
    await checkAccessibility(page, "outage");
    await shot(page, "outage");
    backend = await new Backend().start(port);
    await page.locator("#upstreams").getByText("1 of 1 usable").waitFor();
  } finally {
    clearInterval(asking);
  }
  await until("the problem has disappeared", async () => !/No endpoint/.test(await page.locator("#attention").innerText()));
  await page.context().close();
});

test("a draining gateway and a stopped gateway are shown as such", async () => {
  const page = await open({}, true);
  gateway.child.kill("SIGTERM");
  await page.getByText("The gateway is draining").waitFor();
  assert.equal(await page.locator("#state").innerText(), "Draining");
  await gateway.ended;
  await page.getByText("The gateway has stopped").waitFor();
  await page.locator("#state", { hasText: "Unreachable" }).waitFor();
  await shot(page, "stopped");
  await page.context().close();
});

test("the browser reported no error and sent no request to a different origin", () => assert.deepEqual(problems, []));
