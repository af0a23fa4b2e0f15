// The gateway under test, a backend that can be stopped, and clients.

import { execFileSync, spawn } from "node:child_process";
import fs from "node:fs";
import http from "node:http";
import os from "node:os";
import path from "node:path";

const PROGRAM = process.env.TIMBR_GATEWAY_BIN;

/** Waits until the condition is true; `name` is part of the error message. */
export async function until(name, condition, timeout = 15000) {
  const end = Date.now() + timeout;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > end) throw new Error(`timeout: ${name}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** A backend that responds to every request but those for `runaway` with a small JSON document after a short delay. */
export class Backend {
  async start(port = 0) {
    this.server = http.createServer((request, response) => {
      if (request.url.includes("runaway")) return;
      const status = request.url.includes("broken") ? 500 : 200;
      setTimeout(() => {
        response.writeHead(status, { "content-type": "application/json" });
        response.end('{"status":"success","data":[]}');
      }, Math.random() * 15);
    });
    await new Promise((resolve) => this.server.listen(port, "127.0.0.1", resolve));
    this.port = this.server.address().port;
    return this;
  }

  async stop() {
    const closed = new Promise((resolve) => this.server.close(resolve));
    this.server.closeAllConnections();
    await closed;
  }
}

export class Gateway {
  static async start(backend, options = {}) {
    const gateway = new Gateway();
    gateway.folder = fs.mkdtempSync(path.join(os.tmpdir(), "timbr-gateway-"));
    gateway.salt = execFileSync(PROGRAM, ["salt"], { encoding: "utf8" }).trim();
    const log = path.join(gateway.folder, "log");
    gateway.child = spawn(PROGRAM, ["serve"], {
      env: {
        API_AUTH_SALT: gateway.salt,
        TIMBR_GATEWAY_UPSTREAM_URL: `http://127.0.0.1:${backend.port}`,
        TIMBR_GATEWAY_LISTEN_HTTP: "127.0.0.1:0",
        TIMBR_GATEWAY_LISTEN_HTTPS: "127.0.0.1:0",
        TIMBR_GATEWAY_LISTEN_ADMIN: "127.0.0.1:0",
        TIMBR_GATEWAY_LOG_FORMAT: "json",
        TIMBR_GATEWAY_LOG_ACCESS: "false",
        TIMBR_GATEWAY_DRAIN_DELAY: "3s",
        ...options,
      },
      stdio: ["ignore", "ignore", fs.openSync(log, "w")],
    });
    gateway.ended = new Promise((resolve) => gateway.child.on("exit", resolve));
    const started = await until("the gateway starts", () =>
      fs.readFileSync(log, "utf8").split("\n").filter((line) => line.includes("timbr-gateway started"))[0]);
    const record = JSON.parse(started);
    gateway.port = Number(record.http.split(":").pop());
    gateway.admin = `http://${record.admin}`;
    gateway.agent = new http.Agent({ keepAlive: true });
    return gateway;
  }

  ask(line, fields = {}, content = undefined) {
    const [method, target] = line.split(" ");
    return new Promise((resolve, reject) => {
      const request = http.request({ agent: this.agent, host: "127.0.0.1", port: this.port, method, path: target, headers: fields }, (response) => {
        let body = "";
        response.on("data", (data) => { body += data; });
        response.on("end", () => resolve({ status: response.statusCode, body }));
      });
      request.on("error", reject);
      request.end(content);
    });
  }

  /** Runs a command of an operator, and returns what it prints. */
  run(...command) {
    const admin = this.admin.replace("http://", "");
    return execFileSync(PROGRAM, [...command, "--listen-admin", admin], { env: {}, encoding: "utf8" });
  }

  async token(user) {
    const bearer = execFileSync(PROGRAM, ["bearer", "--user", user, "--password-stdin"], { env: { API_AUTH_SALT: this.salt }, input: "secret", encoding: "utf8" }).trim();
    const response = await this.ask("POST /timbr/api/get_token", { "content-type": "application/json", authorization: `Bearer ${bearer}` });
    return JSON.parse(response.body).data[0];
  }

  /** Sends a mix of requests for the given time. */
  async load(milliseconds, tokens) {
    const end = Date.now() + milliseconds;
    const json = { "content-type": "application/json" };
    const client = async (number) => {
      for (let turn = 0; Date.now() < end; turn += 1) {
        const key = { "x-api-key": tokens[(number + turn) % tokens.length] };
        const kind = turn % 24;
        if (kind === 3) await this.ask("GET /timbr/api/query/?sql=planted-in-a-query", json);
        else if (kind === 9) await this.ask("GET /timbr/api/query/", key);
        else if (kind === 15) await this.ask("GET /elsewhere", { ...json, ...key });
        else await this.ask("GET /timbr/api/q/sales", { ...json, ...key });
        await new Promise((resolve) => setTimeout(resolve, Math.random() * 30));
      }
    };
    await Promise.all([...Array(6).keys()].map(client));
  }

  async stop() {
    this.agent?.destroy();
    this.child.kill("SIGKILL");
    await this.ended;
    fs.rmSync(this.folder, { recursive: true });
  }
}
