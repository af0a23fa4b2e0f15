"""Stand-ins for timbr-server (Thrift over HTTP, logs) and for the metadata of timbr-api, for the published clients.

    standin.py PORT RECORD     serves until it is stopped; writes each request to RECORD, one JSON object per line

A real HiveServer2 sets a cookie and then accepts it in place of the credential; this one does the same.
"""
import base64
import http.server
import json
import sys
import threading

from TCLIService import TCLIService, ttypes
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.transport.TTransport import TMemoryBuffer

ROWS = ["customer", "order"]
METADATA = {
    "/timbr/api/kb/search": {"results": [], "matches": [], "is_high_confidence": False},
    "/timbr/api/fetch_conversation_history/": [{"question": "Who?", "answer": "Ada"}],
}
TEMPLATE = [{"type": "SystemMessage", "template": "You answer about {ontology}.", "role": "system"}]


class HiveServer2:
    """Responds to every statement with the same rows."""

    def __init__(self):
        self.fetched = False

    @staticmethod
    def success(response, **values):
        return response(status=ttypes.TStatus(statusCode=ttypes.TStatusCode.SUCCESS_STATUS), **values)

    @staticmethod
    def identifier():
        return ttypes.THandleIdentifier(guid=bytes(16), secret=bytes(range(16)))

    def OpenSession(self, request):
        version = ttypes.TProtocolVersion.HIVE_CLI_SERVICE_PROTOCOL_V6
        return self.success(ttypes.TOpenSessionResp, serverProtocolVersion=version, configuration={},
                            sessionHandle=ttypes.TSessionHandle(sessionId=self.identifier()))

    def ExecuteStatement(self, request):
        self.fetched = False
        handle = ttypes.TOperationHandle(operationId=self.identifier(), hasResultSet=True,
                                         operationType=ttypes.TOperationType.EXECUTE_STATEMENT)
        return self.success(ttypes.TExecuteStatementResp, operationHandle=handle)

    def GetOperationStatus(self, request):
        state = ttypes.TOperationState.FINISHED_STATE
        return self.success(ttypes.TGetOperationStatusResp, operationState=state)

    def GetResultSetMetadata(self, request):
        entry = ttypes.TTypeEntry(primitiveEntry=ttypes.TPrimitiveTypeEntry(type=ttypes.TTypeId.STRING_TYPE))
        column = ttypes.TColumnDesc(columnName="concept", typeDesc=ttypes.TTypeDesc(types=[entry]), position=1)
        return self.success(ttypes.TGetResultSetMetadataResp, schema=ttypes.TTableSchema(columns=[column]))

    def FetchResults(self, request):
        values, self.fetched = ([] if self.fetched else ROWS), True
        column = ttypes.TColumn(stringVal=ttypes.TStringColumn(values=values, nulls=b"\0"))
        rows = ttypes.TRowSet(startRowOffset=0, rows=[], columns=[column])
        return self.success(ttypes.TFetchResultsResp, hasMoreRows=False, results=rows)

    def GetInfo(self, request):
        return self.success(ttypes.TGetInfoResp, infoValue=ttypes.TGetInfoValue(stringValue="Timbr"))

    def CancelOperation(self, request):
        return self.success(ttypes.TCancelOperationResp)

    def CloseOperation(self, request):
        return self.success(ttypes.TCloseOperationResp)

    def CloseSession(self, request):
        return self.success(ttypes.TCloseSessionResp)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    lock = threading.Lock()
    hive = HiveServer2()

    def log_message(self, *_):
        pass

    def handle_request(self):
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        scheme, _, pair = self.headers.get("Authorization", "").partition(" ")
        basic = base64.b64decode(pair).decode() if scheme == "Basic" else None
        seen = {"method": self.command, "path": path, "basic": basic, "key": self.headers.get("x-api-key"),
                "cookie": self.headers.get("Cookie"), "user": self.headers.get("x-forwarded-user")}
        with self.lock, open(sys.argv[2], "a", encoding="utf-8") as record:
            record.write(json.dumps(seen) + "\n")
        if not (basic or seen["key"] or "hive.server2.auth" in (seen["cookie"] or "")):
            return self.respond(401, b"no credential", "text/plain")
        if self.headers.get("Content-Type") == "application/x-thrift":
            received, answer = TMemoryBuffer(body), TMemoryBuffer()
            with self.lock:
                TCLIService.Processor(self.hive).process(TBinaryProtocol(received), TBinaryProtocol(answer))
            cookie = "hive.server2.auth=cu=token&rn=1&s=abc; HttpOnly; Path=/"
            return self.respond(200, answer.getvalue(), "application/x-thrift", cookie)
        data = METADATA.get(path, TEMPLATE if path.startswith("/timbr/api/") else "logged")
        return self.respond(200, json.dumps({"status": "success", "data": data}).encode(), "application/json")

    do_GET = do_POST = handle_request

    def respond(self, status, body, media_type, cookie=None):
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        if cookie:
            self.send_header("Set-Cookie", cookie)
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
