// Drains no-op jobs with pg-boss, 100 a fetch and a completion: node pgboss_drain.cjs CONNECTION-STRING JOBS SECONDS
// Prints how many a second it has done, and how many a second it has inserted before, 1,000 at a time.
const [connectionString, jobsText, secondsText] = process.argv.slice(2);
const [jobs, seconds] = [Number(jobsText), Number(secondsText)];
const WORKERS = 4;
const BATCH = 100;

async function main() {
    const PgBoss = require("pg-boss");
    const boss = new PgBoss({ connectionString, max: WORKERS, supervise: false, schedule: false });
    boss.on("error", console.error);
    await boss.start();
    await boss.createQueue("noop");
    let start = performance.now();
    for (let from = 0; from < jobs; from += 1000) {
        const count = Math.min(1000, jobs - from);
        await boss.insert(Array.from({ length: count }, (_, n) => ({ name: "noop", data: { n: from + n } })));
    }
    const inserted = jobs / ((performance.now() - start) / 1000);

    let done = 0;
    start = performance.now();
    const work = async () => {
        while (performance.now() - start < seconds * 1000) {
            const batch = await boss.fetch("noop", { batchSize: BATCH });
            if (batch.length === 0) return;
            await boss.complete("noop", batch.map((job) => job.id));
            done += batch.length;
        }
    };
    await Promise.all(Array.from({ length: WORKERS }, work));
    console.log(done / ((performance.now() - start) / 1000), inserted);
    await boss.stop({ graceful: false });
}
main();
