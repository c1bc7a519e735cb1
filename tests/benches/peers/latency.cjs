// What the latency peers share. Each line of standard input is `function N` or `program N`; the answer is a line of
// JSON: for N jobs, one at a time with a pause between so that each finds an idle system, the milliseconds from the
// submit's acknowledgement to the step's start. A step is the handler's first instruction, or a program that the
// handler starts at once and that prints its own start.
const { execFile } = require("node:child_process");
const { createInterface } = require("node:readline");
const { setTimeout: pause } = require("node:timers/promises");

const PAUSE_MS = 20;
const now = () => performance.timeOrigin + performance.now();
// How the handler of the job that was submitted last tells its start.
let started;

const handlers = {
    function: () => started(now()),
    program: () =>
        new Promise((resolve, reject) =>
            execFile("/bin/date", ["+%s%N"], (error, output) => {
                if (error) return reject(error);
                started(Number(output) / 1e6);
                resolve();
            }),
        ),
};
let handler;

/** What the worker does with a job. */
exports.handle = async () => handler();

/** Serves rounds with `submit`, whose promise is kept once the job is acknowledged, then calls `close`. */
exports.serve = async (submit, close) => {
    console.log("ready");
    for await (const line of createInterface({ input: process.stdin })) {
        const [kind, jobs] = line.split(" ");
        handler = handlers[kind];
        const latencies = [];
        for (let job = 0; job < Number(jobs); job++) {
            await pause(PAUSE_MS);
            const start = new Promise((resolve) => (started = resolve));
            await submit();
            const acknowledged = now();
            latencies.push((await start) - acknowledged);
        }
        console.log(JSON.stringify(latencies));
    }
    await close();
};
