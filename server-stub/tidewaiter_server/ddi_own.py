"""Device routes that are ours: telemetry, the audit chains, and the TUF repository."""

import json

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from tidewaiter_server import artifacts, audit, ddi_messages, ingest, limits
from tidewaiter_server import devices as enrollment
from tidewaiter_server.ddi_context import Ddi, read_json, serve_file
from tidewaiter_server.errors import Refusal, malformed, not_found
from tidewaiter_server.identity import Device


async def telemetry(ddi: Ddi, request: Request, device: Device) -> Response:
    snapshots = ddi_messages.read_snapshots(await read_json(request))
    await ddi.database.write(
        lambda connection: enrollment.add_telemetry(connection, ddi.clock, device.id, snapshots)
    )
    return Response(status_code=204)


async def audit_ingest(ddi: Ddi, request: Request, device: Device) -> Response:
    component = request.path_params["component"]
    if component not in ingest.COMPONENTS:
        raise not_found(f"audit stream {component[:32]}")
    records = ingest.parse(await limits.read_body(request, limits.AUDIT_BODY_BYTES), component)
    claimed = request.query_params.get("from")
    if claimed is not None and claimed != str(records[0].seq):
        raise malformed("from", f"the seq of the first record, {records[0].seq}", repr(claimed))

    def store(connection: Connection) -> ingest.Answer:
        answer = ingest.store(connection, ddi.clock, device.id, component, records)
        audit.append(
            connection,
            ddi.clock,
            "audit.fork" if answer.fork_seq is not None else "audit.ingested",
            actor=f"device:{device.id}",
            object=f"audit:{device.id}/{component}",
            outcome="major" if answer.fork_seq is not None else "ok",
            fields={"stored": answer.stored, "next_seq": answer.next_seq, "gap": answer.gap},
        )
        return answer

    answer = await ddi.database.write(store)
    if answer.fork_seq is not None:
        raise Refusal(
            409,
            "audit.fork",
            f"audit {component}: record {answer.fork_seq} contradicts what is stored; the stream is frozen",
            extra={"next_seq": answer.next_seq},
        )
    if answer.gap:
        raise Refusal(
            409,
            "audit.gap",
            f"audit {component}: expected record {answer.next_seq} next; what came before it is stored",
            extra={"next_seq": answer.next_seq},
        )
    return Response(json.dumps({"next_seq": answer.next_seq}).encode(), media_type="application/json")


async def tuf_metadata(ddi: Ddi, request: Request, device: Device) -> Response:
    path = request.path_params["path"]
    lasting = artifacts.NO_STORE if path == "timestamp.json" else artifacts.IMMUTABLE
    return await serve_file(ddi, request, device, "metadata", path, lasting, media_type="application/json")


async def tuf_target(ddi: Ddi, request: Request, device: Device) -> Response:
    return await serve_file(ddi, request, device, "targets", request.path_params["path"], artifacts.IMMUTABLE)
