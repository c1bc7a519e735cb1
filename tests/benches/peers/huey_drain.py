"""Drains no-op jobs with huey's own dequeue and execute, fsync on: huey_drain.py DATABASE JOBS SECONDS

Prints how many a second it has done, when all are or the time is up. Results are stored so that a completed job is
on disk, as with the others.
"""

import sys
import time

from huey import SqliteHuey

database, jobs, limit = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
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

done, seconds, start = 0, 0.0, time.perf_counter()
while done < jobs and seconds < limit:
    huey.execute(huey.dequeue())
    done, seconds = done + 1, time.perf_counter() - start
assert huey.result_count() == done, "results are missing"
print(done / seconds)
