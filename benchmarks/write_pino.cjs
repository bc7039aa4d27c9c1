// pino on Node, one line and one write each: node write_pino.cjs FOLDER LINES MIN_LENGTH   (prints JSON)
const path = require("node:path");
const { createRequire } = require("node:module");
const pino = createRequire(path.join(process.env.PINO_HOME || process.cwd(), "x.js"))("pino");

const [folder, count, minLength] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const pad = (number, width) => String(number).padStart(width, "0");
const events = [];
for (let n = 0; n < count; n++) {
  const score = (((n * 7919) % 2000) - 1000) / 1000;
  events.push({
    timestamp: `2025-11-18T10:${pad(Math.floor(n / 60000) % 60, 2)}:${pad(Math.floor(n / 1000) % 60, 2)}.${pad(n % 1000, 3)}Z`,
    symbol: "BTCUSDT", fromState: "IDLE", toState: "IDLE", eventType: "SCORING_UPDATE", reason: "score below threshold",
    extra: { score, side: score > 0 ? "LONG" : "SHORT", price: 91000 + (n % 997) / 10,
      components: { flow: score / 2, book: score / 3, momentum: -score / 5 } },
  });
}
const destination = pino.destination({ dest: path.join(folder, `pino${minLength}.jsonl`), sync: true, minLength });
const log = pino(destination); // as it comes: level, time, pid, hostname
for (let n = 0; n < 5000; n++) log.info(events[n]);
const before = process.cpuUsage();
let begin = process.hrtime.bigint();
for (const event of events) log.info(event);
destination.flushSync();
const rate = (count * 1e9) / Number(process.hrtime.bigint() - begin);
const used = process.cpuUsage(before);
const cpu = (used.user + used.system) / count;
const held = new Float64Array(count);
for (let n = 0; n < count; n++) {
  begin = process.hrtime.bigint();
  log.info(events[n]);
  held[n] = Number(process.hrtime.bigint() - begin) / 1e3;
}
held.sort();
console.log(JSON.stringify({ rate, cpu, p50: held[count >> 1], p99: held[Math.floor(count * 0.99)], max: held[count - 1] }));
