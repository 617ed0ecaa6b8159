"""ArrayRecord shards: msgpack records that are read at random places."""

import io
from pathlib import Path

import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from vse_jax.data.records.index import StoredFile


class ArrayRecordExamples:
    """The records of ArrayRecord shards; travels to worker processes as paths."""

    def __init__(self, folder: Path, shards: list[StoredFile]):
        # With the number of records in the name no shard is opened before it is read.
        names = [f"{folder / shard.name}[0:{shard.records}]" for shard in shards]
        self.source = ArrayRecordDataSource(names)

    def __getitem__(self, index: int) -> dict:
        return decode_record(self.source[index])


def encode_record(record: dict) -> bytes:
    """A record of an ArrayRecord shard: msgpack; region features as .npy inside."""
    if "regions" in record:
        content = io.BytesIO()
        np.save(content, record["regions"], allow_pickle=False)
        record = record | {"regions": content.getvalue()}
    return msgpack.packb(record)


def decode_record(data: bytes) -> dict:
    """The inverse of `encode_record`."""
    record = msgpack.unpackb(data)
    if "regions" in record:
        content = io.BytesIO(record["regions"])
        record["regions"] = np.load(content, allow_pickle=False)
    return record
