"""The committed gRPC stubs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

import router.wire
from router.wire import paretogate_pb2

WIRE = Path(router.wire.__file__).parent


def test_the_stubs_are_those_of_the_proto_file(tmp_path: Path) -> None:
    """The committed stubs import and describe the same messages as the committed .proto file."""
    # Compared as descriptors: the text of stubs depends on the version of the generator.
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", str(WIRE.parents[1]),
         f"--descriptor_set_out={tmp_path / 'set'}", "router/wire/paretogate.proto"],
        check=True,
        capture_output=True,
    )  # fmt: skip

    made = FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file[0]
    committed = FileDescriptorProto.FromString(paretogate_pb2.DESCRIPTOR.serialized_pb)
    assert [message.name for message in made.message_type] == [m.name for m in committed.message_type]
    for one, other in zip(made.message_type, committed.message_type, strict=True):
        assert [(f.name, f.number, f.type) for f in one.field] == [
            (f.name, f.number, f.type) for f in other.field
        ]
    assert made.service == committed.service
