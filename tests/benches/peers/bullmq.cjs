// BullMQ's latency (latency.cjs), queue and worker each on their own connections: node bullmq.cjs REDIS-SOCKET
const { Queue, Worker } = require("bullmq");
const { handle, serve } = require("./latency.cjs");

async function main() {
    // Workers wait for ever, as BullMQ demands.
    const connection = { path: process.argv[2], maxRetriesPerRequest: null };
    const queue = new Queue("bench", { connection });
    const worker = new Worker("bench", handle, { connection });
    await Promise.all([queue.waitUntilReady(), worker.waitUntilReady()]);
    await serve(
        () => queue.add("noop", {}),
        async () => {
            await worker.close();
            await queue.close();
        },
    );
}
main();
