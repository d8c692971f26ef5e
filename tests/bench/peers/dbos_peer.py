"""DBOS on workflows of five steps that do nothing:
`python dbos_peer.py <database URL> <workflows> <callers>`.

They are started and run in one process, so that nothing waits for the poll of a queue.
Prints `begin` when the time begins, then one line of JSON.
"""

import asyncio
import json
import sys
import time

from dbos import DBOS, DBOSConfig

url, count, callers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
config: DBOSConfig = {
    "name": "bench",
    "system_database_url": url,
    "sys_db_pool_size": 32,
    "log_level": "ERROR",
    "application_version": "1",
}
DBOS(config=config)


@DBOS.step()
async def nothing() -> None:
    pass


@DBOS.workflow()
async def five() -> None:
    for _ in range(5):
        await nothing()


async def main() -> None:
    DBOS.launch()
    await five()
    print("begin", flush=True)
    begun = time.monotonic()
    left = iter(range(count))

    async def caller() -> None:
        for _ in left:
            await five()

    await asyncio.gather(*(caller() for _ in range(callers)))
    print(json.dumps({"tasks": count, "seconds": time.monotonic() - begun}), flush=True)


asyncio.run(main())
DBOS.destroy()
