"""What a column of an Arrow table holds, whichever of Arrow's types it is written as: large, viewed, coded by a dictionary or nested."""

import pyarrow as pa
import pyarrow.types as kinds


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values: what a dictionary codes, what an extension stores."""
    if kinds.is_dictionary(kind):
        return plain(kind.value_type)
    return plain(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def is_text(kind: pa.DataType) -> bool:
    """Whether the values are text."""
    kind = plain(kind)
    return kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether the values are bytes."""
    kind = plain(kind)
    return kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_binary_view(kind) or kinds.is_fixed_size_binary(kind)


def fields_of(kind: pa.DataType) -> set[str]:
    """The names in a struct; none for other types."""
    kind = plain(kind)
    return {kind.field(place).name for place in range(kind.num_fields)} if kinds.is_struct(kind) else set()


def holds_audio(kind: pa.DataType) -> bool:
    """Whether the values are recordings: bytes, or a struct as `datasets` has it, {bytes, path} or {array, sampling_rate}."""
    names = fields_of(kind)
    return is_bytes(kind) or {"bytes", "path"} <= names or {"array", "sampling_rate"} <= names


def is_nested(kind: pa.DataType) -> bool:
    """Whether the values are lists, structs, maps or bytes: nothing that a manifest keeps as a column."""
    return kinds.is_nested(plain(kind)) or is_bytes(kind)
