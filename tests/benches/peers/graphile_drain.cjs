// Drains no-op jobs with graphile-worker's own runner: node graphile_drain.cjs CONNECTION-STRING JOBS SECONDS batched|single
// Prints how many a second it has done, when all are or the time is up. A job that is done is deleted.
const [connection, jobsText, secondsText, mode] = process.argv.slice(2);
const [jobs, seconds] = [Number(jobsText), Number(secondsText)];
// What its own performance test uses.
const CONCURRENCY = 24;
const BATCH = 500;

async function main() {
    const { Pool } = require("pg");
    const { Logger, makeWorkerUtils, run } = require("graphile-worker");
    const pgPool = new Pool({ connectionString: connection, max: CONCURRENCY + 2 });
    const logger = new Logger(() => (level, message) => level === "error" && console.error(message));
    const utils = await makeWorkerUtils({ pgPool, logger });
    await utils.migrate();
    await pgPool.query("select 1 from graphile_worker.add_job('warm-up')");
    await pgPool.query(
        `select count(*) from graphile_worker.add_jobs(array(
            select row('noop', '{}'::json, null, null, null, null, null, null)::graphile_worker.job_spec
            from generate_series(1, $1::int)))`,
        [jobs],
    );

    let done = 0;
    let allDone;
    const finished = new Promise((resolve) => (allDone = resolve));
    const timer = setTimeout(() => allDone(), seconds * 1000);
    const batched = {
        localQueue: { size: BATCH },
        completeJobBatchDelay: 0,
        failJobBatchDelay: 0,
    };
    const worker = { concurrentJobs: CONCURRENCY, logger, ...(mode === "batched" ? batched : {}) };
    const start = performance.now();
    const runner = await run({
        pgPool,
        logger,
        noHandleSignals: true,
        preset: { worker },
        taskList: {
            noop: () => {
                if (++done === jobs) allDone();
            },
            "warm-up": () => {},
        },
    });
    await finished;
    clearTimeout(timer);
    // Completions that wait for their batch are written, too.
    await runner.stop();
    const took = (performance.now() - start) / 1000;
    const left = await pgPool.query("select count(*)::int as left from graphile_worker._private_jobs where attempts = 0");
    if (done === jobs && left.rows[0].left !== 0) throw new Error(`${left.rows[0].left} jobs are left`);
    console.log(done / took);
    await utils.release();
    await pgPool.end();
}
main();
