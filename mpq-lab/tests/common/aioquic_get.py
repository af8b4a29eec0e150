"""Downloads over HTTP/3 by aioquic, which knows nothing of moves: HOST PORT PATH FILE.

Any certificate will do. Fails unless the response is complete and has status 200.
"""

import asyncio
import ssl
import sys

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StreamReset


class Download(QuicConnectionProtocol):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.http = H3Connection(self._quic)
        self.over = asyncio.get_running_loop().create_future()

    async def get(self, host, path, file):
        self.file = file
        stream = self._quic.get_next_available_stream_id()
        names = [b":method", b":scheme", b":authority", b":path"]
        values = [b"GET", b"https", host.encode(), path.encode()]
        self.http.send_headers(stream, list(zip(names, values)), end_stream=True)
        self.transmit()
        await self.over

    def quic_event_received(self, event):
        if isinstance(event, (ConnectionTerminated, StreamReset)):
            self.end(f"it was cut: {event}")
        for event in self.http.handle_event(event):
            if isinstance(event, HeadersReceived) and dict(event.headers)[b":status"] != b"200":
                self.end(f"not a success: {event.headers}")
            elif isinstance(event, DataReceived):
                self.file.write(event.data)
            if isinstance(event, (DataReceived, HeadersReceived)) and event.stream_ended:
                self.end(None)

    def end(self, wrong):
        if self.over.done():
            return
        if wrong is None:
            self.over.set_result(None)
        else:
            self.over.set_exception(RuntimeError(wrong))


async def main(host, port, path, file):
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE
    )
    connecting = connect(host, int(port), configuration=configuration, create_protocol=Download)
    async with connecting as client:
        # Unbuffered: whoever waits for the first bytes looks at the file.
        with open(file, "wb", buffering=0) as output:
            await client.get(host, path, output)


asyncio.run(main(*sys.argv[1:]))
