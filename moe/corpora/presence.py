"""Whether the shards that a manifest names are still there, asked before work begins that would find out one by one."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pandas as pd

from moe.corpora.locations import OutsideRoot, Root, fault_of, is_address, locate
from moe.corpora.shard_cache import stated

AT_ONCE = 16  # addresses that are asked together


def refuse_missing(rows: pd.DataFrame, root: Root) -> None:
    """Refuse rows of a manifest whose shards cannot be read by now, whatever was there when this process last asked.

    Raises:
        ValueError: shards are gone or cannot be reached, in one line with the first of them.
    """
    shards = sorted(set(rows.loc[in_shards(rows), "audio"]))
    stated.cache_clear()
    ask: Callable[[str], str | None] = partial(_remote_fault if is_address(root) else _local_fault, root)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        faults = {shard: fault for shard, fault in zip(shards, pool.map(ask, shards), strict=True) if fault}
    if faults:
        first, fault = next(iter(faults.items()))
        raise ValueError(
            f"the corpus at {root}: {len(faults)} of the {len(shards)} shards that the manifest names cannot be read, "
            f"e.g. {first} ({fault}): bring them back, or run prepare again"
        )


def refuse_unsharded(rows: pd.DataFrame, shards_together: int | None) -> None:
    """Refuse to take shards together where recordings are files of their own.

    Raises:
        ValueError: some are.
    """
    if fault := unsharded_fault(bool(in_shards(rows).all()), shards_together):
        raise ValueError(fault)


def unsharded_fault(is_sharded: bool, shards_together: int | None) -> str | None:
    """Why shards cannot be taken together; None where they can, or need not be."""
    if is_sharded or shards_together is None:
        return None
    return f"shards_together={shards_together}: recordings of this corpus are files of their own, not in shards; leave it out"


def in_shards(rows: pd.DataFrame) -> pd.Series:
    """Whether each row of a manifest lies in a shard, (N,)."""
    return rows["member"].notna() & (rows["member"] != "")


def _remote_fault(root: Root, shard: str) -> str | None:
    try:
        stated(locate(root, shard))
    except Exception as error:  # each scheme's library raises kinds of its own
        return fault_of(error)
    return None


def _local_fault(root: Root, shard: str) -> str | None:
    try:
        return None if os.path.isfile(locate(root, shard)) else "no such file"
    except OutsideRoot as error:
        return str(error)
