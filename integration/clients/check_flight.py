"""pyarrow's Flight client against a running store: lookups, packages, actions, and malformed commands."""

import json
import sys

import pyarrow as pa
from pyarrow import flight

address, socket, digest = sys.argv[1:]


def command(value):
    return flight.FlightDescriptor.for_command(json.dumps(value).encode())


def lookup(client, batches):
    writer, reader = client.do_exchange(command({"lookup": {"contract": "fraud"}}))
    answers = []
    with writer:
        writer.begin(batches[0].schema)
        for batch in batches:
            writer.write_batch(batch)
            answers.append(reader.read_chunk().data)
        writer.done_writing()
    return answers


def fails(call, *expected):
    try:
        call()
    except (pa.ArrowInvalid, pa.ArrowKeyError, flight.FlightError, NotImplementedError, pa.ArrowException) as error:
        for part in expected:
            assert part in str(error), (part, str(error))
        return
    raise AssertionError(f"no error, expected {expected}")


# gRPC's C++ core names a Unix socket's path as the authority, which Rust's HTTP/2 refuses as malformed: name another.
AUTHORITY = [("grpc.default_authority", "localhost")]

for place in (f"grpc://{address}", f"grpc+unix://{socket}"):
    client = flight.FlightClient(place, generic_options=AUTHORITY)
    keys = pa.record_batch({"user_name": ["ann", "nobody", None, "bob", "ann"]})
    first, second = lookup(client, [keys, keys.slice(3)])
    assert first["last_payment.amount"].to_pylist() == [70.0, None, None, 2.0, 70.0], first
    assert first["last_payment@status"].to_pylist() == ["fresh", "missing", "missing", "fresh", "fresh"], first
    assert first["last_payment@event_time"].to_pylist()[0].timestamp() == 10
    assert first["last_payment@as_of"].to_pylist()[1].timestamp() == 60
    assert second["last_payment.amount"].to_pylist() == [2.0, 70.0], second

    info = client.get_flight_info(command({"lookup": {"contract": "fraud"}}))
    assert info.schema.names[0] == "last_payment.amount", info.schema
    files = client.do_get(flight.Ticket(json.dumps({"package": digest}).encode())).read_all()
    assert sorted(files["name"].to_pylist()) == ["manifest.json", "weights.safetensors"]
    order = {"training_set": {"contract": "fraud", "time": "t", "spine":
        "SELECT 'ann' AS user_name, 'NL' AS country, TIMESTAMP '1970-01-01 00:00:09' AT TIME ZONE 'UTC' AS t UNION ALL "
        "SELECT 'ann', 'NL', TIMESTAMP '1970-01-01 00:00:10' AT TIME ZONE 'UTC' ORDER BY t"}}
    training = client.do_get(flight.Ticket(json.dumps(order).encode())).read_all()
    assert training["amount"].to_pylist() == [-1.0, 70.0] and training["domestic"].to_pylist() == [True, True], training
    assert client.get_flight_info(command(order)).schema == training.schema
    # In parts: an endpoint each, whose rows together are the whole.
    order["training_set"]["parts"] = 3
    endpoints = client.get_flight_info(command(order)).endpoints
    assert len(endpoints) == 3 and all(not endpoint.locations for endpoint in endpoints), endpoints
    parts = [client.do_get(endpoint.ticket).read_all()["amount"].to_pylist() for endpoint in endpoints]
    assert parts == [[-1.0], [70.0], []], parts
    order["training_set"]["part"] = 3
    fails(lambda: client.do_get(flight.Ticket(json.dumps(order).encode())).read_all(), "no such part")
    del order["training_set"]["parts"], order["training_set"]["part"]
    flights = [json.loads(f.descriptor.command) for f in client.list_flights()]
    assert {"lookup": {"contract": "fraud"}} in flights and {"package": digest} in flights, flights
    contracts = json.loads(next(iter(client.do_action("contracts"))).body.to_pybytes())
    assert contracts[0]["contract"]["name"] == "fraud" and contracts[0]["digest"] == digest
    status = json.loads(next(iter(client.do_action("status"))).body.to_pybytes())
    assert status["views"][0]["watermark"] == "1970-01-01T00:01:00Z", status

    # Bad input: a precise message, and the server lives on.
    fails(lambda: client.get_flight_info(flight.FlightDescriptor.for_command(b"hello")), "not a command", '{"lookup"')
    fails(lambda: client.do_get(flight.Ticket(b"\xff\x00")).read_all(), "not a command")
    fails(lambda: client.do_get(flight.Ticket(b'{"package": "sha256:12"}')).read_all(), "not a package digest")
    fails(lambda: client.do_get(flight.Ticket(b'{"lookup": {"contract": "fraud"}}')).read_all(), "DoExchange")
    fails(lambda: client.get_flight_info(command({"lookup": {"contract": "nothing"}})), "no such contract", "fraud")
    fails(lambda: lookup(client, [pa.record_batch({"user": ["ann"]})]), "a key column is missing", "user_name")
    fails(lambda: lookup(client, [pa.record_batch({"user_name": ["ann"], "usre": ["ann"]})]), "not a key", "usre")
    fails(lambda: lookup(client, [pa.record_batch({"user_name": [None, 7]})]), "user_name", "row: 1", "value: 7")
    fails(lambda: lookup(client, [pa.record_batch({"user_name": [{"first": "ann"}]})]), "user_name", "no column of ours")
    none, again = lookup(client, [keys.slice(0, 0), keys])
    assert none.num_rows == 0 and none.schema == first.schema and again.num_rows == 5, none
    order["training_set"]["spine"] = "SELECT 1 AS t"
    fails(lambda: client.do_get(flight.Ticket(json.dumps(order).encode())).read_all(), "user_name")
    fails(lambda: list(client.do_action("explode")), "no such action", "status")
    assert lookup(client, [keys])[0].num_rows == 5

    # Pushed events: acknowledged, visible in the next lookup, once.
    user = "pushed over " + place.split(":")[0]
    events = pa.record_batch({
        "user_name": [user, user], "amount": [5.0, 6.5],
        "paid_at": pa.array([40_000_000, 50_000_000], pa.timestamp("us", "UTC"))})
    def push(source, batch, header):
        writer, answers = client.do_put(command({"push": {"source": source}}), batch.schema)
        writer.write_with_metadata(batch, json.dumps(header).encode())
        ack = answers.read()
        writer.close()  # raises what the server said
        return json.loads(ack.to_pybytes())
    header = {"producer": place, "sequence": 1, "watermark": "1970-01-01T00:00:30Z"}
    ack = push("paid", events, header)
    # A source does not go back when another producer joins.
    assert (ack["rows"], ack["duplicate"]) == (2, False) and ack["watermark"] >= "1970-01-01T00:00:30Z", ack
    assert push("paid", events, header)["duplicate"]
    assert lookup(client, [pa.record_batch({"user_name": [user]})])[0]["last_payment.amount"].to_pylist() == [6.5]
    heartbeat = push("paid", events.slice(0, 0), {"producer": place, "sequence": 2, "watermark": "1970-01-01T00:00:45Z"})
    assert heartbeat["rows"] == 0 and not heartbeat["duplicate"], heartbeat
    # Many send everything, and listen then.
    writer, answers = client.do_put(command({"push": {"source": "paid"}}), events.schema)
    for sequence in range(3, 3003):
        writer.write_with_metadata(events.slice(0, 1), json.dumps({"producer": place, "sequence": sequence}).encode())
    writer.done_writing()
    acks = [json.loads(answers.read().to_pybytes()) for _ in range(3000)]
    wrong = [(at, ack) for at, ack in enumerate(acks) if ack["rows"] != 1 or ack["duplicate"]]
    assert not wrong, (len(wrong), wrong[:3])
    writer.close()
    fails(lambda: push("payd", events, {}), "no such source", "paid")
    fails(lambda: push("paid", events.drop_columns(["amount"]), {}), "a column of the source is missing", "amount")
    fails(lambda: push("paid", events, {"sequence": "one"}), "not a push header", "producer")
    assert int(next(iter(client.do_action("flush"))).body.to_pybytes()) >= 1
    assert lookup(client, [pa.record_batch({"user_name": [user]})])[0]["last_payment.amount"].to_pylist() == [6.5]
print("flight: fine")
