// Drains no-op jobs with plainjob's own worker, synchronous=FULL: node plainjob.cjs DATABASE JOBS
// Prints the seconds from the worker's start to the last job done.
const [database, jobs] = [process.argv[2], Number(process.argv[3])];

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
    const onCompleted = () => ++done === jobs && allDone(performance.now());
    const worker = defineWorker("noop", () => {}, { queue, logger, onCompleted });
    const start = performance.now();
    worker.start();
    const end = await finished;
    await worker.stop();
    const counted = queue.countJobs({ type: "noop", status: JobStatus.Done });
    if (counted !== jobs) throw new Error(`${counted} of ${jobs} jobs are done`);
    queue.close();
    console.log((end - start) / 1000);
}
main();
