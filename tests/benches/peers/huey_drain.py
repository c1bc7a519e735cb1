"""Drains no-op jobs with huey's own dequeue and execute, fsync on: huey_drain.py DATABASE JOBS

Prints the seconds from the first dequeue to the last result stored. Results are stored so that a completed job is
on disk, as with the others.
"""

import sys
import time

from huey import SqliteHuey

database, jobs = sys.argv[1], int(sys.argv[2])
huey = SqliteHuey(filename=database, fsync=True)


@huey.task()
def noop():
    return True


# Adding is not measured: it goes into one transaction.
with huey.storage.db(commit=True) as cursor:
    for _ in range(jobs):
        data = huey.serialize_task(noop.s())
        cursor.execute(
            "insert into task (queue, data, priority) values (?, ?, ?)", (huey.storage.name, data, 0)
        )

start = time.perf_counter()
for _ in range(jobs):
    huey.execute(huey.dequeue())
seconds = time.perf_counter() - start
assert huey.pending_count() == 0 and huey.result_count() == jobs, "jobs are left"
print(seconds)
