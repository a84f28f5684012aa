"""Triton's model configuration as an independent reader has it."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

#: The part of Triton's published model_config.proto that is written: message, field, type, whether it repeats.
MESSAGES = {
    "Tensor": {"name": "string", "data_type": "Type", "dims": "int64*", "label_filename": "string"},
    "Batching": {"preferred_batch_size": "int32*"},
    "Instances": {"count": "int32", "kind": "Kind", "profile": "string*"},
    "Value": {"string_value": "string"},
    "Parameter": {"key": "string", "value": "Value"},
    "WarmUpInput": {"data_type": "Type", "dims": "int64*", "input_data_file": "string"},
    "WarmUpEntry": {"key": "string", "value": "WarmUpInput"},
    "WarmUp": {"name": "string", "batch_size": "uint32", "inputs": "WarmUpEntry*"},
    "ModelConfig": {
        "name": "string",
        "backend": "string",
        "default_model_filename": "string",
        "max_batch_size": "int32",
        "input": "Tensor*",
        "output": "Tensor*",
        "dynamic_batching": "Batching",
        "instance_group": "Instances*",
        "parameters": "Parameter*",
        "model_warmup": "WarmUp*",
    },
}
ENUMERATIONS = {
    "Type": ["TYPE_INVALID", "TYPE_UINT8", "TYPE_FP32", "TYPE_INT32"],
    "Kind": ["KIND_AUTO", "KIND_CPU", "KIND_GPU"],
}
DTYPES = {1: np.uint8, 2: np.float32, 3: np.int32}


def parsed(text: str) -> Any:
    """A configuration as the library for protocol buffers reads it, which refuses unknown fields and types."""
    field = descriptor_pb2.FieldDescriptorProto
    kinds = {name: getattr(field, f"TYPE_{name.upper()}") for name in ("string", "int32", "uint32", "int64")}
    file = descriptor_pb2.FileDescriptorProto(name="configuration.proto", package="t", syntax="proto3")
    for name, values in ENUMERATIONS.items():
        numbered = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            numbered.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (key, kind) in enumerate(fields.items(), 1):
            label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            known = kinds.get(kind.rstrip("*"))
            other = {} if known else {"type_name": f".t.{kind.rstrip('*')}"}
            type_ = known or (field.TYPE_ENUM if kind in ENUMERATIONS else field.TYPE_MESSAGE)
            message.field.add(name=key, number=number, label=label, type=type_, **other)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.ModelConfig"))
    return text_format.Parse(text, made())
