"""pyarrow's Flight client and plain HTTPS against a store that asks who calls: tokens, a certificate, spines."""

import json
import ssl
import sys
import urllib.error
import urllib.request

import pyarrow as pa
from pyarrow import flight

address, http, folder, reader, engineer = sys.argv[1:]


def read(name):
    with open(f"{folder}/{name}", "rb") as file:
        return file.read()


def shows(token):
    return flight.FlightCallOptions(headers=[(b"authorization", b"Bearer " + token.encode())])


def command(value):
    return flight.FlightDescriptor.for_command(json.dumps(value).encode())


def ticket(value):
    return flight.Ticket(json.dumps(value).encode())


def fails(call, kind, *expected):
    try:
        call()
    except kind as error:
        for part in expected:
            assert part in str(error), (part, str(error))
        assert reader not in str(error) and engineer not in str(error), "a token in an error"
        return
    raise AssertionError(f"no error, expected {expected}")


# pyarrow tells of `get_schema` by plain OSErrors, with the same words.
UNKNOWN, LACKS = (flight.FlightUnauthenticatedError, OSError), (flight.FlightUnauthorizedError, OSError)
client = flight.FlightClient(f"grpc+tls://{address}", tls_root_certs=read("ca.pem"))
lookup, package = {"lookup": {"contract": "fraud"}}, {"package": "sha256:12"}
spine = {"training_set": {"contract": "fraud", "time": "t"}}
sql = ("SELECT 'ann' AS user_name, 'NL' AS country, TIMESTAMP '1970-01-01 00:00:10' AT TIME ZONE 'UTC' AS t "
       "UNION ALL SELECT 'ann', 'NL', TIMESTAMP '1970-01-01 00:00:09' AT TIME ZONE 'UTC' ORDER BY t DESC")
asked = {"training_set": {**spine["training_set"], "spine": sql}}
file = {"training_set": {**spine["training_set"], "spine": "payments.parquet"}}

# Nobody, somebody unknown, somebody who lacks the scope.
fails(lambda: client.get_schema(command(lookup)), UNKNOWN, "who calls is not said")
fails(lambda: client.get_schema(command(lookup), shows("springhouse_00_11")), UNKNOWN, "not known")
fails(lambda: list(client.list_flights()), UNKNOWN, "read")
assert client.get_schema(command(lookup), shows(reader)).schema.names[0] == "last_payment.amount"
for call in (asked, file):
    fails(lambda: client.get_schema(command(call), shows(reader)), LACKS, "query")
    fails(lambda: client.get_flight_info(command(call), shows(reader)), LACKS, "query")
    fails(lambda: client.do_get(ticket(call), shows(reader)).read_all(), LACKS, "query")
fails(lambda: list(client.do_action("flush", shows(reader))), LACKS, "operate")
fails(lambda: client.do_get(ticket(package), shows(engineer)).read_all(), LACKS, "read")

# The engineer's query, and the reader's batches, make the same training set.
by_query = client.do_get(ticket(asked), shows(engineer)).read_all()
assert by_query["amount"].to_pylist() == [70.0, -1.0], by_query
rows = pa.table({"user_name": ["ann", "ann"], "country": ["NL", "NL"],
                 "t": pa.array([10_000_000, 9_000_000], pa.timestamp("us", "UTC"))})


def exchange(rows, given=spine):
    writer, answers = client.do_exchange(command(given), shows(reader))
    with writer:
        writer.begin(rows.schema)
        for batch in rows.to_batches(max_chunksize=1):
            writer.write_batch(batch)
        writer.done_writing()
        return answers.read_all()


# One that the project defines is for those who read, and known by its name alone.
by_name = {"training_set": {"contract": "fraud", "spine": {"name": "asked"}}}
assert client.do_get(ticket(by_name), shows(reader)).read_all().to_pydict() == by_query.to_pydict()
assert client.get_schema(command(by_name), shows(reader)).schema == by_query.schema
parts = {"training_set": {**by_name["training_set"], "parts": 2}}
parts = [client.do_get(endpoint.ticket, shows(reader)).read_all()
         for endpoint in client.get_flight_info(command(parts), shows(reader)).endpoints]
assert sorted(sum((part["amount"].to_pylist() for part in parts), [])) == [-1.0, 70.0], parts
fails(lambda: client.do_get(ticket(by_name), shows(engineer)).read_all(), LACKS, "read")
unknown = {"training_set": {"contract": "fraud", "spine": {"name": "payments"}}}
missing = (flight.FlightError, pa.ArrowException, KeyError)
fails(lambda: client.do_get(ticket(unknown), shows(reader)).read_all(), missing, "no such spine", "asked")
fails(lambda: exchange(rows, by_name), pa.ArrowInvalid, "DoGet")

by_batches = exchange(rows)
assert by_batches.to_pydict() == by_query.to_pydict(), (by_batches, by_query)
assert exchange(rows.slice(0, 0)).num_rows == 0
fails(lambda: exchange(rows.drop_columns(["country"])), pa.ArrowInvalid, "country")
fails(lambda: exchange(rows, asked), LACKS, "query")
fails(lambda: client.get_schema(command(spine), shows(reader)), pa.ArrowInvalid, "DoExchange")

# A certificate instead of a token.
known = flight.FlightClient(f"grpc+tls://{address}", tls_root_certs=read("ca.pem"),
                            cert_chain=read("client.pem"), private_key=read("client.key"))
assert known.get_schema(command(lookup)).schema.names[0] == "last_payment.amount"
fails(lambda: list(known.do_action("clock")), LACKS, "worker", "operate")

# The HTTP port.
trust = ssl.create_default_context(cafile=f"{folder}/ca.pem")


def get(path, token=None):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"https://{http}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, context=trust) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


assert get("/metrics", reader)[0] == 200
status, text = get("/metrics")
assert status == 401 and "operate or read" in text, (status, text)
status, text = get("/metrics", engineer)
assert status == 403 and "operate or read" in text, (status, text)
assert get("/else")[0] == 401 and get("/else", reader)[0] == 404
print("security: fine")
