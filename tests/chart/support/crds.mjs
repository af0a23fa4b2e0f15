// Reads objects as JSON, one a line, and prints for each a line: what is wrong with it, or nothing.
// A kind that there is no model of is an error.
import { createInterface } from "node:readline";

const models = `${process.argv[2]}/node_modules`;
const packages = {
  "cert-manager.io": "@kubernetes-models/cert-manager",
  "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
};

for await (const line of createInterface({ input: process.stdin })) {
  const object = JSON.parse(line);
  const [group, version] = object.apiVersion.split("/");
  let problem = "";
  try {
    const model = await import(`${models}/${packages[group]}/${group}/${version}/${object.kind}.js`);
    new model[object.kind](object).validate();
  } catch (error) {
    problem = String(error.message ?? error).replaceAll("\n", " ") || "invalid";
  }
  console.log(problem);
}
