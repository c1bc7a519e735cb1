// graphile-worker's latency (latency.cjs), woken by NOTIFY: node graphile.cjs CONNECTION-STRING
const { Pool } = require("pg");
const { Logger, makeWorkerUtils, run } = require("graphile-worker");
const { handle, serve } = require("./latency.cjs");

async function main() {
    const pgPool = new Pool({ connectionString: process.argv[2] });
    const logger = new Logger(() => (level, message) => level === "error" && console.error(message));
    const utils = await makeWorkerUtils({ pgPool, logger });
    await utils.migrate();
    const taskList = { noop: handle };
    const runner = await run({ pgPool, logger, taskList, concurrency: 1, noHandleSignals: true });
    await serve(
        () => utils.addJob("noop", {}),
        async () => {
            await runner.stop();
            await utils.release();
            await pgPool.end();
        },
    );
}
main();
