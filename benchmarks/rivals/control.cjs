"use strict";
// The rival's end of the control line, as benchmarks/control.py has it.

const net = require("node:net");
const readline = require("node:readline");

// Node's hrtime is CLOCK_MONOTONIC; Bun's counts from the start of the process.
let ahead = 0n;
if (typeof Bun !== "undefined") {
  const { dlopen, ptr } = require("bun:ffi");
  const libc = dlopen("libc.so.6", { clock_gettime: { args: ["i32", "ptr"], returns: "i32" } });
  const now = new BigInt64Array(2);
  libc.symbols.clock_gettime(1, ptr(now)); // once, so that the second call is quick
  libc.symbols.clock_gettime(1, ptr(now));
  ahead = now[0] * 1000000000n + now[1] - process.hrtime.bigint();
}

const BARE = 116;

function message(number, size) {
  const time = String(process.hrtime.bigint() + ahead).padStart(18, "0");
  return {
    id: `seq-${String(number).padStart(8, "0")}-${time}`,
    order: 48151,
    status: "shipped",
    total: "99.90",
    currency: "EUR",
    note: "x".repeat(size - BARE),
  };
}

const turn = () => new Promise((resolve) => setImmediate(resolve));
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function carryOut(order, publish) {
  const begin = performance.now();
  for (let n = 0; n < order.turns; n++) {
    if (order.rate) {
      const wait = begin + (n / order.rate) * 1000 - performance.now();
      if (wait > 0) await sleep(wait);
    }
    for (let m = 0; m < order.per_turn; m++) {
      publish("broadcast", message(order.first + n * order.per_turn + m, order.size));
    }
    await turn();
  }
}

exports.port = Number(process.env.BENCH_PORT);

exports.obey = (publish) => {
  const line = net.connect(Number(process.env.BENCH_CONTROL), "127.0.0.1");
  line.on("close", () => process.exit(0));
  line.setNoDelay(true);
  let last = Promise.resolve();
  readline.createInterface({ input: line }).on("line", (text) => {
    // One order after the other, though the next may be here already.
    last = last.then(() => carryOut(JSON.parse(text), publish)).then(() => line.write("{}\n"));
  });
};
