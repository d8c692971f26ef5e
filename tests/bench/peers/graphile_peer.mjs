// graphile-worker on jobs that do nothing:
// `node graphile_peer.mjs <folder of node_modules> <database URL> drain|live <jobs> <callers> default|fast`.
// Prints `begin` when the time begins, then one line of JSON.

import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, connectionString, what, jobs, callers, way] = process.argv.slice(2);
const total = Number(jobs);
const library = join(folder, "node_modules/graphile-worker/dist/index.js");
const { Logger, makeWorkerUtils, run } = await import(pathToFileURL(library).href);

const logger = new Logger(() => (level, message) => {
  if (level === "error" || level === "warning") console.error(message);
});
const worker =
  way === "fast"
    ? // What its own page of figures is measured with.
      {
        concurrentJobs: 24,
        maxPoolSize: 26,
        localQueue: { size: 500 },
        completeJobBatchDelay: 0,
        failJobBatchDelay: 0,
      }
    : { concurrentJobs: 10, maxPoolSize: 12 };
let started = 0;
const start = () =>
  run({
    preset: { worker: { connectionString, logger, ...worker } },
    taskList: {
      nothing: () => {
        started += 1;
      },
    },
    noHandleSignals: true,
  });
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const utils = await makeWorkerUtils({ preset: { worker: { connectionString, logger, maxPoolSize: 10 } } });
await utils.migrate();

/** When all are gone from its table, which is how a job ends. */
async function allDone() {
  while (started < total) await pause(2);
  for (;;) {
    const left = await utils.withPgClient((client) =>
      client.query("SELECT count(*)::int AS n FROM graphile_worker._private_jobs"),
    );
    if (left.rows[0].n === 0) return;
    await pause(5);
  }
}

let runner;
let begun;
if (what === "drain") {
  for (let at = 0; at < total; at += 1000) {
    const some = Array.from({ length: Math.min(1000, total - at) }, () => ({ identifier: "nothing" }));
    await utils.addJobs(some);
  }
  console.log("begin");
  begun = performance.now();
  runner = await start();
} else {
  runner = await start();
  await pause(500);
  console.log("begin");
  begun = performance.now();
  let next = 0;
  const caller = async () => {
    while (next < total) {
      next += 1;
      await utils.addJob("nothing", {});
    }
  };
  await Promise.all(Array.from({ length: Number(callers) }, caller));
}
await allDone();
console.log(JSON.stringify({ tasks: total, seconds: (performance.now() - begun) / 1000 }));
await runner.stop();
await utils.release();
