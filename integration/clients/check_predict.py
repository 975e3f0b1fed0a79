"""tritonclient against a running worker: raw and typed tensors, metadata, and everything that is wrong to send."""

import sys

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

address, digest = sys.argv[1:]
client = triton.InferenceServerClient(address)
stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(address))


def tensor(name, values, datatype="BYTES", shape=None):
    array = np.array(values, dtype=np.object_ if datatype == "BYTES" else None)
    result = triton.InferInput(name, shape or list(array.shape), datatype)
    result.set_data_from_numpy(array)
    return result


def typed(rows):
    request = pb.ModelInferRequest(model_name="fraud", id="7")
    for name, values in rows.items():
        one = request.inputs.add(name=name, datatype="BYTES", shape=[len(values)])
        one.contents.bytes_contents.extend(value.encode() for value in values)
    return request


# gRPC's own health and reflection services, spoken in bytes: no generated code for them is installed.
channel = grpc.insecure_channel(address)
raw = {"request_serializer": bytes, "response_deserializer": bytes}
for service in (b"", b"inference.GRPCInferenceService"):
    request = b"\x0a" + bytes([len(service)]) + service if service else b""
    assert channel.unary_unary("/grpc.health.v1.Health/Check", **raw)(request) == b"\x08\x01", service
reflect = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", **raw)
assert b"inference.GRPCInferenceService" in next(reflect(iter([b"\x3a\x01*"])))

assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("fraud")
assert not client.is_model_ready("nothing")
assert client.get_server_metadata().name == "springhouse"
metadata = client.get_model_metadata("fraud")
assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
    ("user_name", "BYTES", [-1]), ("country", "BYTES", [-1])], metadata
assert [(t.name, t.datatype) for t in metadata.outputs] == [("fraud_probability", "FP32")]

result = client.infer("fraud", [tensor("user_name", ["ann", "nobody"]), tensor("country", ["NL", "DE"])], request_id="a")
raw = result.as_numpy("fraud_probability")
response = result.get_response()
assert raw.shape == (2,) and ((0 <= raw) & (raw <= 1)).all(), raw
assert response.id == "a" and response.parameters["springhouse_package"].string_param == digest
assert response.parameters["springhouse_view_last_payment"].string_param == "missing rule=DEFAULT rows=1", response
assert response.parameters["springhouse_fresh_rows"].int64_param == 1
assert response.parameters["springhouse_contract_version"].string_param == metadata.versions[0]
assert response.parameters["springhouse_prediction_id"].string_param

answer = stub.ModelInfer(typed({"user_name": ["ann", "nobody"], "country": ["NL", "DE"]}))
assert list(answer.outputs[0].contents.fp32_contents) == list(raw) and not answer.raw_output_contents, answer
column = client.infer("fraud", [tensor("user_name", [["ann"]]), tensor("country", [["NL"]])])
assert column.as_numpy("fraud_probability")[0] == raw[0]
only_country = client.infer("fraud", [tensor("country", ["DE"])])
assert only_country.as_numpy("fraud_probability")[0] == raw[1]
nulls = client.infer("fraud", [tensor("user_name", ["ann"]), tensor("user_name@null", np.array([True]), "BOOL"), tensor("country", ["DE"])])
assert nulls.as_numpy("fraud_probability")[0] == raw[1]


def fails(code, expected, call):
    try:
        call()
    except InferenceServerException as error:
        found, message = error.status(), error.message()
    except grpc.RpcError as error:
        found, message = f"StatusCode.{error.code().name}", error.details()
    else:
        raise AssertionError(f"no error, expected {expected}")
    assert found == f"StatusCode.{code}" and expected in message, (found, message)


user, country = tensor("user_name", ["ann"]), tensor("country", ["NL"])
fails("NOT_FOUND", "no such contract is deployed", lambda: client.infer("nothing", [user, country]))
fails("NOT_FOUND", "not deployed at this version", lambda: client.infer("fraud", [user, country], model_version="1"))
fails("INVALID_ARGUMENT", "a request column is missing", lambda: client.infer("fraud", [user]))
fails("INVALID_ARGUMENT", "no such request column", lambda: client.infer("fraud", [user, country, tensor("age", ["1"])]))
fails("INVALID_ARGUMENT", "wrong datatype", lambda: client.infer("fraud", [user, tensor("country", np.array([1], np.int32), "INT32")]))
fails("INVALID_ARGUMENT", "NOT NULL", lambda: client.infer("fraud", [user, country, tensor("country@null", np.array([True]), "BOOL")]))
fails("INVALID_ARGUMENT", "wrong shape", lambda: client.infer("fraud", [tensor("user_name", ["ann", "bob"]), country]))
fails("INVALID_ARGUMENT", "wrong shape", lambda: client.infer("fraud", [tensor("user_name", [["a", "b"]]), tensor("country", [["a", "b"]])]))
fails("INVALID_ARGUMENT", "no rows", lambda: stub.ModelInfer(typed({"user_name": [], "country": []})))
fails("INVALID_ARGUMENT", "more rows than one may have", lambda: client.infer("fraud", [tensor("country", ["NL"] * 101)]))
many = [("country", "BYTES"), ("user_name", "BYTES")]
huge = pb.ModelInferRequest(model_name="fraud")
for name, datatype in many:
    huge.inputs.add(name=name, datatype=datatype, shape=[1 << 60])
fails("INVALID_ARGUMENT", "more rows than one may have", lambda: stub.ModelInfer(huge))
fails("INVALID_ARGUMENT", "no such output", lambda: client.infer("fraud", [user, country], outputs=[triton.InferRequestedOutput("x")]))


def broken(change):
    request = typed({"country": ["NL"]})
    request.inputs[0].ClearField("contents")
    change(request)
    stub.ModelInfer(request)


fails("INVALID_ARGUMENT", "cut off", lambda: broken(lambda r: r.raw_input_contents.append(b"\xff\xff\xff\x7fNL")))
fails("INVALID_ARGUMENT", "do not match the inputs", lambda: broken(lambda r: r.raw_input_contents.extend([b"", b""])))
fails("INVALID_ARGUMENT", "do not fit its shape", lambda: broken(lambda r: None))
assert client.infer("fraud", [user, country]).as_numpy("fraud_probability")[0] == raw[0], "the server lives on"
print("predict: fine")
