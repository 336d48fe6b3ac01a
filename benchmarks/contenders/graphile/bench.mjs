// What ../graphile_worker.py asks of graphile-worker. Each command prints a line of JSON; times are Unix
// time in seconds.
import { hash } from "node:crypto";
import { openSync, writeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { Logger, makeWorkerUtils, run } from "graphile-worker";

const connectionString = process.env.AIOTASKS_BENCH_DSN;
const logger = new Logger(() => () => {});
const clock = () => (performance.timeOrigin + performance.now()) / 1000;

// Other numbers of jobs at once (10 to 500), connections (4, 30) and jobs fetched (2,000) are no faster.
const batching = {
  concurrentJobs: 24,
  maxPoolSize: 10,
  localQueue: { size: 500 },
  completeJobBatchDelay: 0,
  failJobBatchDelay: 0,
};

/**
 * Return a function that takes a millisecond of CPU time. The thread's clock is too coarse to stop by, and
 * the compiler changes its mind about loops: so this hashes as many bytes as have taken that long before.
 */
function millisecond() {
  const step = Buffer.alloc(200_000);
  const start = process.threadCpuUsage();
  let used = { user: 0, system: 0 };
  let hashed = 0;
  for (; used.user + used.system < 300_000; hashed += step.length) {
    hash("sha256", step);
    used = process.threadCpuUsage(start);
  }
  const bytes = Buffer.alloc(Math.round((hashed * 1000) / (used.user + used.system)));
  return () => void hash("sha256", bytes);
}

async function withUtils(body) {
  const utils = await makeWorkerUtils({ connectionString, logger });
  try {
    return await body(utils);
  } finally {
    await utils.release();
  }
}

const commands = {
  async migrate() {
    await withUtils((utils) => utils.migrate());
  },

  /** Run what there is, `count` jobs, from the first body to the completion of the last. */
  async drain(task, count) {
    let first;
    let ran = 0;
    const all = Promise.withResolvers();
    const counted = (body) => async () => {
      first ??= clock();
      body();
      if (++ran === count) all.resolve();
    };
    const runner = await run({
      preset: { worker: { connectionString, logger, ...batching } },
      taskList: { [task]: counted(task === "cpu" ? millisecond() : () => {}) },
    });
    await all.promise;
    await runner.stop(); // writes the last completions
    return { seconds: clock() - first };
  },

  /** Work with the defaults; a job writes its number and its time to the file. */
  async serve(path) {
    const file = openSync(path, "a");
    const runner = await run({
      preset: { worker: { connectionString, logger } },
      taskList: { now: async ({ number }) => void writeSync(file, `${number} ${clock()}\n`) },
    });
    await runner.promise;
  },

  async fill(task, count) {
    await withUtils(async (utils) => {
      for (let start = 0; start < count; start += 5000) {
        const size = Math.min(5000, count - start);
        await utils.addJobs(Array.from({ length: size }, () => ({ identifier: task, payload: {} })));
      }
    });
  },

  /** By `callers` at once, each one after the other. */
  async enqueue(callers, count) {
    return await withUtils(async (utils) => {
      const caller = async (each) => {
        for (let number = 0; number < each; number++) await utils.addJob("noop", {});
      };
      const all = (each) => Promise.all(Array.from({ length: callers }, () => caller(each)));
      await all(5); // connects
      const each = Math.max(1, Math.floor(count / callers));
      const start = clock();
      await all(each);
      return { per_s: (callers * each) / (clock() - start) };
    });
  },

  /** Numbers `from` to `to`, one every 20 ms; their times of sending. */
  async send(from, to) {
    return await withUtils(async (utils) => {
      const sent = [];
      const start = clock();
      for (let number = from; number <= to; number++) {
        await sleep(Math.max(0, (start + (number - from) * 0.02 - clock()) * 1000));
        sent.push(clock());
        await utils.addJob("now", { number });
      }
      return { sent };
    });
  },
};

const [name, ...given] = process.argv.slice(2);
const args = given.map((value) => (/^\d+$/.test(value) ? Number(value) : value));
console.log(JSON.stringify((await commands[name](...args)) ?? {}));
