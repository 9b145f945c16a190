// Drives the TypeScript package for the tests: one command as JSON a line on stdin, one answer a line on stdout.
//
//   node interop.mjs <folder with node_modules> <MongoDB URL> <key prefix>
//
// {"op": "acquire", "args": ["key", 1000, "me"]}  ->  {"ok": <result>}  or  {"error": "<message>"}
//
// Values travel as canonical Extended JSON, so dates, integers and doubles keep their types. Handles of locks stay
// here and are named by the key: {"op": "handle.extend", "args": ["key", 1000]}.

import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [folder, url, keyPrefix] = process.argv.slice(2);
const { BSON, MongoClient } = createRequire(join(folder, "package.json"))("mongodb");
const { MongoDBAdapter, MongoDBIdempotencyAdapter } = await import(
  pathToFileURL(join(folder, "node_modules/@go-go-scope/persistence-mongodb/dist/index.mjs"))
);

const client = await new MongoClient(url).connect();
const adapter = new MongoDBAdapter(client.db(), { keyPrefix });
const idempotency = new MongoDBIdempotencyAdapter(client.db(), { keyPrefix });
const handles = new Map();

const operations = {
  async connect() {
    await adapter.connect();
    await idempotency.connect();
    return adapter.isConnected();
  },
  async acquire(key, ttl, owner) {
    const handle = await adapter.acquire(key, ttl, owner);
    if (handle) handles.set(key, handle);
    return handle !== null;
  },
  "handle.release": (key) => handles.get(key).release(),
  "handle.extend": (key, ttl) => handles.get(key).extend(ttl),
  "handle.isValid": (key) => handles.get(key).isValid(),
};

for (const name of ["extend", "forceRelease", "getState", "setState", "recordFailure", "recordSuccess"]) {
  operations[name] = (...args) => adapter[name](...args);
}
for (const name of ["get", "set", "delete", "has", "clear", "keys"]) {
  operations[`cache.${name}`] = (...args) => adapter[name](...args);
}
for (const name of ["get", "set", "delete"]) {
  operations[`idempotency.${name}`] = (...args) => idempotency[name](...args);
}

for await (const line of createInterface({ input: process.stdin })) {
  const { op, args } = BSON.EJSON.parse(line);
  let answer;
  try {
    answer = { ok: (await operations[op](...args)) ?? null };
  } catch (error) {
    answer = { error: `${error.name}: ${error.message}` };
  }
  process.stdout.write(`${BSON.EJSON.stringify(answer, { relaxed: false })}\n`);
}

await client.close();
