import uuid, time
from .test_claim import *
from .rows import new_job
from aiotasks.store.statement import load
from aiotasks.store.drivers import *
import pytest
@pytest.mark.parametrize("mode", ["auto", "force_custom_plan", "auto", "force_custom_plan"])
async def test_x(conn, mode):
    await conn.execute(f"SET plan_cache_mode = {mode}")
    store = Store(ConnectionDriver(conn)); alive = await worker(store)
    await fill(conn, "READY", 100_000)
    await conn.execute("ANALYZE aiotasks_task, aiotasks_worker")
    both = (["default"], [EVER], 10) * 2
    async def t(name, f, n=400):
        for _ in range(10): await f()
        a = time.perf_counter()
        for _ in range(n): await f()
        print(f"{mode} {name} {(time.perf_counter()-a)/n*1e6:.0f} us")
    print()
    await t("insert", lambda: store.insert_jobs([new_job()]))
    ids=[r[0] for r in await conn.fetch("select id from aiotasks_task limit 1")]
    await t("select", lambda: store.select_jobs(ids, "default"))
    await t("claim", lambda: claim(store, alive))
    await t("claim0", lambda: claim(store, alive, loop=lane(["no"])))
    rows = await conn.fetch("select id, claim_id from aiotasks_task where status='RUNNING' limit 500")
    it = iter(rows)
    await t("finish", lambda: store.finish_jobs([(*next(it), "SUCCESSFUL", "1", None)]))
    await t("renew", lambda: store.renew_lease(alive, 30.0))
