// Listens on many connections: node notify.cjs CONNECTION-STRING LISTENERS
// For each line N of standard input it writes N rows with a notification each, one at a time on an idle system, and prints
// a line of JSON: the milliseconds from the beginning of the write to the wake-up of the first listener.
const { createInterface } = require("node:readline");
const { setTimeout: pause } = require("node:timers/promises");

const PAUSE_MS = 10;

async function main() {
    const { Client } = require("pg");
    const connectionString = process.argv[2];
    let woken = () => {};
    for (let listener = 0; listener < Number(process.argv[3]); listener++) {
        const client = new Client({ connectionString });
        await client.connect();
        if (listener === 0) client.on("notification", ({ payload }) => woken(payload, performance.now()));
        await client.query("LISTEN rows");
    }
    const writer = new Client({ connectionString });
    await writer.connect();
    console.log("ready");
    for await (const line of createInterface({ input: process.stdin })) {
        const times = [];
        for (let n = 0; n < Number(line); n++) {
            await pause(PAUSE_MS);
            const id = `idle-${n}`;
            const wakeUp = new Promise((resolve) => (woken = (payload, at) => payload === id && resolve(at)));
            const start = performance.now();
            await writer.query({
                name: "write",
                text: "WITH row AS (INSERT INTO rows (payload) VALUES ($1) RETURNING id) SELECT pg_notify('rows', $1) FROM row",
                values: [id],
            });
            times.push((await wakeUp) - start);
        }
        console.log(JSON.stringify(times));
    }
    process.exit(0);
}
main();
