"""The same site under WSGI: `python -m tests.web.wsgi PORT`."""

import sys
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.wsgi import get_wsgi_application


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


application = StaticFilesHandler(get_wsgi_application())

if __name__ == "__main__":
    with make_server("127.0.0.1", int(sys.argv[1]), application, Server) as server:
        print(f"running on http://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201
        server.serve_forever()
