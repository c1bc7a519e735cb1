// Drains no-op jobs with plainjob's own worker, synchronous=FULL: node plainjob.cjs DATABASE JOBS SECONDS
// Prints how many a second it has done, when all are or the time is up.
const database = process.argv[2];
const [jobs, limit] = process.argv.slice(3).map(Number);

async function main() {
    const Database = require("better-sqlite3");
    const { better, defineQueue, defineWorker, JobStatus } = await import(require.resolve("plainjob"));
    const logger = { error: console.error, warn: console.error, info() {}, debug() {} };
    const connection = better(new Database(database));
    const queue = defineQueue({ connection, logger });
    // plainjob asks for NORMAL, which does not flush an acknowledged write.
    connection.pragma("synchronous = FULL");
    queue.addMany("noop", Array.from({ length: jobs }, (_, index) => index));

    let done = 0;
    let allDone;
    const finished = new Promise((resolve) => (allDone = resolve));
    const onCompleted = () => {
        done++;
        const now = performance.now();
        if (done === jobs || now - start > limit * 1000) allDone(now);
    };
    const worker = defineWorker("noop", () => {}, { queue, logger, onCompleted });
    const start = performance.now();
    worker.start();
    const end = await finished;
    const counted = queue.countJobs({ type: "noop", status: JobStatus.Done });
    if (counted !== done) throw new Error(`${counted} jobs are done, not ${done}`);
    console.log(done / ((end - start) / 1000));
    await worker.stop();
    queue.close();
}
main();
